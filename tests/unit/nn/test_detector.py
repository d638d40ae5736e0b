"""What detectors share, against Pillow, transformers' ResNets and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.unit import resnets
from unforge.backbones import llava
from unforge.nn import detector
from unforge.nn.detector import Sizes, View
from unforge.types import Batch


class Told(detector.Detector):
    """Says the logits it was given."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__(len(logits[0]), View(), View())
        self.told = torch.tensor(logits)

    def logits(self, prepared: Tensor) -> Tensor:
        return self.told


def batch(labels: list[int], mask: Tensor | None) -> Batch:
    names = tuple(map(str, range(len(labels))))
    return Batch(
        image=torch.rand(len(labels), 3, 8, 8),
        mask=mask,
        label=torch.tensor(labels),
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


def pixels(height: int, width: int) -> tuple[Image.Image, Tensor]:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values), torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(
    ("height", "width", "square", "size"),
    [(201, 300, False, (64, 95)), (300, 201, False, (95, 64)), (50, 40, False, (80, 64)), (201, 300, True, (64, 64))],
)
def test_images_are_resized_as_pillow_does(height: int, width: int, square: bool, size: tuple[int, int]) -> None:
    picture, image = pixels(height, width)
    found = detector.resized(image, 64, square)
    assert tuple(found.shape[2:]) == size
    expected = np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR), dtype=np.float64)
    difference = found[0].permute(1, 2, 0).numpy() * 255 - expected
    # Pillow rounds after the first axis too
    assert np.abs(difference).max() < 1.01
    assert np.abs(difference).mean() < 0.2


def test_an_image_of_the_size_stays_as_it_is() -> None:
    image = torch.rand(1, 3, 64, 80)
    assert torch.equal(detector.resized(image, 64, False), image)


def test_the_centre_is_cut_out_as_torchvision_does() -> None:
    # (7 - 4) / 2 = 1.5 and (9 - 4) / 2 = 2.5 are both rounded to 2
    image = torch.arange(63.0).view(1, 1, 7, 9).expand(1, 3, 7, 9)
    assert torch.equal(detector.centre_crop(image, 4), image[:, :, 2:6, 2:6])
    # 3 x 6 to 6: one row above and two below
    small = torch.ones(1, 3, 3, 6)
    found = detector.centre_crop(small, 6)
    assert found[0, 0, :, 0].tolist() == [0, 1, 1, 1, 0, 0]
    assert found.sum() == small.sum()


def test_crops_in_training_lie_anywhere() -> None:
    image = torch.arange(30.0).view(1, 1, 5, 6).repeat(40, 3, 1, 1)
    torch.manual_seed(0)
    found = detector.random_crop(image, 4)
    corners = found[:, 0, 0, 0]
    assert set(corners.tolist()) == {0.0, 1.0, 2.0, 6.0, 7.0, 8.0}
    window = image[0, 0, :4, :4]
    assert torch.equal(found[:, 1], corners[:, None, None] + window)
    assert View(crop=4).of(image, anywhere=False).std(0).max() == 0
    assert tuple(detector.random_crop(image[:, :, :2], 4).shape) == (40, 3, 4, 4)


def test_training_and_tests_have_their_own_view() -> None:
    method = detector.Detector(1, View(crop=2), View(side=6, square=True))
    image = torch.rand(2, 3, 12, 9)
    assert tuple(method.train().prepared(image).shape) == (2, 3, 2, 2)
    assert tuple(method.eval().prepared(image).shape) == (2, 3, 6, 6)
    white = method.prepared(torch.ones(1, 3, 6, 6))[0, :, 0, 0]
    torch.testing.assert_close(white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


def of_transformers(state: Mapping[str, Tensor], convolutions: int) -> dict[str, Tensor]:
    """A state dict of torchvision's names with those of transformers' ResNet."""
    kinds = {"conv": "convolution", "bn": "normalization", "0": "convolution", "1": "normalization"}
    renamed = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] in ("conv1", "bn1"):
            renamed[f"embedder.embedder.{kinds[parts[0][:-1]]}.{parts[-1]}"] = value
            continue
        block = f"encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
        if parts[2] == "downsample":
            renamed[f"{block}.shortcut.{kinds[parts[3]]}.{parts[-1]}"] = value
        else:
            place = int(parts[2][-1]) - 1
            assert place < convolutions
            renamed[f"{block}.layer.{place}.{kinds[parts[2][:-1]]}.{parts[-1]}"] = value
    return renamed


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_networks_compute_what_transformers_resnets_do(block: str) -> None:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    expansion = 4 if block == "bottleneck" else 1
    own = detector.ResNet(Sizes(block=block, stem=8, width=8, expansion=expansion, depths=(2, 1, 2, 1)), 5).eval()
    for module in own.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    sizes = [8 * expansion * 2**stage for stage in range(4)]
    config = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[2, 1, 2, 1], layer_type=block)
    other = ResNetModel(config).eval()
    state = {name: value for name, value in own.state_dict().items() if not name.startswith("fc.")}
    other.load_state_dict(of_transformers(state, 3 if block == "bottleneck" else 2))
    image = torch.randn(2, 3, 70, 61)
    pooled = other(image).pooler_output.flatten(1)
    torch.testing.assert_close(own(image), own.fc(pooled), rtol=1e-4, atol=1e-5)


