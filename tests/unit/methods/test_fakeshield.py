"""FakeShield: two stages, the second only where the first asks for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.methods import samples
from tests.unit.methods.aap.samples import batch
from unforge import methods
from unforge.backbones import llava, sam
from unforge.methods import fakeshield


@pytest.fixture(scope="module")
def method() -> fakeshield.FakeShield:
    torch.manual_seed(0)
    return fakeshield.build(methods.config("fakeshield", "", "small"), {}).eval()


def saying(method: fakeshield.FakeShield, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """From now on the first stage answers with `answer`."""

    def generate(shown: torch.Tensor, prompt: str, tokens: int) -> llava.Answer:
        ids = torch.tensor([[*method.describer.encode(" " + answer), method.describer.tokenizer.eos_token_id]])
        return llava.Answer(ids=ids, states=torch.zeros(1, ids.shape[1], method.describer.width))

    monkeypatch.setattr(method.describer, "generate", generate)


def test_the_loss_is_the_weighted_sum(method: fakeshield.FakeShield) -> None:
    terms = method.loss(batch([0, 2, 1])).terms
    expected = terms["describe"] + terms["tag"] + terms["ce"] + 2 * terms["bce"] + 0.5 * terms["dice"]
    assert method.loss(batch([0, 2, 1])).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_tags_are_learnt_from_forged_images(method: fakeshield.FakeShield) -> None:
    one = batch([0, 2, 1])
    with torch.no_grad():
        logs = method.tags(method.shown(one.image)[0]).log_softmax(1)
    assert method.loss(one).terms["tag"].item() == pytest.approx(-(logs[1, 0] + logs[2, 1]).item() / 2, rel=1e-4)
    assert method.loss(batch([0, 0])).terms["tag"] == 0


def test_only_tampered_images_reach_the_second_stage(method: fakeshield.FakeShield) -> None:
    one = batch([0, 2, 1])
    with torch.no_grad():
        tag = int(method.tags(method.shown(one.image)[0])[1].argmax())
        said = llava.answer(llava.TAMPERED, one.mask[1])
        ids = method.locator.sequences([f"{fakeshield.TAGS[tag]} {said} {fakeshield.REQUEST}"], [fakeshield.ANSWER]).ids
        _, second, third = method.shown(one.image[1:2])
        state, present = method.locator.before(method.locator.run(second, ids), ids, method.token)
        logits = method.segmenter.logits(third, method.segmenter.prompt(state), (48, 48))
    assert present.all()
    assert method.loss(one).terms["bce"].item() == pytest.approx(sam.bce(logits, one.mask[1:2]).item(), rel=1e-4)
    terms = method.loss(batch([0, 1])).terms
    assert terms["bce"] == terms["dice"] == terms["ce"] == 0


@pytest.mark.parametrize("kinds", [[0, 1, 2], [0, 1]])
def test_what_learns_is_what_is_reached(method: fakeshield.FakeShield, kinds: list[int]) -> None:
    method.zero_grad()
    method.loss(batch(kinds)).total.backward()
    reached = {name for name, p in method.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in method.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in reached} == {"describer", "tagger", "locator", "segmenter"}
    method.zero_grad()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("The image is real.", 0.0), ("The image is fully synthetic.", 1.0), ("at at image", 0.0), ("", 0.0)],
)
def test_what_is_not_called_tampered_has_no_mask_of_its_own(
    method: fakeshield.FakeShield, monkeypatch: pytest.MonkeyPatch, answer: str, expected: float
) -> None:
    saying(method, monkeypatch, answer)
    found = method.predict(torch.rand(1, 3, 30, 50))
    assert found.text == (answer,)
    assert found.mask is not None
    assert torch.equal(found.mask, torch.full((1, 1, 30, 50), expected))


def test_the_description_is_read_by_the_second_stage(
    method: fakeshield.FakeShield, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(1, 3, 30, 50)
    masks = []
    for place in ("top left", "bottom right"):
        saying(method, monkeypatch, f"The image is tampered at {place}.")
        masks.append(method.predict(image).mask)
    first, second = masks
    assert first is not None
    assert second is not None
    assert first.shape == (1, 1, 30, 50)
    assert not torch.equal(first, second)


def test_ungated_there_is_always_a_mask(method: fakeshield.FakeShield, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(method, monkeypatch, "The image is real.")
    monkeypatch.setattr(method, "config", dataclasses.replace(method.config, gated=False))
    mask = method.predict(torch.rand(1, 3, 30, 50)).mask
    assert mask is not None
    assert mask.std() > 0


def test_explanations_are_learnt_where_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "explanations.parquet"
    texts = ["The image is tampered. {mask}", "The image is real."]
    pq.write_table(pa.table({"key": ["0", "1"], "text": texts}), path)
    torch.manual_seed(0)
    told = fakeshield.build(methods.config("fakeshield", "", "small"), {"explanations": path})
    one = batch([2, 0])
    kinds = torch.tensor([2, 0])
    assert told.descriptions(one.key, kinds, one.mask) == ["The image is tampered.", "The image is real."]
    assert told.loss(one).total.isfinite()
    with pytest.raises(ValueError, match="no explanation of 2"):
        told.loss(batch([2, 0, 0]))


def test_a_saved_run_needs_nothing_else(method: fakeshield.FakeShield, tmp_path: Path) -> None:
    again = samples.saved_and_loaded(method, "fakeshield", tmp_path)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(again(image), method(image))


def test_the_paper_s_sizes() -> None:
    with torch.device("meta"):
        paper = fakeshield.build(methods.config("fakeshield"), {})
    # the released weights are called fakeshield-v1-22b
    assert 21e9 < sum(p.numel() for p in paper.parameters()) < 22e9
    # rank 128 on 5120x5120, query and value, 40 layers
    assert sum(p.numel() for n, p in paper.describer.named_parameters() if "lora" in n) == 40 * 2 * 2 * 128 * 5120
