"""What the generators of provenance are: how well their tokenizers, priors and inverse decoders learnt.

Read from the `meta.json` of each; no model is loaded. Released weights have no such numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from unforge import markdown, paths, profiles

SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("prior", pa.string()),
        *[
            pa.field(name, pa.float64())
            for name in (
                "psnr", "psnr_unquantised", "codes", "used", "perplexity", "bits", "bits_of_frequencies",
                "inverse_before", "inverse_after", "augmented_after",
            )
        ],
    ]
)  # fmt: skip
"""One row per model. `psnr`: dB of quantised reconstructions of views it has not seen, and without quantising; `codes`,
how many are `used` on them, and the exponential of their entropy; `bits` a token of theirs takes under the prior (of a
diffusion: at most) and under the tokens' frequencies; mean squared distance of an encoder from f_Z on generated images
that were not learnt from, `before` and after it became an inverse decoder."""

TITLES = (
    "model", "prior", "PSNR", "not quantised", "codes", "used", "perplexity", "bits a token", "by frequency",
    "distance to f_Z: encoder", "inverse decoder", "augmented",
)  # fmt: skip


def build(profile: profiles.Profile, models: Iterable[str]) -> pa.Table:
    """Rows of the models that are there."""
    rows, inputs = [], {}
    for model in sorted(models):
        found: dict[str, dict[str, Any]] = {}
        for part, folder in {
            "codebook": paths.codebook(profile.name, model),
            "prior": paths.prior(profile.name, model),
            "inverse": paths.inverse(profile.name, model),
            "augmented": paths.inverse(profile.name, f"{model}_augmented"),
        }.items():
            file = paths.root() / folder / "meta.json"
            if file.is_file():
                found[part] = paths.read_json(file)["config"]
                inputs[str(folder / "meta.json")] = paths.sha256(file)
        measured = found.get("codebook", {}).get("measured", {})
        prior, inverse = found.get("prior", {}), found.get("inverse", {})
        rows.append(
            {name: measured.get(name) for name in ("psnr", "psnr_unquantised", "codes", "used", "perplexity")}
            | {"model": model, "prior": prior.get("kind"), "bits": prior.get("bits")}
            | {"bits_of_frequencies": prior.get("bits_of_frequencies"), "inverse_before": inverse.get("before")}
            | {"inverse_after": inverse.get("after"), "augmented_after": found.get("augmented", {}).get("after")}
        )
    meta = paths.meta({"name": "generators", "profile": profile.name}, profile.seed, inputs)
    return pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({"unforge": json.dumps(meta, sort_keys=True)}))


def write(table: pa.Table, base_path: Path) -> None:
    """The rows as `<base_path>.parquet` and, for people, `<base_path>.md`."""
    markdown.write_parquet(table, base_path.with_name(base_path.name + ".parquet"))
    with paths.writing_file(base_path.with_name(base_path.name + ".md")) as partial:
        partial.write_text(text(table), encoding="utf-8")


def text(table: pa.Table) -> str:
    """The rows as Markdown."""
    lines = ["# Generators", "", "| " + " | ".join(TITLES) + " |", "| --- " * len(TITLES) + "|"]
    for row in table.to_pylist():
        lines.append("| " + " | ".join(shown(row[name]) for name in SCHEMA.names) + " |")
    note = "PSNR in dB and bits are measured on views of photographs that were not learnt from."
    return "\n".join([*lines, "", note]) + "\n"


def shown(value: str | float | None) -> str:
    """A value of a row for people; nothing for one that is not there."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.4g}"
