"""What the design says of files and of code, read from the files themselves."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"gt", "net", "util", "utils", "helper", "helpers", "misc", "common", "final", "new", "tmp"}
LIBRARY = sorted((ROOT / "src" / "unforge").rglob("*.py"))
CODE = [*LIBRARY, *sorted((ROOT / "flows").glob("*.py")), *sorted((ROOT / "stages").glob("*.py"))]
ALL = [*CODE, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def calls(path: Path) -> Iterator[tuple[int, str, dict[str, ast.expr]]]:
    """Line, dotted name and keyword arguments of every call."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            keywords = {word.arg: word.value for word in node.keywords if word.arg}
            yield node.lineno, ast.unparse(node.func), keywords


def test_artefact_folders_hold_no_code() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    code = [path for folder in ("data", "models", "reports") for path in (ROOT / folder).rglob("*.py")]
    assert code == []
    kept = re.compile(
        r"data/raw/[a-z][a-z0-9_]*(/SOURCE\.json|\.dvc)|reports/small/(tables/.*|(claims|audit|generators)\.(parquet|md))"
    )
    artefacts = [path for path in tracked if path.split("/")[0] in ("data", "models", "reports")]
    assert [path for path in artefacts if not kept.fullmatch(path)] == []


LONG: dict[str, int] = {}
"""Modules that are longer than others may be: they may not grow."""


@pytest.mark.parametrize(("files", "most"), [("stages/*.py", 75), ("src/unforge/**/*.py", 450), ("flows/**/*.py", 450)])
def test_files_are_short(files: str, most: int) -> None:
    assert {name(path): count for path in ROOT.glob(files) if (count := lines(path)) > LONG.get(name(path), most)} == {}


def test_names_say_what_is_meant() -> None:
    assert [name(path) for path in ALL if FORBIDDEN & {path.stem, path.parent.name, *path.stem.split("_")}] == []
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name.lower() in FORBIDDEN:
                found.append(f"{name(path)}:{node.lineno} {node.name}")
            if isinstance(node, ast.Name | ast.arg):
                word = node.id if isinstance(node, ast.Name) else node.arg
                if word in {"gt", "net", "utils", "helpers", "misc"}:
                    found.append(f"{name(path)}:{node.lineno} {word}")
    assert found == []


def test_every_module_has_its_tests() -> None:
    """tests/unit mirrors src: a test file for each module of the top level, a folder for each package."""
    unit = ROOT / "tests" / "unit"
    tested = {
        path.stem.removeprefix("test_")
        for path in [*unit.rglob("test_*.py"), *(ROOT / "tests/pipeline").glob("test_*.py")]
    }
    contracts_only = {"__init__", "types"}
    modules = {path.stem for path in (ROOT / "src" / "unforge").glob("*.py")} - contracts_only
    assert modules - tested == set()
    packages = {path.parent.name for path in (ROOT / "src" / "unforge").glob("*/__init__.py")}
    assert {package for package in packages if not list((unit / package).glob("test_*.py"))} == set()
    beside = {path.name for path in unit.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert beside - packages == {"flows"}


def test_nothing_dangerous_is_called() -> None:
    found = []
    for path in CODE:
        for line, called, keywords in calls(path):
            where = f"{name(path)}:{line} {called}"
            given = {key: ast.unparse(value) for key, value in keywords.items()}
            if called == "torch.load" and given.get("weights_only") != "True":
                found.append(where)
            if called in {
                "eval",
                "exec",
                "os.system",
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "yaml.unsafe_load",
                "joblib.load",
            }:
                found.append(where)
            if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
                found.append(where)
    assert found == []


def test_no_error_is_swallowed() -> None:
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (
                    isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
                )
                passed_on = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                # where a stage, a node or an upload may fail alone, the error's words become its result
                said = name(path).startswith("flows/") and any(
                    isinstance(inner, ast.Name) and inner.id == node.name for inner in ast.walk(node)
                )
                # parsers of hostile bytes raise anything: what they read there is optional, and says so
                optional = name(path) == "src/unforge/datasets/ingest.py" and "return default" in ast.unparse(node)
                if broad and not passed_on and not said and not optional:
                    found.append(f"{name(path)}:{node.lineno}")
    assert found == []


def test_paths_are_relative() -> None:
    absolute = re.compile(r"/(home|root|tmp|work|opt|usr|mnt|Users|data)/\S*")
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and absolute.match(node.value):
                found.append(f"{name(path)}:{node.lineno} {node.value}")
    assert found == []


def test_no_profile_is_named_in_the_library() -> None:
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and "profile" in ast.unparse(node.left):
                values = [part.value for part in node.comparators if isinstance(part, ast.Constant)]
                if {"smoke", "small", "paper"} & {
                    value for value in values if isinstance(value, str)
                } and ".model" not in ast.unparse(node):
                    found.append(f"{name(path)}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def test_what_is_public_is_described() -> None:
    """What a contract defines may go without: a method's and a metric's functions, a module's forward."""
    contract = {"Config", "forward", "loss", "parameter_groups", "build", "predict", "value", "batch"}
    contract |= {"bits", "draws", "drawn"}  # of priors
    found = []
    for path in LIBRARY:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if ast.get_docstring(tree) is None and path.name != "__init__.py":
            found.append(name(path))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                members = node.body if isinstance(node, ast.ClassDef) else []
                public = [m for m in members if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
                for item in [node, *public]:
                    if ast.get_docstring(item) is None and item.name not in contract and trivial(item) is False:
                        found.append(f"{name(path)}:{item.lineno} {item.name}")
    assert found == []


def trivial(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a function is one statement, which says all there is to say."""
    return isinstance(node, ast.FunctionDef) and len(node.body) == 1


def test_notes_to_oneself_are_not_left() -> None:
    note = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    here = Path(__file__).resolve()
    assert [name(path) for path in ALL if path != here and note.search(path.read_text(encoding="utf-8"))] == []
