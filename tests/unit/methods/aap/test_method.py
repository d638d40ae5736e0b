"""The loss is Eq. 8, and each gradient reaches what it should."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.unit.methods.aap.samples import batch, build, cosine_distances, upsampled
from unforge.backbones import llava, sam
from unforge.methods import aap
from unforge.methods.aap import anchor
from unforge.methods.aap.method import ANSWER

REAL, SYNTHETIC, TAMPERED = llava.REAL, llava.SYNTHETIC, llava.TAMPERED


@pytest.fixture(scope="module")
def method() -> aap.AAP:
    found = build()
    # as after some training: the error map reaches the decoder
    torch.manual_seed(3)
    with torch.no_grad():
        found.cue.layers[2].weight.normal_()
    return found


def test_the_loss_is_equation_8(method: aap.AAP) -> None:
    one = batch([REAL, TAMPERED, SYNTHETIC, TAMPERED, REAL])
    losses = method.loss(one)
    terms = losses.terms
    total = terms["cls"] + (terms["bce"] + terms["dice"]) + 3 * terms["arl"]
    assert losses.total.item() == pytest.approx(total.item(), rel=1e-5)
    logs = method.predict(one.image).class_probs.log()
    right = logs[0, 0] + logs[1, 2] + logs[2, 1] + logs[3, 2] + logs[4, 0]
    assert terms["cls"].item() == pytest.approx(-right.item() / 5, rel=1e-4)
    # masks of tampered images only
    logits, rows = upsampled(method, one.image), [1, 3]
    assert terms["bce"].item() == pytest.approx(sam.bce(logits[rows], one.mask[rows]).item(), rel=1e-4)
    assert terms["dice"].item() == pytest.approx(sam.dice(logits[rows], one.mask[rows]).item(), rel=1e-4)
    # anchoring of real images only
    distances = cosine_distances(method, one.image)
    assert terms["arl"].item() == pytest.approx(distances[[0, 4]].mean().item(), rel=1e-4)
    away = (2 * distances).sqrt().mean(1)
    assert terms["margin"].item() == pytest.approx((away[[1, 3]].mean() - away[[0, 4]].mean()).item(), abs=1e-5)


def test_what_is_logged_gives_accuracies(method: aap.AAP) -> None:
    one = batch([REAL, TAMPERED, TAMPERED, REAL, REAL])
    terms = method.loss(one).terms
    chosen = method.predict(one.image).class_probs.argmax(1)
    kinds = torch.tensor([REAL, TAMPERED, TAMPERED, REAL, REAL])
    assert [terms[f"seen_{name}"].item() for name in ("real", "synthetic", "tampered")] == [3, 0, 2]
    expected = [((chosen == kind) & (kinds == kind)).sum().item() for kind in (REAL, SYNTHETIC, TAMPERED)]
    assert [terms[f"right_{name}"].item() for name in ("real", "synthetic", "tampered")] == expected
    assert all(term.ndim == 0 for term in terms.values())


@pytest.mark.parametrize(
    ("variant", "reached"), [("", [True, False, False, True]), ("symmetric", [True, True, False, True])]
)
def test_anchoring_pulls_at_the_anchored_images_only(variant: str, reached: list[bool]) -> None:
    one = build(variant)
    kinds = torch.tensor([REAL, TAMPERED, SYNTHETIC, REAL])
    read = one.read(batch(kinds.tolist()).image)
    chosen = torch.isin(
        kinds, torch.tensor([{"real": REAL, "tampered": TAMPERED}[name] for name in one.config.anchored])
    )
    loss = anchor.anchoring(read.errors, chosen)
    (gradient,) = torch.autograd.grad(loss, read.states.layers[one.layer])
    pulled = gradient[:, read.states.image].abs().amax((1, 2)) > 0
    assert pulled.tolist() == reached
    # nor is the text pulled at
    assert gradient[:, read.states.image.stop :].abs().max() == 0


def test_the_loss_term_has_that_gradient() -> None:
    """With everything else weighing nothing, a batch without real images moves nothing."""
    one = build(weight_cls=0.0, weight_seg=0.0)
    one.loss(batch([TAMPERED, SYNTHETIC])).total.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in one.parameters())
    one.loss(batch([TAMPERED, REAL])).total.backward()
    assert max(float(p.grad.abs().max()) for p in one.projector.parameters()) > 0
    lora = [p for name, p in one.named_parameters() if "layers.0" in name and "lora_B" in name]
    assert max(float(p.grad.abs().max()) for p in lora) > 0


def test_the_mask_does_not_teach_the_error_map(method: aap.AAP) -> None:
    read = method.read(batch([TAMPERED, TAMPERED]).image)
    score = method.masked(read).square().mean()
    parts = [*method.projector.parameters(), *method.cue.parameters()]
    gradients = torch.autograd.grad(score, parts, allow_unused=True)
    count = len(list(method.projector.parameters()))
    assert all(one is None for one in gradients[:count])
    assert all(one is not None and one.abs().max() > 0 for one in gradients[count:])


@pytest.mark.parametrize("variant", ["", "black_box", "explained"])
@pytest.mark.parametrize("kinds", [[REAL, SYNTHETIC, TAMPERED], [TAMPERED, SYNTHETIC]])
def test_what_learns_is_what_is_reached(variant: str, kinds: list[int]) -> None:
    one = build(variant)
    one.loss(batch(kinds)).total.backward()
    reached = {name for name, p in one.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in one.named_parameters() if p.requires_grad}
    assert ("llava.model.lm_head.weight" in reached) == (variant == "explained")
    groups = one.parameter_groups(0.1)
    faster = [p for group in groups if group.get("lr_scale", 1.0) != 1 for p in group["params"]]
    assert [p.shape for p in faster] == ([one.llava.model.lm_head.weight.shape] if variant == "explained" else [])
    grouped = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert sum(p.numel() for p in grouped) == sum(p.numel() for p in one.parameters() if p.requires_grad)


def test_without_a_tampered_image_masks_cost_nothing(method: aap.AAP) -> None:
    losses = method.loss(batch([REAL, SYNTHETIC]))
    assert losses.terms["bce"] == 0
    assert losses.terms["dice"] == 0
    assert losses.terms["margin"] == 0
    assert losses.total.item() == pytest.approx((losses.terms["cls"] + 3 * losses.terms["arl"]).item(), rel=1e-5)


def test_explained_learns_the_verdict_and_the_place() -> None:
    one = build("explained")
    sample = batch([TAMPERED, REAL, SYNTHETIC])
    terms = one.loss(sample).terms
    kinds = [TAMPERED, REAL, SYNTHETIC]
    answers = [f"{ANSWER} {llava.answer(kind, mask)}" for kind, mask in zip(kinds, sample.mask, strict=True)]
    assert answers[1:] == [f"{ANSWER} The image is real.", f"{ANSWER} The image is fully synthetic."]
    logs = []
    for i, text in enumerate(answers):
        sequences = one.llava.sequences([llava.INSTRUCTIONS[1]], [text])
        states = one.llava.run(one.llava.prepared(sample.image[i : i + 1]), sequences.ids)
        probable = one.llava.logits(states.last[0, :-1]).log_softmax(-1)
        learnt = sequences.labels[0, 1:] != llava.IGNORED
        logs += probable[learnt].gather(1, sequences.ids[0, 1:][learnt][:, None]).flatten().tolist()
    assert terms["ce"].item() == pytest.approx(-sum(logs) / len(logs), rel=1e-4)
    # what stands behind <CLS> and <SEG> changes neither
    assert terms["cls"].item() == pytest.approx(build().loss(sample).terms["cls"].item(), rel=1e-4)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="false"):
        build(anchored=("false",))
    with pytest.raises(ValueError, match="projector"):
        build(anchored=())
    with pytest.raises(ValueError, match="layer 3"):
        build(layer=3)
    with pytest.raises(ValueError, match="masks"):
        build("black_box").loss(dataclasses.replace(batch([REAL]), mask=None))
