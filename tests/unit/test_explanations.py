"""Explanations: cues of made regions, texts that say no more than was measured, parsing of good and bad texts."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unforge import explanations
from unforge.explanations import KINDS, MASK, SAID, SECTIONS, Cues, compose, cues, parse

SIZE = 96
REGION = np.zeros((SIZE, SIZE), bool)
REGION[24:72, 30:70] = True
PLAIN = Cues(area=0.1, noise=(2.0, 2.0), sharpness=(3.0, 3.0), brightness=0.0, colour=0.0, blocks=(0.0, 0.0))
CODES = "<|mt_start|><|mt_12|><|mt_0|><|mt_127|><|mt_end|>"


def flat(seed: int = 0, sigma: float = 3.0) -> np.ndarray:
    """A grey ramp with noise, as float."""
    rng = np.random.default_rng(seed)
    ramp = 100 + 40 * np.arange(SIZE)[None, :, None] / SIZE
    return ramp + rng.normal(0, sigma, (SIZE, SIZE, 1)) * np.ones(3)


def pixels(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def names(measured: Cues) -> set[str]:
    return {name for found in explanations.findings(measured) for name in found}


def test_noise_is_measured_in_levels() -> None:
    image = flat(sigma=3.0)
    image[REGION] = flat(1, sigma=1.0)[REGION]
    measured = cues(pixels(image), REGION)
    assert measured.noise is not None
    assert measured.noise == pytest.approx((1.0, 3.0), rel=0.15)
    assert "weaker" in names(measured)
    assert measured.area == pytest.approx(REGION.mean())
    other = cues(pixels(image), ~REGION)
    assert "stronger" in names(other)


def test_brightness_and_colour_are_differences_to_the_surroundings() -> None:
    image = flat(sigma=1.0)
    image[REGION] += (20, 20, 20)
    measured = cues(pixels(image), REGION)
    assert measured.brightness == pytest.approx(20, abs=2)
    assert measured.colour == pytest.approx(0, abs=1)
    assert "brighter" in names(measured)
    image[REGION] -= (0, 40, 40)
    measured = cues(pixels(image), REGION)
    assert names(measured) >= {"tinted"}
    assert measured.brightness is not None
    assert measured.brightness < 0


def test_a_hard_border_is_sharper_and_a_blurred_texture_softer() -> None:
    image = flat(sigma=1.0)
    image[REGION] += 40
    assert "sharper" in names(cues(pixels(image), REGION))
    texture = flat(sigma=40.0)
    blurred = cv2.GaussianBlur(texture, (0, 0), 3)
    near = cv2.dilate(REGION.astype(np.uint8), np.ones((7, 7))) > 0
    texture[near] = blurred[near]
    assert "softer" in names(cues(pixels(texture), REGION))


def test_blocks_are_seen_where_the_grid_is() -> None:
    image = flat(sigma=1.0)
    steps = np.add.outer(np.arange(SIZE) // 8, np.arange(SIZE) // 8) % 2 * 8.0
    image[REGION] += steps[REGION][:, None]
    measured = cues(pixels(image), REGION)
    assert measured.blocks is not None
    assert measured.blocks[0] > 1 > abs(measured.blocks[1])
    assert "blockier" in names(measured)


def test_the_same_everywhere_says_nothing() -> None:
    assert names(cues(pixels(flat()), REGION)) == set()
    assert names(PLAIN) == set()


@pytest.mark.parametrize("flip", [np.fliplr, np.flipud])
def test_flips_change_no_text(flip) -> None:  # type: ignore[no-untyped-def]
    image = flat(sigma=3.0)
    image[REGION] = flat(1, sigma=1.0)[REGION] + 25
    first, second = cues(pixels(image), REGION), cues(np.ascontiguousarray(flip(pixels(image))), flip(REGION))
    assert compose(first, "splice", "full") == compose(second, "splice", "full")


@pytest.mark.parametrize("mask", [np.zeros((SIZE, SIZE), bool), np.ones((SIZE, SIZE), bool)])
def test_without_inside_or_outside_nothing_is_compared(mask: np.ndarray) -> None:
    measured = cues(pixels(flat()), mask)
    assert dataclasses.replace(measured, area=0.0) == Cues(
        area=0.0, noise=None, sharpness=None, brightness=None, colour=None, blocks=None
    )
    assert measured.area == mask.mean()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="needed"):
        cues(np.zeros((4, 4), np.uint8), np.zeros((4, 4), bool))
    with pytest.raises(ValueError, match="needed"):
        cues(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), bool))


every = st.builds(
    Cues,
    area=st.floats(0, 1),
    noise=st.none() | st.tuples(st.floats(0, 20), st.floats(0, 20)),
    sharpness=st.none() | st.tuples(st.floats(0, 50), st.floats(0, 50)),
    brightness=st.none() | st.floats(-255, 255),
    colour=st.none() | st.floats(0, 200),
    blocks=st.none() | st.tuples(st.floats(-1, 9), st.floats(-1, 9)),
)
kinds = st.sampled_from([*KINDS, "authentic", "unknown"])


@given(every, kinds, st.sampled_from(["short", "full"]))
def test_texts_are_closed_complete_and_short(measured: Cues, kind: str, length: str) -> None:
    text = compose(measured, kind, length)  # type: ignore[arg-type]
    words = set(re.findall(r"\w+|[^\w\s]", " ".join(explanations.vocabulary())))
    assert set(re.findall(r"\w+|[^\w\s]", text.replace(MASK, ""))) <= words
    assert text.count(MASK) == 1
    if length == "short":
        assert len(text.split()) <= 40
    read = parse(text.replace(MASK, CODES), latents=3, codes=128)
    assert read.complete
    assert read.missing == ()
    assert read.conclusion == explanations.class_of(kind)
    assert read.tokens == (12, 0, 127)
    assert read.reason == ""
    found = explanations.findings(measured)
    for section, expected in zip(SECTIONS[1:], found, strict=True):
        said = [name for name, phrases in SAID.items() if phrases[length == "full"] in read.sections[section]]
        if kind == "authentic":
            assert said == []
        elif length == "full":
            assert set(said) == set(expected)
        else:
            assert said == list(expected)[:1]
    for positional in ("left", "right", "top", "bottom", "upper", "lower", "centre", "center"):
        assert not re.search(rf"\b{positional}\b", text)


@given(every, every, kinds)
def test_only_thresholds_count(first: Cues, second: Cues, kind: str) -> None:
    same = [list(found) for found in explanations.findings(first)] == [
        list(found) for found in explanations.findings(second)
    ]
    if same or kind == "authentic":
        assert compose(first, kind) == compose(second, kind)


def test_kinds_are_told_apart_and_unknown_ones_kept_quiet() -> None:
    texts = [compose(PLAIN, kind) for kind in (*KINDS, "authentic", "unknown")]
    assert len(set(texts)) == len(texts)
    assert parse(compose(PLAIN, "unknown")).sections[SECTIONS[0]] == "nothing found."
    with pytest.raises(ValueError, match="short, full"):
        compose(PLAIN, "splice", "long")  # type: ignore[arg-type]


PAPER = """After a thorough examination, we have identified the following clues.

