from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from unforge import profiles


def test_every_profile_has_every_key(project: Path) -> None:
    """Same graph at every scale: what one profile names, all do."""
    loaded = {path.stem: profiles.load(path.stem) for path in Path("profiles").glob("*.yaml")}
    assert sorted(loaded) == ["paper", "small", "smoke"]
    named = [{kind: set(entries) for kind, entries in profile.values.items()} for profile in loaded.values()]
    assert named[0] == named[1] == named[2]
    assert {name: (p.model, p.stand_ins) for name, p in loaded.items()} == {
        "paper": ("paper", False),
        "small": ("small", True),
        "smoke": ("small", True),
    }


def test_the_active_profile_and_seed(project: Path) -> None:
    Path("params.yaml").write_text("profile: smoke\nseed: 7\n")
    profile = profiles.load()
    written = yaml.safe_load(Path("profiles/smoke.yaml").read_text(encoding="utf-8"))
    assert (profile.name, profile.seed) == ("smoke", 7)
    assert profile.scale("train", "sparsevit") == written["train"]["sparsevit"]
    assert vars(profile.machine) == written["machine"]
    assert profiles.load("small").seed == 7


def test_a_scale_value_cannot_be_changed_by_accident(project: Path) -> None:
    profile = profiles.load("small")
    profile.scale("train", "sparsevit")["steps"] = -1
    assert profile.scale("train", "sparsevit")["steps"] != -1


def test_errors_say_what_there_is(project: Path) -> None:
    with pytest.raises(ValueError, match="no profile 'smal': there are paper, small, smoke"):
        profiles.load("smal")
    with pytest.raises(ValueError, match=r"no profile '\.\./params': there are paper, small, smoke"):
        profiles.load("../params")
    with pytest.raises(
        ValueError, match=r"profiles/small\.yaml has no train\.sparsevti \(near: sparsevit\): add it there"
    ):
        profiles.load("small").scale("train", "sparsevti")
    with pytest.raises(ValueError, match=r"no nothing\.x: add it there"):
        profiles.load("small").scale("nothing", "x")
    Path("params.yaml").write_text("profile: small\nseeed: 0\n")
    with pytest.raises(ValueError, match=r"exactly the keys profile and seed, not \['profile', 'seeed'\]"):
        profiles.load()
