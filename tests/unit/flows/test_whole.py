"""Entering a stage in a lock, against DVC's own way: the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import _yaml, load_yaml, modify_yaml

from flows import whole

ROOT = Path(__file__).resolve().parents[3]
STAGE: dict[str, Any] = {
    "cmd": "python stages/a.py " + " ".join(f"--word value{i}" for i in range(30)),
    "deps": [{"path": "é ü.txt", "hash": "md5", "md5": "1e5", "size": 3}, {"path": "a: b", "md5": "0123"}],
    "params": {"profiles/small.yaml": {"lr": 1e-05, "many": [1, 2.50, "3", None, True, "yes"], "none": None, "ü": ""}},
    "outs": [{"path": "x.txt", "md5": "d" * 32 + ".dir", "nfiles": 2, "isexec": True}],
}


def enter(lock: Path, name: str, stage: dict[str, Any], modify: Any) -> None:
    """What `Lockfile.dump_stages` does."""
    with modify(str(lock)) as data:
        if not data:
            data.update({"schema": "2.0"})
        data["stages"] = data.get("stages", {})
        data["stages"].get(name, {})
        data["stages"].update({name: stage})


@pytest.mark.parametrize("lock", [p.relative_to(ROOT) for p in sorted(ROOT.glob("papers/*/dvc.lock"))], ids=str)
def test_the_text_of_a_lock_is_that_of_dvc(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = tmp_path / "one.lock", tmp_path / "two.lock"
    shutil.copy(ROOT / lock, one)
    committed = whole.blocks(one.read_text())
    assert committed is not None
    names = list(committed)[::20]
    one.write_text(whole.HEAD + "".join(committed.texts[name] for name in names))
    shutil.copy(one, two)
    for name, stage in [("new.1@x", STAGE), (names[0], STAGE), ("new.1@x", {**STAGE, "cmd": "a\n\nb\n"}), ("on", STAGE),
                        (names[-1], {"cmd": "'"})]:  # fmt: skip
        enter(one, name, stage, whole.modify)
        enter(two, name, stage, modify_yaml)
        assert one.read_text() == two.read_text()


def test_a_long_lock_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lock = tmp_path / "dvc.lock"
    parsed: list[int] = []
    parse = _yaml.parse_yaml

    def counted(text: str, path: str, typ: str = "safe") -> Any:
        parsed.append(len(text))
        return parse(text, path, typ)

    monkeypatch.setattr(_yaml, "parse_yaml", counted)
    for i in range(5):
        enter(lock, f"s{i}", STAGE, whole.modify)
    assert parsed == []
    enter(lock, "s2", {"cmd": "other"}, whole.modify)
    assert max(parsed) < len(lock.read_text()) / 3
    assert list(load_yaml(str(lock))["stages"]) == ["s0", "s1", "s2", "s3", "s4"]

    # what another wrote is DVC's to parse: by hand, sorted, or with keys that are not stages
    lock.write_text(lock.read_text().replace("cmd: other", "cmd:   'other'  # why"))
    parsed.clear()
    enter(lock, "s3", {"cmd": "third"}, whole.modify)
    assert max(parsed) > len(lock.read_text()) / 2
    assert "# why" in lock.read_text()


def test_what_is_not_only_stages_is_not_split() -> None:
    assert whole.blocks("") is None
    assert whole.blocks(whole.HEAD + "  a:\n    cmd: x\ndatasets: []\n") is None
    assert whole.blocks(whole.HEAD + "  'on':\n    cmd: x\n") is None
    assert whole.blocks("stages: {}\n") is None
    found = whole.blocks(whole.HEAD + "  a:\n    cmd: |-\n      x\n\n      y\n  b:\n    cmd: z\n")
    assert found is not None
    assert (found.get("a"), found.get("b"), found.get("c", 1)) == ({"cmd": "x\n\ny"}, {"cmd": "z"}, 1)
