"""The sets of videos, each in its official layout with its known defects, and the protocol that learns from one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.videos.made import entry, frames, listed
from unforge import datasets, profiles, videos
from unforge.datasets import add, ffpp
from unforge.types import Found

TESTS = ("cdf_v1", "cdf_v2", "deeperforensics", "dfd", "dfdc", "dfdcp", "faceshifter", "ffiw", "uadfv", "uniface",
         "wilddeepfake")  # fmt: skip
ORIGINAL, MADE = "FaceForensics++/original_sequences/youtube/c23/frames", "FaceForensics++/manipulated_sequences"
PAIRS = {"train": [["000", "003"]], "val": [["010", "012"]], "test": [["020", "021"]]}


def find(name: str, root: Path) -> list[Found]:
    return list(datasets.load(name).find(root))


def units(rows: list[Found]) -> dict[str, tuple[str, int, str]]:
    """Split, label and status of each video."""
    return {row.meta["unit"]: (row.split, row.label, row.status) for row in rows}


def reasons(rows: list[Found]) -> dict[str, str]:
    return {row.meta["unit"]: row.reason for row in rows if row.status == "rejected"}


def pairs(**changed: Any) -> dict[str, str]:
    return {f"splits/{split}.json": json.dumps(value) for split, value in {**PAIRS, **changed}.items()}


def ffpp_frames(*manipulations: str) -> list[str]:
    """A frame of each video of `PAIRS`, real ones and both of each pair for each manipulation."""
    names = []
    for first, second in (pair for split in PAIRS.values() for pair in split):
        names += [f"{ORIGINAL}/{number}/000.png" for number in (first, second)]
        for made in manipulations:
            names += [f"{MADE}/{made}/c23/frames/{v}/000.png" for v in (f"{first}_{second}", f"{second}_{first}")]
    return names


def test_faceforensics_follows_the_official_pairs(tree: Any) -> None:
    names = ffpp_frames("Deepfakes", "NeuralTextures")
    root = tree(*names, f"{MADE}/Deepfakes/c40/frames/000_003/000.png", f"{MADE}/FaceShifter/c23/frames/a/0.png",
                f"{MADE}/Deepfakes/c23/masks/000_003/000.png", contents=pairs())  # fmt: skip
    rows = find("faceforensics", root)
    assert len(rows) == len(names) == 18
    found = units(rows)
    assert found["faceforensics/original/003"] == ("train", 0, "ok")
    assert found["faceforensics/Deepfakes/003_000"] == ("train", 1, "ok")
    assert found["faceforensics/NeuralTextures/010_012"] == ("val", 1, "ok")
    assert found["faceforensics/Deepfakes/020_021"] == ("test", 1, "ok")
    swapped = next(row for row in rows if row.meta["unit"] == "faceforensics/Deepfakes/003_000")
    assert swapped.source == ("ffpp:003", "ffpp:000")
    assert sum(row.mask is not None for row in rows) == 1
    people = {split: {person for row in rows if row.split == split for person in row.source} for split in PAIRS}
    assert not people["train"] & people["val"] | people["train"] & people["test"] | people["val"] & people["test"]


def test_the_released_grouping_collides_where_units_do_not(tree: Any) -> None:
    """000_003 in Deepfakes and in NeuralTextures: two videos, one name."""
    rows = find("faceforensics", tree(*ffpp_frames("Deepfakes", "NeuralTextures"), contents=pairs()))
    fakes = {row.meta["unit"] for row in rows if row.label}
    assert len(fakes) == 12
    assert Counter(videos.faithful(unit) for unit in fakes)["000_003"] == 2
    folders = {row.image.parent.name for row in rows}
    assert {videos.faithful(row.meta["unit"]) for row in rows} == folders


def test_faceforensics_by_json_with_labels_compressions_and_splits(tree: Any) -> None:
    real, fake = frames(f"{ORIGINAL}/000"), frames(f"{MADE}/NeuralTextures/c23/frames/000_003")
    labels = {
        "FF-real": {"train": {"c23": {"000": entry("FF-real", [p.replace("/", "\\") for p in real])}}},
        "FF-NT": {"train": {"c40": {}, "c23": {"000_003": entry("FF-NT", fake)}}},
    }
    root = tree(*real, *fake, contents={"FaceForensics++.json": listed("FaceForensics++", labels)})
    assert units(find("faceforensics", root)) == {
        "faceforensics/original/000": ("train", 0, "ok"),
        "faceforensics/NeuralTextures/000_003": ("train", 1, "ok"),
    }


def test_a_pair_across_splits_is_refused_and_a_json_that_differs_rejected(tree: Any) -> None:
    with pytest.raises(ValueError, match="003 is in"):
        find("faceforensics", tree(*ffpp_frames("Deepfakes"), contents=pairs(val=[["003", "012"]])))
    labels = {"FF-real": {"test": {"c23": {"000": entry("FF-real", [f"{ORIGINAL}/000/000.png"])}}}}
    root = tree(contents={**pairs(), "FaceForensics++.json": listed("FaceForensics++", labels)})
    assert reasons(find("faceforensics", root)) == {
        "faceforensics/original/000": "000 is in test; the lists have train"
    }


def test_a_fake_of_people_of_two_splits_is_rejected(tree: Any) -> None:
    root = tree(f"{MADE}/Deepfakes/c23/frames/000_010/000.png", f"{ORIGINAL}/000/000.png", contents=pairs())
    assert list(reasons(find("faceforensics", root))) == ["faceforensics/Deepfakes/000_010"]


@pytest.mark.parametrize("content", ["{}", "[[1, 2]]", "[", '[["000"]]'])
def test_lists_that_are_no_pairs_are_refused(tree: Any, content: str) -> None:
    with pytest.raises(ValueError, match=r"train\.json"):
        find("faceforensics", tree(*ffpp_frames(), contents={"train.json": content}))


def test_without_lists_people_stay_on_one_side(tree: Any) -> None:
    names = [f"{ORIGINAL}/{n:03d}/000.png" for n in range(60)]
    names += [f"{MADE}/Deepfakes/c23/frames/{n:03d}_{n + 1:03d}/000.png" for n in range(0, 60, 2)]
    rows = find("faceforensics", tree(*names))
    assert Counter(row.split for row in rows).keys() == {"train", "val"}
    videos.check_disjoint(((row.split, row.source) for row in rows), "test")


def test_faceshifter_and_uniface_read_the_test_people_alone(tree: Any) -> None:
    contents: dict[str, Any] = pairs()
    root = tree(*ffpp_frames("FaceShifter"), "DF40/uniface/ff/frames/020_021/000.png", contents=contents)
    assert units(find("faceshifter", root)) == {
        "faceshifter/original/020": ("test", 0, "ok"), "faceshifter/original/021": ("test", 0, "ok"),
        "faceshifter/FaceShifter/020_021": ("test", 1, "ok"), "faceshifter/FaceShifter/021_020": ("test", 1, "ok"),
    }  # fmt: skip
    assert units(find("uniface", root))["uniface/UniFace/020_021"] == ("test", 1, "ok")
    (root / "splits/test.json").unlink()
    (root / "splits/train.json").unlink()
    (root / "splits/val.json").unlink()
    rows = find("faceshifter", root)
    assert {(row.split, row.status) for row in rows} == {("test", "flagged")}
    assert len(rows) == 12


def test_uniface_by_the_json_of_df40(tree: Any) -> None:
    fake, real = frames("DF40/uniface/ff/frames/020_021"), frames(f"{ORIGINAL}/020")
    labels = {
        "uniface_Fake": {"test": {"020_021": entry("uniface_Fake", [f"deepfakes_datasets/{p}" for p in fake])}},
        "uniface_Real": {"test": {"020": entry("uniface_Real", real)}, "val": {"020": entry("uniface_Real", real)}},
    }
    root = tree(*fake, *real, contents={"uniface_ff.json": listed("uniface_ff", labels)})
    assert units(find("uniface", root)) == {
        "uniface/UniFace/020_021": ("test", 1, "ok"), "uniface/original/020": ("test", 0, "ok"),
    }  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
def test_celeb_df_reads_its_list_where_1_is_real(tree: Any, version: int) -> None:
    base = f"Celeb-DF-v{version}"
    names = ["Celeb-real/frames/id0_0000", "YouTube-real/frames/00170", "Celeb-synthesis/frames/id0_id1_0000",
             "Celeb-synthesis/frames/id2_id3_0000", "Celeb-real/frames/id5_0001"]  # fmt: skip
    lines = ["1 Celeb-real/id0_0000.mp4", "1 YouTube-real/00170.mp4", "0 Celeb-synthesis/id0_id1_0000.mp4",
             "1 Celeb-synthesis/id2_id3_0000.mp4", "0 Celeb-synthesis/id9_id8_0000.mp4", ""]  # fmt: skip
    root = tree(*(f"{base}/{name}/000.png" for name in names),
                contents={f"{base}/List_of_testing_videos.txt": "\n".join(lines)})  # fmt: skip
    rows = find(f"cdf_v{version}", root)
    name = f"cdf_v{version}"
    assert {unit: value for unit, value in units(rows).items() if value[2] == "ok"} == {
        f"{name}/original/id0_0000": ("test", 0, "ok"),
        f"{name}/original/00170": ("test", 0, "ok"),
        f"{name}/Celeb-synthesis/id0_id1_0000": ("test", 1, "ok"),
    }
    bad = reasons(rows)
    assert "the list has 1 for real" in bad[f"{name}/Celeb-synthesis/id2_id3_0000"]
    assert "not there" in bad[f"{name}/Celeb-synthesis/id9_id8_0000"]
    assert {row.source for row in rows if row.meta["unit"].endswith("id0_id1_0000")} == {("celebdf:id0", "celebdf:id1")}


def test_celeb_df_without_its_list_is_flagged_and_its_json_read_once(tree: Any) -> None:
    fake = frames("Celeb-DF-v2/Celeb-synthesis/frames/id0_id1_0000")
    root = tree(*fake)
    assert units(find("cdf_v2", root)) == {"cdf_v2/Celeb-synthesis/id0_id1_0000": ("test", 1, "flagged")}
    inside = {"id0_id1_0000": entry("CelebDFv2_fake", fake)}
    labels = {"CelebDFv2_fake": {"train": inside, "val": inside, "test": inside}}
    (root / "Celeb-DF-v2.json").write_text(listed("Celeb-DF-v2", labels))
    rows = find("cdf_v2", root)
    assert units(rows) == {"cdf_v2/Celeb-synthesis/id0_id1_0000": ("test", 1, "ok")}
    assert len(rows) == len(fake)


def test_dfd_is_all_test_once_and_knows_its_actors(tree: Any) -> None:
    real = frames("original_sequences/actors/c23/frames/01__walking")
    fake = frames("manipulated_sequences/DeepFakeDetection/c23/frames/01_02__walking__ABCD")
    splits = {split: {"c23": {"01_02__walking__ABCD": entry("DFD_fake", fake)}} for split in ("train", "val", "test")}
    json_file = listed("DeepFakeDetection", {"DFD_fake": splits})
    assert units(find("dfd", tree(*real, *fake))) == {
        "dfd/original/01__walking": ("test", 0, "ok"),
        "dfd/DeepFakeDetection/01_02__walking__ABCD": ("test", 1, "ok"),
    }
    rows = find("dfd", tree(contents={"DeepFakeDetection.json": json_file}))
    assert len(rows) == len(fake)
    assert {row.source for row in rows} == {("dfd:01", "dfd:02")}


def test_dfdc_needs_labels_and_reports_every_gap(tree: Any) -> None:
    names = [f"DFDC/test/frames/{name}/000.png" for name in ("aaa", "bbb", "ccc", "eee", "fff")]
    labels = "filename,label\naaa.mp4,1\nbbb.mp4,0\nddd.mp4,1\neee.mp4,maybe\nfff.mp4,1\n"
    root = tree(*names, "DFDC/train/dfdc_train_part_0/frames/zzz/000.png", contents={
        "DFDC/test/labels.csv": labels, "DFDC/test/metadata.json": json.dumps({"fff.mp4": {"label": "REAL"}}),
        "DFDC/train/dfdc_train_part_0/metadata.json": json.dumps({"zzz.mp4": {"label": "FAKE", "original": "y.mp4"}}),
    })  # fmt: skip
    rows = find("dfdc", root)
    assert {unit: value[:2] for unit, value in units(rows).items() if value[2] == "ok"} == {
        "dfdc/DFDC/aaa": ("test", 1), "dfdc/original/bbb": ("test", 0),
    }  # fmt: skip
    bad = {unit.rsplit("/", 1)[1]: reason for unit, reason in reasons(rows).items()}
    assert set(bad) == {"ccc", "ddd", "eee", "fff"}
    assert "neither" in bad["ccc"]
    assert "not there" in bad["ddd"]
    assert "maybe" in bad["eee"]
    assert "real and as fake" in bad["fff"]


def test_dfdc_by_metadata_alone_and_hostile_lists(tree: Any) -> None:
    known = json.dumps({"aaa.mp4": {"is_fake": 1}, "bbb.mp4": {"is_fake": 0}})
    root = tree("test/frames/aaa/000.png", "test/frames/bbb/000.png", contents={"test/metadata.json": known})
    assert units(find("dfdc", root)) == {"dfdc/DFDC/aaa": ("test", 1, "ok"), "dfdc/original/bbb": ("test", 0, "ok")}
    (root / "test/metadata.json").write_text("[1]")
    with pytest.raises(ValueError, match="not an object"):
        find("dfdc", root)


def test_dfdcp_follows_dataset_json(tree: Any) -> None:
    names = {
        "method_A/122406/frames/122406_A_001": ("method_A/122406/122406_A_001.mp4", "fake", "test"),
        "method_B/frames/122406_B_109538": ("method_B/122406_B_109538.mp4", "fake", "train"),
        "original_videos/frames/109538_C_001": ("original_videos/109538_C_001.mp4", "real", "test"),
        "original_videos/frames/200000_C_001": ("original_videos/200000_C_001.mp4", "fake", "test"),
    }
    listing = {path: {"label": label, "set": split} for path, label, split in names.values()}
    listing["method_A/9.mp4"] = {"label": "fake", "set": "test"}
    root = tree(*(f"DFDCP/{name}/000.png" for name in [*names, "method_A/frames/unlisted"]),
                contents={"DFDCP/dataset.json": json.dumps(listing)})  # fmt: skip
    rows = find("dfdcp", root)
    good = [row for row in rows if row.status == "ok"]
    assert units(good) == {
        "dfdcp/method_A/122406_A_001": ("test", 1, "ok"),
        "dfdcp/original/109538_C_001": ("test", 0, "ok"),
    }
    assert set(reasons(rows)) == {"dfdcp/original/200000_C_001", "dfdcp/method_A/9", "dfdcp/method_A/unlisted"}
    assert datasets.load("dfdcp").people("method_B", "122406_B_109538") == ("dfdcp:122406", "dfdcp:109538")


def test_deeperforensics_takes_the_test_list_and_every_source_video_once(tree: Any) -> None:
    base = "DeeperForensics-1.0"
    names = [f"{base}/manipulated_videos/end_to_end/frames/{v}/000.png" for v in ("000_M101", "020_W010", "030_M1")]
    names += [f"{base}/source_videos/{actor}/frames/light_left/000.png" for actor in ("M101", "W010")]
    names += [f"{base}/manipulated_videos/end_to_end_level_1/frames/020_W010/000.png"]
    lists = {"train": "000_M101.mp4\n", "val": "", "test": "020_W010.mp4\r\n040_M2.mp4\n"}
    root = tree(*names, contents={f"{base}/lists/splits/{k}.txt": v for k, v in lists.items()})
    rows = find("deeperforensics", root)
    assert {unit for unit, value in units(rows).items() if value[2] == "ok"} == {
        "deeperforensics/end_to_end/020_W010", "deeperforensics/original/M101_light_left",
        "deeperforensics/original/W010_light_left",
    }  # fmt: skip
    assert set(reasons(rows)) == {"deeperforensics/end_to_end/040_M2", "deeperforensics/end_to_end/030_M1"}
    assert next(r.source for r in rows if r.meta["unit"].endswith("020_W010")) == ("ffpp:020", "deeperforensics:W010")


def test_uadfv_wilddeepfake_and_ffiw_by_their_folders(tree: Any) -> None:
    root = tree(
        "UADFV/real/frames/0000/000.png", "UADFV/fake/frames/0000_fake/000.png",
        "wild/real_test/12/real/3/0.png", "wild/real_test/12/real/4/0.png", "wild/fake_test/12/fake/3/0.png",
        "wild/real_train/1/real/3/0.png", "FFIW/source/test/frames/7/0.png", "FFIW/target/test/frames/7/0.png",
        "FFIW/target/test/masks/7/0.png", "FFIW/target/train/frames/8/0.png",
    )  # fmt: skip
    assert units(find("uadfv", root)) == {
        "uadfv/original/0000": ("test", 0, "ok"), "uadfv/FakeApp/0000_fake": ("test", 1, "ok"),
    }  # fmt: skip
    assert {row.source for row in find("uadfv", root)} == {("uadfv:0000",)}
    assert units(find("wilddeepfake", root)) == {
        "wilddeepfake/original/12_real_3": ("test", 0, "ok"), "wilddeepfake/original/12_real_4": ("test", 0, "ok"),
        "wilddeepfake/wild/12_fake_3": ("test", 1, "ok"),
    }  # fmt: skip
    rows = find("ffiw", root)
    assert units(rows) == {"ffiw/original/7": ("test", 0, "ok"), "ffiw/FFIW/7": ("test", 1, "ok")}
    assert [row.mask is not None for row in rows if row.label] == [True]


def test_a_check_counts_fakes_without_masks(tree: Any) -> None:
    root = tree(*frames("UADFV/real/frames/0000"), *frames("UADFV/fake/frames/0000_fake"))
    report = add.check("uadfv", root)
    assert report.counts == {"authentic": {"ok": 2}, "unknown": {"ok": 2}}
    assert report.unused == ()
    with pytest.raises(ValueError, match="no image of dfd found"):
        add.check("dfd", root)


@pytest.mark.parametrize("name", ["faceforensics", *TESTS])
def test_cards_stand_ins_and_profiles_agree(name: str) -> None:
    module = datasets.load(name)
    assert module.LAYOUT.dataset == name
    assert module.CARD.defects
    assert not module.CARD.redistribute
    scales = [profiles.load(profile).scale("ingest", name) for profile in ("paper", "small", "smoke")]
    assert {tuple(scale) for scale in scales} == {("images", "size", "frames", "policy")}
    assert scales[0]["frames"] == (8 if name == "faceforensics" else 32)
    for scale in scales[1:]:
        assert scale["images"] % scale["frames"] == 0


def test_test_sets_differ_in_what_is_done_and_the_training_set_has_four_manipulations() -> None:
    recipes = {name: datasets.load(name).STAND_IN for name in TESTS}
    assert len(set(recipes.values())) == len(TESTS)
    made = [each.name for each in datasets.load("faceforensics").STAND_IN.manipulations]
    assert made == ["Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures"]


def test_the_protocol_learns_from_faceforensics_and_validates_on_its_split() -> None:
    assert ffpp.MEMBERS == {"faceforensics": 8 * 720 * 5}
    assert ffpp.VALIDATION == "val"
    assert all(f"`{name}`" in ffpp.CARD.layout for name in TESTS)
