"""What every prior must do: sample by key, learn, be saved; and who may look at whom."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unforge import priors, tokenizers
from unforge.priors import base, layers
from unforge.tokenizers import multiscale
from unforge.train import distributed, loop, optimiser

Made = Callable[..., Any]


def test_every_family_has_a_prior() -> None:
    assert sorted(priors.OF) == tokenizers.names()
    with pytest.raises(ValueError, match="no prior for 'pixelcnn'"):
        priors.config("pixelcnn", "small")
    assert priors.config("rar", "paper").random_order
    assert priors.config("infinity", "paper").flips == 0.3


def test_a_sample_depends_on_its_key_and_not_on_its_batch(family: str, prior: Made, tokenizer: Made) -> None:
    model, keys = prior(family), [f"{family}-{i}" for i in range(7)]
    together = model.sample(keys, seed=3)
    alone = torch.cat([model.sample([key], seed=3) for key in keys])
    assert torch.equal(together, alone)
    assert torch.equal(model.sample(keys[::-1], seed=3), together.flip(0))
    assert not torch.equal(model.sample(keys, seed=4), together)
    assert len({tuple(row.flatten().tolist()) for row in together}) == len(keys)
    assert tokenizer(family).lookup(together).isfinite().all()
    with pytest.raises(ValueError, match="temperature 0"):
        model.sample(keys, seed=3, temperature=0.0)


def test_a_low_temperature_takes_the_likeliest(prior: Made) -> None:
    model = prior("taming")
    tokens = model.sample(["a", "b"], seed=0, temperature=1e-4)
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(model.logits(tokens).argmax(-1), tokens)


def test_learning_one_map_by_heart(family: str, prior: Made, tokenizer: Made, maps: Made) -> None:
    """Bits of a map that is learnt fall far below a uniform guess, and the prior then draws it."""
    own = tokenizer(family)
    tokens, model = maps(own, 1), prior(family, steps=60, **({"flips": 0.0} if family == "infinity" else {}))
    uniform = math.log2(own.quantizer.codes)
    many = tokens.expand(24, *tokens.shape[1:])  # a diffusion measures each at other times
    with torch.no_grad():
        assert abs(float(model.bits(many).mean()) - uniform) < 0.6 * uniform
    optimise = torch.optim.AdamW(model.parameter_groups(0.0), lr=2e-2)
    model.train()
    torch.manual_seed(0)
    steps, batch = (150, 12) if family == "vqdiffusion" else (60, 4)  # of many times it sees one a map
    for _ in range(steps):
        model.loss(many[:batch]).total.backward()
        optimise.step()
        optimise.zero_grad()
    model.eval()
    with torch.no_grad():
        assert float(model.bits(many).mean()) < 0.15 * uniform
    drawn = model.sample(["k"], seed=0)
    assert (drawn == tokens).float().mean() > 0.9


def test_bits_are_those_of_a_distribution(prior: Made, tokenizer: Made) -> None:
    """All maps of 4 places and 3 codes have probabilities that sum to 1, in every order of training too."""
    own = tokenizer("rar")
    own.grid, own.quantizer.codebook.data = 2, own.quantizer.codebook.data[:3].clone()
    model = priors.load_module("next_token").build(
        dataclasses.replace(priors.config("rar", "small"), depth=1, width=8, heads=2), own
    )
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert (2 ** -(4 * model.bits(every).detach().double())).sum().item() == pytest.approx(1, abs=1e-5)
    order = torch.tensor([2, 0, 3, 1]).expand(len(every), -1)
    chances = model.logits(every, order).log_softmax(-1).gather(2, every.gather(1, order)[..., None]).sum((1, 2))
    assert chances.detach().exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_next_token_looks_back_only(prior: Made, tokenizer: Made, maps: Made) -> None:
    model, tokens = prior("llamagen"), maps(tokenizer("llamagen"), 1)
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % model.codes
    before, after = model.logits(tokens)[0], model.logits(changed)[0]
    assert torch.equal(before[:10], after[:10])
    assert (before[10:] != after[10:]).any(1).all()


def test_a_place_of_rar_knows_which_place_comes_next(prior: Made, tokenizer: Made, maps: Made) -> None:
    model, tokens = prior("rar"), maps(tokenizer("rar"), 1)
    order = torch.arange(16)[None]
    swapped = order.clone()
    swapped[0, [4, 5]] = order[0, [5, 4]]
    before, after = model.logits(tokens, order)[0], model.logits(tokens, swapped)[0]
    assert torch.equal(before[:4], after[:4])
    assert not torch.allclose(before[4], after[4])


def test_random_orders_give_way_to_rows(prior: Made) -> None:
    model = prior("rar", steps=100)
    shares = []
    for step in (0, 50, 60, 75, 99):
        model.step.fill_(step)
        shares.append(model.randomness())
    assert shares == pytest.approx([1, 1, 0.6, 0, 0])
    rows = torch.arange(16).expand(200, -1)
    assert torch.equal(model.orders(rows), rows)
    model.step.fill_(60)
    orders = model.orders(rows)
    assert torch.equal(orders.sort(1).values, rows)
    assert 0.45 < (orders != rows).any(1).float().mean() < 0.75


@pytest.mark.parametrize("name", ["var", "infinity"])
def test_a_scale_looks_at_coarser_ones_only(name: str, prior: Made, tokenizer: Made, maps: Made) -> None:
    model, own = prior(name), tokenizer(name)
    tokens = maps(own, 1)
    changed = tokens.clone()
    changed[0, 2] = ~changed[0, 2] if name == "infinity" else (changed[0, 2] + 1) % model.codes
    before, after = (model.logits(model.before(multiscale.split(t, (1, 2, 4))), 1)[0] for t in (tokens, changed))
    assert torch.equal(before[:5], after[:5])
    assert (before[5:] != after[5:]).any(1).all()


@pytest.mark.parametrize("name", ["var", "infinity"])
def test_a_scale_begins_as_what_the_tokenizer_adds_up(name: str, prior: Made, tokenizer: Made, maps: Made) -> None:
    own = tokenizer(name)
    tokens = maps(own, 2)
    found = prior(name).before(multiscale.split(tokens, (1, 2, 4)))
    for ours, theirs in zip(found, own.quantizer.sums(tokens)[:-1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_sampling_goes_as_the_whole_pass_does(prior: Made) -> None:
    """With a cache, place after place, the same logits decide as in one pass over the drawn maps."""
    for name in ("rar", "var"):
        model = prior(name).double()
        uniform = torch.rand(3, *model.draws, dtype=torch.float64)
        tokens = model.drawn(uniform, 1.0)
        logits = (
            model.logits(tokens)
            if name == "rar"
            else model.logits(model.before(multiscale.split(tokens, (1, 2, 4))), 3)
        )
        assert torch.equal(layers.chosen(logits.softmax(-1), uniform), tokens)


def test_flipped_bits_are_made_good_for(prior: Made, tokenizer: Made, maps: Made) -> None:
    own = tokenizer("infinity")
    tokens = maps(own, 400)
    untouched = prior("infinity", flips=0.0)
    features, targets = untouched.corrected(multiscale.split(tokens, (1, 2, 4)))
    assert torch.equal(targets, tokens)
    torch.testing.assert_close(features[-1], own.quantizer.sums(tokens)[1])
    torch.manual_seed(0)
    features, targets = prior("infinity", flips=0.9).corrected(multiscale.split(tokens, (1, 2, 4)))
    assert torch.equal(targets[:, :1], tokens[:, :1])
    assert (targets[:, 5:] != tokens[:, 5:]).any()
    last = torch.where(targets[:, 5:], 1.0, -1.0).transpose(1, 2).unflatten(2, (4, 4)) / 5**0.5
    old = torch.where(tokens[:, 5:], 1.0, -1.0).transpose(1, 2).unflatten(2, (4, 4)) / 5**0.5
    wanted = own.lookup(tokens)
    assert (features[-1] + last - wanted).square().mean() < 0.7 * (features[-1] + old - wanted).square().mean()
    with pytest.raises(ValueError, match="no bits to flip"):
        prior("var", flips=0.1)


def test_drawing_follows_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0]).double()
    uniform = torch.tensor([0.0, 0.2499, 0.25, 0.999999]).double()
    assert layers.chosen(weights.expand(4, -1), uniform).tolist() == [1, 1, 2, 2]


def test_bits_under_frequencies() -> None:
    """By hand: counts (2, 1, 0) and one more of each are 3/6, 2/6, 1/6; bits 3 of 4 set are 4/6."""
    training = torch.tensor([[0, 0, 1]])
    expected = -(math.log2(3 / 6) + math.log2(1 / 6) + math.log2(1 / 6)) / 3
    assert base.unigram_bits(training, torch.tensor([[0, 2, 2]]), 3) == pytest.approx(expected)
    bits = torch.tensor([[True], [True], [True], [False]])[None]
    found = torch.tensor([[True], [False], [True], [True]])[None]
    expected = -(3 * math.log2(4 / 6) + math.log2(2 / 6)) / 4
    assert base.unigram_bits(bits, found, 2) == pytest.approx(expected)
    scaled = torch.tensor([[2, 0, 0, 0, 0], [2, 0, 0, 0, 0]])
    expected = -(math.log2(3 / 5) + 4 * math.log2(9 / 11)) / 5
    assert base.unigram_bits(scaled, scaled[:1], 3, (1, 2)) == pytest.approx(expected)


def test_views_are_drawn_in_all_eight_turns(tokenizer: Made) -> None:
    own = tokenizer("taming")
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    data = base.TokenMaps(own, [image], seed=5)
    views = {data.view(step, 0).tobytes() for step in range(120)}
    both = (image, image[:, ::-1])
    assert views == {np.rot90(one, k).tobytes() for one in both for k in range(4)}
    whole = data.load(2, 0, 6).batch(torch.device("cpu"))
    parts = [data.load(2, first, 3).batch(torch.device("cpu")) for first in (0, 3)]
    assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(ValueError, match="no images"):
        base.TokenMaps(own, [], seed=5)
    with pytest.raises(ValueError, match="no images"):
        base.token_maps(own, [])


def test_saved_and_loaded(family: str, prior: Made, tokenizer: Made, tmp_path: Path) -> None:
    own, model = tokenizer(family), prior(family)
    priors.save(model, family, own, tmp_path)
    again = priors.load(tmp_path, own)
    assert again.config == model.config
    assert torch.equal(again.sample(["a", "b"], seed=1), model.sample(["a", "b"], seed=1))
    with torch.no_grad():
        next(own.decoder.parameters()).add_(1)
    with pytest.raises(ValueError, match="another tokenizer"):
        priors.load(tmp_path, own)
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        priors.load(tmp_path / "none", own)


def test_the_loop_trains_and_continues_a_prior(prior: Made, tokenizer: Made, tmp_path: Path) -> None:
    """Stopped after a checkpoint and continued, RAR (whose schedule counts steps) has the same weights."""
    own = tokenizer("rar")
    images = [np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8) for i in range(4)]
    data, held = base.TokenMaps(own, images, seed=0), base.Held(base.token_maps(own, images))
    world = distributed.World(device=torch.device("cpu"))

    def run(resume: Path, stop: bool = False) -> Any:
        model = prior("rar", steps=6)

        def validate(*given: Any) -> tuple[str, float]:
            if stop and int(model.step) == 4:
                raise InterruptedError
            return held(*given)

        loop.fit(
            model, data, validate, model.config.recipe, world=world, steps=6, batch=4, seed=0, validate_every=2,
            checkpoint_every=2, resume=resume,
        )  # fmt: skip
        return model

    whole = run(tmp_path / "a")
    with pytest.raises(InterruptedError):
        run(tmp_path / "b", stop=True)
    assert (tmp_path / "b" / "state.pt").is_file()
    for (name, one), two in zip(whole.state_dict().items(), run(tmp_path / "b").state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_embeddings_do_not_decay(family: str, prior: Made) -> None:
    model = prior(family)
    decayed, others = model.parameter_groups(0.1)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in (decayed, others) for p in group["params"]} == trained
    assert id(model.head.weight) in {id(p) for p in decayed["params"]}
    assert all(p.ndim == 2 for p in decayed["params"])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    optimiser.build(model.config.recipe, [decayed, others])
