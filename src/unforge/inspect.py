"""What a trained run says of someone's own photographs: a map to look at and numbers beside it, never a verdict.

Every result begins with what is known of the run: its scale, and its AUC on real benchmark images if that
was measured. Bad input gives a row with `error`, and the rest goes on.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageOps, UnidentifiedImageError

from unforge import metrics, paths, scores, shards
from unforge.metrics.class_acc import CLASSES
from unforge.report import overlays

UNSAFE = frozenset({"EPS"})
"""Formats that Pillow reads by starting another program."""


def inspect(images: list[Path], run_dir: Path, out_dir: Path) -> list[dict[str, Any]]:
    """Write NAME.overlay.png, NAME.mask.png (probability, 0-255) and NAME.json into `out_dir` for each image, and
    NAME.heat.png for a method that has one heat map of the whole image.

    The pixels are those a viewer shows: the EXIF orientation is applied. One row per image, in order, as in its
    JSON: file, sha256, width, height, score (the method's own, or else the mask's largest value),
    manipulated_share (of the area, probability above 0.5), run, method, variant, scale, statement, text, class_probs
    and the most probable class where the method gives them, and the names of the files written. A row of an image that
    could not be read has `error` instead of results.

    Raises FileNotFoundError when the run is not there.
    """
    import torch

    from unforge import evaluate, methods

    said = statement(run_dir)
    config = paths.read_json(run_dir / "config.json")
    method = methods.load(run_dir)
    about = {name: config.get(name, "") for name in ("method", "variant", "scale")}
    about |= {"run": _run_name(run_dir), "statement": said}
    out_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    names = _names(images, out_dir)
    with torch.inference_mode():
        for path, name in zip(images, names, strict=True):
            row: dict[str, Any] = {"file": os.fsencode(path).decode("utf-8", "replace"), **about}
            try:
                data = read(path)
                image = decode(data, evaluate.MAX_PIXELS)
                # a method that declares no map is not asked for extras
                wanted = {"extras": True} if evaluate.ATTENTION in getattr(method, "EXTRAS", ()) else {}
                prediction = method.predict(evaluate.to_tensor(image, torch.device("cpu")), **wanted)
                probability = evaluate.restore(prediction.mask, image.shape[:2])
                score = None if prediction.score is None else float(prediction.score)
            except (ValueError, OSError, RuntimeError, MemoryError) as error:
                rows.append(row | {"error": str(error) or type(error).__name__})
                continue
            row |= {"sha256": hashlib.sha256(data).hexdigest(), "width": image.shape[1], "height": image.shape[0]}
            if prediction.text is not None:
                row["text"] = prediction.text[0]
            if prediction.class_probs is not None:
                row["class_probs"] = prediction.class_probs[0].float().tolist()
                row["class"] = named(row["class_probs"])
            if score is None and probability is not None:
                score = float(probability.max())
            heat = heat_map(prediction.extras.get(evaluate.ATTENTION))
            rows.append(row | _write(out_dir, name, image, probability, score, heat))
            with paths.writing_file(out_dir / f"{name}.json") as temporary:
                paths.write_json(temporary, rows[-1])
    return rows


def statement(run_dir: Path) -> str:
    """What must be known before a result of this run is read: scale, AUC on real data, what follows.

    Raises FileNotFoundError when the run is not there.
    """
    if not (run_dir / "config.json").is_file():
        raise FileNotFoundError(f"{run_dir} holds no run: `dvc repro` trains it, `dvc pull` fetches it")
    config = paths.read_json(run_dir / "config.json")
    name, scale = _run_name(run_dir), str(config.get("scale", "unknown"))
    variant = config.get("variant") or "full"
    measured = _on_real_data(run_dir)
    parts = [f"Run {name} ({config['method']}, variant {variant}), {scale} scale."]
    parts.append(f"AUC on real data: {'; '.join(measured)}." if measured else "AUC: not measured on real data.")
    if scale != "paper":
        parts.append(
            "This is no evidence: a small model trained for minutes, not the paper's; its map shows where it reacts, "
            "not where the image was manipulated."
        )
    else:
        parts.append("The map is a model's estimate and no verdict: nothing was calibrated on images like yours.")
    return " ".join(parts)


def echo(rows: Iterable[Mapping[str, Any]], write: Callable[[str], Any]) -> None:
    """The rows for people: the statement first, then one line per image."""
    rows = list(rows)
    for said in dict.fromkeys(row["statement"] for row in rows):
        write(said)
    for row in rows:
        file = printable(row["file"])
        if row.get("error"):
            write(f"{file}: not inspected: {printable(row['error'])}")
            continue
        parts = [f"class {row['class']} ({max(row['class_probs']):.2f})"] if row.get("class") else []
        parts += [f"score {row['score']:.3f}"] if row["score"] is not None else []
        if row["manipulated_share"] is not None:
            parts.append(f"{100 * row['manipulated_share']:.1f} % of the area above 0.5")
        parts.append(f"see {row['overlay']}" if row["overlay"] else "no map")
        parts += [f"heat map {row['heat']}"] if row.get("heat") else []
        write(f"{file}: {', '.join(parts)}")
        if row.get("text"):
            lines = [printable(line) for line in row["text"].splitlines()]
            write("  it wrote: " + "\n            ".join(lines))


def named(probabilities: Sequence[float]) -> str | None:
    """The most probable of the three classes; None for another number of classes, which have no names here."""
    return CLASSES[int(np.argmax(probabilities))] if len(probabilities) == len(CLASSES) else None


def heat_map(attention: Any) -> np.ndarray | None:
    """(h, w) map of the one anchor of `attention` (1, 1, 1, h, w); None for several, of which each has a map of its
    own, and for none."""
    if attention is None or tuple(attention.shape[:3]) != (1, 1, 1):
        return None
    return np.asarray(attention[0, 0, 0].float().cpu().numpy())


def decode(data: bytes, max_pixels: int) -> np.ndarray:
    """(H,W,3) uint8 RGB of an image file of any format Pillow reads, first frame, EXIF orientation applied.

    Raises ValueError with the reason.
    """
    Image.init()
    formats = sorted(set(Image.OPEN) - UNSAFE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice on odd files; size is checked here
            image = Image.open(io.BytesIO(data), formats=formats)
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels: at most {max_pixels} are taken")
            return np.asarray(shards.to_rgb(ImageOps.exif_transpose(image)))
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError("not an image in a format that Pillow reads") from None
    except Exception as error:  # parsers raise anything from struct.error to SyntaxError on hostile bytes
        raise ValueError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def printable(text: str) -> str:
    """`text` without control characters: a file name must not steer a terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def read(path: Path) -> bytes:
    """A file's bytes. ValueError when it is none."""
    if not path.exists():
        raise ValueError("there is no such file")
    if not path.is_file():
        raise ValueError("not a file: give the images themselves")
    return path.read_bytes()


