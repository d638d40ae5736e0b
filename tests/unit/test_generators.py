"""What is said of generators is what their stages wrote."""

from __future__ import annotations

from pathlib import Path

from tests.unit import toy
from unforge import generators, paths


def written(root: Path, folder: Path, **config: object) -> None:
    (root / folder).mkdir(parents=True)
    paths.write_json(root / folder / "meta.json", paths.meta(config, 0, {}))


def test_rows_are_read_from_what_the_stages_wrote(root: Path) -> None:
    measured = {
        "psnr": 24.5,
        "psnr_unquantised": 25.0,
        "codes": 512.0,
        "used": 500.0,
        "perplexity": 300.0,
        "share": 0.98,
    }
    written(root, paths.codebook("small", "rar"), measured=measured)
    written(root, paths.prior("small", "rar"), kind="next_token", bits=5.5, bits_of_frequencies=8.25)
    written(root, paths.inverse("small", "rar"), before=0.5, after=0.125)
    written(root, paths.inverse("small", "rar_augmented"), before=0.5, after=0.25)
    written(root, paths.codebook("small", "var"), official=True)
    table = generators.build(toy.profile(), ["var", "rar"])
    rar, var = table.to_pylist()
    assert rar == {
        "model": "rar", "prior": "next_token", "psnr": 24.5, "psnr_unquantised": 25.0, "codes": 512.0, "used": 500.0,
        "perplexity": 300.0, "bits": 5.5, "bits_of_frequencies": 8.25, "inverse_before": 0.5, "inverse_after": 0.125,
        "augmented_after": 0.25,
    }  # fmt: skip
    assert {name for name, value in var.items() if value is not None} == {"model"}
    text = generators.text(table)
    assert "| rar | next_token | 24.5 | 25 | 512 | 500 | 300 | 5.5 | 8.25 | 0.5 | 0.125 | 0.25 |" in text
    assert "| var |" + "  |" * 11 in text


def test_files_are_byte_stable(root: Path) -> None:
    written(root, paths.codebook("small", "rar"), measured={"psnr": 20.0})
    for place in ("one", "two"):
        generators.write(generators.build(toy.profile(), ["rar"]), root / place / "generators")
    for name in ("generators.parquet", "generators.md"):
        assert (root / "one" / name).read_bytes() == (root / "two" / name).read_bytes()
