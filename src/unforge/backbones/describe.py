"""What can be said of a mask in plain words: questions and answers with which vision and language are aligned.

Generic: presence, size, place and coarse shape of a region, no method's own tokens. Also random regions to ask about.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = 8
"""Rows and columns that answers count in, from 0."""
SIZES = ((0.05, "tiny"), (0.12, "small"), (0.3, "medium"), (1.0, "large"))
"""Up to which share of the image a region is called what."""

PRESENT = "Is there a manipulated region?"
WHERE = "Where is it?"
SHAPE = "How many cells of each row and column does it cover?"
ANSWERS = ("Yes", "No", "rows", "to", "columns", "about", "percent", ", .")


def texts() -> list[str]:
    """Every word that `conversation` uses, and the chat's own."""
    sizes = [name for _, name in SIZES]
    return ["user", "assistant", "system", "the", PRESENT, WHERE, SHAPE, *ANSWERS, *sizes]


def conversation(mask: Tensor) -> list[tuple[str, str]]:
    """Questions and answers about one mask (1,H,W), 0 or 1.

    Presence with the size and share of the image (percent); the rows and columns it reaches on a `GRID` x `GRID`
    division of the image; how many cells of each row, then of each column, it covers by half, a digit each. Of an
    empty mask only the first.
    """
    share = float(mask.mean())
    if not bool(mask.any()):
        return [(PRESENT, "No.")]
    name = next(name for most, name in SIZES if share <= most + 1e-6)
    cells = F.adaptive_avg_pool2d(mask[None], (GRID, GRID))[0, 0]
    rows, columns = _reached(cells.amax(1)), _reached(cells.amax(0))
    covered = cells >= 0.5
    counts = ["".join(str(int(n)) for n in covered.sum(axis).tolist()) for axis in (1, 0)]
    return [
        (PRESENT, f"Yes, {name}, about {max(1, round(100 * share))} percent."),
        (WHERE, f"rows {rows[0]} to {rows[1]}, columns {columns[0]} to {columns[1]}."),
        (SHAPE, f"rows {counts[0]}, columns {counts[1]}."),
    ]


def _reached(most: Tensor) -> tuple[int, int]:
    """First and last row (column) of which a cell is covered by more than a tenth; the best one if none is."""
    found = (most > 0.1).nonzero()[:, 0].tolist() or [int(most.argmax())]
    return found[0], found[-1]


def regions(count: int, size: int) -> Tensor:
    """(count,1,size,size) random masks, 0 or 1: unions of one to three turned ellipses and rectangles.

    Draws from torch's generator.
    """
    axis = (torch.arange(size, device="cpu") + 0.5) / size
    y, x = axis[:, None], axis[None, :]
    masks = []
    for _ in range(count):
        mask = torch.zeros(size, size, device="cpu", dtype=torch.bool)
        for _ in range(1 + max(0, int(torch.randint(4, ())) - 1)):
            middle_y, middle_x, angle, kind = torch.rand(4, device="cpu").tolist()
            half_y, half_x = (torch.rand(2, device="cpu") * 0.25 + 0.06).tolist()
            sine, cosine = math.sin(math.pi * angle), math.cos(math.pi * angle)
            along = ((x - middle_x) * cosine + (y - middle_y) * sine).abs() / half_x
            across = ((y - middle_y) * cosine - (x - middle_x) * sine).abs() / half_y
            mask |= (along**2 + across**2 <= 1) if kind < 0.6 else (torch.maximum(along, across) <= 1)
        masks.append(mask)
    return torch.stack(masks)[:, None].float()
