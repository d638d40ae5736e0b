"""Every family of tokenizers, at its small scale, offers what provenance asks for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.provenance import toys
from unforge import tokenizers
from unforge.provenance import inverse, search, signals
from unforge.provenance.config import Search, Tracer
from unforge.tokenizers.base import Tokenizer


def small(name: str) -> Tokenizer:
    torch.manual_seed(0)
    tokenizer = tokenizers.build(name, tokenizers.load_module(name).SMALL).eval()
    tokenizer.trained()
    return tokenizer.requires_grad_(False)


@pytest.mark.parametrize("name", tokenizers.names())
def test_signals_share_passes_in_every_family(name: str) -> None:
    tokenizer, calls = small(name), Counter()
    for part in ("encoder", "decoder"):
        tokenizer.get_submodule(part).register_forward_hook(lambda *_, part=part: calls.update([part]))
    image = toys.photographs(tokenizer.image_size, 4)
    assert signals.measure(tokenizer, image, ["quant_loss"])["quant_loss"].shape == (4,)
    assert calls == {"encoder": 1}
    calls.clear()
    found = signals.measure(tokenizer, image)
    assert calls == {"encoder": 2, "decoder": 2}
    assert all(bool((value > 0).all() and value.isfinite().all()) for value in found.values())
    calls.clear()
    signals.measure(tokenizer, image, ["enc_loss_calibrated"])
    assert calls == {"encoder": 2, "decoder": 2}
    calls.clear()
    signals.measure(tokenizer, image, ["reconstruction", "latent_tracer"], tracer=Tracer(iterations=3))
    assert calls == {"encoder": 1, "decoder": 4}


@pytest.mark.parametrize("name", tokenizers.names())
def test_inverse_decoders_of_every_family(name: str, tmp_path: Path) -> None:
    """Trained are the modules the family names; its targets are what its tokens stand for."""
    tokenizer = small(name)
    image = toys.photographs(tokenizer.image_size, 4)
    tokens = tokenizer.quantize(tokenizer.encode(image)).tokens
    with torch.no_grad():
        own = tokenizer.to_image(tokenizer.lookup(tokens)).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    pairs = inverse.PairArrays(image=own, tokens=tokens.numpy()).batch(torch.device("cpu"))
    decoder = inverse.InverseDecoder(tokenizer)
    trained, frozen = decoder.split()
    modules = tokenizers.load_module(name).RECIPE.modules
    assert {key.partition(".")[0] for key in trained} == set(modules)
    assert all(p.requires_grad == (key.split(".")[1] in modules) for key, p in decoder.named_parameters())
    optimise = torch.optim.Adam(decoder.parameter_groups(0.0), lr=1e-3)
    decoder.train()
    losses = []
    for _ in range(6):
        loss = decoder.loss(pairs).total
        losses.append(loss.item())
        optimise.zero_grad()
        loss.backward()
        optimise.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        expected = float(np.mean((tokenizer.encode(pairs.image) - tokenizer.lookup(tokens)).numpy() ** 2))
    assert losses[0] == pytest.approx(expected, rel=1e-4)
    before = tokenizer.state_dict()
    assert all(torch.equal(before[key], value) for key, value in frozen.items())
    inverse.save(decoder.eval(), tmp_path)
    loaded = inverse.load(tokenizer, tmp_path)
    both = [signals.measure(tokenizer, pairs.image, encoder=used) for used in (decoder, loaded, None)]
    assert all(torch.equal(both[0][key], both[1][key]) for key in signals.PAPER)
    assert not any(torch.equal(both[0][key], both[2][key]) for key in signals.PAPER)


def test_token_search_is_for_codes_on_several_scales() -> None:
    settings = Search(iterations=5, faithful=False)
    for name in tokenizers.names():
        tokenizer = small(name)
        image = toys.photographs(tokenizer.image_size, 2)
        if name != "var":
            with pytest.raises(ValueError, match="no codes on several scales"):
                signals.measure(tokenizer, image, ["quant_loss_opt"], settings=settings)
            continue
        found = signals.measure(tokenizer, image, ["quant_loss", "quant_loss_opt"], settings=settings)
        assert (found["quant_loss_opt"] <= found["quant_loss"]).all()


def test_what_the_search_adds_up_is_what_the_tokenizer_looks_up() -> None:
    tokenizer = small("var")
    tokens = torch.randint(256, (3, 85))
    torch.testing.assert_close(search.assembled(tokenizer.quantizer, tokens), tokenizer.lookup(tokens))


def test_vars_paper_scale_has_six_rounds_and_twelve_images_a_batch() -> None:
    with torch.device("meta"):
        tokenizer = tokenizers.build("var", tokenizers.load_module("var").Config())
    quantizer = search.scales(tokenizer)
    assert Search().rounds(len(quantizer.scales)) == (10, 9, 8, 7, 6, 5)
    assert search.batch_size(quantizer, Search().memory) == 12
