"""Tables as files, for programs and for people."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from tests.unit import toy
from tests.unit.test_tables_provenance import INVERSE, SPEC, score
from tests.unit.toy import FULL
from unforge import markdown, tables


def test_files_are_byte_stable_and_carry_their_inputs(root: Path) -> None:
    toy.score(root, FULL.format(0), "columbia", [0.6, 0.8, 1.0])
    for place in ("one", "two"):
        markdown.write(tables.build("toy", "table_1", toy.profile()), root / place / "toy.table_1")
    for suffix in ("parquet", "md"):
        name = f"toy.table_1.{suffix}"
        assert (root / "one" / name).read_bytes() == (root / "two" / name).read_bytes()
    about = json.loads(pq.read_schema(root / "one/toy.table_1.parquet").metadata[b"unforge"])
    assert about["config"] == {"paper": "toy", "name": "table_1", "profile": "small"}
    assert list(about["inputs"]) == ["reports/small/scores/toy/catnet/full/s0/columbia.parquet"]


def test_markdown_shows_measured_beside_printed(root: Path) -> None:
    toy.score(root, FULL.format(0), "columbia", [0.8, 0.8, 0.8])
    toy.score(root, "constant/all", "columbia", [0.2, 0.2, 0.2])
    text = markdown.text(tables.build("toy", "table_1", toy.profile()))
    assert "| Ours | – p 1.01 | 0.800 [0.800, 0.800] ~<br>p 0.790 | – p 0.600 | – p 0.695 |" in text
    assert "| Other | cited p 2.00 | cited p 0.300 | cited p - | cited p 0.300 |" in text
    assert "| *constant: all manipulated* |  | 0.200 |  |  |" in text
    assert "## added" in text
    assert "Erratum, Ours: known" in text


def test_shares_are_shown_in_percent_as_they_are_printed(root: Path) -> None:
    import yaml

    (root / "papers/toy/table_9.yaml").write_text(yaml.safe_dump(SPEC, sort_keys=False))
    (root / "papers/toy/paper.yaml").write_text(toy.PAPER.replace("sparsevit", "iar_provenance"))
    score(root, INVERSE, "generated_rar", "combined", [0.5, 2.0])
    score(root, INVERSE, "imagenet", "combined", [1.0, 1.5])
    text = markdown.text(tables.build("toy", "table_9", toy.profile()))
    assert "50.0 [" in text
    assert "p 99.4" in text
    assert "the model's own images" in text


def test_what_would_break_a_table_is_escaped() -> None:
    assert markdown.escape("a|b<c*d") == r"a\|b&lt;c\*d"
