"""What is predicted, that nothing but projector and map is paid for it, and what is made of odd answers."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.methods.aap.samples import batch, build, cosine_distances
from unforge.backbones import llava
from unforge.methods import aap
from unforge.methods.aap.method import ANSWER, CLS, NAMES, SEG

REAL, SYNTHETIC, TAMPERED = llava.REAL, llava.SYNTHETIC, llava.TAMPERED


@pytest.fixture(scope="module")
def method() -> aap.AAP:
    found = build()
    # as after some training: the error map reaches the decoder
    torch.manual_seed(3)
    with torch.no_grad():
        found.cue.layers[2].weight.normal_()
    return found


def test_at_first_the_map_changes_nothing_then_it_does(method: aap.AAP) -> None:
    image = torch.rand(2, 3, 40, 40)
    full, plain = build(), build("no_map")
    names = {name for name in full.state_dict() if not name.startswith("cue.")}
    assert names == set(plain.state_dict())
    assert all(torch.equal(value, full.state_dict()[name]) for name, value in plain.state_dict().items())
    assert torch.equal(full(image), plain(image))
    assert not torch.allclose(method(image), plain(image), atol=1e-3)


def test_the_black_box_has_nothing_of_it() -> None:
    one, full = build("black_box"), build()
    assert {name.split(".")[0] for name, _ in full.named_parameters()} == {
        "llava", "segmenter", "cls_head", "projector", "cue",
    }  # fmt: skip
    assert {name.split(".")[0] for name, _ in one.named_parameters()} == {"llava", "segmenter", "cls_head"}
    assert one.EXTRAS == ()
    losses = one.loss(batch([REAL, TAMPERED]))
    assert not {"arl", "margin"} & set(losses.terms)
    found = one.predict(torch.rand(1, 3, 32, 32), extras=True)
    assert found.extras == {}
    assert not {"anchor_error", "deviation"} & set(found.signals)


def test_prediction_costs_no_more_than_projector_and_cue() -> None:
    """Multiply-adds: anchoring adds those of P_phi, the map those of P_psi, and nothing else."""
    image = torch.rand(1, 3, 64, 64)

    def count(variant: str) -> int:
        one = build(variant)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            one(image)
        return counter.get_total_flops()

    tokens, width, truth = 256, 96, 33
    projector = 2 * tokens * (width * (width // 2) + (width // 2) * truth)
    cue = 2 * 9 * 16 * 16 * (1 * 32 + 32 * 64)
    assert count("no_map") - count("black_box") == projector
    assert count("") - count("no_map") == cue


def test_predictions(method: aap.AAP) -> None:
    assert set(inspect.signature(method.predict).parameters) == {"image", "extras"}
    image = torch.rand(3, 3, 31, 77)
    found = method.predict(image, extras=True)
    assert found.mask.shape == (3, 1, 31, 77)
    assert ((found.mask >= 0) & (found.mask <= 1)).all()
    assert found.class_probs.shape == (3, 3)
    assert torch.allclose(found.class_probs.sum(1), torch.ones(3))
    assert torch.allclose(found.score, 1 - found.class_probs[:, 0])
    assert found.text == tuple(NAMES[i] for i in found.class_probs.argmax(1))
    assert set(found.extras) == set(method.EXTRAS)
    errors = found.extras["attention_last"]
    assert errors.shape == (3, 1, 1, 16, 16)
    assert torch.allclose(errors.flatten(1), cosine_distances(method, image), atol=1e-5)
    assert ((errors >= 0) & (errors <= 2)).all()
    assert set(found.signals) == {f"state_{i}" for i in range(64)} | {"anchor_error", "deviation"}
    assert torch.allclose(found.signals["anchor_error"], errors.flatten(1).mean(1), atol=1e-6)
    assert torch.allclose(found.signals["deviation"], (2 * errors).sqrt().flatten(1).mean(1), atol=1e-5)
    assert all(value.shape == (3,) for value in found.signals.values())
    without = method.predict(image)
    assert without.extras == {}
    assert torch.equal(without.mask, found.mask)


@pytest.mark.parametrize("shape", [(1, 1), (17, 90), (64, 64)])
def test_any_size_is_predicted(method: aap.AAP, shape: tuple[int, int]) -> None:
    assert method.predict(torch.rand(1, 3, *shape)).mask.shape == (1, 1, *shape)


def test_what_is_predicted_of_an_image_depends_on_it_alone(method: aap.AAP) -> None:
    image = torch.rand(2, 3, 40, 40)
    together, alone = method.predict(image), method.predict(image[:1])
    assert torch.allclose(together.class_probs[:1], alone.class_probs, atol=1e-5)
    assert torch.allclose(together.mask[:1], alone.mask, atol=1e-5)
    assert torch.allclose(together.signals["anchor_error"][:1], alone.signals["anchor_error"], atol=1e-5)


def saying(method: aap.AAP, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """From now on the language model prefers the words of `answer`, in turn, to everything else."""
    place = iter([*(method.llava.encode(" " + answer) if answer else []), method.llava.tokenizer.eos_token_id])

    def logits(states: Tensor) -> Tensor:
        out = torch.zeros(*states.shape[:-1], len(method.llava.tokenizer))
        out[..., next(place)] = 1
        return out

    monkeypatch.setattr(method.llava, "logits", logits)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("The image is tampered at top left.", "The image is tampered at top left."),
        (f"The image is {SEG} real.", "The image is real."),
        ("tampered tampered", "tampered tampered"),
        (ANSWER, ""),
        ("", ""),
    ],
)
def test_answers_are_given_as_they_are(monkeypatch: pytest.MonkeyPatch, written: str, text: str) -> None:
    one = build("explained")
    image = torch.rand(1, 3, 33, 50)
    named = one.predict(image)
    assert named.text == (NAMES[int(named.class_probs.argmax())],)
    saying(one, monkeypatch, written)
    said = one.predict(image, extras=True)
    assert said.text == (text,)
    # a class and a mask do not hang on what is said
    assert torch.equal(said.class_probs, named.class_probs)
    assert torch.equal(said.mask, named.mask)


def test_what_is_said_is_the_most_probable_continuation() -> None:
    """The same words one whole pass at a time, without a cache."""
    one = build("explained", answer_tokens=5)
    image = torch.rand(2, 3, 40, 40)
    first, second = one.explain(image)
    shown = one.llava.prepared(image)
    ids = one.llava.sequences([llava.INSTRUCTIONS[1]] * 2, [ANSWER] * 2).ids[:, :-1]
    begin = ids.shape[1]
    for _ in range(5):
        with torch.no_grad():
            following = one.llava.logits(one.llava.run(shown, ids).last[:, -1:]).argmax(-1)
        ids = torch.cat([ids, following], dim=1)
    expected = [one.llava.text(row) for row in ids[:, begin:]]
    expected = [" ".join(text.replace(CLS, " ").replace(SEG, " ").split()) for text in expected]
    assert [first, second] == expected
    assert first
