"""A stage of the DAG, and the files whose edit can change what it does."""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from unforge import paths


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One DVC stage. Paths are relative to the project's root."""

    name: str
    script: str
    arguments: tuple[str, ...]
    modules: tuple[str, ...] = ()
    """Modules that are loaded by name and so escape the script's own imports."""
    deps: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Keys of the profile's file."""
    seed: bool = False
    outs: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    """Small outputs that git keeps: not in DVC's cache."""
    pool: str = "cpu"
    """`gpu`: the stage gains from a GPU node."""
    files: tuple[str, ...] = field(default=())
    """Files the stage reads that are not Python."""

    def entry(self, profile: str, wdir: str | None) -> dict[str, Any]:
        """The stage as DVC writes it."""
        value: dict[str, Any] = {"wdir": wdir} if wdir else {}
        value["cmd"] = " ".join(["python", f"stages/{self.script}.py", *self.arguments, "--profile", profile])
        code = closure(f"stages/{self.script}.py", self.modules)
        value["deps"] = sorted({*code, *self.deps, *self.files})
        params: list[Any] = []
        if self.seed:
            params.append("seed")
        if self.keys:
            params.append({f"profiles/{profile}.yaml": sorted(self.keys)})
        if params:
            # a file named in `params` is read from the stage's working directory
            value["params"] = params
        outs: list[Any] = sorted(self.outs)
        outs += [{path: {"cache": False}} for path in sorted(self.kept)]
        value["outs"] = outs
        if self.pool != "cpu":
            value["meta"] = {"pool": self.pool}
        return value


@cache
def _graph() -> Any:
    import grimp

    return grimp.build_graph("unforge", cache_dir=str(paths.root() / ".unforge" / "imports"))


def _file(module: str) -> str | None:
    """Source file of a module; None for a package whose `__init__` holds nothing but a docstring."""
    stem = Path("src", *module.split("."))
    if (paths.root() / stem).is_dir():
        init = paths.root() / stem / "__init__.py"
        body = ast.parse(init.read_text(encoding="utf-8")).body if init.is_file() else []
        return str(stem / "__init__.py") if any(not isinstance(node, ast.Expr) for node in body) else None
    return f"{stem}.py"


def constant(module: str, name: str, default: Any) -> Any:
    """A constant that a module defines at its top, read without importing it; `default` where there is none.

    ValueError when it is not a literal."""
    file = _file(module)
    body = ast.parse((paths.root() / file).read_text(encoding="utf-8")).body if file else []
    for node in body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return default


def imports(script: str) -> set[str]:
    """Modules of `unforge` that a script names in its import statements."""
    modules = set(_graph().modules)
    found: set[str] = set()
    for node in ast.walk(ast.parse((paths.root() / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & modules


@cache
def closure(script: str, modules: tuple[str, ...] = ()) -> frozenset[str]:
    """Files whose edit can change what a script does: itself, what it imports, and what those import.

    Raises ValueError when a module named in `modules` does not exist.
    """
    graph = _graph()
    start = imports(script) | set(modules)
    for module in modules:
        if module not in graph.modules:
            near = difflib.get_close_matches(module, graph.modules, n=3)
            raise ValueError(f"no module {module}" + (f": near are {', '.join(near)}" if near else ""))
        start |= {m for m in graph.modules if m.startswith(f"{module}.")}
    found = set(start)
    for module in start:
        found |= graph.find_upstream_modules(module)
    for module in list(found):
        parts = module.split(".")
        found |= {".".join(parts[:n]) for n in range(1, len(parts))}
    return frozenset([script, *(file for file in map(_file, sorted(found)) if file)])