def _write(
    out_dir: Path,
    name: str,
    image: np.ndarray,
    probability: np.ndarray | None,
    score: float | None,
    heat: np.ndarray | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {"score": score, "manipulated_share": None, "overlay": None, "mask": None}
    pictures = {} if heat is None else {"heat": overlays.heat(image, heat)}
    if probability is not None:
        mask = np.rint(probability * 255).astype(np.uint8)
        pictures |= {"overlay": overlays.overlay(image, probability), "mask": mask}
    for kind, picture in pictures.items():
        found[kind] = f"{name}.{kind}.png"
        with paths.writing_file(out_dir / found[kind]) as temporary:
            temporary.write_bytes(shards.encode_png(picture))
    if probability is not None:
        found["manipulated_share"] = float((probability > scores.THRESHOLD).mean())
    return found


def _names(images: Iterable[Path], out_dir: Path) -> list[str]:
    """A name for each image: plain characters, unique whatever the case, and none that would hit an input."""
    images = list(images)
    inputs = {os.path.realpath(path).casefold() for path in images}
    taken: set[str] = set()
    names = []
    for path in images:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).strip("._-")[:80] or "image"
        number, name = 1, stem
        while name.casefold() in taken or inputs & {
            os.path.realpath(out_dir / f"{name}.{end}").casefold()
            for end in ("overlay.png", "mask.png", "heat.png", "json")
        }:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _place(run_dir: Path) -> tuple[Path, str, str] | None:
    """(root, profile, run) of a run in a project's tree: root/models/<profile>/runs/<run>."""
    parts = run_dir.absolute().parts
    for at in range(len(parts) - 3, -1, -1):
        if parts[at] == "models" and parts[at + 2] == "runs":
            return Path(*parts[:at]), parts[at + 1], "/".join(parts[at + 3 :])
    return None


def _run_name(run_dir: Path) -> str:
    place = _place(run_dir)
    return place[2] if place else run_dir.name


def _on_real_data(run_dir: Path) -> list[str]:
    """`pixel AUC 0.441 (0.400 to 0.480) on casia1, n 200` for each unperturbed real test set of the run."""
    place = _place(run_dir)
    if place is None:
        return []
    root, profile, run = place
    found = []
    for path in sorted((root / paths.scores(profile, run)).glob("*.parquet")):
        if path.name == "samples.parquet" or "~" in path.stem:
            continue
        rows = scores.read(path)
        rows = rows.filter(pc.equal(rows["data"], "real"))
        for label, metric in (("pixel", "pixel_auc"), ("image", "image_auc")):
            estimate = metrics.estimate([rows], metric, seed=0) if rows.num_rows else None
            if estimate and estimate.value is not None:
                span = "" if estimate.ci_low is None else f" ({estimate.ci_low:.3f} to {estimate.ci_high:.3f})"
                found.append(f"{label} AUC {estimate.value:.3f}{span} on {path.stem}, n {estimate.n}")
    return found
