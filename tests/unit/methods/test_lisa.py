"""LISA: its losses, what learns, generation, and runs that hold all they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.methods import samples
from unforge import methods
from unforge.backbones import sam
from unforge.methods import lisa
from unforge.types import Batch


@pytest.fixture(scope="module")
def method() -> lisa.Lisa:
    torch.manual_seed(0)
    return lisa.build(methods.config("lisa", "", "small"), {}).eval()


def batch(count: int = 2, masked: bool = True) -> Batch:
    torch.manual_seed(5)
    mask = torch.zeros(count, 1, 48, 48)
    mask[1:, :, 8:30, 4:20] = 1
    names = tuple(map(str, range(count)))
    label = mask.flatten(1).any(1).long()
    source = tuple((name,) for name in names)
    image = torch.rand(count, 3, 48, 48)
    return Batch(image=image, mask=mask if masked else None, label=label, key=names, unit=names, source=source)


def saying(method: lisa.Lisa, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """From now on the language model prefers the words of `answer`, in turn, to everything else."""
    wanted = [*method.llava.encode(" " + answer), method.llava.tokenizer.eos_token_id]
    place = iter(wanted)

    def logits(states: Tensor) -> Tensor:
        out = torch.zeros(*states.shape[:-1], len(method.llava.tokenizer))
        out[..., next(place)] = 1
        return out

    monkeypatch.setattr(method.llava, "logits", logits)


def test_the_loss_is_the_weighted_sum_of_the_released_code(method: lisa.Lisa) -> None:
    losses = method.loss(batch())
    terms = losses.terms
    assert losses.total.item() == pytest.approx((terms["ce"] + 2 * terms["bce"] + 0.5 * terms["dice"]).item())
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(method(batch().image), size=(48, 48), mode="bilinear")
    assert terms["bce"].item() == pytest.approx(sam.bce(logits, batch().mask).item(), rel=1e-4)
    p = logits.sigmoid()
    m = batch().mask
    ratio = [(2 * (p[i] * m[i]).sum() / 1000 + 1e-6) / ((p[i] + m[i]).sum() / 1000 + 1e-6) for i in range(2)]
    assert terms["dice"].item() == pytest.approx((1 - (ratio[0] + ratio[1]) / 2).item(), rel=1e-4)


def test_what_learns_is_what_is_reached(method: lisa.Lisa) -> None:
    method.zero_grad()
    method.loss(batch()).total.backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}
    kinds = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in reached if "lora" in name}
    assert kinds == {"q_proj", "v_proj"}
    whole = {name for name in reached if "lora" not in name and name.startswith("llava.")}
    assert whole == {"llava.model.lm_head.weight", "llava.model.model.language_model.embed_tokens.weight"}
    grouped = [p for group in method.parameter_groups(0.1) for p in group["params"]]
    assert sum(p.numel() for p in grouped) == sum(p.numel() for p in method.parameters() if p.requires_grad)
    method.zero_grad()


def test_an_answer_with_its_token_has_the_mask_of_the_given_answer(
    method: lisa.Lisa, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(1, 3, 33, 50)
    saying(method, monkeypatch, lisa.ANSWER)
    found = method.predict(image)
    assert found.text == (lisa.ANSWER,)
    with torch.no_grad():
        expected = torch.nn.functional.interpolate(method(image), size=(33, 50), mode="bilinear").sigmoid()
    assert found.mask is not None
    assert torch.allclose(found.mask, expected, atol=1e-5)


def test_an_answer_without_its_token_has_an_empty_mask(method: lisa.Lisa, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(method, monkeypatch, "It is real.")
    found = method.predict(torch.rand(1, 3, 33, 50))
    assert found.text == ("It is real.",)
    assert found.mask is not None
    assert found.mask.shape == (1, 1, 33, 50)
    assert found.mask.abs().max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (17, 90), (64, 64)])
def test_any_size_is_predicted(method: lisa.Lisa, shape: tuple[int, int]) -> None:
    mask = method.predict(torch.rand(1, 3, *shape)).mask
    assert mask is not None
    assert mask.shape == (1, 1, *shape)
    assert ((mask >= 0) & (mask <= 1)).all()


def test_a_saved_run_needs_nothing_else(method: lisa.Lisa, tmp_path: Path) -> None:
    again = samples.saved_and_loaded(method, "lisa", tmp_path)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(again(image), method(image))
    assert again.predict(image).text == method.predict(image).text


def test_frozen_it_learns_behind_the_language_model_only() -> None:
    torch.manual_seed(0)
    still = lisa.build(methods.config("lisa", "frozen", "small"), {})
    assert {name.split(".")[0] for name, p in still.named_parameters() if p.requires_grad} == {"segmenter"}


def test_without_masks_it_says_so(method: lisa.Lisa) -> None:
    with pytest.raises(ValueError, match="masks"):
        method.loss(batch(masked=False))
