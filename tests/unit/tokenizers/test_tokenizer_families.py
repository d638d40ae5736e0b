"""What every family does, at tiny scale; parameters at the paper's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unforge import tokenizers
from unforge.tokenizers import codec, llamagen, rar, vqdiffusion
from unforge.tokenizers.base import Tokenizer, measure, psnr, usage

Make = Callable[..., Tokenizer]


def test_families() -> None:
    assert tokenizers.names() == ["infinity", "llamagen", "rar", "taming", "var", "vqdiffusion"]
    with pytest.raises(ValueError, match="llamagen"):
        tokenizers.load_module("llamagn")


@pytest.mark.parametrize(
    ("name", "total", "encoder", "decoder"),
    [
        ("llamagen", "71.88", "29.30", "42.45"),
        ("rar", "54.52", "23.78", "30.48"),
        ("var", "108.95", "44.11", "64.65"),
        ("taming", "76.07", "29.30", "42.45"),
        ("vqdiffusion", "76.07", "29.30", "42.45"),
        ("infinity", "110.12", "45.03", "65.09"),
    ],
)
def test_parameters_at_the_papers_scale(name: str, total: str, encoder: str, decoder: str) -> None:
    """Millions. The first three are counted in the released networks; the others follow from their configurations."""
    counts = tokenizers.counts(name)
    assert [f"{counts[part] / 1e6:.2f}" for part in ("", "encoder", "decoder")] == [total, encoder, decoder]


def convolutions(width: int, multipliers: tuple[int, ...], blocks: int, latent: int, attention: int) -> int:
    """Parameters of a VQGAN encoder, layer by layer; `attention`: 1x1 convolutions of an attention block."""

    def conv(a: int, b: int, side: int) -> int:
        return a * b * side * side + b

    def block(a: int, b: int) -> int:
        return 2 * a + conv(a, b, 3) + 2 * b + conv(b, b, 3) + (conv(a, b, 1) if a != b else 0)

    def mixing(a: int) -> int:
        return (2 * a + attention * conv(a, a, 1)) if attention else 0

    widths = [width * m for m in multipliers]
    total, before = conv(3, width, 3), width
    for level, after in enumerate(widths):
        for _ in range(blocks):
            total += block(before, after) + (mixing(after) if level == len(widths) - 1 else 0)
            before = after
        total += conv(after, after, 3) if level < len(widths) - 1 else 0
    return total + 2 * block(before, before) + mixing(before) + 2 * before + conv(before, latent, 3)


def test_encoders_counted_by_hand() -> None:
    assert tokenizers.counts("llamagen")["encoder"] == convolutions(128, (1, 1, 2, 2, 4), 2, 256, 4)
    assert tokenizers.counts("var")["encoder"] == convolutions(160, (1, 1, 2, 2, 4), 2, 32, 4)
    assert tokenizers.counts("infinity")["encoder"] == convolutions(128, (1, 2, 4, 4, 4), 2, 32, 0)


@pytest.mark.parametrize("name", ["infinity", "llamagen", "rar", "taming", "var", "vqdiffusion"])
def test_small_tokenizers_have_8_by_8_tokens(name: str) -> None:
    module = tokenizers.load_module(name)
    tokenizer = module.build(module.SMALL)
    assert (tokenizer.image_size, tokenizer.grid) == (32, 8)
    assert tokenizer.encode(torch.rand(1, 3, 32, 32)).shape[2:] == (8, 8)
    assert 0.35e6 < tokenizers.counts(name, module.SMALL)[""] < 0.65e6


def test_lookup_gives_what_quantize_gave(family: str, make: Make) -> None:
    tokenizer = make(family)
    torch.manual_seed(1)
    for images in (torch.rand(3, 3, 16, 16), torch.zeros(1, 3, 16, 16)):
        features = tokenizer.encode(images)
        found = tokenizer.quantize(features)
        assert torch.equal(tokenizer.lookup(found.tokens), found.features)
        assert found.features.shape == features.shape
        assert found.tokens.shape[:2] == (len(images), 21 if family in ("var", "infinity") else 16)
        assert found.tokens.dtype == (torch.bool if family == "infinity" else torch.int64)


def test_the_gradient_of_quantize_goes_straight_through(family: str, make: Make) -> None:
    tokenizer = make(family)
    features = tokenizer.encode(torch.rand(2, 3, 16, 16)).detach().requires_grad_()
    weight = torch.randn_like(features)
    found = tokenizer.quantize(features)
    (found.features * weight).sum().backward()
    assert torch.equal(features.grad, weight)
    assert torch.equal(found.features, tokenizer.lookup(found.tokens))
    assert all(p.grad is None for p in tokenizer.quantizer.parameters())


def test_quantize_under_autocast_is_the_same(family: str, make: Make) -> None:
    tokenizer = make(family)
    features = tokenizer.encode(torch.rand(2, 3, 16, 16)).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = tokenizer.quantize(features)
    assert torch.equal(found.tokens, tokenizer.quantize(features).tokens)
    assert torch.equal(found.features, tokenizer.quantize(features).features)


def test_images_out_are_on_the_scale_of_images_in(family: str, make: Make) -> None:
    """A decoder that gives one pixel value everywhere: the middle of its range is grey, its ends black and white,
    and only `to_image` clamps."""
    tokenizer = make(family)
    low, high = (0.0, 1.0) if family == "rar" else (-1.0, 1.0)
    features = tokenizer.encode(torch.rand(1, 3, 16, 16))
    seen: list[torch.Tensor] = []
    tokenizer.encoder.conv_in.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokenizer.encode(torch.zeros(1, 3, 16, 16))
    tokenizer.encode(torch.ones(1, 3, 16, 16))
    assert [float(image.unique()) for image in seen] == [low, high]
    tokenizer.decoder.conv_out.weight.data.zero_()
    for value, expected in ((low, 0.0), ((low + high) / 2, 0.5), (high, 1.0), (2 * high - low, 2.0)):
        tokenizer.decoder.conv_out.bias.data.fill_(value)
        image = tokenizer.decode(features)
        assert image.shape == (1, 3, 16, 16)
        assert image.unique().tolist() == [pytest.approx(expected)]
        assert tokenizer.to_image(features).unique().tolist() == [pytest.approx(min(expected, 1.0))]


@pytest.mark.parametrize("shape", [(1, 3, 16, 20), (1, 3, 32, 32), (3, 16, 16), (1, 1, 16, 16)])
def test_images_of_another_size_are_refused(make: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes \(B, 3, 16, 16\)"):
        make("rar").encode(torch.zeros(shape))


def test_sizes_that_do_not_fit_are_refused(tiny: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        tokenizers.build("rar", tiny("rar", image_size=18))
    for name in ("var", "infinity"):
        with pytest.raises(ValueError, match="rising to 4"):
            tokenizers.build(name, tiny(name, scales=(1, 2)))


def test_what_an_inverse_decoder_trains(family: str, make: Make) -> None:
    tokenizer = make(family)
    recipe = tokenizers.load_module(family).RECIPE
    assert tokenizer.encoder_modules() == [tokenizer.get_submodule(name) for name in recipe.modules]
    assert recipe.modules == (("encoder", "quant_conv") if family == "var" else ("encoder",))
    assert bool(recipe.augmented) == (family in ("rar", "taming", "vqdiffusion"))
    assert sum(epochs for _, epochs in recipe.augmented) in (0, recipe.epochs)


def test_llamagens_features_are_normalised(make: Make) -> None:
    features = make("llamagen").encode(torch.rand(2, 3, 16, 16))
    assert torch.allclose(features.norm(dim=1), torch.ones(2, 4, 4), atol=1e-5)


def test_one_attention_convolution_or_three() -> None:
    torch.manual_seed(0)
    three, one = codec.Attention(8, 2, fused=False), codec.Attention(8, 2, fused=True)
    state = three.state_dict()
    joined = {f"qkv.{kind}": torch.cat([state.pop(f"{part}.{kind}") for part in "qkv"]) for kind in ("weight", "bias")}
    one.load_state_dict({**state, **joined})
    x = torch.randn(2, 8, 3, 5)
    assert torch.allclose(three(x), one(x), atol=1e-6)
    h = three.norm(x).flatten(2)
    q, k, v = (
        torch.einsum("oc,bcn->bon", getattr(three, n).weight[:, :, 0, 0], h) + getattr(three, n).bias[:, None]
        for n in "qkv"
    )
    weights = torch.softmax(torch.einsum("bcn,bcm->bnm", q, k) / math.sqrt(8), dim=2)
    mixed = three.proj_out(torch.einsum("bnm,bcm->bcn", weights, v).reshape(x.shape))
    assert torch.allclose(three(x), x + mixed, atol=1e-5)


def test_rars_shortcut_takes_the_blocks_output() -> None:
    torch.manual_seed(0)
    block = rar.ResBlock(4, 8, 2)
    block.nin_shortcut.weight.data = 2 * torch.eye(8)[:, :, None, None]
    x = torch.randn(1, 4, 3, 3)
    h = block.conv2(torch.nn.functional.silu(block.norm2(block.conv1(torch.nn.functional.silu(block.norm1(x))))))
    assert torch.allclose(block(x), 3 * h, atol=1e-6)


def test_save_and_load(family: str, make: Make, tmp_path: Path) -> None:
    tokenizer = make(family)
    tokenizer.step.fill_(7)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tokenizers.save(tokenizer, family, tmp_path / folder)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    loaded = tokenizers.load(tmp_path / "a")
    assert not loaded.training
    assert loaded.config == tokenizer.config
    assert type(loaded) is type(tokenizer)
    assert int(loaded.step) == 7
    image = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded(image), tokenizer(image))


def test_what_is_not_there_or_of_another_version(tmp_path: Path, make: Make) -> None:
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        tokenizers.load(tmp_path)
    tokenizers.save(make("rar"), "rar", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"codes"', '"kodes"'))
    with pytest.raises(ValueError, match="kodes"):
        tokenizers.load(tmp_path)


def test_vqdiffusion_of_a_taming_tokenizer(make: Make, tiny: Callable[..., Any]) -> None:
    taming, images = make("taming"), torch.rand(9, 3, 16, 16)
    result = vqdiffusion.remapped(taming, tiny("vqdiffusion"), images)
    indices = taming.quantize(taming.encode(images)).tokens
    frequent = torch.bincount(indices.flatten(), minlength=24).argsort(descending=True, stable=True)[:10]
    assert result.quantizer.to_full.tolist() == sorted(frequent.tolist())
    assert torch.equal(result.encode(images), taming.encode(images))
    found = result.quantize(result.encode(images))
    assert int(found.tokens.max()) < 10
    kept = torch.isin(indices, frequent)
    assert torch.equal(result.quantizer.to_full[found.tokens][kept], indices[kept])
    with pytest.raises(ValueError, match="is not the codec"):
        vqdiffusion.remapped(make("taming", codes=12), tiny("vqdiffusion"), images)


def test_psnr_worked_by_hand() -> None:
    image = torch.zeros(3, 3, 4, 4)
    other = torch.stack([torch.full((3, 4, 4), value) for value in (0.1, 1.0, 0.0)])
    assert psnr(other, image).tolist() == [pytest.approx(20.0, abs=1e-4), 0.0, math.inf]


def test_usage_worked_by_hand() -> None:
    assert usage(torch.tensor([[0, 0], [3, 3]]), 8) == {
        "codes": 8,
        "used": 2,
        "share": 0.25,
        "perplexity": pytest.approx(2),
    }
    bits = torch.tensor([[[True, False], [True, False], [True, True]]])
    found = usage(bits, 4)
    assert (found["used"], found["share"]) == (2, 0.5)
    assert found["perplexity"] == pytest.approx(3 / 2 ** (2 / 3))


def test_measure_is_of_all_images_and_changes_nothing(make: Make) -> None:
    tokenizer = make("llamagen").train()
    before = {key: value.clone() for key, value in tokenizer.state_dict().items()}
    images = torch.rand(5, 3, 16, 16)
    found = measure(tokenizer, images, batch=2)
    assert tokenizer.training
    assert all(torch.equal(value, before[key]) for key, value in tokenizer.state_dict().items())
    tokenizer.eval()
    with torch.no_grad():
        expected = psnr(tokenizer(images).clamp(0, 1), images).mean()
    assert found["psnr"] == pytest.approx(float(expected), rel=1e-5)
    assert found["used"] == len(tokenizer.quantize(tokenizer.encode(images)).tokens.unique())


def test_configurations_say_where_they_come_from() -> None:
    for name in tokenizers.names():
        module = tokenizers.load_module(name)
        assert dataclasses.is_dataclass(module.Config)
        assert module.RECIPE.source
        assert module.OFFICIAL.release
        assert "Source" in module.Config.__doc__
    assert llamagen.Config().image_size // llamagen.Config().factor == 24
