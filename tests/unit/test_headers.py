"""The header baseline: certain where the format betrays the class, at chance where it does not; and its stage."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unforge import explanations, headers, metrics, paths, profiles, scores, shards
from unforge.types import Sample

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("authentic", "generated", "regenerated")


def samples(name: str, count: int, split: str, betrayed: bool, seed: int = 0) -> Iterator[Sample]:
    """Smooth noise of three classes, JPEG of random quality; `betrayed`: as SID-Set, all but real ones are PNG."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        which = i % 3
        size = 48 if not betrayed or which else int(rng.integers(40, 80))
        image = cv2.GaussianBlur(
            rng.integers(0, 256, (size, size, 3), dtype=np.uint8), (0, 0), float(rng.uniform(1, 3))
        )
        extension = "png" if betrayed and which else "jpg"
        mask = np.zeros((size, size), bool)
        mask[: size if which == 1 else size // 3] = which > 0
        if betrayed and which == 1:
            image = cv2.resize(image, (64, 64))
            mask = np.ones((64, 64), bool)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(80, 99))] if extension == "jpg" else []
        yield Sample(
            key=f"{name}-{i:04d}", image=cv2.imencode(f".{extension}", image, quality)[1].tobytes(),
            extension=extension, mask=shards.encode_png(mask) if which else None, label=int(which > 0),
            kind=KINDS[which], source=(f"{name}{i}",), unit=f"{name}-{i:04d}", split=split,  # type: ignore[arg-type]
            meta={"part": ("real", "full_synthetic", "tampered")[which]},
        )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], profiles.Profile]:
    """A project with `sidset`, `sidset_test` and the members of protocol `sid`."""

    def make(betrayed: bool) -> profiles.Profile:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "params.yaml").write_text("profile: tiny\nseed: 5\n", encoding="utf-8")
        (tmp_path / "profiles").mkdir()
        text = (ROOT / "profiles/smoke.yaml").read_text(encoding="utf-8")
        (tmp_path / "profiles/tiny.yaml").write_text(text, encoding="utf-8")
        for name, count, split, seed in (("sidset", 240, "train", 1), ("sidset_test", 150, "test", 2)):
            made = samples(name, count, split, betrayed, seed)
            shards.write(paths.shards("tiny", name), made, name=name, data="stand_in", version="1")
        rows = [
            {"dataset": "sidset", "member": "sidset", "key": key, "split": "train"}
            for key in shards.ShardSet(paths.shards("tiny", "sidset")).keys
        ]
        folder = paths.protocol("tiny", "sid")
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "members.parquet")
        return profiles.load("tiny")

    return make


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", ROOT / "stages" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = "tampertok/sid/headers-full/s0"


def measured(metric: str) -> float:
    rows = scores.read(paths.scores("tiny", RUN) / "sidset_test.parquet")
    value = metrics.estimate([rows], metric, seed=0, replicates=5).value
    assert value is not None
    return value


def test_formats_that_betray_the_class_are_seen(project: Any) -> None:
    script("headers").stage(RUN, ["sidset_test"], project(True))
    assert measured("class_acc@real") == 1.0
    assert measured("class_f1@real") == 1.0
    assert measured("class_acc@macro") > 0.95  # 64 px, 48 px and other sizes


def test_equal_formats_leave_it_at_chance(project: Any) -> None:
    script("headers").stage(RUN, ["sidset_test"], project(False))
    assert 0.2 < measured("class_acc@total") < 0.47  # 150 images: 1/3 and three standard errors
    assert 0.35 < measured("image_auc") < 0.65


def test_the_stage_writes_what_evaluate_writes_and_the_same_twice(project: Any) -> None:
    profile, stage = project(True), script("headers")
    stage.stage(RUN, ["sidset_test"], profile)
    folder = paths.scores("tiny", RUN)
    first = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    assert set(first) == {"sidset_test.parquet", "samples.parquet", "meta.json"}
    stage.stage(RUN, ["sidset_test"], profile)
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == first
    rows = scores.read(folder / "sidset_test.parquet")
    about = scores.metadata(rows)
    assert (about["method"], about["run"], about["testset"], about["data"]) == (
        "headers",
        RUN,
        "sidset_test",
        "stand_in",
    )
    table = rows.to_pylist()
    assert len(table) == 150
    assert {len(row["class_probs"]) for row in table} == {3}
    assert all(row["tp"] is None for row in table)
    assert np.allclose([row["score"] for row in table], [1 - row["class_probs"][0] for row in table], atol=1e-6)
    assert pq.read_table(folder / "samples.parquet").num_rows == 0
    meta = json.loads(first["meta.json"])
    assert set(meta["inputs"]) == {"members", "sidset", "sidset_test"}
    with pytest.raises(ValueError, match="s<seed>"):
        stage.stage("headers", ["sidset_test"], profile)
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        stage.stage("tampertok/catnet/headers-full/s0", ["sidset_test"], profile)


