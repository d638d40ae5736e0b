"""The control anchor: no mask and no label, InfoNCE by hand, what it learns, frozen tokens."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unforge import backbones
from unforge.backbones import consistency, forensic
from unforge.types import Batch

TINY = dataclasses.replace(consistency.SMALL, width=8, projection=8)


@pytest.fixture
def model() -> consistency.Consistency:
    torch.manual_seed(0)
    return consistency.build(TINY, {})


def batch(image: Tensor, mask: Tensor | None = None, label: int = 0, source: tuple[str, ...] | None = None) -> Batch:
    names = tuple(map(str, range(len(image))))
    return Batch(
        image=image, mask=mask, label=torch.full((len(image),), label), key=names, unit=names,
        source=tuple((name,) for name in source or names),
    )  # fmt: skip


def test_masks_and_labels_change_nothing(model: consistency.Consistency) -> None:
    image = torch.rand(3, 3, 64, 64)
    trained = [p for p in model.parameters() if p.requires_grad]
    half = torch.zeros(3, 1, 64, 64)
    half[..., :32] = 1
    given = [
        batch(image),
        batch(image, torch.zeros(3, 1, 64, 64)),
        batch(image, half, label=1),
        batch(image, 1 - half, label=1),
    ]
    found = []
    for one in given:
        model.zero_grad()
        loss = model.eval().loss(one).total
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in trained])))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


def test_info_nce_by_hand() -> None:
    embedded = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    owner = torch.tensor([0, 0, 1, 1])
    apart = torch.eye(2, dtype=torch.bool)
    value, nearest = consistency.info_nce(embedded, owner, apart, temperature=0.5)
    e = math.exp
    # cosines over 0.5 to the other three, the one of the same image first
    rows = [(0, 2, -2), (0, 0, 0), (-2, 2, 0), (-2, -2, 0)]
    expected = sum(-math.log(e(own) / (e(own) + e(a) + e(b))) for own, a, b in rows) / 4
    assert float(value) == pytest.approx(expected, rel=1e-6)
    # only the second patch is (a tie, first place) nearest to its own
    assert float(nearest) == 0.25
    # images of one photograph are no negatives of each other: only the positive is left
    value, _ = consistency.info_nce(embedded, owner, torch.ones(2, 2, dtype=torch.bool), temperature=0.5)
    assert float(value) == pytest.approx(0, abs=1e-6)


def test_images_of_one_photograph() -> None:
    related = consistency.shared((("a", "b"), ("b",), ("c",)))
    assert related.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_patches_are_cut_without_overlap(model: consistency.Consistency) -> None:
    image = torch.arange(2 * 3 * 100 * 50.0).view(2, 3, 100, 50)
    patches, owner = model.patches(image)
    # half of the short side: 25 px, 4 rows of 2
    assert patches.shape == (16, 3, 25, 25)
    assert owner.tolist() == [0] * 8 + [1] * 8
    assert torch.equal(patches[3], image[0, :, 25:50, 25:50])
    with pytest.raises(ValueError, match="16"):
        model.loss(batch(torch.rand(2, 3, 15, 40)))


def test_it_learns_whose_noise_a_patch_has(model: consistency.Consistency) -> None:
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        noise = torch.randn(4, 3, 64, 64, generator=generator)
        return (0.5 + noise * torch.tensor([0.2, 1.0, 3.0, 9.0]).view(4, 1, 1, 1) / 255).clamp(0, 1)

    optimiser = torch.optim.AdamW(model.parameter_groups(0.0), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        model.loss(batch(images())).total.backward()
        optimiser.step()
    with torch.no_grad():
        terms = model.loss(batch(images())).terms
    # by chance 3 of the 15 others
    assert terms["nearest"] > 0.8


def test_tokens_are_cell_means_of_frozen_features(model: consistency.Consistency) -> None:
    model.train()(torch.rand(4, 3, 32, 32))  # moves the statistics
    image = torch.randint(0, 256, (2, 3, 64, 32)) / 255
    free = model.tokens(image, 2)
    assert model.training
    model.freeze().train()
    assert not any(p.requires_grad for p in model.parameters())
    found = model.tokens(image, 2)
    assert found.shape == (2, 4, model.width)
    assert torch.equal(found, free)
    assert torch.allclose(found[0, 2], model(image)[0, :, 4:8, 0:2].mean((1, 2)), atol=1e-6)
    # each by itself, in any order
    again = model.remembered(image.flip(0), 2)
    assert torch.allclose(again.flip(0), found, atol=1e-6)
    assert torch.equal(model.remembered(image, 2), again.flip(0))
    # one convolution's border and statistics apart, it is the forensic network
    with torch.no_grad():
        assert torch.equal(model(image), model.network(image)["deep"])


def test_it_is_found_again(model: consistency.Consistency, tmp_path: Path) -> None:
    backbones.save(model, "consistency", TINY, tmp_path)
    image = torch.rand(1, 3, 40, 40)
    trained = consistency.opened({"anchor": tmp_path})
    assert torch.equal(trained.tokens(image, 3), model.tokens(image, 3))
    # a run has the sizes; the weights come with its own
    run = tmp_path / "run"
    consistency.keep(trained, run)
    again = consistency.opened({"run": run})
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again.tokens(image, 3), trained.tokens(image, 3))
    assert consistency.opened({}).width == consistency.SMALL.width
    other = tmp_path / "other"
    other.mkdir()
    backbones.save(forensic.build(forensic.SMALL, {}), "forensic", forensic.SMALL, other)
    with pytest.raises(ValueError, match="no consistency"):
        consistency.opened({"anchor": other})


def test_groups_hold_every_parameter_once(model: consistency.Consistency) -> None:
    held = [id(p) for group in model.parameter_groups(0.1) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
