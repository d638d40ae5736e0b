"""The other sets of TamperTok's protocol: MIML, CocoGlide, IMD2020 as a test set; and the protocols."""

from __future__ import annotations

from typing import Any

from tests.unit.datasets.dataset_trees import square
from unforge import datasets, shards
from unforge.datasets import cocoglide, imd2020, imd2020_test, ingest, layout, miml, pretraining, sid, tampertok


def test_miml_in_parts_with_repeated_names(tree: Any) -> None:
    root = tree(
        "MIML_Part1/imgs/a.jpg",
        "MIML_Part1/masks/a.png",
        "MIML_Part2/imgs/a.jpg",
        "MIML_Part2/masks/a_mask.png",
        "MIML_Part2/imgs/b.png",
        contents={"MIML_Part2/imgs/notes.txt": "x"},
    )
    log: list[dict[str, Any]] = []
    samples = {sample.key: sample for sample in ingest.read(miml, root, log)}
    assert set(samples) == {"MIML_Part1_a", "MIML_Part2_a"}
    assert samples["MIML_Part1_a"].source == ("miml:MIML_Part1/a",)
    assert {sample.kind for sample in samples.values()} == {"unknown"}
    for sample in samples.values():
        assert (shards.decode_mask(sample.mask or b"") == (square() > 0)).all()
    assert [(row["source_image"], row["reason"]) for row in log if row["status"] == "rejected"] == [
        ("MIML_Part2/imgs/b.png", layout.NO_MASK)
    ]


def test_miml_in_one_folder_with_masks_beside_and_originals(tree: Any) -> None:
    root = tree(*(f"images/{i}.jpg" for i in range(40)), *(f"images/{i}_mask.png" for i in range(40)), "original/7.jpg")
    found = list(miml.find(root))
    assert sum(row.label for row in found) == 40
    assert all(row.mask is not None and row.mask.name == f"{row.image.stem}_mask.png" for row in found if row.label)
    assert {row.split for row in found} == {"train", "val"}
    (real,) = [row for row in found if not row.label]
    (seven,) = [row for row in found if row.label and row.image.stem == "7"]
    assert real.source == seven.source
    assert real.split == seven.split


def test_cocoglide_pairs_by_name_and_knows_its_photographs(tree: Any) -> None:
    root = tree(
        "CocoGlide/fake/glide_inpainting_val2017_1000_up.png",
        "CocoGlide/fake/glide_inpainting_val2017_2000_up.png",
        "CocoGlide/mask/glide_inpainting_val2017_1000_up.png",
        "CocoGlide/real/glide_inpainting_val2017_1000_up.png",
        "CocoGlide/real/other.png",
    )
    found = {row.key: row for row in cocoglide.find(root)}
    fake, real = found["glide_inpainting_val2017_1000_up"], found["real_glide_inpainting_val2017_1000_up"]
    assert (fake.kind, fake.label, fake.status) == ("regenerated", 1, "ok")
    assert fake.source == real.source == ("coco:000000001000",)
    assert found["glide_inpainting_val2017_2000_up"].reason == layout.NO_MASK
    assert found["real_other"].source == ("cocoglide:other",)
    assert {sample.key for sample in ingest.read(cocoglide, root, [])} == {fake.key, real.key, "real_other"}


def test_imd2020_as_a_test_set_is_the_same_set(tree: Any) -> None:
    root = tree("z1/z1_orig.jpg", "z1/00001_fake.jpg", "z1/00001_fake_mask.png", "z2/x.png", "z2/x_mask.png")
    test, train = list(imd2020_test.find(root)), list(imd2020.find(root))
    assert [(row.key, row.mask, row.kind) for row in test] == [(row.key, row.mask, row.kind) for row in train]
    assert {row.split for row in test} == {"test"}
    assert "test" not in {row.split for row in train}
    assert imd2020_test.STAND_IN.kinds == imd2020.STAND_IN.kinds
    assert (imd2020_test.STAND_IN.split, imd2020.STAND_IN.split) == ("test", "train")


def test_tampertok_is_four_sets_of_equal_weight() -> None:
    weights: dict[str, int] = {}
    for name, weight in tampertok.MEMBERS.items():
        weights[name.partition("/")[0]] = weights.get(name.partition("/")[0], 0) + weight
    assert set(weights) == {"tampcoco", "miml", "casia2", "sidset"}
    assert len(set(weights.values())) == 1
    assert {name for name in tampertok.MEMBERS if "/" in name} == {
        "sidset/tampered", "tampcoco/bcm", "tampcoco/bcmc", "tampcoco/cm", "tampcoco/sp",
    }  # fmt: skip
    assert sid.MEMBERS.keys() == {"sidset"}
    for protocol in (tampertok, sid):
        assert protocol.VALIDATION == "val"
        assert {name.partition("/")[0] for name in protocol.MEMBERS} <= set(datasets.names())


def test_pretraining_is_always_made() -> None:
    assert not hasattr(pretraining, "find")
    assert pretraining.STAND_IN.split == "pretrain"
    forged = {"splice", "copy_move", "removal", "regenerated", "generated"}
    assert set(pretraining.STAND_IN.kinds) == {"authentic", *forged}
