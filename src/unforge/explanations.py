"""Why an image is said to be tampered, in TamperTok's form: three sections, a conclusion, and where the mask goes.

`cues` measures, `compose` puts into words what was measured beyond a threshold and what the forgery's metadata say,
`parse` reads such a text back, also one that a model wrote. No text says where something is: images are flipped in
training. Source: TamperTok, Sec. A.5 and Figures 6-8, for the sections and the conclusion. ASSUMPTION(paper): the
words within the sections, the cues and their thresholds are unforge's own; the paper's texts were written by a large
model for ForgeryAnalysis-PT (`read_forgery_analysis`) and name objects.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

Length = Literal["short", "full"]

SECTIONS = ("High-Level Semantic Anomalies", "Middle-Level Visual Defects", "Low-Level Pixel Statistics")
QUESTION = (
    "Given the image and mask, assess whether the masked region is manipulated and justify under three sections: "
    "High-Level Semantic Anomalies; Middle-Level Visual Defects; Low-Level Pixel Statistics."
)
"""Source: TamperTok, Sec. A.5."""
OPENING = "After a comprehensive analysis, we have identified the following clues."
"""Source: TamperTok, Figure 6. Only in texts of full length."""
MASK = "{mask}"
"""Where the mask tokens stand."""
CONCLUSIONS = {
    "real": "This image is real; the tampered-region mask is empty.",
    "synthetic": "This image is fully synthetic; the mask is the whole image.",
    "tampered": "This image is tampered; I will provide the tampered-region mask.",
}
"""By class. The last is the paper's (Figures 6 and 7); the others are in its manner. Every answer has a mask: Sec. A.3
reads the class from it."""

RATIO = 1.25
"""Noise and sharpness count as different from this factor on, either way."""
BRIGHTNESS, COLOUR, BLOCKS = 12.0, 8.0, 0.1
"""The same for the differences of mean luma and chroma (0-255), and of blockiness."""
SMALL, LARGE = 0.05, 0.2
"""Shares of the image below and above which a region is called small and large."""
BAND, RING, FEWEST = 2, 16, 64
"""Half the width of the border and the width of the surroundings that are looked at (pixels); fewer pixels than the
last say nothing."""

KINDS = {
    "splice": ("pasted content.", "Content of another photograph was pasted into this one."),
    "copy_move": ("repeated content.", "Content of the image is repeated within it."),
    "removal": ("something removed.", "Something was removed and painted over from its surroundings."),
    "regenerated": ("regenerated content.", "Content was painted anew by a generative model."),
    "generated": ("everything is generated.", "The whole scene was made by a generative model."),
    "history": ("another processing history.", "A part of the image was processed differently."),
}
"""What a kind of manipulation is called in a short and in a full text. `unknown` is not mentioned."""
NOTHING = ("nothing found.", "Nothing conspicuous was found.")
AREAS = {"small": "The region is small.", "large": "The region is large.", "": "The region is of medium size."}
SAID = {
    "softer": ("border softer than elsewhere.", "Traces of Tampered Region or Boundary: the border is softer than "
               "edges elsewhere."),
    "sharper": ("border sharper than elsewhere.", "Traces of Tampered Region or Boundary: the border is sharper than "
                "edges elsewhere."),
    "brighter": ("region brighter.", "Lighting Inconsistency: the region is brighter than its surroundings."),
    "darker": ("region darker.", "Lighting Inconsistency: the region is darker than its surroundings."),
    "weaker": ("noise weaker inside.", "Noise Inconsistency: the noise inside is weaker than outside."),
    "stronger": ("noise stronger inside.", "Noise Inconsistency: the noise inside is stronger than outside."),
    "smoother": ("fewer compression blocks.", "Compression Mismatch: block edges inside are weaker than outside."),
    "blockier": ("more compression blocks.", "Compression Mismatch: block edges inside are stronger than outside."),
    "tinted": ("colour differs.", "Color and Tone Mismatch: the colour inside differs from its surroundings."),
}  # fmt: skip
"""What is said of each cue in a short and in a full text."""

START, END = "<|mt_start|>", "<|mt_end|>"
TOKEN = re.compile(r"<\|mt_(\d{1,6})\|>")
MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Cues:
    """What was measured; None where there is too little inside or outside to measure it."""

    area: float
    """Share of the image, [0, 1]."""
    noise: tuple[float, float] | None
    """Noise inside and outside the region: robust sigma of a high-pass (0-255)."""
    sharpness: tuple[float, float] | None
    """Mean gradient of luma along the region's border, and in its surroundings, border excepted (levels a pixel)."""
    brightness: float | None
    """Mean luma inside less that of the surroundings (0-255)."""
    colour: float | None
    """Distance of mean chroma inside from that of the surroundings (0-255)."""
    blocks: tuple[float, float] | None
    """Blockiness inside and outside: how much larger steps at borders of 8x8 blocks are than elsewhere, less 1."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """A text in parts."""

    sections: dict[str, str]
    """Text of each section that is there, in the text's order."""
    conclusion: str | None
    """`real`, `synthetic` or `tampered`; None when the text does not conclude."""
    tokens: tuple[int, ...] | None
    """Codes of the mask."""
    reason: str
    """Why there are no codes; empty where there are."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Sections that are not there."""
        return tuple(section for section in SECTIONS if section not in self.sections)

    @property
    def complete(self) -> bool:
        """Whether everything is there: sections in their order, conclusion, mask tokens."""
        return tuple(self.sections) == SECTIONS and self.conclusion is not None and self.tokens is not None


