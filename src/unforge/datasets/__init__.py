"""Datasets, one module each: the file's name is the dataset's id.

A dataset module has CARD, VERSION, STAND_IN and `find(root)`. Not so `photos`, which has `photographs()`, `views`,
which is always made (STAND_IN alone), and a protocol (`catnet`), which has MEMBERS and VALIDATION. Importing this
package imports none of them.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from types import ModuleType

PARTS = frozenset({"add", "archives", "ingest", "layout", "near_duplicates"})
"""Modules of this package that are machinery and not datasets."""


def names() -> list[str]:
    """Ids of all datasets and protocols, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)


def load(name: str) -> ModuleType:
    """The module of dataset or protocol `name`. ValueError names the nearest ids when there is none."""
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"no dataset {name!r}: there are {', '.join(known)}.{hint}")
    return importlib.import_module(f"{__name__}.{name}")
