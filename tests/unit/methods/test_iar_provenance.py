"""The provenance method: what its signals are, and what they cost."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn

from unforge import counts, methods, tokenizers
from unforge.methods import iar_provenance
from unforge.provenance import inverse, signals
from unforge.types import Batch

FAMILIES = sorted(iar_provenance.SIZES)


@cache
def counted(family: str, name: str) -> tuple[int, float]:
    return counts.of("iar_provenance", f"{family}_{name}")[""]


def macs(family: str, name: str) -> float:
    return counted(family, name)[1]


def small(family: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    config = dataclasses.replace(iar_provenance.SMALL, tokenizer=family, **changes)
    method: nn.Module = methods.build("iar_provenance", config)
    return method


def test_every_family_has_its_variants_at_its_own_size() -> None:
    assert set(tokenizers.names()) == set(FAMILIES)
    for family in FAMILIES:
        assert tokenizers.load_module(family).Config().image_size == iar_provenance.SIZES[family]
        for name in iar_provenance.SIGNALS:
            config = methods.config("iar_provenance", f"{family}_{name}")
            assert (config.tokenizer, config.count_size) == (family, iar_provenance.SIZES[family])
            assert methods.config("iar_provenance", f"{family}_{name}", "small").scale == "small"
    assert set(iar_provenance.Config().signals) <= set(signals.SIGNALS)


def test_the_configuration_needs_no_torch() -> None:
    code = "import sys, unforge.methods.iar_provenance as m; m.Config(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_the_tokenizers(family: str) -> None:
    found = counted(family, "quant_loss")[0]
    assert found == tokenizers.counts(family)[""]
    printed = {"llamagen": 71.88e6, "rar": 54.5e6, "var": 108.95e6}
    assert found == pytest.approx(printed.get(family, found), rel=1e-3)


class Hooked:
    """Counts what convolutions and attention multiply, from the shapes their modules see: no operator is asked."""

    def __init__(self, network: nn.Module) -> None:
        from unforge.tokenizers.codec import Attention

        self.total = 0
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(self.convolution)
            elif isinstance(module, Attention):
                module.register_forward_hook(self.attention)

    def convolution(self, module: nn.Conv2d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.total += output[0].numel() * module.weight[0].numel()

    def attention(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        places = output.shape[2] * output.shape[3]
        self.total += 2 * places**2 * output.shape[1]


def passes(family: str) -> tuple[int, int, int]:
    """Multiplications of the encoder, the decoder and the nearest-code search, counted from shapes."""
    module = tokenizers.load_module(family)
    with torch.device("meta"):
        tokenizer = module.build(module.Config()).eval()
        image = torch.empty(1, 3, tokenizer.image_size, tokenizer.image_size)
    hooked = Hooked(tokenizer)
    features = tokenizer.encode(image)
    encoder = hooked.total
    tokenizer.decode(features)
    decoder = hooked.total - encoder
    book = getattr(tokenizer.quantizer, "codebook", None)
    places = sum(side**2 for side in getattr(tokenizer.quantizer, "scales", (tokenizer.grid,)))
    search = 0 if book is None else places * len(book) * (book.shape[1] + 2)
    return encoder, decoder, search


@pytest.mark.parametrize("family", ["llamagen", "var", "rar", "infinity"])
def test_each_variant_costs_the_passes_it_needs(family: str) -> None:
    """The product of the search has two columns more than a code: the squares. The mean of an error reads each value
    once; phis and resampling are below 1 %."""
    encoder, decoder, search = passes(family)
    assert macs(family, "quant_loss") == pytest.approx(encoder + search, rel=0.01)
    assert macs(family, "reconstruction") == pytest.approx(encoder + search + decoder, rel=0.01)
    assert macs(family, "aedr") == 2 * (encoder + decoder) + 2 * 3 * iar_provenance.SIZES[family] ** 2
    assert macs(family, "signals") == pytest.approx(2 * (encoder + decoder) + search, rel=0.01)


def test_the_papers_two_models_leave_more_than_it_claims() -> None:
    """It claims half of Reconstruction and a quarter of AEDR."""
    for family in ("llamagen", "var"):
        assert macs(family, "quant_loss") / macs(family, "reconstruction") == pytest.approx(0.35, abs=0.01)
        assert macs(family, "quant_loss") / macs(family, "aedr") == pytest.approx(0.18, abs=0.01)
        assert macs(family, "signals") / macs(family, "aedr") == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("family", FAMILIES)
def test_signals_are_those_of_provenance_by_hand(family: str) -> None:
    method = small(family, signals=("quant_loss", "enc_loss_calibrated", "combined", "reconstruction"))
    image = torch.rand(2, 3, 32, 32)
    found = method.predict(image).signals
    assert not method.training
    tokenizer = method.tokenizer
    with torch.no_grad():
        features = tokenizer.encode(image)
        coded = tokenizer.quantize(features).features
        once = tokenizer.to_image(features)
        twice = tokenizer.to_image(tokenizer.encode(once))
        for i in range(2):
            quant = float((features[i] - coded[i]).square().mean())
            ratio = float((once[i] - image[i]).square().mean() / (twice[i] - once[i]).square().mean())
            through = float((tokenizer.to_image(coded)[i] - image[i]).square().mean())
            assert float(found["quant_loss"][i]) == pytest.approx(quant, rel=1e-4)
            assert float(found["enc_loss_calibrated"][i]) == pytest.approx(ratio, rel=1e-3)
            assert float(found["combined"][i]) == pytest.approx(quant * ratio, rel=1e-3)
            assert float(found["reconstruction"][i]) == pytest.approx(through, rel=1e-4)
    assert list(found) == list(method.config.signals)


def test_quant_loss_alone_never_decodes() -> None:
    method = small("var", signals=("quant_loss",))
    calls = []
    method.tokenizer.decoder.register_forward_hook(lambda *_: calls.append("decoder"))
    method.tokenizer.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    method(torch.rand(1, 3, 32, 32))
    assert calls == ["encoder"]


def test_an_inverse_decoder_takes_the_encoders_place(tmp_path) -> None:
    """Loaded from folders, as the stages write them: only what reads features changes."""
    config = dataclasses.replace(iar_provenance.SMALL, tokenizer="rar", signals=("quant_loss", "reconstruction"))
    own = small("rar", signals=config.signals)
    decoder = inverse.InverseDecoder(own.tokenizer)
    with torch.no_grad():
        for parameter in decoder.tokenizer.encoder.parameters():
            parameter.mul_(1.1)
    for name in ("codebook", "inverse"):
        (tmp_path / name).mkdir()
    tokenizers.save(own.tokenizer, "rar", tmp_path / "codebook")
    inverse.save(decoder, tmp_path / "inverse")
    assets = {"codebook": tmp_path / "codebook", "inverse": tmp_path / "inverse"}
    torch.manual_seed(1)
    image = torch.rand(1, 3, 32, 32)
    with_own = methods.build("iar_provenance", config, assets)
    assert with_own(image) == own(image)
    for encoder in ("inverse", "augmented"):
        found = methods.build("iar_provenance", dataclasses.replace(config, encoder=encoder), assets)(image)
        expected = signals.measure(own.tokenizer, image, config.signals, decoder.eval())
        assert found == expected
        assert found["quant_loss"] != own(image)["quant_loss"]
    fresh = small("rar", signals=config.signals, encoder="inverse")
    assert fresh(image) == own(image)


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    method = small("llamagen")
    with pytest.raises(ValueError, match=r"\(B,3,32,32\)"):
        method.predict(torch.rand(1, 3, 48, 48))
    with pytest.raises(ValueError, match="no signal"):
        small("llamagen", signals=("magic",))(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="dalle"):
        small("dalle")
    tokenizers.save(method.tokenizer, "llamagen", tmp_path)
    config = dataclasses.replace(iar_provenance.SMALL, tokenizer="var")
    with pytest.raises(ValueError, match="llamagen, not of var"):
        methods.build("iar_provenance", config, {"codebook": tmp_path})
    image = torch.rand(1, 3, 32, 32)
    batch = Batch(
        image=image, mask=None, label=torch.zeros(1, dtype=torch.int64), key=("a",), unit=("a",), source=(("a",),)
    )
    with pytest.raises(ValueError, match="no loss"):
        method.loss(batch)
    assert method.parameter_groups(0.1) == []


def test_saved_and_loaded_methods_signal_alike(tmp_path) -> None:
    config = methods.config("iar_provenance", "infinity_signals", "small")
    method = methods.build("iar_provenance", config)
    methods.save(method, "iar_provenance", "infinity_signals", config, tmp_path)
    image = torch.rand(2, 3, 32, 32)
    loaded = methods.load(tmp_path)
    assert loaded.config == config
    for name, value in method(image).items():
        assert torch.equal(loaded(image)[name], value)