High-Level Semantic Anomalies

Physical Plausibility Within the masked region, the contact with the floor appears implausible.

Middle-Level Visual Defects

Traces of Tampered Region or Boundary The contour shows overly crisp edges.

Low-Level Pixel Statistics

Noise Inconsistency The masked region exhibits a different grain.

Conclusion: {}

<|mt_start|><|mt_655|><|mt_491|> <|mt_103|>
<|mt_end|>"""


@pytest.mark.parametrize(
    ("conclusion", "named"),
    [
        ("This image is tampered; I will provide the tampered-region mask.", "tampered"),
        ("The image contains manipulated regions. Here is the corresponding mask.", "tampered"),
        ("The image is not manipulated.", "real"),
        ("This is an authentic photograph.", "real"),
        ("The image is entirely generated.", "synthetic"),
        ("Nobody knows.", None),
    ],
)
def test_the_papers_form_is_read(conclusion: str, named: str | None) -> None:
    read = parse(PAPER.format(conclusion), latents=3, codes=1024)
    assert tuple(read.sections) == SECTIONS
    assert read.sections[SECTIONS[2]] == "Noise Inconsistency The masked region exhibits a different grain."
    assert read.conclusion == named
    assert read.tokens == (655, 491, 103)
    assert read.complete == (named is not None)


def test_the_question_in_front_is_not_taken_for_sections() -> None:
    answer = PAPER.format("This image is tampered.")
    assert parse(f"{explanations.QUESTION}\n{answer}") == parse(answer)
    in_one_line = parse(answer.replace("\n", " "))
    assert in_one_line == parse(answer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no <|mt_start|>"),
        ("<|mt_1|><|mt_end|>", "no <|mt_start|>"),
        ("<|mt_start|><|mt_1|>", "no <|mt_end|>"),
        ("<|mt_end|><|mt_start|><|mt_1|>", "no <|mt_end|>"),
        (f"{CODES}{CODES}", "2 times"),
        ("<|mt_start|><|mt_1|>word<|mt_2|><|mt_end|>", "'word' among"),
        ("<|mt_start|><|mt_1|><|mt_-2|><|mt_3|><|mt_end|>", "among"),
        ("<|mt_start|><|mt_end|>", "0 mask tokens: 3"),
        ("<|mt_start|><|mt_1|><|mt_2|><|mt_end|>", "2 mask tokens: 3"),
        ("<|mt_start|><|mt_1|><|mt_2|><|mt_128|><|mt_end|>", "mask token 128: there are 128"),
    ],
)
def test_malformed_masks_are_a_result(text: str, reason: str) -> None:
    read = parse(text, latents=3, codes=128)
    assert read.tokens is None
    assert reason in read.reason
    assert not read.complete


@given(st.lists(st.sampled_from([*SECTIONS, "Conclusion:", "<|mt_start|>", "<|mt_3|>", "<|mt_end|>", MASK, "x", ""])))
def test_no_text_raises(parts: list[str]) -> None:
    read = parse("\n".join(parts))
    assert (read.tokens is None) == bool(read.reason)
    assert set(read.sections) == {section for section in SECTIONS if section in parts}


def test_missing_and_misplaced_sections_are_said() -> None:
    text = compose(PLAIN, "splice").replace(MASK, CODES)
    lines = text.split("\n")
    without = parse("\n".join([*lines[:1], *lines[2:]]))
    assert without.missing == (SECTIONS[1],)
    assert not without.complete
    swapped = parse("\n".join([lines[1], lines[0], *lines[2:]]))
    assert swapped.missing == ()
    assert not swapped.complete
    assert list(itertools.islice(swapped.sections, 2)) == [SECTIONS[1], SECTIONS[0]]


def test_forgery_analysis_is_read_and_bad_files_are_named(tmp_path: Path) -> None:
    contents = {
        "casia2/Tp_D_NRN_S_N_art00001_art00002_10001.txt": b"High-Level ...",
        "miml/a.txt": b"\xef\xbb\xbfwith a byte order mark",
        "miml/both.txt": b"two images are called so",
        "again/a.txt": b"a second one",
        "empty.txt": b" \n",
        "nobody.txt": b"text",
        "latin.txt": b"caf\xe9",
        "hostile.txt": b"<|mt_start|><|mt_1|><|mt_end|>",
        "notes.md": b"not a text of the set",
    }
    for name, data in contents.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    keys = ["Tp_D_NRN_S_N_art00001_art00002_10001", "MIML_Part1_a", "p1_both", "p2_both", "empty", "latin", "hostile"]
    texts, rejected = explanations.read_forgery_analysis(tmp_path, keys)
    assert texts == {
        "Tp_D_NRN_S_N_art00001_art00002_10001": f"High-Level ... {MASK}",
        "MIML_Part1_a": f"a second one {MASK}",
    }
    reasons = {row["file"]: row["reason"] for row in rejected}
    assert {name: reason.split(" (")[0] for name, reason in reasons.items()} == {
        "miml/a.txt": "a second text for MIML_Part1_a: the first is kept",
        "miml/both.txt": "2 images are called both",
        "empty.txt": "empty",
        "nobody.txt": "no images are called nobody",
        "latin.txt": "not UTF-8 text",
        "hostile.txt": "holds signs that stand for tokens",
    }
    with pytest.raises(ValueError, match="not a directory"):
        explanations.read_forgery_analysis(tmp_path / "gone", keys)
