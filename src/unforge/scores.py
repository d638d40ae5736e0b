"""What a method's prediction for one image comes down to: one row of counts, ranks and histograms.

`pixel_statistics` turns a probability map and a mask into the numbers every pixel metric is made
of, exactly where a metric is read at the threshold 0.5 and within 1e-4 where it needs a ranking.
`write` and `read` keep the rows of one run on one test set as Parquet, byte-stable: the same rows
give the same file, whatever order they came in.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 2
THRESHOLD = 0.5
"""A pixel counts as manipulated when its probability is strictly above."""
TOLERANCE = 1e-4
"""Largest error of `pixel_auc` and `pixel_f1_best`."""
BINS = 256
"""Bins of `hist_pos` and `hist_neg`, 1/8 of a logit wide: bin 128 starts just above probability 0.5,
bins 0 and 255 hold everything below logit -15.875 and above 15.875."""

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("source", pa.list_(pa.string()), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("testset", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("origin", pa.string()),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("class_probs", pa.list_(pa.float32())),
        pa.field("tp", pa.int64()),
        pa.field("fp", pa.int64()),
        pa.field("fn", pa.int64()),
        pa.field("tn", pa.int64()),
        pa.field("pixel_auc", pa.float64()),
        pa.field("pixel_f1_best", pa.float64()),
        pa.field("hist_pos", pa.list_(pa.int32())),
        pa.field("hist_neg", pa.list_(pa.int32())),
        pa.field("auc_bound", pa.float64()),
        pa.field("signals", pa.map_(pa.string(), pa.float64())),
        pa.field("data", pa.string(), nullable=False),
        pa.field("run", pa.string(), nullable=False),
        pa.field("run_sha256", pa.string(), nullable=False),
        pa.field("testset_sha256", pa.string(), nullable=False),
        pa.field("testset_version", pa.string(), nullable=False),
    ]
)
"""One row per image. Nullable columns are null where the method gives no such output, or the image
has no such number (no AUC without both classes of pixels)."""

# A pixel's rank key: p <= 0.5 keeps its float bits, p > 0.5 uses those of 1 - p (exact) downwards, so
# that both tails are resolved alike. The upper 16 of the 32 bits are the first-level bins:
#   0 .. 0x3F00           p <= 0.5, 0x3F00 is 0.5 itself
#   0x3F01 .. 0x4A80      0.5 < p < 1 (1 - p is at least 2^-24, whose upper bits are 0x3380)
#   0x4A81                p = 1
# Within a bin, pairs get half credit. That errs by at most pos * neg / (2 P N), and by a small part of it
# as long as the classes mix evenly inside; a bin where even the worst case matters is divided further.
_HALF = 0x3F00
_SIGN = 0x8000
_TOP = 0x3380
_ONE = _HALF + 1 + _HALF - _TOP
_FIRST = _ONE + 1
_ONE_BITS = 0x3F800000
_CHUNK = 1 << 19
_DOUBT = 2.5e-5


def _edges() -> npt.NDArray[np.intp]:
    """First-level key at which each of the 256 bins starts, and the end: `(257,)`."""
    logits = np.arange(1, BINS // 2, dtype=np.float64) / 8
    low = (1 / (1 + np.exp(logits))).astype(np.float32).view(np.uint32) >> 16
    below = low[::-1].astype(np.intp)
    above = _HALF + 1 + (_HALF - low.astype(np.intp))
    return np.concatenate(([0], below, [_HALF + 1], above, [_FIRST]))


_EDGES = _edges()


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """Statistics of one image's pixels; the fields are the row columns of the same names."""

    tp: int
    fp: int
    fn: int
    tn: int
    auc: float | None
    """Area under the ROC curve, ties at half credit; None when one class is absent."""
    f1_best: float | None
    """Largest F1 over all thresholds; None when the mask is empty, or it was not asked for."""
    hist_pos: npt.NDArray[np.int32]
    """`(256,)` manipulated pixels per logit-spaced bin."""
    hist_neg: npt.NDArray[np.int32]
    auc_bound: float | None
    """How far an AUC taken from the 256 bins can be off; None when one class is absent."""

    def columns(self) -> dict[str, Any]:
        """The row's columns."""
        return {
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
            "tn": self.tn,
            "pixel_auc": self.auc,
            "pixel_f1_best": self.f1_best,
            "hist_pos": self.hist_pos,
            "hist_neg": self.hist_neg,
            "auc_bound": self.auc_bound,
        }