def cues(image: np.ndarray, mask: np.ndarray) -> Cues:
    """Measure a region. `image` (H, W, 3) uint8, `mask` (H, W) bool. ValueError for other shapes or types."""
    import cv2

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or mask.shape != image.shape[:2]:
        raise ValueError(f"image {image.shape} {image.dtype}, mask {mask.shape}: (H, W, 3) uint8 and (H, W) are needed")
    inside = mask.astype(bool)
    outside = ~inside
    luma = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2GRAY)  # unrounded: noise may be below one level
    chroma = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float32)
    border = _grown(inside, BAND) & _grown(outside, BAND)
    around = _grown(inside, RING) & outside
    near = _grown(inside, RING) & _grown(outside, RING) & ~border
    slope = np.hypot(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)) / 8
    edges = None if _few(border, near) else (float(slope[border].mean()), float(slope[near].mean()))
    tone = shade = None
    if not _few(inside, around):
        shade = float(luma[inside].mean() - luma[around].mean())
        tone = float(np.hypot(*(chroma[inside].mean(axis=0) - chroma[around].mean(axis=0))))
    noise = None if _few(inside, outside) else (_noise(luma, inside), _noise(luma, outside))
    blocks = _blockiness(luma, inside), _blockiness(luma, outside)
    both = None if blocks[0] is None or blocks[1] is None else (blocks[0], blocks[1])
    return Cues(area=float(inside.mean()), noise=noise, sharpness=edges, brightness=shade, colour=tone, blocks=both)


def _grown(region: np.ndarray, by: int) -> np.ndarray:
    import cv2

    grown: np.ndarray = cv2.dilate(region.astype(np.uint8), np.ones((2 * by + 1, 2 * by + 1), np.uint8)) > 0
    return grown


def _few(*regions: np.ndarray) -> bool:
    return min(int(region.sum()) for region in regions) < FEWEST


def _noise(luma: np.ndarray, region: np.ndarray) -> float:
    """Sigma of white noise that has this median absolute response to a 3x3 high-pass without gradients and curvature.

    Source: Immerkaer, Fast noise variance estimation, 1996, with the median in place of the mean.
    """
    import cv2

    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    return float(np.median(np.abs(cv2.filter2D(luma, -1, mask)[region]))) * 1.4826


def _blockiness(luma: np.ndarray, region: np.ndarray) -> float | None:
    steps: dict[bool, list[float]] = {True: [], False: []}
    for axis in (0, 1):
        step, both = np.abs(np.diff(luma, axis=axis)), region
        both = region[1:] & region[:-1] if axis == 0 else region[:, 1:] & region[:, :-1]
        at = np.arange(step.shape[axis]) % 8 == 7
        at = at[:, None] if axis == 0 else at[None]
        for edge in (True, False):
            chosen = step[both & (at == edge)]
            if len(chosen) < FEWEST:
                return None
            steps[edge].append(float(chosen.mean()))
    return sum(steps[True]) / max(sum(steps[False]), 1e-6) - 1