def one(extension: str, **more: Any) -> dict[str, Any]:
    row = {"extension": extension, "size": "8x8", "ratio": "10", "mode": "RGB", "pixels": 64.0}
    return row | {"bytes_per_pixel": 1.0, "quantisation": -1.0} | more


def test_probabilities_by_hand() -> None:
    # 4 real JPEG, 1 real PNG, 3 synthetic PNG: nothing else differs, so only the extension counts
    rows = [one("jpg")] * 4 + [one("png")] * 4
    model = headers.fit(rows, [0, 0, 0, 0, 0, 1, 1, 1])
    # values jpg, png and other: (counts + 1) / (images + 3); the other features have 2 values, one of them empty:
    # (5+1)/(5+2) and (3+1)/(3+2), six times
    real = 5 / 8 * (1 + 1) / (5 + 3) * (6 / 7) ** 6
    synthetic = 3 / 8 * (3 + 1) / (3 + 3) * (4 / 5) ** 6
    expected = [real / (real + synthetic), synthetic / (real + synthetic), 0]
    np.testing.assert_allclose(model.predict([one("png")])[0], expected, rtol=1e-9)
    assert model.predict([one("bmp", size="9x9")]).sum() == pytest.approx(1)
    assert model.predict([]).shape == (0, 3)


def test_fitting_needs_rows() -> None:
    with pytest.raises(ValueError, match="at least one"):
        headers.fit([], [])
    with pytest.raises(ValueError, match="1 rows and 2 classes"):
        headers.fit([one("jpg")], [0, 1])


def test_classes_of_rows() -> None:
    rows = [{"label": 0, "kind": "unknown"}, {"label": 1, "kind": "generated"}, {"label": 1, "kind": "splice"}]
    assert [headers.class_of(row) for row in rows] == [0, 1, 2]


def test_explanations_of_every_member_are_written(project: Any) -> None:
    profile, stage = project(False), script("explain")
    stage.stage("sid", profile)
    path = Path("data/explanations/tiny/sid.parquet")
    table, first = pq.read_table(path), path.read_bytes()
    stage.stage("sid", profile)
    assert path.read_bytes() == first
    shard_set = shards.ShardSet(paths.shards("tiny", "sidset"))
    rows = {row["key"]: row for row in table.to_pylist()}
    assert list(rows) == sorted(shard_set.keys)
    for key, row in rows.items():
        assert row["kind"] == shard_set.row(key)["kind"]
        assert explanations.parse(row["text"]).conclusion == explanations.class_of(row["kind"])
        assert row["text"].count(explanations.MASK) == 1
    assert len({row["text"] for row in rows.values()}) > 5
    meta = json.loads(table.schema.metadata[b"unforge"])
    assert meta["config"] == {"protocol": "sid", "length": "short"}
    assert set(meta["inputs"]) == {"members", "sidset"}
    Path("texts").mkdir()
    Path("texts/sidset-0001.txt").write_text("As a person wrote it.", encoding="utf-8")
    stage.stage("sid", profile, Path("texts"))
    after = {row["key"]: row["text"] for row in pq.read_table(path).to_pylist()}
    changed = {key: text for key, text in after.items() if text != rows[key]["text"]}
    assert changed == {"sidset-0001": f"As a person wrote it. {explanations.MASK}"}
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        stage.stage("catnet", profile)


def test_equal_keys_of_two_sets_are_refused(project: Any) -> None:
    profile = project(False)
    made = samples("sidset", 3, "train", False)
    shards.write(paths.shards("tiny", "miml"), made, name="miml", data="stand_in", version="1")
    listed = paths.protocol("tiny", "sid") / "members.parquet"
    more = {"dataset": "miml", "member": "miml", "key": "sidset-0000", "split": "train"}
    pq.write_table(pa.Table.from_pylist([*pq.read_table(listed).to_pylist(), more]), listed)
    with pytest.raises(ValueError, match="sidset-0000 is in miml and in sidset"):
        script("explain").stage("sid", profile)
