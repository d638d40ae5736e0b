"""CASIA v1 on the real thing: every tampered image gets the right mask, judged by the pixels themselves."""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unforge import shards
from unforge.datasets import add, casia1, ingest, layout

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def casia() -> Path:
    folder = os.environ.get("UNFORGE_REAL_DATA")
    if not folder:
        pytest.skip("UNFORGE_REAL_DATA is not set")
    return Path(folder) / "casia1"


@pytest.fixture(scope="module")
def found(casia: Path):
    return list(casia1.find(casia))


def test_all_920_masks_are_matched_and_none_twice(found):
    tampered = [row for row in found if row.label]
    assert len(tampered) == 921
    assert Counter(row.meta.get("match") for row in tampered) == {"name": 815, "type_id": 76, "method_id": 29, None: 1}
    matched = [row for row in tampered if row.mask]
    assert Counter(row.kind for row in matched) == {"splice": 461, "copy_move": 459}
    assert len({row.mask for row in matched}) == 920
    assert all((row.mask.parent.name == "CM") == (row.kind == "copy_move") for row in matched)
    assert [(row.key, row.reason) for row in tampered if not row.mask] == [
        ("Sp_D_NRN_A_sce0011_cha0011_0542", layout.NO_MASK)
    ]


def test_the_authors_list_of_corrections_agrees(casia, found):
    """FileNameCorrection.xlsx by the masks' author holds original and corrected names side by side."""
    with zipfile.ZipFile(casia / "CASIA 1.0 groundtruth" / "FileNameCorrection.xlsx") as file:
        text = re.findall(r"<t[^>]*>([^<]*)</t>", file.read("xl/sharedStrings.xml").decode())
        cells = re.findall(
            r'<c r="([A-Z]+)(\d+)"[^>]*t="s"[^>]*><v>(\d+)</v>', file.read("xl/worksheets/sheet1.xml").decode()
        )
    lines: dict[str, list[str]] = {}
    for _, line, index in cells:
        if text[int(index)].startswith("Sp_"):
            lines.setdefault(line, []).append(text[int(index)].removesuffix(".jpg"))
    corrections = dict(names for names in lines.values() if len(names) == 2)
    assert len(corrections) == 33
    masks = {row.image.stem: row.mask.name.removesuffix("_gt.png") for row in found if row.mask}
    assert {original: masks[original] for original in corrections} == corrections


def test_masks_cover_what_differs_from_the_authentic_photograph(casia, found):
    """Where a photograph named by the image is at hand and of its size, it differs inside the mask and not outside."""
    authentic = {f"casia1:{path.stem[3:].replace('_', '')}": path for path in (casia / "Au").iterdir()}
    judged = Counter()
    for row in found:
        match = row.meta.get("match")
        if match in (None, "name"):
            continue
        image = np.asarray(Image.open(row.image).convert("RGB")).astype(int)
        mask = layout.read_mask(row.mask.read_bytes())
        shares = []
        for source in row.source:
            original = authentic.get(source)
            if original is not None:
                pixels = np.asarray(Image.open(original).convert("RGB")).astype(int)
                if pixels.shape == image.shape:
                    differs = np.abs(pixels - image).max(axis=2) > 24
                    shares.append((differs[~mask].mean(), differs[mask].mean()))
        if shares:
            outside, inside = min(shares)
            assert inside > outside + 0.1, row.key
            judged[match] += 1
    assert judged == {"type_id": 74, "method_id": 29}


def test_ingestion_keeps_the_bytes_and_names_what_it_leaves_out(casia):
    rows: list[dict] = []
    samples = {sample.key: sample for sample in ingest.read(casia1, casia, rows)}
    assert len(rows) == 1710
    assert Counter((row["kind"], row["status"]) for row in rows) == {
        ("authentic", "ok"): 789,
        ("splice", "ok"): 460,
        ("splice", "flagged"): 1,
        ("splice", "rejected"): 1,
        ("copy_move", "ok"): 459,
    }
    assert len(samples) == 1709
    for key in list(samples)[::97]:
        (path,) = [path for path in casia.rglob("*.jpg") if layout.key(path.stem) == key]
        assert samples[key].image == path.read_bytes()
    turned = samples["Sp_D_CNN_A_sec0012_ani0007_0275"]
    image = shards.decode_image(turned.image).astype(int)
    original = np.asarray(Image.open(casia / "Au" / "Au_sec_0012.jpg").convert("RGB")).astype(int)
    differs = np.abs(image - original).max(axis=2) > 24
    mask = shards.decode_mask(turned.mask)
    assert (differs & mask).sum() / (differs | mask).sum() > 0.9


def test_the_11_missing_authentic_images_are_named(casia):
    assert casia1.missing(casia) == [
        "Au_ani_0002.jpg",
        "Au_art_0044.jpg",
        *(f"Au_cha_{number:04d}.jpg" for number in range(47, 52)),
        *(f"Au_sec_{number:04d}.jpg" for number in (74, 79, 93, 94)),
    ]


def test_the_official_layout_gives_the_same_pairs(casia, found, tmp_path):
    """The layout of the set's owners, rebuilt from the mirror with the corrected names: everything matches by name."""
    for row in found:
        if row.mask:
            name = row.mask.name.removesuffix("_gt.png")
            place = tmp_path / "Modified Tp" / "Tp" / row.mask.parent.name / f"{name}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(row.image.resolve())
    for folder in ("Au", "CASIA 1.0 groundtruth"):
        (tmp_path / folder).mkdir()
        for path in (casia / folder).rglob("*"):
            if path.is_file():
                target = tmp_path / folder / path.relative_to(casia / folder)
                target.parent.mkdir(exist_ok=True)
                target.symlink_to(path.resolve())
    official = [row for row in casia1.find(tmp_path) if row.label]
    assert Counter(row.meta["match"] for row in official) == {"name": 920}
    pairs = {row.image.resolve(): row.mask.name for row in official}
    assert pairs == {row.image.resolve(): row.mask.name for row in found if row.mask}
    assert Counter(row.kind for row in official) == {"splice": 461, "copy_move": 459}


def test_add_and_write_a_small_part(casia, tmp_path):
    part = tmp_path / "part"
    for pattern in ("Sp/Sp_D_NRN_A_ani00*", "CASIA 1.0 groundtruth/Sp/Sp_D_NRN_A_*ani00*", "Au/Au_ani_000*"):
        for path in casia.glob(pattern):
            target = part / path.relative_to(casia)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    report = add.add("casia1", part, tmp_path)
    assert report.total("ok") == len(report.rows) > 40
    rows: list[dict] = []
    samples = ingest.samples(tmp_path / "data" / "raw" / "casia1", rows, limit=12)
    shards.write(tmp_path / "out", samples, name="casia1", data="real", version=casia1.VERSION)
    written = shards.ShardSet(tmp_path / "out")
    assert len(written) == len(rows) == 12
    assert {row["kind"] for row in written.manifest.to_pylist()} == {"authentic", "splice"}
    for key in written.keys:
        assert Image.open(io.BytesIO(written.image_bytes(key))).size[::-1] == written.mask(key).shape
