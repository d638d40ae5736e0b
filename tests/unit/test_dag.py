"""Which files a stage depends on."""

from __future__ import annotations

import pytest

from unforge import dag


def test_the_closure_of_a_script_is_what_it_imports_and_what_those_import() -> None:
    found = dag.closure("stages/table.py")
    assert {"stages/table.py", "src/unforge/tables.py", "src/unforge/scores.py", "src/unforge/specs.py"} <= found
    assert not [file for file in found if "/train/" in file or "/report/" in file]


def test_a_module_loaded_by_name_brings_its_own_imports_and_all_below_it() -> None:
    without, found = dag.closure("stages/count.py"), dag.closure("stages/count.py", ("unforge.methods.sparsevit",))
    assert "src/unforge/methods/sparsevit/network.py" in found - without
    assert "src/unforge/nn/attention.py" in found - without


def test_a_module_that_is_not_there_is_an_error_that_names_near_ones() -> None:
    with pytest.raises(ValueError, match=r"near are .*unforge\.methods\.constant"):
        dag.closure("stages/train.py", ("unforge.methods.constnat",))


def test_an_entry_is_as_dvc_reads_it() -> None:
    stage = dag.Stage(
        name="x", script="table", arguments=("toy.table_1",), deps=("b", "a"), keys=("two", "one"), seed=True,
        outs=("models/x",), kept=("reports/y.md",), pool="gpu",
    )  # fmt: skip
    entry = stage.entry("small", "../..")
    assert list(entry) == ["wdir", "cmd", "deps", "params", "outs", "meta"]
    assert entry["cmd"] == "python stages/table.py toy.table_1 --profile small"
    assert entry["deps"] == sorted(entry["deps"])
    assert {"a", "b", "stages/table.py"} <= set(entry["deps"])
    assert entry["params"] == ["seed", {"profiles/small.yaml": ["one", "two"]}]
    assert entry["outs"] == ["models/x", {"reports/y.md": {"cache": False}}]
    assert entry["meta"] == {"pool": "gpu"}


def test_a_constant_is_read_without_importing_its_module() -> None:
    assert dag.constant("unforge.backbones.internvl", "NEEDS", ()) == ("forensic",)
    assert dag.constant("unforge.backbones.autoencoder", "NEEDS", ()) == ()
    assert dag.constant("unforge.seeds", "NEEDS", None) is None
