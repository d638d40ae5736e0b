"""DeepfakeBench's JSON and folders: what is found, what is rejected and why, and that nothing leads outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.videos.made import entry, frames, listed
from unforge.types import Found
from unforge.videos import deepfakebench

ABOUT = deepfakebench.Layout(
    dataset="toy",
    files=("Toy",),
    labels={"T_real": "", "T_fake": "Swap"},
    folders={r"real/frames/([^/]+)": "", r"fake/frames/([^/]+)": "Swap"},
    people=lambda _, video: (f"toy:{video.split('_')[0]}",),
)
REAL, FAKE = frames("real/frames/a"), frames("fake/frames/b_x")


def found(root: Path) -> list[Found]:
    return list(deepfakebench.find(ABOUT, root))


def rejected(root: Path) -> list[str]:
    return [row.reason for row in found(root) if row.status == "rejected"]


def of_json(tree: Any, labels: Any, *names: str) -> Path:
    content = labels if isinstance(labels, str) else listed("Toy", labels)
    root: Path = tree(*names, contents={"Toy.json": content})
    return root


def test_folders_give_frames_in_order_of_time_with_masks(tree: Any) -> None:
    root = tree("x/real/frames/a/10.png", "x/real/frames/a/9.png", "x/fake/frames/b_x/000.png",
                "x/fake/masks/b_x/000.png", "x/fake/landmarks/b_x/000.npy", "elsewhere/frames/c/000.png",
                contents={"x/fake/landmarks/b_x/000.npy": b"0"})  # fmt: skip
    rows = found(root)
    assert [row.image.relative_to(root).as_posix() for row in rows] == [
        "x/real/frames/a/9.png", "x/real/frames/a/10.png", "x/fake/frames/b_x/000.png",
    ]  # fmt: skip
    assert [(row.label, row.kind, row.meta["unit"], row.source) for row in rows] == [
        *[(0, "authentic", "toy/original/a", ("toy:a",))] * 2,
        (1, "unknown", "toy/Swap/b_x", ("toy:b",)),
    ]
    assert [row.mask.relative_to(root).as_posix() for row in rows if row.mask] == ["x/fake/masks/b_x/000.png"]
    assert [row.key for row in rows] == ["original_a_9", "original_a_10", "Swap_b_x_000"]


@pytest.mark.parametrize("start", ["", "./datasets/rgb/", "D:\\data\\", "/home/someone/datasets/"])
def test_paths_of_other_machines_are_found_by_their_end(tree: Any, start: str) -> None:
    written = [start + (path.replace("/", "\\") if "\\" in start else path) for path in FAKE]
    masks = [path.replace("frames", "masks") for path in FAKE]
    labels = {"T_fake": {"test": {"b_x": entry("T_fake", written, masks)}}}
    rows = found(of_json(tree, labels, *FAKE, *masks))
    assert [row.status for row in rows] == ["ok", "ok"]
    assert all(row.mask is not None for row in rows)


def test_the_compression_level_is_c23(tree: Any) -> None:
    names = {level: frames(f"{level}/frames/a") for level in ("c23", "c40")}
    videos = {level: {"a": entry("T_real", paths)} for level, paths in names.items()}
    rows = found(of_json(tree, {"T_real": {"test": videos}}, *names["c23"], *names["c40"]))
    assert {row.image.parts[-4] for row in rows} == {"c23"}


def test_a_listed_frame_that_is_not_there_is_rejected_and_the_others_stay(tree: Any) -> None:
    root = of_json(tree, {"T_real": {"test": {"a": entry("T_real", REAL)}}}, REAL[0])
    rows = found(root)
    assert [row.status for row in rows] == ["ok", "rejected"]
    assert "not there" in rows[1].reason


def test_a_video_whose_label_contradicts_its_place_is_rejected(tree: Any) -> None:
    root = of_json(tree, {"T_real": {"test": {"a": entry("T_fake", REAL)}}}, *REAL)
    assert rejected(root) == ["Toy.json: video 'a' is labelled 'T_fake' and listed under 'T_real'"]


def test_frames_listed_as_real_and_as_fake_are_rejected_once(tree: Any) -> None:
    labels = {"T_real": {"test": {"a": entry("T_real", REAL)}}, "T_fake": {"test": {"a": entry("T_fake", REAL)}}}
    rows = found(of_json(tree, labels, *REAL))
    assert [(row.label, row.status) for row in rows] == [(0, "ok"), (0, "ok"), (1, "rejected")]


def test_a_video_listed_twice_in_a_split_is_read_once(tree: Any) -> None:
    again = listed("Toy", {"T_real": {"test": {"a": entry("T_real", REAL)}}})
    root = tree(*REAL, contents={"Toy.json": again, "again/Toy.json": again})
    assert len(found(root)) == len(REAL)


def test_a_person_in_two_splits_is_refused(tree: Any) -> None:
    labels = {
        "T_real": {"train": {"a": entry("T_real", REAL)}},
        "T_fake": {"test": {"a_x": entry("T_fake", FAKE)}},
    }
    with pytest.raises(ValueError, match=r"toy:a is in train and in test"):
        found(of_json(tree, labels, *REAL, *FAKE))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("[" * 100_000, "nested too deeply|no JSON"),
        ("{", "no JSON"),
        ("[]", "no object"),
        ({"T_other": {"test": {"a": entry("T_other", REAL)}}}, "label 'T_other' is none of T_real, T_fake"),
        ({"T_real": {"holiday": {"a": entry("T_real", REAL)}}}, "not a split"),
        ({"T_real": {"test": []}}, "not a split of videos"),
        ({"T_real": {"test": {"a": []}}}, "no list of frames"),
        ({"T_real": {"test": {"a": {"label": "T_real", "frames": "all"}}}}, "no list of frames"),
        ({"T_real": {"test": {"a": entry("T_real", [])}}}, "no frames"),
        ({"T_real": {"test": {"a": {"label": "T_real", "frames": [7]}}}}, "lists of paths"),
        ({"T_real": {"test": {"a": {"label": 1, "frames": REAL}}}}, "labelled 1"),
    ],
)
def test_what_is_no_list_of_videos_is_rejected_with_a_reason(tree: Any, labels: Any, said: str) -> None:
    reasons = rejected(of_json(tree, labels, *REAL))
    assert len(reasons) == 1
    assert any(part in reasons[0] for part in said.split("|"))


@pytest.mark.parametrize("path", ["../../../etc/passwd", "real/../../frames/a/000.png", "..\\..\\x\\000.png"])
def test_paths_that_lead_out_are_refused(tree: Any, path: str) -> None:
    root = of_json(tree, {"T_real": {"test": {"a": entry("T_real", [path])}}}, *REAL)
    assert ["leads out of the set" in reason for reason in rejected(root)] == [True]


def test_absolute_paths_and_lone_names_open_nothing(tree: Any, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"secret")
    labels = {"T_real": {"test": {"a": entry("T_real", [str(outside), "/etc/passwd", "000.png", "a\x01.png"])}}}
    root = of_json(tree, labels, *REAL)
    rows = found(root)
    assert {row.status for row in rows} == {"rejected"}
    assert all(row.image.is_relative_to(root) for row in rows)