def findings(measured: Cues) -> tuple[dict[str, float], dict[str, float]]:
    """Names (keys of `SAID`) of the middle-level and of the low-level cues beyond their threshold, with how many times
    the threshold each is, the strongest first."""
    middle: dict[str, float] = {}
    low: dict[str, float] = {}
    if measured.sharpness is not None:
        _ratio(middle, "sharper", "softer", *measured.sharpness)
    if measured.brightness is not None and abs(measured.brightness) >= BRIGHTNESS:
        middle["brighter" if measured.brightness > 0 else "darker"] = abs(measured.brightness) / BRIGHTNESS
    if measured.noise is not None:
        _ratio(low, "stronger", "weaker", *measured.noise)
    if measured.blocks is not None and abs(measured.blocks[0] - measured.blocks[1]) >= BLOCKS:
        difference = measured.blocks[0] - measured.blocks[1]
        low["blockier" if difference > 0 else "smoother"] = abs(difference) / BLOCKS
    if measured.colour is not None and measured.colour >= COLOUR:
        low["tinted"] = measured.colour / COLOUR
    first, second = (dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))) for found in (middle, low))
    return first, second


def _ratio(found: dict[str, float], more: str, less: str, inside: float, outside: float) -> None:
    exponent = math.log((inside + 0.05) / (outside + 0.05)) / math.log(RATIO)
    if abs(exponent) >= 1:
        found[more if exponent > 0 else less] = abs(exponent)


def class_of(kind: str) -> str:
    """`real`, `synthetic` or `tampered`."""
    return {"authentic": "real", "generated": "synthetic"}.get(kind, "tampered")


def compose(measured: Cues, kind: str, length: Length = "short") -> str:
    """The answer that an image deserves, with `MASK` where its mask tokens stand.

    `kind` is that of the image (`types.Kind`). `short`: at most 40 words, the strongest cue of a section only;
    `full`: all cues, in sentences. ValueError for another length.
    """
    if length not in get_args(Length):
        raise ValueError(f"length {length!r}: {', '.join(get_args(Length))} are accepted")
    form = get_args(Length).index(length)
    high: list[str] = []
    middle: list[str] = []
    low: list[str] = []
    if kind != "authentic":
        high = [KINDS[kind][form]] if kind in KINDS else []
        if length == "full" and kind != "generated":
            high.append(AREAS["small" if measured.area < SMALL else "large" if measured.area > LARGE else ""])
        middle, low = ([SAID[name][form] for name in found] for found in findings(measured))
        if length == "short":
            middle, low = middle[:1], low[:1]
    body = [f"{s}: {' '.join(said or [NOTHING[form]])}" for s, said in zip(SECTIONS, (high, middle, low), strict=True)]
    opening = [OPENING] if length == "full" and kind != "authentic" else []
    return "\n".join([*opening, *body, f"Conclusion: {CONCLUSIONS[class_of(kind)]} {MASK}"])


def vocabulary() -> list[str]:
    """Texts that hold every word of every text `compose` can give, and the question."""
    phrases = [NOTHING, *KINDS.values(), *SAID.values()]
    said = [text for both in phrases for text in both]
    return [
        QUESTION,
        OPENING,
        *(f"{s}:" for s in SECTIONS),
        "Conclusion:",
        *CONCLUSIONS.values(),
        *AREAS.values(),
        *said,
    ]


