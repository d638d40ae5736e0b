"""The active profile and its scale values. Scale is data: no library code asks for a profile's name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from unforge import paths


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a stage runs on."""

    device: str
    """A torch device: `cpu`, `cuda`, ..."""
    dtype: str
    """Autocast type of evaluation: `float32` or `bfloat16`."""
    threads: int
    """CPU threads of one stage; part of the result's last bits, hence of the profile."""
    workers: int
    """Data-loading processes of one stage."""
    devices: int | None = 1
    """Processes that train a run together, one a device; None: as many as there are GPUs."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One file of `profiles/`."""

    name: str
    seed: int
    machine: Machine
    model: Literal["small", "paper"]
    """Which configuration of a method is built: its `SMALL`, or the paper's defaults."""
    stand_ins: bool
    """False: a dataset that was not added is `unavailable` instead."""
    values: dict[str, dict[str, Any]]
    """Scale values by stage kind and key."""

    def scale(self, kind: str, key: str) -> dict[str, Any]:
        """Scale values of one stage. ValueError names the nearest key when there is none."""
        entries = self.values.get(kind, {})
        if key not in entries:
            near = difflib.get_close_matches(key, entries, n=3)
            hint = f" (near: {', '.join(near)})" if near else ""
            raise ValueError(f"profiles/{self.name}.yaml has no {kind}.{key}{hint}: add it there")
        return dict(entries[key])


def params() -> dict[str, Any]:
    """`params.yaml`: `profile` and `seed`."""
    values = yaml.safe_load((paths.root() / "params.yaml").read_text(encoding="utf-8"))
    if set(values) != {"profile", "seed"}:
        raise ValueError(f"params.yaml must have exactly the keys profile and seed, not {sorted(values)}")
    return dict(values)


def load(name: str | None = None) -> Profile:
    """Profile `name`, or the active one of `params.yaml`."""
    active = params()
    name = name or str(active["profile"])
    path = paths.root() / "profiles" / f"{name}.yaml"
    known = sorted(file.stem for file in (paths.root() / "profiles").glob("*.yaml"))
    if name not in known:
        raise ValueError(f"no profile {name!r}: there are {', '.join(known)}")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Profile(
        name=name,
        seed=int(active["seed"]),
        machine=Machine(**values.pop("machine")),
        model=values.pop("model"),
        stand_ins=values.pop("stand_ins"),
        values=values,
    )