def pixel_statistics(
    probability: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], *, best: bool = True
) -> PixelStatistics:
    """Statistics of one image at its original resolution.

    `probability` is float32 (H,W) in [0,1], `mask` bool (H,W), true where manipulated. Without `best`,
    `f1_best` is None, for half the time. ValueError on another type or shape, an empty image, NaN or a
    value outside [0,1].

    The counts are exact. AUC and best F1 come from a histogram keyed by the upper half of the float's
    bits (equal steps would lump the saturated scores of trained networks together); bins that could put
    them off by too much are divided further. Best F1 is at most `TOLERANCE` too low, whatever the scores;
    AUC is within `TOLERANCE` unless a score's last bits, and not its first 8, tell the classes apart.
    """
    if probability.dtype != np.float32 or mask.dtype != np.bool_:
        raise ValueError(f"expected float32 probabilities and a bool mask, got {probability.dtype} and {mask.dtype}")
    if probability.ndim != 2 or probability.shape != mask.shape or not probability.size:
        raise ValueError(f"expected two (H,W) arrays of one size, got {probability.shape} and {mask.shape}")
    p = np.ascontiguousarray(probability).reshape(-1)
    m = np.ascontiguousarray(mask).reshape(-1)
    largest = int(p.view(np.uint32).max())
    if largest > _ONE_BITS:  # a sign bit, NaN or above 1; only -0.0 is innocent
        if not (np.min(p) >= 0 and np.max(p) <= 1):
            raise ValueError(f"probabilities outside [0,1] or NaN: {np.min(p)} to {np.max(p)}")
        p = np.abs(p)
        largest = int(p.view(np.uint32).max())

    keys, pos, neg = _histogram(p, m, ones=largest == _ONE_BITS)
    pos_up_to = np.concatenate(([0], np.cumsum(pos)))
    neg_up_to = np.concatenate(([0], np.cumsum(neg)))
    edges = np.searchsorted(keys, _EDGES)
    n_pos, n_neg = int(pos_up_to[-1]), int(neg_up_to[-1])
    fn, tn = int(pos_up_to[edges[BINS // 2]]), int(neg_up_to[edges[BINS // 2]])
    hist_pos, hist_neg = np.diff(pos_up_to[edges]), np.diff(neg_up_to[edges])
    auc, f1_best = _ranks(p, m, keys, pos, neg, best)
    return PixelStatistics(
        tp=n_pos - fn,
        fp=n_neg - tn,
        fn=fn,
        tn=tn,
        auc=auc,
        f1_best=f1_best,
        hist_pos=hist_pos.astype(np.int32),
        hist_neg=hist_neg.astype(np.int32),
        auc_bound=float(hist_pos @ hist_neg) / (2 * n_pos * n_neg) if n_pos and n_neg else None,
    )


def _histogram(
    p: npt.NDArray[np.float32], m: npt.NDArray[np.bool_], ones: bool
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Occupied first-level keys in ascending order, and manipulated and authentic pixels of each."""
    size = _SIGN + _HALF + 1
    raw_total = raw_pos = None
    for start in range(0, p.size, _CHUNK):
        part, marked = p[start : start + _CHUNK], m[start : start + _CHUNK]
        folded = np.rint(part)  # 0 up to 0.5, 1 above
        np.subtract(part, folded, out=folded)  # p, or p - 1 with the sign bit set; 1 becomes 0
        key = folded.view(np.uint32)
        key >>= np.uint32(16)
        part_total, part_pos = np.bincount(key, minlength=size), np.bincount(key[marked], minlength=size)
        raw_total = part_total if raw_total is None else raw_total + part_total
        raw_pos = part_pos if raw_pos is None else raw_pos + part_pos
    assert raw_total is not None
    assert raw_pos is not None
    n_ones = pos_ones = 0
    if ones:
        one = p == 1
        n_ones, pos_ones = int(np.count_nonzero(one)), int(np.count_nonzero(one & m))
        raw_total[0] -= n_ones
        raw_pos[0] -= pos_ones
    upper = np.flatnonzero(raw_total[_SIGN + _TOP :])[::-1] + (_SIGN + _TOP)
    raw = np.concatenate((np.flatnonzero(raw_total[: _HALF + 1]), upper))
    keys = np.where(raw < _SIGN, raw, _SIGN + 2 * _HALF - raw)
    pos, neg = raw_pos[raw], raw_total[raw] - raw_pos[raw]
    if ones:
        keys, pos, neg = np.append(keys, _ONE), np.append(pos, pos_ones), np.append(neg, n_ones - pos_ones)
    return keys, pos, neg


def _limits(first: int, last: int) -> tuple[np.float32, np.float32]:
    """Smallest and largest probability whose first-level key lies in `first` to `last`."""
    low, high = np.float32(1), np.float32(1)
    if first <= _HALF:
        low = np.uint32(first << 16).view(np.float32)
    elif first < _ONE:
        bound = 1 - np.float64(np.uint32(((_HALF + _HALF - first) << 16) + 0xFFFF).view(np.float32))
        low = np.float32(bound)
        if low < bound:  # 1 - p has steps of 2^-24 only, the limit may fall between two
            low = np.nextafter(low, np.float32(1))
    if last < _HALF:
        high = np.uint32((last << 16) + 0xFFFF).view(np.float32)
    elif last == _HALF:
        high = np.float32(THRESHOLD)
    elif last < _ONE:
        bound = 1 - np.float64(np.uint32((_HALF + _HALF - last) << 16).view(np.float32))
        high = np.float32(bound)
        if high > bound:
            high = np.nextafter(high, np.float32(0))
    return low, high


@dataclass(frozen=True)
class _Leaves:
    """Bins in ascending order of probability, none empty, with what lies above each."""

    pos: npt.NDArray[np.intp]
    neg: npt.NDArray[np.intp]
    pos_above: npt.NDArray[np.intp]
    neg_above: npt.NDArray[np.intp]

    @classmethod
    def below(cls, pos: npt.NDArray[np.intp], neg: npt.NDArray[np.intp], pos_above: int, neg_above: int) -> _Leaves:
        """Adjoining bins with `pos_above` and `neg_above` pixels above the last."""
        pos_sum, neg_sum = np.cumsum(pos), np.cumsum(neg)
        return cls(pos, neg, pos_above + pos_sum[-1] - pos_sum, neg_above + neg_sum[-1] - neg_sum)

    def area(self) -> int:
        """Twice the pairs ranked rightly that end in these bins, pairs within a bin at half credit."""
        return int(self.neg @ (2 * self.pos_above + self.pos))

    def best(self, n_pos: int) -> float:
        """Largest F1 over the bins' lower ends."""
        hits = self.pos_above + self.pos
        return float(np.max(2 * hits / (n_pos + hits + self.neg_above + self.neg)))

    def open(self, n_pos: int, best: float | None, doubt: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Indices of the bins to look into: a threshold inside could reach an F1 above `best` + tolerance
        (None: not asked), or half credit could put the AUC off by too much (`doubt`, at the worst)."""
        chosen = doubt > _DOUBT
        if best is not None:
            hits = self.pos_above + self.pos
            reach = 2 * hits / (n_pos + hits + self.neg_above)
            chosen |= (reach > best + TOLERANCE) & (doubt > 0)
        return np.flatnonzero(chosen)


def _ranks(
    p: npt.NDArray[np.float32],
    m: npt.NDArray[np.bool_],
    keys: npt.NDArray[np.intp],
    pos: npt.NDArray[np.intp],
    neg: npt.NDArray[np.intp],
    want_best: bool,
) -> tuple[float | None, float | None]:
    """AUC and best F1 from the occupied first-level bins (`keys`, ascending).

    Where they leave too much open, the span of those bins is divided anew into up to 2^14 bins; what is
    then still open is sorted.
    """
    n_pos, n_neg = int(pos.sum()), int(neg.sum())
    if not n_pos:
        return None, None
    if not n_neg:
        return None, 1.0 if want_best else None
    pairs = n_pos * n_neg
    coarse = _Leaves.below(pos, neg, 0, 0)
    area = coarse.area()
    best = coarse.best(n_pos) if want_best else None
    doubt = pos * neg / (2 * pairs)
    doubt[_single_valued(p, keys, pos, neg)] = 0
    chosen = coarse.open(n_pos, best, doubt)
    if not chosen.size:
        return area / (2 * pairs), best

    first, last = int(chosen[0]), int(chosen[-1])
    inside = slice(first, last + 1)
    low, high = _limits(int(keys[first]), int(keys[last]))
    bits = p.view(np.uint32)
    if 8 * int(pos[inside].sum() + neg[inside].sum()) < p.size:
        where = np.flatnonzero((p >= low) & (p <= high))
        bits, m = bits[where], m[where]
    low_bits, high_bits = low.view(np.uint32), high.view(np.uint32)
    width = int(high_bits) - int(low_bits)
    shift = max(0, width.bit_length() - 14)
    outside = (width >> shift) + 1
    leaf = bits - low_bits  # what is below wraps to large numbers
    leaf >>= np.uint32(shift)
    np.minimum(leaf, np.uint32(outside), out=leaf)
    if high > THRESHOLD:  # below, the bins end together
        leaf[bits > high_bits] = outside
    total = np.bincount(leaf, minlength=outside + 1)[:outside]
    fine_pos = np.bincount(leaf[m], minlength=outside + 1)[:outside]
    occupied = np.flatnonzero(total)
    fine_pos = fine_pos[occupied]
    fine = _Leaves.below(fine_pos, total[occupied] - fine_pos, int(coarse.pos_above[last]), int(coarse.neg_above[last]))
    area += fine.area() - int(neg[inside] @ (2 * coarse.pos_above[inside] + pos[inside]))
    if best is not None:
        best = max(best, fine.best(n_pos))
    chosen = fine.open(n_pos, best, fine.pos * fine.neg / (2 * pairs))
    if shift == 0 or not chosen.size:
        return area / (2 * pairs), best

    row_of = np.full(outside + 1, -1, dtype=np.int32)
    row_of[occupied[chosen]] = chosen
    where = np.flatnonzero(row_of[leaf] >= 0)
    ordered = np.sort(bits[where] << np.uint32(1) | m[where])
    starts = np.flatnonzero(np.diff(ordered >> np.uint32(1), prepend=np.uint32(_ONE_BITS + 1)))
    values = ordered[starts] >> np.uint32(1)
    exact_pos = np.add.reduceat(ordered & np.uint32(1), starts, dtype=np.intp)
    exact_neg = np.diff(starts, append=ordered.size) - exact_pos
    row = row_of[(values - low_bits) >> np.uint32(shift)]
    ends = np.searchsorted(row, row, side="right") - 1  # last value of the same bin
    pos_sum, neg_sum = np.cumsum(exact_pos), np.cumsum(exact_neg)
    exact = _Leaves(
        exact_pos,
        exact_neg,
        fine.pos_above[row] + pos_sum[ends] - pos_sum,
        fine.neg_above[row] + neg_sum[ends] - neg_sum,
    )
    area += exact.area() - int(fine.neg[chosen] @ (2 * fine.pos_above[chosen] + fine.pos[chosen]))
    if best is not None:
        best = max(best, exact.best(n_pos))
    return area / (2 * pairs), best


def _single_valued(
    p: npt.NDArray[np.float32], keys: npt.NDArray[np.intp], pos: npt.NDArray[np.intp], neg: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Which bins are known to hold one value only: that of 1, and that of 0 when it has no subnormals.

    Hard masks are made of these two, and dividing them would gain nothing.
    """
    single: npt.NDArray[np.bool_] = keys == _ONE
    if keys[0] == 0 and pos[0] and neg[0]:
        single[0] = np.count_nonzero(p == 0) == pos[0] + neg[0]
    return single


def table(rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> pa.Table:
    """Rows as a table of `SCHEMA`, sorted by key, with `metadata` (JSON-able) and the schema version.

    A missing nullable column is null. ValueError when a key repeats, a column is unknown or missing.
    """
    known = set(SCHEMA.names)
    listed = sorted((dict(row) for row in rows), key=lambda row: row["key"])
    for before, row in itertools.pairwise(listed):
        if before["key"] == row["key"]:
            raise ValueError(f"two score rows have the key {row['key']!r}")
    for row in listed:
        if unknown := set(row) - known:
            raise ValueError(f"{row['key']}: unknown columns {sorted(unknown)}")
        if missing := [f.name for f in SCHEMA if not f.nullable and row.get(f.name) is None]:
            raise ValueError(f"{row['key']}: columns {missing} are missing")
        if row.get("signals") is not None:
            row["signals"] = sorted(dict(row["signals"]).items())
    text = json.dumps({**metadata, "schema_version": SCHEMA_VERSION}, sort_keys=True)
    columns = [pa.array([row.get(f.name) for row in listed], type=f.type) for f in SCHEMA]
    return pa.table(columns, schema=SCHEMA.with_metadata({"unforge": text}))


def write(path: Path, rows: Iterable[Mapping[str, Any]], metadata: Mapping[str, Any]) -> None:
    """Write `table(rows, metadata)`; the file is there whole or not at all."""
    content = table(rows, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    pq.write_table(
        content,
        partial,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        row_group_size=1 << 16,
        use_dictionary=True,
        write_statistics=True,
    )
    os.replace(partial, path)


def metadata(rows: pa.Table) -> dict[str, Any]:
    """What `write` was given beside the rows, and `schema_version`; ValueError when there is nothing."""
    text = (rows.schema.metadata or {}).get(b"unforge")
    if text is None:
        raise ValueError("not a table of score rows: the `unforge` metadata is missing")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def read(path: Path) -> pa.Table:
    """Score rows of one run on one test set. ValueError when the file is of another schema version."""
    content = pq.read_table(path)
    try:
        version = metadata(content).get("schema_version")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: score rows of schema version {version}, this unforge reads {SCHEMA_VERSION}; "
            "evaluate the run again"
        )
    if missing := [name for name in SCHEMA.names if name not in content.column_names]:
        raise ValueError(f"{path}: columns {missing} are missing")
    return content
