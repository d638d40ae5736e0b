"""Released state dicts. Their keys and shapes are written down here from the releases' own modules, without a look at
ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unforge import tokenizers
from unforge.tokenizers import official
from unforge.tokenizers.base import Tokenizer

Shapes = dict[str, tuple[int, ...]]


def conv(key: str, a: int, b: int, side: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{key}.weight", (b, a, side, side)
    if bias:
        yield f"{key}.bias", (b,)


def norm(key: str, a: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{key}.weight", (a,)
    yield f"{key}.bias", (a,)


def block(key: str, a: int, b: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from norm(f"{key}.norm1", a)
    yield from conv(f"{key}.conv1", a, b, 3)
    yield from norm(f"{key}.norm2", b)
    yield from conv(f"{key}.conv2", b, b, 3)
    if a != b:
        yield from conv(f"{key}.nin_shortcut", a, b, 1)


def attention(key: str, a: int, kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if kind != "none":
        yield from norm(f"{key}.norm", a)
        for part, times in {"qkv": [("qkv", 3)], "q k v": [("q", 1), ("k", 1), ("v", 1)]}[kind]:
            yield from conv(f"{key}.{part}", a, times * a, 1)
        yield from conv(f"{key}.proj_out", a, a, 1)


def vqgan(width: int, multipliers: tuple[int, ...], blocks: int, latent: int, kind: str) -> Shapes:
    """Encoder and decoder as Taming Transformers names them."""
    widths = [width * m for m in multipliers]
    low = len(widths) - 1
    found = dict(conv("encoder.conv_in", 3, width, 3))
    before = width
    for i, after in enumerate(widths):
        for j in range(blocks):
            found |= dict(block(f"encoder.down.{i}.block.{j}", before, after))
            before = after
            if i == low:
                found |= dict(attention(f"encoder.down.{i}.attn.{j}", after, kind))
        if i < low:
            found |= dict(conv(f"encoder.down.{i}.downsample.conv", after, after, 3))
    found |= dict(conv("encoder.conv_out", before, latent, 3))
    found |= dict(conv("decoder.conv_in", latent, before, 3))
    for side in ("encoder", "decoder"):
        found |= dict(block(f"{side}.mid.block_1", before, before))
        found |= dict(attention(f"{side}.mid.attn_1", before, kind))
        found |= dict(block(f"{side}.mid.block_2", before, before))
    found |= dict(norm("encoder.norm_out", before))
    for i in range(low, -1, -1):
        for j in range(blocks + 1):
            found |= dict(block(f"decoder.up.{i}.block.{j}", before, widths[i]))
            before = widths[i]
            if i == low:
                found |= dict(attention(f"decoder.up.{i}.attn.{j}", before, kind))
        if i > 0:
            found |= dict(conv(f"decoder.up.{i}.upsample.conv", before, before, 3))
    found |= dict(norm("decoder.norm_out", before))
    return found | dict(conv("decoder.conv_out", before, 3, 3))


def llamagen(width: int, multipliers: tuple[int, ...], blocks: int, latent: int, codes: int, channels: int) -> Shapes:
    widths = [width * m for m in multipliers]
    low = len(widths) - 1
    found = dict(conv("encoder.conv_in", 3, width, 3))
    before = width
    for i, after in enumerate(widths):
        for j in range(blocks):
            found |= dict(block(f"encoder.conv_blocks.{i}.res.{j}", before, after))
            before = after
            if i == low:
                found |= dict(attention(f"encoder.conv_blocks.{i}.attn.{j}", after, "q k v"))
        if i < low:
            found |= dict(conv(f"encoder.conv_blocks.{i}.downsample.conv", after, after, 3))
    found |= dict(conv("encoder.conv_out", before, latent, 3)) | dict(norm("encoder.norm_out", before))
    found |= dict(conv("decoder.conv_in", latent, before, 3))
    for side in ("encoder", "decoder"):
        found |= dict(block(f"{side}.mid.0", before, before)) | dict(block(f"{side}.mid.2", before, before))
        found |= dict(attention(f"{side}.mid.1", before, "q k v"))
    for i, after in enumerate(reversed(widths)):
        for j in range(blocks + 1):
            found |= dict(block(f"decoder.conv_blocks.{i}.res.{j}", before, after))
            before = after
            if i == 0:
                found |= dict(attention(f"decoder.conv_blocks.{i}.attn.{j}", after, "q k v"))
        if i < low:
            found |= dict(conv(f"decoder.conv_blocks.{i}.upsample.conv", after, after, 3))
    found |= dict(norm("decoder.norm_out", before)) | dict(conv("decoder.conv_out", before, 3, 3))
    found |= dict(conv("quant_conv", latent, channels, 1)) | dict(conv("post_quant_conv", channels, latent, 1))
    return found | {"quantize.embedding.weight": (codes, channels), "quantize.codebook_used": (65536,)}


def maskgit(width: int, multipliers: tuple[int, ...], blocks: int, codes: int, channels: int) -> Shapes:
    def plain(key: str, a: int, b: int) -> Shapes:
        found = dict(norm(f"{key}.norm1", a)) | dict(conv(f"{key}.conv1", a, b, 3, bias=False))
        found |= dict(norm(f"{key}.norm2", b)) | dict(conv(f"{key}.conv2", b, b, 3, bias=False))
        return found | (dict(conv(f"{key}.nin_shortcut", b, b, 1, bias=False)) if a != b else {})

    widths = [width * m for m in multipliers]
    found = dict(conv("encoder.conv_in", 3, width, 3, bias=False))
    before = width
    for i, after in enumerate(widths):
        for j in range(blocks):
            found |= plain(f"encoder.down.{i}.block.{j}", before, after)
            before = after
    for side in ("encoder", "decoder"):
        for j in range(blocks):
            found |= plain(f"{side}.mid.{j}", before, before)
    found |= dict(norm("encoder.norm_out", before)) | dict(conv("encoder.conv_out", before, channels, 1))
    found |= dict(conv("decoder.conv_in", channels, before, 3))
    for i in range(len(widths) - 1, -1, -1):
        for j in range(blocks):
            found |= plain(f"decoder.up.{i}.block.{j}", before, widths[i])
            before = widths[i]
        if i > 0:
            found |= dict(conv(f"decoder.up.{i}.upsample_conv", before, before, 3))
    found |= dict(norm("decoder.norm_out", before)) | dict(conv("decoder.conv_out", before, 3, 3))
    return found | {"quantize.embedding.weight": (codes, channels)}


def taming(width: int, multipliers: tuple[int, ...], blocks: int, latent: int, codes: int, channels: int) -> Shapes:
    found = vqgan(width, multipliers, blocks, latent, "q k v")
    found |= dict(conv("quant_conv", latent, channels, 1)) | dict(conv("post_quant_conv", channels, latent, 1))
    found |= {"quantize.embedding.weight": (codes, channels), "loss.discriminator.main.0.weight": (64, 3, 4, 4)}
    return found


def var(width: int, multipliers: tuple[int, ...], blocks: int, codes: int, channels: int, scales: int) -> Shapes:
    found = vqgan(width, multipliers, blocks, channels, "qkv")
    for key in ("quant_conv", "post_quant_conv", *(f"quantize.quant_resi.qresi_ls.{i}" for i in range(4))):
        found |= dict(conv(key, channels, channels, 3))
    return found | {"quantize.embedding.weight": (codes, channels), "quantize.ema_vocab_hit_SV": (scales, codes)}


def infinity(width: int, multipliers: tuple[int, ...], blocks: int, bits: int) -> Shapes:
    return vqgan(width, multipliers, blocks, bits, "none") | {
        "quantize.lfq.mask": (bits,),
        "quantizer.lfq.mask": (bits,),
    }


def wrapped(shapes: dict[str, Any]) -> dict[str, Any]:
    """Infinity's other spelling: each convolution and norm lies in a module of its own."""
    found = {}
    for key, value in shapes.items():
        stem, _, kind = key.rpartition(".")
        inner = "norm" if "norm" in stem.rpartition(".")[2] else "conv"
        found[key if stem.endswith("lfq") else f"{stem}.{inner}.{kind}"] = value
    return found


