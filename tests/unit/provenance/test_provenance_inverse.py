"""Inverse decoders train through the common loop, and only their encoder side moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.provenance import toys
from unforge import tokenizers
from unforge.profiles import Machine
from unforge.provenance import augment, inverse, signals
from unforge.provenance.config import SCHEDULE, recipe
from unforge.tokenizers.base import InverseRecipe
from unforge.train import distributed, loop
from unforge.train.distributed import World

RAR = InverseRecipe(source="test", epochs=50, batch=8, lr=5e-4)
FAST = replace(recipe(RAR), lr=1e-2, min_lr=1e-3, betas=(0.9, 0.95))


@pytest.fixture
def world() -> Iterator[World]:
    with distributed.world(Machine(device="cpu", dtype="float32", threads=1, workers=0)) as here:
        yield here
    torch.use_deterministic_algorithms(False)


def generated(toy: toys.Toy, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """8-bit images of random tokens, and the tokens."""
    generator = torch.Generator().manual_seed(seed)
    scaled = isinstance(toy, toys.ScaledToy)
    number, codes = (sum(s * s for s in toy.scales), toy.codebook) if scaled else (toy.grid**2, toy.codes)
    tokens = torch.randint(len(codes), (count, number), generator=generator)
    with torch.no_grad():
        image = toys.bytes_of(toy.decode(toy.lookup(tokens)))
    return image.permute(0, 2, 3, 1).mul(255).round().byte().numpy(), tokens.numpy()


def fitted(toy, world: World, folder: Path, *, steps: int = 60, augmented: bool = False) -> inverse.InverseDecoder:
    torch.manual_seed(0)
    decoder = inverse.InverseDecoder(toy)
    data = inverse.Generated(*generated(toy, 64, 1), seed=0, steps=steps, augmented=augmented)
    held = inverse.Held(*generated(toy, 10, 2), batch=4)
    loop.fit(
        decoder, data, held, FAST, world=world, steps=steps, batch=8, seed=0, validate_every=20,
        checkpoint_every=1000, resume=folder / "resume",
    )  # fmt: skip
    return decoder


@pytest.mark.parametrize("kind", [toys.ConvToy, toys.ScaledToy])
@pytest.mark.parametrize("augmented", [False, True])
def test_it_learns_the_codes_and_moves_nothing_else(kind, augmented: bool, world: World, tmp_path: Path) -> None:
    toy = kind()
    original = {name: value.clone() for name, value in toy.state_dict().items()}
    decoder = fitted(toy, world, tmp_path, augmented=augmented)
    assert all(torch.equal(original[name], value) for name, value in toy.state_dict().items())
    assert all(p.requires_grad for p in toy.parameters())
    trained, frozen = decoder.split()
    assert {name.partition(".")[0] for name in trained} == {"encoder"}
    assert set(frozen) == {name for name in original if not name.startswith("encoder.")}
    assert {"codes", "codebook"} & set(frozen)
    assert all(torch.equal(original[name], value) for name, value in frozen.items())
    assert not any(torch.equal(original[name], value) for name, value in trained.items())
    assert not decoder.training
    images, tokens = (torch.from_numpy(part) for part in generated(toy, 30, 3))
    image = images.permute(0, 3, 1, 2).float() / 255
    features = toy.lookup(tokens)
    with torch.no_grad():
        before, after = ((used.encode(image) - features).square().mean() for used in (toy, decoder))
    assert after < 0.5 * before


def test_every_signal_can_be_had_with_both_encoders(world: World, tmp_path: Path) -> None:
    """On the model's own images the inverse decoder lowers QuantLoss, round trips and what is made of them."""
    toy = toys.ScaledToy()
    decoder = fitted(toy, world, tmp_path, steps=150)
    images, _ = generated(toy, 12, 4)
    image = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    names = list(signals.SIGNALS)
    settings = {"settings": signals.Search(iterations=3), "tracer": signals.Tracer(iterations=3)}
    own, ours = (signals.measure(toy, image, names, encoder, **settings) for encoder in (None, decoder))
    assert list(own) == list(ours) == names
    assert all(not torch.equal(own[name], ours[name]) for name in names)
    for name in ("enc_loss", "reconstruction"):
        assert ours[name].median() < own[name].median()
    again = signals.measure(toy, image, names, decoder.tokenizer, **settings)
    assert all(torch.equal(again[name], ours[name]) for name in names)


def test_the_loss_is_equation_5() -> None:
    toy = toys.ConvToy()
    images, tokens = generated(toy, 3, 0)
    pairs = inverse.PairArrays(image=images, tokens=tokens).batch(torch.device("cpu"))
    losses = inverse.InverseDecoder(toy).loss(pairs)
    f = toy.encode(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).detach().numpy()
    z = toy.codes.numpy()[tokens].transpose(0, 2, 1).reshape(3, 6, 4, 4)
    assert losses.total.item() == pytest.approx(float(np.mean((f - z) ** 2)), rel=1e-5)
    assert list(losses.terms) == ["features"]


