"""Every dataset module on a tiny tree in its official layout, its mirrors and with its known defects."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tests.unit.datasets.dataset_trees import SIZE, encoded, picture, square
from unforge import datasets, shards
from unforge.datasets import (
    casia1,
    casia2,
    catnet,
    columbia,
    coverage,
    def12k,
    fantasticreality,
    imd2020,
    ingest,
    layout,
    nist16,
    photos,
    tampcoco,
)
from unforge.types import Card, StandIn, Views
from unforge.videos import Clips


def rows(module, root: Path) -> dict[str, tuple]:
    """Image path -> (mask path, kind, status) as found."""
    return {
        found.image.relative_to(root).as_posix(): (
            found.mask.relative_to(root).as_posix() if found.mask else None,
            found.kind,
            found.status,
        )
        for found in module.find(root)
    }


def test_names_are_the_modules_and_load_suggests_near_ones():
    assert {"casia1", "casia2", "coverage", "columbia", "nist16", "imd2020", "def12k", "tampcoco"} <= set(
        datasets.names()
    )
    assert "ingest" not in datasets.names()
    assert datasets.load("casia1") is casia1
    with pytest.raises(ValueError, match="casia1"):
        datasets.load("casia")


@pytest.mark.parametrize("name", datasets.names())
def test_every_module_keeps_the_contract(name):
    module = datasets.load(name)
    assert isinstance(module.CARD, Card)
    assert module.VERSION
    assert module.CARD.licence
    recipe = getattr(module, "STAND_IN", None)
    if isinstance(recipe, Views):
        assert set(recipe.splits) <= {name for name, _ in photos.SHARES}
    elif isinstance(recipe, Clips):
        assert recipe.authentic == 0.5
        assert recipe.split == ("train" if name == "faceforensics" else "test")
        assert callable(module.find)
    elif recipe is not None:
        assert isinstance(recipe, StandIn)
        assert sum(recipe.kinds.values()) == pytest.approx(1)
        share = 1.0 if name == "authentic" else 0.5 if name.startswith("opensdid_") else None
        assert recipe.kinds["authentic"] == share if share else 0.2 <= recipe.kinds["authentic"] <= 1 / 3
        assert callable(getattr(module, "find", None)) == (recipe.split != "pretrain")


def test_casia1_mirror_matches_by_name_then_type_and_id_then_method_and_id(tree):
    root = tree(
        "Sp/Sp_D_NNN_A_ani0099_ani0100.0288.jpg",
        "Sp/Sp_D_NRN_A_ani0001_arc0059_0404.jpg",
        "Sp/Sp_D_NNN_A_cha0052_cha0052_0309.jpg",
        "Sp/Sp_D_NRN_A_sce0011_cha0011_0542.jpg",
        "Sp/Sp_D_NRN_A_ant0063_nat0065_0443.jpg",
        "Au/Au_ani_0001.jpg",
        "CASIA 1.0 groundtruth/Sp/Sp_D_NNN_A_ani0099_ani0100.0288_gt.png",
        "CASIA 1.0 groundtruth/Sp/Sp_D_NRN_A_arc0059_ani0001_0404_gt.png",
        "CASIA 1.0 groundtruth/CM/Sp_S_NNN_A_cha0052_cha0052_0309_gt.png",
        "CASIA 1.0 groundtruth/Sp/Sp_D_NRN_A_nat0063_nat0065_0443_gt.png",
    )
    found = {row.image.name: row for row in casia1.find(root)}
    match = {name: row.meta.get("match") for name, row in found.items()}
    assert match == {
        "Sp_D_NNN_A_ani0099_ani0100.0288.jpg": "name",
        "Sp_D_NRN_A_ani0001_arc0059_0404.jpg": "type_id",
        "Sp_D_NNN_A_cha0052_cha0052_0309.jpg": "method_id",
        "Sp_D_NRN_A_sce0011_cha0011_0542.jpg": None,
        "Sp_D_NRN_A_ant0063_nat0065_0443.jpg": "name",
        "Au_ani_0001.jpg": None,
    }
    relabelled = found["Sp_D_NNN_A_cha0052_cha0052_0309.jpg"]
    assert (relabelled.kind, relabelled.source) == ("copy_move", ("casia1:cha0052",))
    assert found["Sp_D_NRN_A_ani0001_arc0059_0404.jpg"].source == ("casia1:ani0001", "casia1:arc0059")
    assert found["Sp_D_NRN_A_sce0011_cha0011_0542.jpg"].status == "rejected"
    assert found["Au_ani_0001.jpg"].label == 0
    assert len(casia1.missing(root)) == 799
    assert "Au_ani_0001.jpg" not in casia1.missing(root)


def test_casia1_official_layout_prefers_the_corrected_copy(tree):
    root = tree(
        "CASIA1/Modified Tp/Tp/CM/Sp_S_NNN_A_cha0052_cha0052_0309.jpg",
        "CASIA1/Modified Tp/Tp/Sp/Sp_D_NRN_A_ani0001_arc0059_0404.jpg",
        "CASIA1/Tp/Sp/Sp_D_NNN_A_cha0052_cha0052_0309.jpg",
        "masks/CM/Sp_S_NNN_A_cha0052_cha0052_0309_gt.png",
        "masks/Sp/Sp_D_NRN_A_ani0001_arc0059_0404_gt.png",
    )
    assert rows(casia1, root) == {
        "CASIA1/Modified Tp/Tp/CM/Sp_S_NNN_A_cha0052_cha0052_0309.jpg": (
            "masks/CM/Sp_S_NNN_A_cha0052_cha0052_0309_gt.png",
            "copy_move",
            "ok",
        ),
        "CASIA1/Modified Tp/Tp/Sp/Sp_D_NRN_A_ani0001_arc0059_0404.jpg": (
            "masks/Sp/Sp_D_NRN_A_ani0001_arc0059_0404_gt.png",
            "splice",
            "ok",
        ),
    }


def test_casia1_ambiguous_ids_are_not_guessed(tree):
    root = tree(
        "Sp/Sp_D_NRN_A_ani0001_arc0059_0404.jpg",
        "gt/Sp_D_NRN_A_arc0059_ani0001_0404_gt.png",
        "gt/Sp_D_NRN_A_arc0059_ani0002_0404_gt.png",
    )
    assert [row.status for row in casia1.find(root)] == ["rejected"]


def test_casia1_turned_mask_is_turned_back_and_flagged(tree):
    mask = square()
    root = tree(
        "Sp/Sp_D_CNN_A_sec0012_ani0007_0275.jpg",
        contents={"gt/Sp_D_CNN_A_sec0012_ani0007_0275_gt.png": np.rot90(mask, -1)},
    )
    log: list = []
    (sample,) = ingest.read(casia1, root, log)
    assert (shards.decode_mask(sample.mask) == (mask > 0)).all()
    assert log[0]["status"] == "flagged"
    assert "turned" in log[0]["reason"]


def test_casia2_names_third_masks_and_splits_by_photograph(tree):
    names = [f"Au/Au_ani_{number:05d}.jpg" for number in range(60)]
    root = tree(
        *names,
        "Tp/Tp_D_CND_M_N_ani00018_sec00096_00138.tif",
        "Tp/Tp_S_NRN_S_N_ani00001_ani00001_10000.jpg",
        "Tp/Tp_D_NRN_S_N_art00001_art00001_10001.jpg",
        "CASIA 2 Groundtruth/Tp_D_CND_M_N_ani00018_sec00096_00138_gt.png",
        "CASIA 2 Groundtruth/Tp_S_NRN_S_N_ani00001_ani00001_10000_gt3.png",
        "CASIA 2 Groundtruth/Tp_S_NRN_S_N_art00001_art00001_10001_gt.png",
        contents={"Tp/Thumbs.db": b"x"},
    )
    found = list(casia2.find(root))
    kinds = {row.image.name[:4] + row.image.stem[-5:]: (row.kind, row.status) for row in found if row.label}
    assert kinds == {
        "Tp_D00138": ("splice", "ok"),
        "Tp_S10000": ("copy_move", "ok"),
        "Tp_D10001": ("copy_move", "ok"),
    }
    assert {row.split for row in found} == {"train", "val"}
    assert sum(row.split == "val" for row in found) == 3  # 5 % of 63
    sides: dict[str, set[str]] = {}
    for row in found:
        for source in row.source:
            sides.setdefault(source, set()).add(row.split)
    assert all(len(splits) == 1 for splits in sides.values())


def test_coverage_uses_the_forged_mask_and_rejects_those_of_another_size(tree):
    root = tree(
        "image/1.tif",
        "image/1t.tif",
        "image/41t.tif",
        "mask/1forged.tif",
        "mask/1copy.tif",
        "mask/1paste.tif",
        contents={"mask/41forged.tif": square((40, 32))},
    )
    assert rows(coverage, root) == {
        "image/1.tif": (None, "authentic", "ok"),
        "image/1t.tif": ("mask/1forged.tif", "copy_move", "ok"),
        "image/41t.tif": ("mask/41forged.tif", "copy_move", "ok"),
    }
    log: list = []
    samples = {sample.key: sample for sample in ingest.read(coverage, root, log)}
    assert set(samples) == {"1", "1t"}
    assert samples["1"].source == samples["1t"].source
    assert [row["reason"] for row in log if row["status"] == "rejected"] == [
        "mask of another size: 40x32 pixels, the image 48x32"
    ]


def test_columbia_edge_masks_are_green_where_spliced_in(tree):
    colours = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    colours[..., 0] = 200
    colours[:, 16:] = (0, 200, 0)
    colours[:, 14:16] = (255, 0, 0)
    colours[:, 16:18] = (0, 255, 0)
    noisy = encoded(colours, "JPEG", quality=90)
    root = tree(
        "4cam_splc/4cam_splc/canong3_canonxt_sub_01.tif",
        "4cam_auth/canong3_02_sub_01.tif",
        contents={
            "4cam_splc/4cam_splc/edgemask/canong3_canonxt_sub_01_edgemask.jpg": noisy,
            "4cam_auth/edgemask/canong3_02_sub_01_edgemask.jpg": noisy,
        },
    )
    assert rows(columbia, root) == {
        "4cam_splc/4cam_splc/canong3_canonxt_sub_01.tif": (
            "4cam_splc/4cam_splc/edgemask/canong3_canonxt_sub_01_edgemask.jpg",
            "splice",
            "ok",
        ),
        "4cam_auth/canong3_02_sub_01.tif": (None, "authentic", "ok"),
    }
    mask = columbia.read_mask(noisy)
    truth = np.zeros(mask.shape, bool)
    truth[:, 16:] = True
    assert (mask != truth).mean() <= 1 / SIZE[0]


def test_nist16_reads_the_table_and_inverts_black_masks(tree):
    table = "\n".join(
        [
            "TaskID|IsTarget|ProbeFileName|ProbeMaskFileName|BaseFileName|IsManipulationTypeRemoval|"
            "IsManipulationTypeSplice|IsManipulationTypeCopyClone",
            "m|Y|probe/NC2016_1.jpg|reference/manipulation/mask/1.png|world/w1.jpg|N|Y|N",
            "m|Y|probe/NC2016_2.jpg|reference/manipulation/mask/2.png|world/w1.jpg|Y|N|N",
            "m|Y|probe/../../secret.jpg|reference/manipulation/mask/2.png|world/w2.jpg|N|N|Y",
            "m|N|probe/NC2016_3.jpg||world/w3.jpg|||",
        ]
    )
    root = tree(
        "NC2016/probe/NC2016_1.jpg",
        "NC2016/probe/NC2016_2.jpg",
        "NC2016/probe/NC2016_3.jpg",
        contents={
            "NC2016/reference/manipulation/NC2016-manipulation-ref.csv": table,
            "NC2016/reference/manipulation/mask/1.png": 255 - square(),
            "NC2016/reference/manipulation/mask/2.png": 255 - square(),
        },
    )
    assert [(found.kind, found.status) for found in nist16.find(root)] == [
        ("copy_move", "rejected"),
        ("splice", "ok"),
        ("removal", "ok"),
        ("authentic", "ok"),
    ]
    samples = {sample.key: sample for sample in ingest.read(nist16, root, [])}
    assert (shards.decode_mask(samples["NC2016_1"].mask) == (square() > 0)).all()
    assert samples["NC2016_1"].source == samples["NC2016_2"].source == ("nist16:w1",)


def test_nist16_mirror_is_white_where_manipulated(tree):
    root = tree("Tp/NC2016_1.jpg", "Gt/NC2016_1.png")
    (sample,) = ingest.read(nist16, root, [])
    assert (shards.decode_mask(sample.mask) == (square() > 0)).all()


def test_nist16_table_without_its_columns_is_an_error(tree):
    root = tree(contents={"reference/manipulation/x-manipulation-ref.csv": "a|b\n1|2\n"})
    with pytest.raises(ValueError, match="ProbeFileName"):
        list(nist16.find(root))


def test_imd2020_folders_are_sources_and_copies_are_left_aside(tree):
    root = tree(
        "z1/z1_orig.jpg",
        "z1/00001_fake.jpg",
        "z1/00001_fake_mask.png",
        "z2/x.PNG",
        "z2/y.jpg",
        "z2/x_mask.png",
        "0jpg/x.jpg",
    )
    assert rows(imd2020, root) == {
        "z1/z1_orig.jpg": (None, "authentic", "ok"),
        "z1/00001_fake.jpg": ("z1/00001_fake_mask.png", "unknown", "ok"),
        "z2/x.PNG": ("z2/x_mask.png", "unknown", "ok"),
        "z2/y.jpg": (None, "unknown", "rejected"),
    }
    assert {found.source for found in imd2020.find(root) if "z1" in str(found.image)} == {("imd2020:z1",)}


def test_def12k_folders(tree):
    root = tree(
        "copymove_img/img/0_000000000001.tif",
        "copymove_annotations/probe_mask/0_000000000001.jpg",
        "splicing_1_img/img/0_000000000001.tif",
        "splicing_1_annotations/probe_mask/0_000000000001.jpg",
        "splicing_2_img/img/0_000000000001.tif",
        "authentic/COCO_test2014_000000000007.jpg",
    )
    assert rows(def12k, root) == {
        "copymove_img/img/0_000000000001.tif": (
            "copymove_annotations/probe_mask/0_000000000001.jpg",
            "copy_move",
            "ok",
        ),
        "splicing_1_img/img/0_000000000001.tif": (
            "splicing_1_annotations/probe_mask/0_000000000001.jpg",
            "splice",
            "ok",
        ),
        "splicing_2_img/img/0_000000000001.tif": (None, "splice", "rejected"),
        "authentic/COCO_test2014_000000000007.jpg": (None, "authentic", "ok"),
    }
    assert {found.source for found in def12k.find(root)} == {("coco:000000000001",), ("coco:000000000007",)}
    assert len({found.key for found in def12k.find(root)}) == 4


def test_def12k_list_selects(tree):
    root = tree(
        "inpainting_img/img/a.tif",
        "inpainting_img/img/b.tif",
        "inpainting_annotations/probe_mask/a.jpg",
        "test2014/COCO_test2014_000000000007.jpg",
        contents={
            "DEFACTO-12k.txt": "data/inpainting_img/img/a.tif data/inpainting_annotations/probe_mask/a.jpg 1\n"
            "data/inpainting_img/img/a.tif data/inpainting_annotations/probe_mask/a.jpg 1\n"
            "data/inpainting_img/img/gone.tif data/inpainting_annotations/probe_mask/a.jpg 1\n"
            "data/test2014/COCO_test2014_000000000007.jpg None 0\n"
        },
    )
    assert rows(def12k, root) == {
        "inpainting_img/img/a.tif": ("inpainting_annotations/probe_mask/a.jpg", "removal", "ok"),
        "data/inpainting_img/img/gone.tif": ("inpainting_annotations/probe_mask/a.jpg", "removal", "rejected"),
        "test2014/COCO_test2014_000000000007.jpg": (None, "authentic", "ok"),
    }


def test_tampcoco_lists_repeat_and_masks_count_above_zero(tree):
    mask = square() // 255
    mask[0, 0] = 3
    root = tree(
        "tampCOCO/cm_images/000000000001.jpg",
        "tampCOCO/sp_images/000000000002_000000000003.jpg",
        contents={
            "tampCOCO/cm_masks/000000000001.png": mask,
            "tampCOCO/sp_masks/000000000002_000000000003.png": mask,
            "tampCOCO/cm_COCO_train_list.txt": "cm_images/000000000001.jpg,cm_masks/000000000001.png\n" * 2
            + "cm_images/gone.jpg,cm_masks/gone.png\n",
        },
    )
    found = {row.image.name: row for row in tampcoco.find(root)}
    assert {name: (row.kind, row.meta["part"], row.status) for name, row in found.items()} == {
        "000000000001.jpg": ("copy_move", "cm", "ok"),
        "gone.jpg": ("copy_move", "cm", "rejected"),
        "000000000002_000000000003.jpg": ("splice", "sp", "ok"),
    }
    assert found["000000000001.jpg"].meta["listed"] == 2
    assert found["000000000002_000000000003.jpg"].source == ("coco:000000000002", "coco:000000000003")
    assert (tampcoco.read_mask(encoded(mask, "PNG")) == (mask > 0)).all()
    assert {sample.kind for sample in ingest.read(tampcoco, root, [])} == {"copy_move", "splice"}


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_fantasticreality_reads_npz_masks(tree):
    classes = (square() > 0).astype(np.uint8)[None] * 7
    root = tree(
        "dataset/ColorFakeImages/1.jpg",
        "dataset/ColorFakeImages/2.jpg",
        "dataset/ColorFakeImages/3.jpg",
        "dataset/ColorRealImages/1.jpg",
        contents={
            "dataset/SegmentationFake/1.npz": npz(arr_0=classes),
            "dataset/SegmentationFake/2.npz": npz(other=classes),
        },
    )
    log: list = []
    samples = {sample.key: sample for sample in ingest.read(fantasticreality, root, log)}
    assert set(samples) == {"1", "real_1"}
    assert (shards.decode_mask(samples["1"].mask) == (square() > 0)).all()
    reasons = {row["source_image"]: row["reason"] for row in log if row["status"] == "rejected"}
    assert "arr_0" in reasons["dataset/ColorFakeImages/2.jpg"]
    assert reasons["dataset/ColorFakeImages/3.jpg"] == layout.NO_MASK


def test_fantasticreality_refuses_pickles_and_wrong_shapes():
    with pytest.raises(ValueError, match="allow_pickle"):
        fantasticreality.read_mask(npz(arr_0=np.array([{"a": 1}], dtype=object)))
    with pytest.raises(ValueError, match="shape"):
        fantasticreality.read_mask(npz(arr_0=np.zeros((2, 3, 4))))
    with pytest.raises(ValueError, match="cannot be read"):
        fantasticreality.read_mask(b"PK not a zip")


def test_catnet_is_seven_sets_of_1840_and_selects_on_val():
    assert len(catnet.MEMBERS) == 7
    assert sum(catnet.MEMBERS.values()) == 12880
    assert catnet.VALIDATION == "val"
    assert {name.split("/")[0] for name in catnet.MEMBERS} <= set(datasets.names())


def test_default_mask_rule_is_the_mean_above_127_and_a_half():
    pixels = np.array([[[127, 127, 128], [127, 127, 129], [255, 128, 0], [0, 0, 255]]], np.uint8)
    assert layout.read_mask(encoded(pixels, "PNG")).tolist() == [[bool(pixel.mean() > 127.5) for pixel in pixels[0]]]


def test_pairing_takes_only_what_is_unique_and_leaves_the_rest_to_the_next_rule():
    images, masks = ["a1", "a2", "b3"], ["x1", "x2", "x9"]
    rules = (("first", lambda name: name[0]), ("digit", lambda name: name[1]))
    assert layout.pair(images, masks, rules) == {"a1": ("x1", "digit"), "a2": ("x2", "digit")}


def test_keys_fit_shards():
    assert layout.key("ä b.c") == "b_c"
    long = layout.key("x" * 200)
    assert shards.KEY.fullmatch(long)
    assert long != layout.key("x" * 201)
    assert shards.KEY.fullmatch(layout.key("***"))


def test_listing_skips_hidden_and_system_files(tree):
    root = tree("a/1.png", contents={"a/.hidden.png": b"x", "__MACOSX/1.png": b"x", "Thumbs.db": b"x"})
    assert layout.files(root) == ["a/1.png"]
    with pytest.raises(ValueError, match="not a directory"):
        layout.files(root / "a" / "1.png")


def test_picture_is_not_constant():
    assert picture("x").std() > 50
