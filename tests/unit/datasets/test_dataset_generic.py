"""A user's own images: by name and by CSV."""

from __future__ import annotations

import pytest

from unforge.datasets import generic


def test_images_and_masks_pair_by_stem(tree):
    root = tree(
        "mine/images/a.jpg",
        "mine/images/b.jpg",
        "mine/images/c.png",
        "mine/masks/a.png",
        "mine/masks/b_mask.png",
        "other/Tp/a.jpg",
        "other/Gt/a.png",
        "mine/authentic/d.jpg",
    )
    found = {row.image.relative_to(root).as_posix(): row for row in generic.find(root)}
    masks = {name: row.mask and row.mask.relative_to(root).as_posix() for name, row in found.items()}
    assert masks == {
        "mine/images/a.jpg": "mine/masks/a.png",
        "mine/images/b.jpg": "mine/masks/b_mask.png",
        "mine/images/c.png": None,
        "other/Tp/a.jpg": "other/Gt/a.png",
        "mine/authentic/d.jpg": None,
    }
    assert {name: row.label for name, row in found.items() if row.label == 0} == {
        "mine/images/c.png": 0,
        "mine/authentic/d.jpg": 0,
    }


def test_csv_of_pairs(tree):
    table = (
        "\ufeffimage,mask,label,kind,split,source\n"
        "pics/a.png,pics/m.png,,splice,train,p1; p0\n"
        "pics/b.png,,,,,\n"
        "pics/c.png,,1,,,\n"
        "pics/gone.png,,,,,\n"
        "../outside.png,,,,,\n"
        "pics/a.png,pics/m.png,2,,,\n"
        "pics/a.png,pics/m.png,1,painted,,\n"
        "pics/a.png,pics/m.png,1,,holdout,\n"
        "pics/a.png,pics/m.png,0,,,\n"
        "pics/a.png,pics/m.png,1,authentic,,\n"
    )
    root = tree("pics/a.png", "pics/b.png", "pics/c.png", "pics/m.png", contents={"pairs.csv": table})
    rows = list(generic.find(root))
    assert [row.status for row in rows] == ["ok", "ok"] + ["rejected"] * 8
    first, second = rows[:2]
    assert (first.kind, first.split, first.source, first.label) == ("splice", "train", ("p0", "p1"), 1)
    assert (second.kind, second.split, second.source, second.label) == ("authentic", "test", ("file:b",), 0)
    words = (
        "no mask",
        "not there",
        "not there",
        "label '2'",
        "kind 'painted'",
        "split 'holdout'",
        "no mask",
        "contradicts",
    )
    for row, word in zip(rows[2:], words, strict=True):
        assert word in row.reason


def test_csv_in_a_folder_has_paths_relative_to_it(tree):
    root = tree("set/a.png", contents={"set/list.csv": "image,mask\na.png,\n"})
    assert [row.status for row in generic.find(root)] == ["ok"]


def test_csv_errors_name_what_is_accepted(tree):
    root = tree(contents={"list.csv": "picture,mask\na.png,\n"})
    with pytest.raises(ValueError, match="accepted are image, mask, label"):
        list(generic.find(root))
    (root / "second.csv").write_text("image,mask\n")
    with pytest.raises(ValueError, match=r"pairs\.csv"):
        list(generic.find(root))