def parse(text: str, latents: int | None = None, codes: int | None = None) -> Parsed:
    """Take a text apart, whatever it is; nothing raises.

    `latents`: how many mask tokens there must be, `codes`: below which number they must be (None: any).
    """
    spans = []
    for section in SECTIONS:
        named = (
            rf"{re.escape(section)}\s*:?"  # at the beginning of a line, or else anywhere: the question names them too
        )
        if (match := re.search(rf"(?im)^\s*{named}", text) or re.search(rf"(?i){named}", text)) is not None:
            spans.append((match.start(), match.end(), section))
    spans.sort()
    conclusion = re.search(r"(?i)\bconclusion\s*:", text)
    first = min((match for match in (text.find(START), text.find(MASK)) if match >= 0), default=len(text))
    stop = min(conclusion.start() if conclusion else len(text), first)
    sections = {}
    for at, (_, end, section) in enumerate(spans):
        until = spans[at + 1][0] if at + 1 < len(spans) else max(stop, end)
        sections[section] = text[end:until].strip()
    concluded = _concluded(text[conclusion.end() : max(first, conclusion.end())]) if conclusion else None
    tokens, reason = mask_tokens(text, latents, codes)
    return Parsed(sections=sections, conclusion=concluded, tokens=tokens, reason=reason)


def _concluded(text: str) -> str | None:
    lowered = text.lower()
    if re.search(r"\b(fully|entirely) (synthetic|generated)\b", lowered):
        return "synthetic"
    if re.search(r"\b(not|no) (\w+ )?(tampered|manipulated|manipulation)\b|\b(real|authentic)\b", lowered):
        return "real"
    return "tampered" if re.search(r"\b(tampered|manipulated)\b", lowered) else None


def mask_tokens(text: str, latents: int | None = None, codes: int | None = None) -> tuple[tuple[int, ...] | None, str]:
    """Codes of `<|mt_start|><|mt_12|>...<|mt_end|>` in `text`, or None and the reason why there are none."""
    starts, ends = text.count(START), text.count(END)
    if starts == 0:
        return None, f"no {START}"
    if starts > 1 or ends > 1:
        return None, f"{starts} times {START}, {ends} times {END}: one of each is a mask"
    begin = text.index(START) + len(START)
    if ends == 0 or text.index(END) < begin:
        return None, f"no {END} after {START}"
    between = text[begin : text.index(END)]
    if rest := TOKEN.sub("", between).strip():
        return None, f"{rest[:40]!r} among the mask tokens"
    found = tuple(int(number) for number in TOKEN.findall(between))
    if (latents is not None and len(found) != latents) or not found:
        return None, f"{len(found)} mask tokens: {latents or 'at least one'} are needed"
    if codes is not None and max(found) >= codes:
        return None, f"mask token {max(found)}: there are {codes} codes"
    return found, ""


def read_forgery_analysis(folder: Path, keys: Iterable[str]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """(text by key, rejected files) of ForgeryAnalysis-PT: a .txt for each tampered image, with the image's stem.

    `keys` are those of CASIA v2's and MIML's images in shards; a key with its part in front (`part1_<stem>`) matches
    too where it is the only one. A rejected file is {file, reason}. Texts get `MASK` at their end.
    Source: facts on ForgeryAnalysis-PT (Sun et al., NeurIPS 2025); its terms are those of CASIA2 and MIML.
    ValueError when `folder` is no directory.
    """
    from unforge.datasets import layout

    exact = set(keys)
    ending: dict[str, set[str]] = defaultdict(set)
    for key in exact:
        parts = key.split("_")
        for at in range(1, len(parts)):
            ending["_".join(parts[at:])].add(key)
    texts: dict[str, str] = {}
    rejected: list[dict[str, str]] = []
    for path in layout.files(folder):
        if layout.extension(path) != "txt":
            continue
        try:
            stem = layout.key(layout.stem(path))
            matches = {stem} if stem in exact else ending.get(stem, set())
            if len(matches) != 1:
                raise ValueError(f"{len(matches) or 'no'} images are called {stem}")
            (key,) = matches
            if key in texts:
                raise ValueError(f"a second text for {key}: the first is kept")
            texts[key] = _text(Path(folder) / path)
        except (OSError, ValueError) as error:
            rejected.append({"file": layout.printable(path), "reason": str(error)})
    return texts, rejected


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError("not a regular file")
    if (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise ValueError(f"{size} bytes: more than {MAX_TEXT_BYTES} are not read")
    try:
        text = path.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not text:
        raise ValueError("empty")
    if "<|" in text or MASK in text or "\0" in text:
        raise ValueError("holds signs that stand for tokens")
    return f"{text} {MASK}"
