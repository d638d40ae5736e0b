"""SIDA: classes and masks, by hand where the arithmetic is short; nothing of the truth reaches `predict`."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.methods import samples
from tests.unit.methods.aap.samples import batch
from unforge import methods
from unforge.backbones import sam
from unforge.methods import sida


@pytest.fixture(scope="module")
def method() -> sida.Sida:
    torch.manual_seed(0)
    return sida.build(methods.config("sida", "", "small"), {}).eval()


def upsampled(method: sida.Sida, image: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.nn.functional.interpolate(method(image), size=tuple(image.shape[2:]), mode="bilinear")


def test_the_loss_is_that_of_the_released_code(method: sida.Sida) -> None:
    one = batch([0, 2, 1, 2])
    losses = method.loss(one)
    assert set(losses.terms) == {"classes", "bce", "dice"}
    assert losses.total.item() == pytest.approx(sum(term.item() for term in losses.terms.values()), rel=1e-5)
    logs = method.predict(one.image).class_probs.log()
    assert losses.terms["classes"].item() == pytest.approx(
        -(logs[0, 0] + logs[1, 2] + logs[2, 1] + logs[3, 2]).item() / 4, rel=1e-4
    )
    # masks of tampered images only
    logits, rows = upsampled(method, one.image), [1, 3]
    assert losses.terms["bce"].item() == pytest.approx(sam.bce(logits[rows], one.mask[rows]).item(), rel=1e-4)
    assert losses.terms["dice"].item() == pytest.approx(sam.dice(logits[rows], one.mask[rows]).item(), rel=1e-4)


def test_without_a_tampered_image_only_the_classes_count(method: sida.Sida) -> None:
    losses = method.loss(batch([0, 1]))
    assert losses.terms["bce"] == 0
    assert losses.terms["dice"] == 0
    assert losses.total.item() == pytest.approx(losses.terms["classes"].item())


@pytest.mark.parametrize("kinds", [[0, 1, 2], [0, 1]])
def test_what_learns_is_what_is_reached(method: sida.Sida, kinds: list[int]) -> None:
    method.zero_grad()
    method.loss(batch(kinds)).total.backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}
    # the language model's last layer is not trained: its loss is not used
    assert "llava.model.lm_head.weight" not in reached
    assert {"cls_head", "sida_fc1", "attention", "segmenter", "llava"} == {name.split(".")[0] for name in reached}
    method.zero_grad()


def test_with_one_token_the_class_does_not_reach_the_mask(method: sida.Sida) -> None:
    image = torch.rand(2, 3, 48, 48)
    before = method(image)
    assert method.sida_fc1 is not None
    kept = method.sida_fc1.weight.detach().clone()
    with torch.no_grad():
        method.sida_fc1.weight.mul_(-5).add_(1)
    after = method(image)
    with torch.no_grad():
        method.sida_fc1.weight.copy_(kept)
    assert torch.allclose(before, after, atol=1e-6)


def test_heads_have_the_released_shapes() -> None:
    with torch.device("meta"):
        paper = sida.build(methods.config("sida"), {})
    shapes = {name: tuple(p.shape) for name, p in paper.named_parameters()}
    assert shapes["cls_head.0.weight"] == (2048, 4096)
    assert shapes["cls_head.2.weight"] == (3, 2048)
    assert shapes["sida_fc1.weight"] == (256, 3)
    assert shapes["attention.in_proj_weight"] == (768, 256)
    assert paper.attention is not None
    assert paper.attention.num_heads == 8
    assert shapes["segmenter.text_hidden_fcs.0.weight"] == (4096, 4096)
    assert shapes["segmenter.text_hidden_fcs.2.weight"] == (256, 4096)
    # rank 8 on 4096x4096, query and value, 32 layers
    assert sum(p.numel() for n, p in paper.named_parameters() if "lora" in n) == 32 * 2 * 2 * 8 * 4096


def test_predictions_are_probabilities_and_know_no_truth(method: sida.Sida) -> None:
    assert set(inspect.signature(method.predict).parameters) == {"image", "extras"}
    found = method.predict(torch.rand(3, 3, 31, 77))
    assert found.mask is not None
    assert found.class_probs is not None
    assert found.score is not None
    assert found.text is not None
    assert found.mask.shape == (3, 1, 31, 77)
    assert ((found.mask >= 0) & (found.mask <= 1)).all()
    assert torch.allclose(found.class_probs.sum(1), torch.ones(3))
    assert torch.allclose(found.score, found.class_probs[:, 1] + found.class_probs[:, 2])
    assert found.text == tuple(sida.NAMES[i] for i in found.class_probs.argmax(1))


def test_what_is_predicted_of_an_image_depends_on_it_alone(method: sida.Sida) -> None:
    image = torch.rand(2, 3, 40, 40)
    together, alone = method.predict(image), method.predict(image[:1])
    assert torch.allclose(together.class_probs[:1], alone.class_probs, atol=1e-5)
    assert torch.allclose(together.mask[:1], alone.mask, atol=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [(0, 0.0), (1, 1.0), (2, None)])
def test_gated_the_mask_follows_the_class(
    method: sida.Sida, monkeypatch: pytest.MonkeyPatch, kind: int, expected: float | None
) -> None:
    image = torch.rand(1, 3, 32, 32)
    free = method.predict(image).mask
    monkeypatch.setattr(method, "config", dataclasses.replace(method.config, gated=True))
    monkeypatch.setattr(method.cls_head, "forward", lambda states: 9.0 * torch.eye(3)[kind].expand(len(states), 3))
    mask = method.predict(image).mask
    assert mask is not None
    assert free is not None
    assert torch.allclose(mask, free if expected is None else torch.full_like(free, expected), atol=1e-6)


def test_a_saved_run_needs_nothing_else(method: sida.Sida, tmp_path: Path) -> None:
    again = samples.saved_and_loaded(method, "sida", tmp_path)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(again.predict(image).class_probs, method.predict(image).class_probs)