def test_only_what_is_trained_leaves_eval_mode() -> None:
    decoder = inverse.InverseDecoder(toys.ConvToy()).train()
    modes = {name: module.training for name, module in decoder.tokenizer.named_children()}
    assert modes == {"encoder": True, "quant_conv": False, "decoder": False}
    assert not any(module.training for module in decoder.eval().modules())
    groups = decoder.parameter_groups(0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(decoder.tokenizer.encoder.parameters()))


def test_samples_depend_on_seed_step_and_index_only() -> None:
    toy = toys.ConvToy()
    images, tokens = generated(toy, 20, 0)
    data, other = (inverse.Generated(images, tokens, seed=seed, steps=100, augmented=True) for seed in (0, 1))
    one, two = data.load(90, 0, 6), data.load(90, 3, 3)
    assert np.array_equal(one.image[3:], two.image)
    assert np.array_equal(one.tokens[3:], two.tokens)
    assert not np.array_equal(one.tokens, data.load(91, 0, 6).tokens)
    assert not np.array_equal(one.tokens, other.load(90, 0, 6).tokens)


def test_augmented_images_keep_their_clean_tokens() -> None:
    images, tokens = generated(toys.ConvToy(), 20, 0)
    data = inverse.Generated(images, tokens, seed=0, steps=100, augmented=True)
    places = {part.tobytes(): i for i, part in enumerate(tokens)}
    changed = dict.fromkeys((0, 9, 10, 99), 0)
    for step in list(changed):
        for image, token_map in (data.sample(step, index) for index in range(40)):
            changed[step] += not np.array_equal(image, images[places[token_map.tobytes()]])
    assert changed[0] == changed[9] == 0
    assert augment.strength(10, 100) == "weak"
    assert 5 < changed[10] < 30
    assert 10 < changed[99] < 30
    plain = inverse.Generated(images, tokens, seed=0, steps=100)
    for index in range(20):
        image, token_map = plain.sample(99, index)
        assert np.array_equal(image, images[places[token_map.tobytes()]])


def test_validation_is_minus_the_mean_loss(world: World) -> None:
    toy = toys.ConvToy()
    images, tokens = generated(toy, 10, 2)
    decoder = inverse.InverseDecoder(toy)
    pairs = inverse.PairArrays(image=images, tokens=tokens).batch(torch.device("cpu"))
    name, value = inverse.Held(images, tokens, batch=4)(decoder, world)
    assert (name, value) == ("negative_loss", pytest.approx(-decoder.loss(pairs).total.item(), rel=1e-5))


def test_saved_and_loaded_inverse_decoders_are_alike(world: World, tmp_path: Path) -> None:
    toy = toys.ConvToy()
    decoder = fitted(toy, world, tmp_path, steps=5)
    inverse.save(decoder, tmp_path)
    first = (tmp_path / inverse.WEIGHTS).read_bytes()
    loaded = inverse.load(toys.ConvToy(), tmp_path)
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded.encode(image), decoder.encode(image), atol=0, rtol=0)
    assert not loaded.training
    inverse.save(loaded, tmp_path)
    assert (tmp_path / inverse.WEIGHTS).read_bytes() == first
    with pytest.raises(ValueError, match="another decoder or codebook"):
        inverse.load(toys.ConvToy(seed=1), tmp_path)


def test_nothing_to_learn_from_is_refused() -> None:
    images, tokens = generated(toys.ConvToy(), 3, 0)
    with pytest.raises(ValueError, match="3 images with 2 token maps"):
        inverse.Generated(images, tokens[:2], seed=0, steps=1)
    with pytest.raises(ValueError, match="0 images"):
        inverse.Held(images[:0], tokens[:0])


@pytest.mark.parametrize("name", tokenizers.names())
def test_recipes_end_where_the_released_schedule_ends(name: str) -> None:
    released = tokenizers.load_module(name).RECIPE
    ours = recipe(released, 500)
    steps = torch.optim.lr_scheduler.StepLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=released.lr), released.decay_every, released.decay
    )
    for _ in range(released.epochs - 1):
        steps.optimizer.step()
        steps.step()
    assert ours.min_lr == pytest.approx(steps.get_last_lr()[0])
    assert (ours.lr, ours.batch, ours.epochs, ours.betas) == (
        released.lr, released.batch, released.epochs, released.betas,
    )  # fmt: skip
    assert (ours.optimiser, ours.weight_decay, ours.clip, ours.samples_per_epoch) == ("adam", 0, None, 500)
    assert released.augmented in ((), SCHEDULE)
