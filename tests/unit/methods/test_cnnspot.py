"""CNNSpot against its count, official key names and its input's geometry worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit import resnets
from unforge import counts, methods
from unforge.methods import cnnspot
from unforge.types import Batch


def batch(count: int, size: int = 64) -> Batch:
    names = tuple(map(str, range(count)))
    return Batch(
        image=torch.rand(count, 3, size, size),
        mask=None,
        label=torch.arange(count) % 2,
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


def test_counts_are_published() -> None:
    # trunk 23,508,032 and 2,048 + 1
    assert counts.of("cnnspot")[""][0] == 23_510_081
    assert counts.of("cnnspot", "three")[""][0] == 23_508_032 + 3 * 2_049


def test_official_weights_load_strictly(tmp_path: Path) -> None:
    shapes = resnets.trunk((3, 4, 6, 3), bottleneck=True) | resnets.linear("fc", 2048, 1)
    given = resnets.filled(shapes)
    path = tmp_path / "blur_jpg_prob0.5.pth"
    torch.save({"model": given, "optimizer": {}, "total_steps": 1}, path)
    method = cnnspot.build(cnnspot.Config(), {})
    cnnspot.load_official(method, path)
    own = method.network.state_dict()
    assert set(own) == set(shapes)
    assert all(torch.equal(own[name], value) for name, value in given.items())
    given["layer4.2.conv3.weight"] = given["layer4.2.conv3.weight"][:1]
    torch.save(given, path)
    with pytest.raises(ValueError, match=r"another shape: layer4.2.conv3.weight \(1, 512, 1, 1\)"):
        cnnspot.load_official(method, path)


def test_the_head_starts_small() -> None:
    torch.manual_seed(0)
    assert cnnspot.build(cnnspot.Config(), {}).network.fc.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_tests_see_the_centre_and_training_the_resized_image() -> None:
    with torch.device("meta"):
        method = cnnspot.build(cnnspot.Config(), {})
    for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
        method.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
    image = torch.rand(1, 3, 250, 300)
    shown = method.eval().prepared(image)
    # not resized: rows 13 to 236, columns 38 to 261
    torch.testing.assert_close(shown * method.std + method.mean, image[:, :, 13:237, 38:262])
    # of a small one the border is black: 62 rows above 100
    shown = method.prepared(torch.ones(1, 3, 100, 230))
    assert tuple(shown.shape) == (1, 3, 224, 224)
    assert shown[0, 0, 61, 5].item() == pytest.approx(-0.485 / 0.229)
    assert shown[0, 0, 62, 5].item() == pytest.approx((1 - 0.485) / 0.229)
    # 100 x 150 becomes 256 x 384 before the crop, so that nothing is black
    torch.manual_seed(0)
    shown = method.train().prepared(torch.ones(2, 3, 100, 150))
    assert tuple(shown.shape) == (2, 3, 224, 224)
    assert shown.amin() > 1.9


@pytest.mark.parametrize("variant", ["", "three"])
def test_small_ones_see_any_image_and_are_saved(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    config = methods.config("cnnspot", variant, "small")
    method = methods.build("cnnspot", config).eval()
    for height, width in ((1, 1), (7, 300), (256, 256)):
        prediction = method.predict(torch.rand(1, 3, height, width))
        assert prediction.mask is None
        assert prediction.score.shape == (1,)
        assert 0 < prediction.score.item() < 1
        assert (prediction.class_probs is None) == (variant == "")
    methods.save(method, "cnnspot", variant, config, tmp_path)
    image = torch.rand(1, 3, 60, 40)
    assert torch.equal(methods.load(tmp_path)(image), method(image))


def test_it_learns_from_labels_alone() -> None:
    torch.manual_seed(0)
    method = methods.build("cnnspot", methods.config("cnnspot", "", "small")).train()
    one = batch(4)
    optimiser = torch.optim.AdamW(method.parameter_groups(0.01), lr=1e-2)
    values = []
    for _ in range(30):
        losses = method.loss(one)
        losses.total.backward()
        assert all(p.grad is not None for p in method.parameters())
        optimiser.step()
        optimiser.zero_grad()
        values.append(losses.total.item())
    assert values[-1] < 0.3 * values[0]
