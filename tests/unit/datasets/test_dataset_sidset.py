"""SID-Set as a tree and as parquet files, whole and hostile."""

from __future__ import annotations

import io
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.datasets.dataset_trees import SIZE, encoded, picture, square
from unforge import shards
from unforge.datasets import add, ingest, layout, near_duplicates, sid, sidset, sidset_test, tampertok

TREE = (
    "train/real/0a1b.jpg",
    "train/full_synthetic/s1.png",
    "train/tampered/t1.png",
    "train/masks/t1_mask.png",
    "train/tampered/t2.png",
    "validation/real/0a1b.jpg",
    "validation/tampered/000000000042_x.png",
    "validation/masks/000000000042_x_mask.png",
    "test/full_synthetic/s9.png",
)


def cell(name: str, format: str, called: str | None = None) -> dict[str, Any]:
    return {"bytes": encoded(picture(name), format), "path": called}


def write(path: Path, rows: list[dict[str, Any]], group: int = 3, plain: bool = False, **options: Any) -> Path:
    """Rows of img_id, image, mask, label as a parquet file; `plain`: bytes without a struct around them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"img_id": pa.string(), "image": file, "mask": file, "width": pa.int64(), "height": pa.int64()}
    schema = pa.schema([*types.items(), ("label", pa.int64())])
    full = [{"width": SIZE[0], "height": SIZE[1], "mask": None, **row} for row in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=schema), path, row_group_size=group, **options)
    return path


def ten() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for i in range(10):
        label = i % 3
        rows.append({"img_id": f"id{i}", "label": label, "image": cell(f"p{i}", "PNG" if label else "JPEG")})
        if label == 2:
            rows[-1]["mask"] = {"bytes": encoded(square(), "PNG"), "path": None}
    return rows


def read(module: Any, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    log: list[dict[str, Any]] = []
    return {sample.key: sample for sample in ingest.read(module, root, log)}, log


def test_tree_gives_classes_splits_and_masks(tree: Any) -> None:
    samples, log = read(sidset, tree(*TREE))
    assert {key: (s.kind, s.label, s.split, s.meta["part"]) for key, s in samples.items()} == {
        "real_0a1b": ("authentic", 0, "train", "real"),
        "full_synthetic_s1": ("generated", 1, "train", "full_synthetic"),
        "tampered_t1": ("regenerated", 1, "train", "tampered"),
        "tampered_000000000042_x": ("regenerated", 1, "val", "tampered"),
        **{key: ("authentic", 0, "val", "real") for key in samples if key.startswith("real_0a1b-")},
    }
    assert len(samples) == 5
    assert samples["tampered_000000000042_x"].source == ("coco:000000000042",)
    assert samples["real_0a1b"].mask is None
    assert shards.decode_mask(samples["full_synthetic_s1"].mask).all()
    assert shards.decode_mask(samples["full_synthetic_s1"].mask).shape == SIZE[::-1]
    assert (shards.decode_mask(samples["tampered_t1"].mask) == (square() > 0)).all()
    rejected = {row["source_image"]: row["reason"] for row in log if row["status"] == "rejected"}
    assert rejected == {"train/tampered/t2.png": layout.NO_MASK}
    (flagged,) = [row for row in log if row["status"] == "flagged"]
    assert (flagged["key"], "full mask" in flagged["reason"]) == ("full_synthetic_s1", True)


def test_the_test_images_are_a_set_of_their_own(tree: Any) -> None:
    root = tree(*TREE)
    assert [(row.key, row.split) for row in sidset_test.find(root)] == [("full_synthetic_s9", "test")]


def test_without_a_split_images_are_what_they_are_added_as(tree: Any) -> None:
    root = tree(*(f"SID/real/{i}.jpg" for i in range(40)), "SID/full_synthetic/s1.png")
    assert {row.split for row in sidset_test.find(root)} == {"test"}
    found = list(sidset.find(root))
    assert len(found) == 41
    assert sum(row.split == "val" for row in found) == 2


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_gives_the_original_bytes(tmp_path: Path, plain: bool) -> None:
    rows = ten()
    if plain:
        rows = [{**r, "image": r["image"]["bytes"], "mask": (r.get("mask") or {}).get("bytes")} for r in rows]
    write(tmp_path / "data/train-00000-of-00002.parquet", rows[:7], plain=plain)
    write(tmp_path / "data/validation-00000-of-00001.parquet", rows[7:], plain=plain)
    write(tmp_path / "data/test-00000-of-00001.parquet", [{**rows[0], "img_id": "kept_apart"}], plain=plain)
    samples, log = read(sidset, tmp_path)
    assert len(samples) == 10
    for i, row in enumerate(rows):
        part = ("real", "full_synthetic", "tampered")[i % 3]
        sample = samples[f"{part}_id{i}"]
        assert sample.image == (row["image"] if plain else row["image"]["bytes"])
        assert sample.split == ("train" if i < 7 else "val")
        assert sample.extension == ("png" if i % 3 else "jpg")
        assert (sample.mask is None) == (i % 3 == 0)
        if i % 3 == 2:
            assert (shards.decode_mask(sample.mask) == (square() > 0)).all()
    assert {row["status"] for row in log} == {"ok", "flagged"}
    assert all("full mask" in row["reason"] for row in log if row["status"] == "flagged")
    # any order gives the same bytes
    for found in reversed(list(sidset.find(tmp_path))):
        assert found.image.read_bytes() == samples[found.key].image


def test_parquet_is_checked_and_added_as_it_is(tmp_path: Path) -> None:
    file = write(tmp_path / "there/train-00000-of-00001.parquet", ten())
    report = add.check("sidset", tmp_path / "there")
    assert (report.total("ok"), report.total("flagged"), report.total("rejected")) == (7, 3, 0)
    (tmp_path / "project").mkdir()
    add.add("sidset", tmp_path / "there", tmp_path / "project")
    raw = tmp_path / "project/data/raw/sidset"
    assert (raw / "files/train-00000-of-00001.parquet").read_bytes() == file.read_bytes()
    rows: list[dict[str, Any]] = []
    some = list(ingest.samples(raw, rows, limit=6, seed=1))
    assert sorted(sample.kind for sample in some) == sorted(["authentic", "generated", "regenerated"] * 2)


def test_hostile_rows_are_rejected_with_a_reason(tmp_path: Path) -> None:
    good = ten()[0]
    write(
        tmp_path / "train-0.parquet",
        [
            good,
            {"img_id": "../../etc/passwd", "label": 0, "image": cell("a", "JPEG", "../../x.jpg")},
            {"img_id": "seven", "label": 7, "image": cell("b", "JPEG")},
            {"img_id": None, "label": None, "image": cell("c", "JPEG")},
            {"img_id": "gone", "label": 0, "image": None},
            {"img_id": "junk", "label": 1, "image": {"bytes": b"not an image", "path": None}},
            {"img_id": "bare", "label": 2, "image": cell("d", "PNG")},
            {"img_id": "small", "label": 2, "image": cell("e", "PNG"),
             "mask": {"bytes": encoded(square((40, 40)), "PNG"), "path": None}},
        ],
    )  # fmt: skip
    samples, log = read(sidset, tmp_path)
    assert set(samples) == {"real_id0", "real_etc_passwd"}
    reasons = [row["reason"] for row in log if row["status"] == "rejected"]
    assert len(reasons) == 6
    for part in ("label 7", "label None", "no image", "not a readable image", layout.NO_MASK, "another size"):
        assert sum(part in reason for reason in reasons) == 1, part
    assert all(".." not in row["source_image"] for row in log)


def test_hostile_files_are_rejected_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidset, "RATIO_FLOOR", 2**16)
    write(tmp_path / "train-0.parquet", ten())
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1 not parquet PAR1")
    whole = (tmp_path / "train-0.parquet").read_bytes()
    (tmp_path / "train-2.parquet").write_bytes(whole[:-40])
    pq.write_table(pa.table({"img_id": ["x"], "picture": [b"y"]}), tmp_path / "train-3.parquet")
    zeros = [{"img_id": "z", "label": 0, "image": {"bytes": bytes(2**20), "path": None}}]
    write(tmp_path / "train-4.parquet", zeros, compression="zstd")
    samples, log = read(sidset, tmp_path)
    assert len(samples) == 10
    reasons = {row["source_image"]: row["reason"] for row in log if row["status"] == "rejected"}
    assert set(reasons) == {f"train-{i}.parquet" for i in (1, 2, 3, 4)}
    assert "lacks the columns image, mask, label" in reasons["train-3.parquet"]
    assert "bomb" in reasons["train-4.parquet"]


def test_damaged_pages_reject_their_rows_only(tmp_path: Path) -> None:
    rows = [{"img_id": f"id{i}", "label": 0, "image": cell(f"p{i}", "JPEG")} for i in range(9)]
    file = write(tmp_path / "train-0.parquet", rows)
    where = pq.ParquetFile(file).metadata.row_group(1).column(1)
    assert where.path_in_schema == "image.bytes"
    data = bytearray(file.read_bytes())
    start = where.dictionary_page_offset or where.data_page_offset
    data[start : start + where.total_compressed_size] = bytes(where.total_compressed_size)
    file.write_bytes(data)
    samples, log = read(sidset, tmp_path)
    assert set(samples) == {f"real_id{i}" for i in (0, 1, 2, 6, 7, 8)}
    assert sum("cannot be read" in row["reason"] for row in log) == 3


def enlarged(mask: np.ndarray) -> np.ndarray:
    return np.kron(mask, np.ones((2, 2), np.uint8))


def test_masks_of_another_size_are_brought_to_the_images(tree: Any) -> None:
    larger = enlarged(square())
    paths = [f"train/{folder}" for i in range(4) for folder in (f"tampered/t{i}.png", f"masks/t{i}_mask.png")]
    width, height = SIZE
    turned, long = np.ascontiguousarray(larger.T), np.zeros((height, width + 4), np.uint8)
    long[5:9, 5:9] = 255
    files = {
        "train/masks/t0_mask.png": encoded(larger, "PNG"),
        "train/masks/t1_mask.png": encoded(long, "PNG"),
        "train/masks/t2_mask.png": encoded(turned, "PNG"),
        "train/masks/t3_mask.png": encoded(larger, "PNG")[:-30],
    }
    samples, log = read(sidset, tree(*paths, contents=files))
    assert set(samples) == {"tampered_t0"}
    assert (shards.decode_mask(samples["tampered_t0"].mask) == (square() > 0)).all()
    rows = {row["source_image"][-6:-4]: row for row in log}
    assert (rows["t0"]["status"], rows["t0"]["source_mask"]) == ("flagged", "train/masks/t0_mask.png")
    assert f"mask of {2 * width}x{2 * height} pixels, the image {width}x{height}" in rows["t0"]["reason"]
    assert [rows[name]["status"] for name in ("t1", "t2", "t3")] == ["rejected"] * 3
    assert "another size" in rows["t1"]["reason"]
    assert "another size" in rows["t2"]["reason"]
    assert "cannot be decoded" in rows["t3"]["reason"]


def test_masks_in_parquet_are_brought_to_the_images_size(tmp_path: Path) -> None:
    larger = {"bytes": encoded(enlarged(square()), "PNG"), "path": None}
    other = {"width": 2 * SIZE[0], "height": 2 * SIZE[1]}
    write(
        tmp_path / "train-0.parquet",
        [
            {"img_id": f"id{i}", "label": 2, "image": cell(f"p{i}", "PNG"), "mask": larger, **sides}
            for i, sides in enumerate([{}, other, {"width": None, "height": None}, {"width": 7}, {}])
        ],
    )
    samples, log = read(sidset, tmp_path)
    # where the columns do not say that the sizes differ, the mask is taken as it is, which is another size
    assert set(samples) == {"tampered_id0", "tampered_id4"}
    for sample in samples.values():
        assert (shards.decode_mask(sample.mask) == (square() > 0)).all()
        assert "brought to its size" in sample.meta["flags"][0]
    assert [row["status"] for row in log] == ["flagged", "rejected", "rejected", "rejected", "flagged"]
    assert all("another size" in row["reason"] for row in log[1:4])


@pytest.mark.parametrize(
    ("size", "stored", "same"),
    [
        ((1024, 1024), (612, 612), True),
        ((1024, 768), (816, 612), True),
        ((1000, 1000), (510, 500), True),
        ((1000, 1000), (511, 500), False),
        ((1000, 1000), (490, 500), True),
        ((1000, 1000), (489, 500), False),
        ((1024, 1024), (1024, 1024), False),
        ((1000, 1005), (1005, 1000), False),
        ((1024, 1024), None, False),
        (None, (612, 612), False),
    ],
)
def test_proportions_decide(size: Any, stored: Any, same: bool) -> None:
    assert sidset.agree(size, stored) == same


def scene(number: int) -> bytes:
    stream = io.BytesIO(encoded(np.kron(picture(f"scene{number}", (12, 8)), np.ones((4, 4, 1), np.uint8)), "PNG"))
    return stream.getvalue()


def test_only_the_tampered_part_is_trained_on(tmp_path: Path) -> None:
    parts = ("real", "full_synthetic", "tampered")
    rows = [
        {"img_id": f"id{i}", "label": i % 3, "image": {"bytes": scene(i), "path": None}, "mask": None} for i in range(9)
    ]
    for row in rows[2::3]:
        row["mask"] = {"bytes": encoded(square(), "PNG"), "path": None}
    write(tmp_path / "train-0.parquet", rows)
    shards.write(tmp_path / "set", ingest.read(sidset, tmp_path, []), name="sidset", data="real", version="1")
    one = shards.ShardSet(tmp_path / "set")

    own = {name: weight for name, weight in tampertok.MEMBERS.items() if name.startswith("sidset")}
    part = types.SimpleNamespace(MEMBERS=own, VALIDATION=tampertok.VALIDATION)
    for protocol, wanted in ((part, {"tampered"}), (sid, set(parts))):
        table, _ = near_duplicates.members(protocol, {"sidset": one}, {})  # type: ignore[arg-type]
        assert {key.rpartition("_")[0] for key in table["key"].to_pylist()} == wanted
        assert set(table["member"].to_pylist()) == set(protocol.MEMBERS)