PAPER: dict[str, Shapes] = {
    "llamagen": llamagen(128, (1, 1, 2, 2, 4), 2, 256, 16384, 8),
    "taming": taming(128, (1, 1, 2, 2, 4), 2, 256, 16384, 256),
    "vqdiffusion": taming(128, (1, 1, 2, 2, 4), 2, 256, 16384, 256),
    "rar": maskgit(128, (1, 1, 2, 2, 4), 2, 1024, 256),
    "var": var(160, (1, 1, 2, 2, 4), 2, 4096, 32, 10),
    "infinity": infinity(128, (1, 2, 4, 4, 4), 2, 32),
}
TINY: dict[str, Shapes] = {
    "llamagen": llamagen(4, (1, 2, 3), 1, 8, 24, 8),
    "taming": taming(4, (1, 2, 3), 1, 8, 24, 6),
    "vqdiffusion": taming(4, (1, 2, 3), 1, 8, 24, 6),
    "rar": maskgit(4, (1, 2, 3), 1, 24, 6),
    "var": var(4, (1, 2, 3), 1, 24, 6, 3),
    "infinity": infinity(4, (1, 2, 3), 1, 5),
}
ENTRY = {
    "llamagen": "model",
    "taming": "state_dict",
    "vqdiffusion": "state_dict",
    "rar": "",
    "var": "",
    "infinity": "vae",
}


