"""Frame policies, names of videos and their groups, and splits without a common person."""

from __future__ import annotations

import pytest

from unforge import videos


def test_evenly_spaced_frames_reach_from_the_first_to_the_last() -> None:
    assert videos.pick(32, 8, "evenly") == [0, 4, 8, 13, 17, 22, 26, 31]  # floor of 31 k / 7, by hand
    assert videos.pick(10, 1, "evenly") == [0]
    assert videos.pick(5, 2, "evenly") == [0, 4]


def test_the_released_code_takes_the_first_frames() -> None:
    assert videos.pick(32, 8, "first") == list(range(8))


@pytest.mark.parametrize("policy", videos.POLICIES)
def test_short_videos_give_all_their_frames_once(policy: str) -> None:
    assert videos.pick(3, 8, policy) == [0, 1, 2]
    assert videos.pick(4, None, policy) == [0, 1, 2, 3]
    assert videos.pick(0, 8, policy) == []
    for total in range(1, 50):
        picked = videos.pick(total, 8, policy)
        assert len(set(picked)) == len(picked) == min(8, total)
        assert picked == sorted(picked)
        assert picked[-1] < total


@pytest.mark.parametrize(("count", "policy", "said"), [(8, "random", "random"), (0, "evenly", "0 frames")])
def test_other_policies_are_refused(count: int, policy: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        videos.pick(32, count, policy)


def test_the_released_grouping_joins_what_the_full_identity_keeps_apart() -> None:
    names = [videos.unit("faceforensics", made, "000_003") for made in ("Deepfakes", "NeuralTextures")]
    assert names == ["faceforensics/Deepfakes/000_003", "faceforensics/NeuralTextures/000_003"]
    assert {videos.faithful(name) for name in names} == {"000_003"}
    assert videos.unit("uadfv", "", "0001") == "uadfv/original/0001"


def test_the_released_label_of_a_mixed_group_is_real() -> None:
    assert [videos.faithful_label(labels) for labels in ([0, 1, 1], [1, 1], [0, 0])] == [0, 1, 0]


def test_a_person_in_two_splits_is_named() -> None:
    videos.check_disjoint([("train", ["a", "b"]), ("train", ["b"]), ("test", ["c"])], "toy")
    with pytest.raises(ValueError, match=r"toy: b is in train and in test"):
        videos.check_disjoint([("train", ["a", "b"]), ("test", ["c", "b"])], "toy")