def test_one_logit_is_that_of_fake() -> None:
    method = Told([[0.0], [math.log(3)]])
    losses = method.loss(batch([0, 1], None))
    assert losses.total.item() == pytest.approx((math.log(2) - math.log(3 / 4)) / 2)
    assert set(losses.terms) == {"bce"}
    prediction = method.predict(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(prediction.score, torch.tensor([0.5, 0.75]))
    assert prediction.mask is None
    assert prediction.class_probs is None


def test_two_outputs_are_real_and_fake() -> None:
    method = Told([[math.log(4), 0.0], [0.0, 0.0]])
    assert method.loss(batch([0, 1], None)).total.item() == pytest.approx((-math.log(0.8) - math.log(0.5)) / 2)
    torch.testing.assert_close(method.predict(torch.rand(2, 3, 8, 8)).score, torch.tensor([0.2, 0.5]))


def masks() -> Tensor:
    """Of a real, a fully synthetic and a tampered image, and of one whose mask is lost."""
    mask = torch.zeros(4, 1, 8, 8)
    mask[1] = 1
    mask[2, :, 2:5] = 1
    return mask


def test_three_classes_are_told_by_label_and_mask() -> None:
    labels = torch.tensor([0, 1, 1, 1])
    found = detector.three_classes(labels, masks())
    assert found.tolist() == [0, 1, 2, 2]
    assert torch.equal(found, llava.three_classes(labels, masks()))
    assert (detector.REAL, detector.SYNTHETIC, detector.TAMPERED) == (llava.REAL, llava.SYNTHETIC, llava.TAMPERED)


def test_the_score_of_three_classes_is_that_of_not_being_real() -> None:
    row = [math.log(5), math.log(3), math.log(2)]
    method = Told([row] * 4)
    losses = method.loss(batch([0, 1, 1, 1], masks()))
    assert losses.terms["ce"].item() == pytest.approx(-math.log(0.5 * 0.3 * 0.2 * 0.2) / 4)
    prediction = method.predict(torch.rand(4, 3, 8, 8))
    torch.testing.assert_close(prediction.class_probs[0], torch.tensor([0.5, 0.3, 0.2]))
    torch.testing.assert_close(prediction.score, torch.full((4,), 0.5))
    with pytest.raises(ValueError, match="no masks"):
        method.loss(batch([0, 1, 1, 1], None))


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="4 classes"):
        detector.Detector(4, View(), View())


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "netC"])
def test_released_files_are_read(tmp_path: Path, wrapper: str) -> None:
    inner = {"module.conv.weight": torch.ones(2)}
    checkpoint = {wrapper: inner, "total_steps": 3, "optimizer": {}} if wrapper else inner
    torch.save(checkpoint, tmp_path / "weights.pth")
    assert list(detector.released(tmp_path / "weights.pth")) == ["conv.weight"]


def test_a_network_starts_from_torchvisions_but_for_its_head(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    sizes = Sizes(stem=4, width=4, depths=(1, 1))
    network = detector.ResNet(sizes, 1)
    own = network.fc.weight.clone()
    shapes = resnets.trunk((1, 1), True, stem=4, width=4)
    given = resnets.filled({**shapes, **resnets.linear("fc", 32, 1000)})
    # files of that time have no counters
    save_file({n: v for n, v in given.items() if not n.endswith("tracked")}, tmp_path / "resnet.safetensors")
    detector.start(network, tmp_path / "resnet.safetensors", "a small ResNet")
    assert torch.equal(network.fc.weight, own)
    assert torch.equal(network.conv1.weight, given["conv1.weight"])
    assert torch.equal(network.layer2[0].downsample[0].weight, given["layer2.0.downsample.0.weight"])
    del given["layer1.0.conv2.weight"]
    save_file(given, tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"missing: layer1.0.conv2.weight"):
        detector.start(network, tmp_path / "resnet.safetensors", "a small ResNet")