def filled(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """Writes a file as it was released; gives its path and hash."""

    def written(content: Any, name: str = "weights.pt") -> tuple[Path, str]:
        path = tmp_path / name
        torch.save(content, path)
        return path, digest(path)

    return written


@pytest.fixture
def load(write: Callable[..., tuple[Path, str]], tiny: Callable[..., Any]) -> Callable[..., Tokenizer]:
    def loaded(family: str, state: dict[str, Any], mapping: Any = None) -> Tokenizer:
        path, sha256 = write({ENTRY[family]: state, "epoch": 3} if ENTRY[family] else state)
        extras = {}
        if family == "vqdiffusion":
            extras = {"mapping": write(torch.arange(24) % 10 if mapping is None else mapping, "mapping.pt")}
        return tokenizers.load_official(family, path, sha256, config=tiny(family), extras=extras)

    return loaded


@pytest.mark.parametrize(("family", "spelling"), [*((name, dict) for name in PAPER), ("infinity", wrapped)])
def test_paper_scale_keys_and_shapes(family: str, spelling: Callable[[Shapes], Shapes]) -> None:
    module = tokenizers.load_module(family)
    with torch.device("meta"):
        tokenizer = module.build(module.Config())
        state = {key: torch.empty(shape) for key, shape in spelling(PAPER[family]).items()}
        found = official.matched(tokenizer, module.OFFICIAL, state)
    own = set(tokenizer.state_dict()) - {"step", "quantizer.ready", "quantizer.idle"}
    assert set(found) == own - {"quantizer.to_full", "quantizer.to_used"}


def test_a_released_file_is_loaded(family: str, load: Callable[..., Tokenizer]) -> None:
    state = filled(TINY[family])
    tokenizer = load(family, state)
    assert not tokenizer.training
    image = torch.rand(2, 3, 16, 16)
    assert torch.isfinite(tokenizer(image)).all()
    for name, value in tokenizer.named_parameters():
        assert any(given.shape == value.shape and torch.equal(given, value) for given in state.values()), name


def test_values_come_to_their_places(load: Callable[..., Tokenizer]) -> None:
    """Spot checks of the renamed keys."""
    state = filled(TINY["llamagen"])
    tokenizer = load("llamagen", state)
    for key, value in {
        "encoder.conv_blocks.2.attn.0.v.bias": tokenizer.encoder.down[2].attn[0].v.bias,
        "encoder.mid.1.q.weight": tokenizer.encoder.mid.attn_1.q.weight,
        "decoder.conv_blocks.0.res.1.conv1.weight": tokenizer.decoder.up[2].block[1].conv1.weight,
        "decoder.conv_blocks.0.upsample.conv.bias": tokenizer.decoder.up[2].upsample.conv.bias,
        "decoder.conv_blocks.2.res.0.nin_shortcut.weight": tokenizer.decoder.up[0].block[0].nin_shortcut.weight,
        "decoder.mid.2.norm1.weight": tokenizer.decoder.mid.block_2.norm1.weight,
        "quantize.embedding.weight": tokenizer.quantizer.codebook,
    }.items():
        assert torch.equal(state[key], value), key
    state = filled(TINY["var"])
    tokenizer = load("var", state)
    assert torch.equal(tokenizer.quantizer.phi[3].weight, state["quantize.quant_resi.qresi_ls.3.weight"])
    state = wrapped(filled(TINY["infinity"]))
    tokenizer = load("infinity", state)
    assert torch.equal(
        tokenizer.encoder.down[0].downsample.conv.weight, state["encoder.down.0.downsample.conv.conv.weight"]
    )
    assert torch.equal(tokenizer.decoder.norm_out.bias, state["decoder.norm_out.norm.bias"])


def test_partial_files_are_refused(family: str, load: Callable[..., Tokenizer]) -> None:
    state = filled(TINY[family])
    gone = sorted(key for key in state if key.startswith("decoder.conv_out"))
    for key in gone:
        del state[key]
    with pytest.raises(ValueError, match=rf"2 missing: {gone[0]}, {gone[1]}$"):
        load(family, state)


def test_another_shape_is_refused(family: str, load: Callable[..., Tokenizer]) -> None:
    state = filled(TINY[family])
    state["encoder.conv_in.weight"] = torch.zeros(7, 3, 3, 3)
    with pytest.raises(ValueError, match=r"1 another shape: encoder.conv_in.weight \(7, 3, 3, 3\) for \(4, 3, 3, 3\)"):
        load(family, state)


def test_keys_that_are_not_known_are_refused(family: str, load: Callable[..., Tokenizer]) -> None:
    with pytest.raises(ValueError, match=r"1 unexpected: encoder\.extra\.weight"):
        load(family, {**filled(TINY[family]), "encoder.extra.weight": torch.zeros(1)})


def test_values_that_are_no_tensors_are_refused(load: Callable[..., Tokenizer]) -> None:
    with pytest.raises(ValueError, match=r"decoder.conv_in.bias \('no tensor',\)"):
        load("rar", {**filled(TINY["rar"]), "decoder.conv_in.bias": "text"})


def test_foreign_files_are_refused(load: Callable[..., Tokenizer]) -> None:
    with pytest.raises(ValueError, match=r"not the state dict of vae_ch160v4096z32.pth; \d+ missing: .*unexpected"):
        load("var", filled(TINY["llamagen"]))


def test_the_hash_must_be_right(write: Callable[..., tuple[Path, str]], tiny: Callable[..., Any]) -> None:
    path, sha256 = write(filled(TINY["rar"]))
    with pytest.raises(ValueError, match=f"has SHA-256 {sha256}, not {'0' * 64}"):
        tokenizers.load_official("rar", path, "0" * 64, config=tiny("rar"))
    with pytest.raises(ValueError, match="64 hex digits"):
        tokenizers.load_official("rar", path, "", config=tiny("rar"))
    with pytest.raises(FileNotFoundError, match=r"nothing\.bin"):
        tokenizers.load_official("rar", path.with_name("nothing.bin"), sha256, config=tiny("rar"))
    tokenizers.load_official("rar", path, sha256.upper(), config=tiny("rar"))


class Loud:
    """What must not run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_files_with_more_than_tensors_are_refused(
    write: Callable[..., tuple[Path, str]], tiny: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, sha256 = write({"state_dict": filled(TINY["taming"]), "callbacks": Loud()})
    with pytest.raises(ValueError, match=r"more than tensors .* save its \['state_dict'\] alone as .safetensors"):
        tokenizers.load_official("taming", path, sha256, config=tiny("taming"))
    assert capsys.readouterr().out == ""
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="damaged"):
        tokenizers.load_official("taming", path, digest(path), config=tiny("taming"))


def test_the_entry_may_have_been_taken_out(
    write: Callable[..., tuple[Path, str]], tiny: Callable[..., Any], tmp_path: Path
) -> None:
    state = filled(TINY["taming"])
    plain = tokenizers.load_official("taming", *write(state), config=tiny("taming"))
    save_file(state, tmp_path / "weights.safetensors")
    path = tmp_path / "weights.safetensors"
    safe = tokenizers.load_official("taming", path, digest(path), config=tiny("taming"))
    assert all(torch.equal(value, safe.state_dict()[key]) for key, value in plain.state_dict().items())
    with pytest.raises(ValueError, match="no entry 'state_dict': it has ema, epoch"):
        tokenizers.load_official("taming", *write({"ema": state, "epoch": 3}), config=tiny("taming"))
    with pytest.raises(ValueError, match="holds a list"):
        tokenizers.load_official("taming", *write([torch.zeros(3)]), config=tiny("taming"))
    with pytest.raises(ValueError, match="unexpected: 0, 1"):
        tokenizers.load_official("rar", *write({0: torch.zeros(3), 1: torch.zeros(3)}), config=tiny("rar"))
    with pytest.raises(ValueError, match="holds a Tensor"):
        tokenizers.load_official("taming", *write(torch.zeros(3)), config=tiny("taming"))


def test_vqdiffusion_needs_its_mapping(
    load: Callable[..., Tokenizer], write: Callable[..., tuple[Path, str]], tiny: Callable[..., Any]
) -> None:
    state = filled(TINY["vqdiffusion"])
    tokenizer = load("vqdiffusion", state, torch.arange(24).flip(0) % 10)
    assert tokenizer.quantizer.to_used.tolist() == [i % 10 for i in range(23, -1, -1)]
    assert tokenizer.quantizer.to_full.tolist() == [3, 2, 1, 0, 9, 8, 7, 6, 5, 4]
    with pytest.raises(ValueError, match=r"needed: mapping \(taming_vqvae_974.pt\)"):
        tokenizers.load_official("vqdiffusion", *write(state), config=tiny("vqdiffusion"))
    with pytest.raises(ValueError, match="needed: none"):
        tokenizers.load_official("taming", *write(state), extras={"mapping": write(state)}, config=tiny("taming"))
    with pytest.raises(ValueError, match="mapping has 24 tokens"):
        load("vqdiffusion", state, torch.arange(24))


def test_half_precision_files_and_further_training(load: Callable[..., Tokenizer]) -> None:
    tokenizer = load("rar", {key: value.half() for key, value in filled(TINY["rar"]).items()})
    assert all(p.dtype == torch.float32 for p in tokenizer.parameters())
    assert bool(tokenizer.quantizer.ready)
    assert int(tokenizer.step) >= tokenizer.config.unquantised_steps
