"""The mask tokenizer as an artefact: pretrained on shapes, fine-tuned on the masks of manipulated images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unforge import masks, paths, seeds
from unforge.datasets import coco
from unforge.forgeries.steps import regions
from unforge.masks import hierarchical, splatting
from unforge.masks.tokenizer import MaskTokenizer
from unforge.profiles import Machine
from unforge.shards import MAX_PIXELS, ShardSet
from unforge.train import checkpoint, log
from unforge.train.distributed import World
from unforge.train.loop import fit
from unforge.types import Losses

POOL = 4096
"""Shapes that are drawn once; a sample is one of them, turned, moved and scaled."""
AREAS = (0.01, 0.6)
"""Range of their areas (share of the image), log-uniform."""
WITHOUT, WHOLE = 0.03, 0.03
"""Share of training masks that are empty (authentic images), and that are ones everywhere (fully synthetic)."""
TURNS, MOVES = 8, (0.8, 1.25, 0.15)
"""Flips and turns; least and most scale, and most shift (share of the side)."""
PAIRS = 100
"""Masks that `similar.parquet` starts from."""


def learn(
    name: str, values: Mapping[str, Any], sets: Sequence[ShardSet], target: Path, *,
    machine: Machine, seed: int, world: World, scale: Literal["small", "paper"] = "small",
    polygons: Path | None = None,
) -> None:  # fmt: skip
    """Train the mask tokenizer and write it to `target`, with what it does on masks it has not seen.

    `values`: steps, tuning_steps, batch, validate_every, checkpoint_every. Pretraining is on generated shapes, on the
    masks of split `pretrain` where the sets have some, and on the objects of `polygons`, COCO as `unforge data add`
    put it there (None: not added). Fine-tuning is on the masks of split `train`; those of split `val` choose the step.
    ValueError when there is no mask to tune on or to validate on.

    No pixel of COCO is looked at, only outlines: what was made from these photographs leaks into no test set by them.
    """
    config = (masks.SMALL if scale == "small" else masks.Config()).for_steps(values["steps"])
    drawn = {split: manipulated(sets, split, config.size) for split in ("pretrain", "train", "val")}
    if not len(drawn["train"]) or not len(drawn["val"]):
        raise ValueError(f"{len(drawn['train'])} masks to train on and {len(drawn['val'])} to validate on: give sets")
    torch.manual_seed(seeds.integer(seed, name, "start"))
    tokenizer = masks.build(config)
    pool = np.concatenate([shapes(min(POOL, values["steps"] * values["batch"]), config.size, seed), drawn["pretrain"]])
    inputs = {str(one.path): one.digest for one in sets}
    about: dict[str, Any] = {"codebook": name, "scale": dict(values), "config": dataclasses.asdict(config)}
    about["masks"] = {split: len(found) for split, found in drawn.items()}
    if polygons is not None:
        outlined = objects(polygons / "files", config.size, seed)
        pool = np.concatenate([pool, outlined])
        inputs[str(polygons)] = paths.sha256(polygons / "SOURCE.json")
        about["masks"]["objects"] = len(outlined)
    tuning = dataclasses.replace(config.recipe, lr=config.tuning_lr, min_lr=min(config.recipe.min_lr, config.tuning_lr))
    phases = {
        "pretraining": (tokenizer, pool, config.recipe, values["steps"]),
        "tuning": (Tuning(tokenizer), drawn["train"], tuning, values["tuning_steps"]),
    }
    rows, states = [], []
    for phase, (model, masks_of, recipe, steps) in phases.items():
        settings = {**about, "machine": dataclasses.asdict(machine), "seed": seed, "world": world.size}
        states.append(checkpoint.folder(f"codebook/{name}/{phase}", settings, inputs))
        fitted = fit(
            model, Masks(masks_of, seeds.integer(seed, phase, "masks")), Held(drawn["val"]), recipe, world=world,
            steps=steps, batch=values["batch"], seed=seeds.integer(seed, phase, "steps"),
            validate_every=values["validate_every"], checkpoint_every=values["checkpoint_every"], resume=states[-1],
            workers=machine.workers, name=f"codebook/{name}/{phase}",
        )  # fmt: skip
        rows += [(step, f"{phase}/{what}", value) for step, what, value in fitted.log]
        about[f"{phase}_step"] = fitted.step
    if world.first:
        tokenizer.cpu().eval()
        about["measured"] = measure(tokenizer, shown(drawn["val"]))
        with paths.writing(target) as folder:
            masks.save(tokenizer, folder)
            log.write(folder / "log.parquet", rows, {"codebook": name, "seed": seed})
            pq.write_table(used(tokenizer, shown(drawn["train"])), folder / "usage.parquet")
            pq.write_table(similar(tokenizer, drawn["val"], seed), folder / "similar.parquet")
            paths.write_json(folder / "meta.json", paths.meta(about, seed, inputs))
        for state in states:
            checkpoint.remove(state)


class Tuning(nn.Module):
    """A tokenizer with the loss of its fine-tuning: hierarchical mask loss, splatting loss, the quantiser's terms.

    Source: TamperTok, A.2. ASSUMPTION(paper): in the codebook's fine-tuning the splatting loss acts on the encoder: z
    of Eq. 6 is the latent before it is quantised, the logits are its products with the codes over sqrt(d) temperature,
    the cluster is that of its nearest codes, and the codes themselves move by the codebook term alone.
    """

    def __init__(self, tokenizer: MaskTokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def loss(self, mask: Tensor) -> Losses:
        """Of masks (B,1,H,W)."""
        tokenizer, config = self.tokenizer, self.tokenizer.config
        mask = tokenizer.squared(mask)
        encoded = tokenizer.quantise(tokenizer.features(mask))
        rng = np.random.Generator(np.random.PCG64(int(torch.randint(2**62, ()))))
        whole, prefix = hierarchical.loss(
            lambda kept: tokenizer.logits(encoded.quantised[:, :kept]),
            mask,
            hierarchical.draw(config.hml, config.latents, config.prefixes, rng),
            latents=config.latents,
            form=config.hml,
            dice=config.dice,
        )
        z, codes = encoded.latents.flatten(0, 1), tokenizer.codebook().detach()
        centres = splatting.clusters(codes, config.k) if config.neighbourhood == "centroid" else None
        logits = z @ codes.T / (config.code_dim**0.5 * config.temperature)
        splat = splatting.query_loss(z, codes, logits, config.k, config.temperature, centres)
        terms = {"whole": whole, "prefix": prefix, "ksd": splat, **tokenizer.quantiser_terms(encoded)}
        total = whole + config.prefix_weight * prefix + config.ksd * splat + terms["codebook"]
        return Losses(total=total + config.commitment * terms["commitment"], terms=terms)

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return self.tokenizer.parameter_groups(weight_decay)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch of masks as loaded: (B,S,S) uint8, 255 where all of a pixel is manipulated."""

    mask: np.ndarray

    def batch(self, device: torch.device) -> Tensor:
        """(B,1,S,S) in [0,1]."""
        return shown(self.mask).to(device)


class Masks:
    """Endless masks (N,S,S) uint8, each drawn with replacement and turned, moved and scaled; a few are empty or
    ones everywhere. Sample i of step t depends on (seed, t, i) only."""

    def __init__(self, masks_of: np.ndarray, seed: int) -> None:
        self.masks, self.seed = masks_of, seed

    def load(self, step: int, first: int, count: int) -> Loaded:
        return Loaded(mask=np.stack([self.sample(step, index) for index in range(first, first + count)]))

    def sample(self, step: int, index: int) -> np.ndarray:
        """(S,S) uint8."""
        rng = seeds.generator(self.seed, f"{step}/{index}", "mask")
        one = self.masks[int(rng.integers(len(self.masks)))]
        kind, turn = rng.random(), int(rng.integers(TURNS))
        if kind < WITHOUT + WHOLE:
            return np.full_like(one, 0 if kind < WITHOUT else 255)
        one = np.rot90(one, turn % 4)
        return moved(one[:, ::-1] if turn >= 4 else one, rng)


def moved(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(S,S) uint8, scaled about the middle and shifted; nothing comes in from outside."""
    cv2.setNumThreads(1)
    side, (least, most, far) = len(mask), MOVES
    factor, (x, y) = rng.uniform(least, most), rng.uniform(-far, far, 2) * side
    middle = (side - 1) / 2
    matrix = np.array([[factor, 0, middle * (1 - factor) + x], [0, factor, middle * (1 - factor) + y]])
    return cv2.warpAffine(np.ascontiguousarray(mask), matrix, (side, side), flags=cv2.INTER_LINEAR)


def shapes(count: int, size: int, seed: int) -> np.ndarray:
    """(count, size, size) uint8 of blobs and polygons, one or (a quarter of them) two."""
    return np.stack([_shape(size, seeds.generator(seed, str(i), "shape")) for i in range(count)])


def _shape(size: int, rng: np.random.Generator) -> np.ndarray:
    fine = np.zeros((2 * size, 2 * size), dtype=bool)
    for _ in range(1 + int(rng.random() < 0.25)):
        area = float(np.exp(rng.uniform(*np.log(AREAS))))
        fine |= regions.draw("blob" if rng.random() < 0.5 else "polygon", 2 * size, area, rng)
    return reduced(fine, size)


def objects(root: Path, size: int, seed: int, most: int = POOL) -> np.ndarray:
    """(N,size,size) uint8: the objects of COCO below `root`, at most `most`, chosen by the hash of (seed, annotation).

    Left out: what covers less of its square than the smallest shape, and what is no outline. None without annotations:
    photographs may have been added by themselves. ValueError as for `coco.outlines`.
    """
    if not coco.tables(root):
        print(f"no instances_*.json below {root}: no objects to learn from")
        return np.zeros((0, size, size), np.uint8)

    def order(one: coco.Outline) -> tuple[float, str, int]:
        return seeds.fraction(seed, f"{one.image.name}/{one.id}", "object"), one.image.name, one.id

    found: list[np.ndarray] = []
    for one in sorted(coco.outlines(root), key=order):
        if len(found) == most:
            break
        mask = _object(one, size)
        if mask is not None and mask.mean() >= 255 * AREAS[0]:
            found.append(mask)
    return np.stack(found) if found else np.zeros((0, size, size), np.uint8)


def _object(one: coco.Outline, size: int) -> np.ndarray | None:
    """The mask of an outline, None when it is none or too large to be drawn."""
    try:
        if not 0 < one.width * one.height <= MAX_PIXELS:
            return None
        return reduced(coco.rasterise(one.polygons, one.width, one.height).copy(), size)
    except (TypeError, ValueError, OverflowError):
        return None


def reduced(mask: np.ndarray, size: int) -> np.ndarray:
    """(size,size) uint8 of a mask (H,W) bool: padded to a square and averaged, as the tokenizer does it."""
    side = max(mask.shape)
    square = torch.zeros(1, 1, side, side)
    square[0, 0, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    small = square if side == size else F.interpolate(square, size=(size, size), mode="area")
    return small[0, 0].mul(255).round().byte().numpy()


def manipulated(sets: Sequence[ShardSet], split: str, size: int) -> np.ndarray:
    """(N,size,size) uint8: the masks of a split that are neither empty nor whole, set by set, sorted by
    key."""
    found = [
        reduced(one.mask(key), size)
        for one in sets
        for key, row in sorted(one.rows.items())
        if row["split"] == split and row["label"] == 1 and 0 < row["mask_fraction"] < 1
    ]
    return np.stack(found) if found else np.zeros((0, size, size), np.uint8)


def shown(masks_of: np.ndarray) -> Tensor:
    """(N,1,S,S) in [0,1]."""
    return torch.from_numpy(masks_of)[:, None].float().div_(255)


class Held:
    """Selects by the mean IoU of masks (N,S,S) uint8 with what their tokens decode to."""

    def __init__(self, masks_of: np.ndarray) -> None:
        self.masks = shown(masks_of)

    def __call__(self, model: nn.Module, world: World) -> tuple[str, float]:
        tokenizer = model.tokenizer if isinstance(model, Tuning) else model
        own = self.masks.to(world.device)
        return "iou", float(overlap(tokenizer.decode(tokenizer.encode(own)), own).mean())


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """IoU (B,) of masks (B,1,S,S) above 0.5; 1 for two empty ones."""
    a, b = (one.flatten(1) > 0.5 for one in (first, second))
    union = (a | b).sum(1)
    return torch.where(union > 0, (a & b).sum(1) / union.clamp(min=1), torch.ones_like(union, dtype=torch.float32))


@torch.no_grad()
def measure(tokenizer: MaskTokenizer, own: Tensor) -> dict[str, Any]:
    """Mean IoU of (N,1,S,S) with what their tokens decode to (`iou`), by the length of the prefix, and without
    quantisation; how many codes they use and their perplexity."""
    tokens = tokenizer.encode(own)
    lengths = range(1, tokenizer.config.latents + 1)
    prefixes = {str(p): float(overlap(tokenizer.decode(tokens[:, :p]), own).mean()) for p in lengths}
    frequency = torch.bincount(tokens.flatten(), minlength=tokenizer.config.codes).double() / tokens.numel()
    plain = tokenizer.logits(tokenizer.features(own)).sigmoid()
    return {
        "iou": prefixes[str(tokenizer.config.latents)],
        "iou_of_prefix": prefixes,
        "iou_unquantised": float(overlap(plain, own).mean()),
        "codes_used": int((frequency > 0).sum()),
        "perplexity": float(torch.exp(-torch.special.xlogy(frequency, frequency).sum())),
    }


@torch.no_grad()
def used(tokenizer: MaskTokenizer, own: Tensor) -> pa.Table:
    """How often each code stands for a part of the masks (N,1,S,S): columns code and count. Source: Fig. 3(a)."""
    counts = torch.bincount(tokenizer.encode(own).flatten(), minlength=tokenizer.config.codes)
    return pa.table({"code": pa.array(range(len(counts)), pa.int64()), "count": pa.array(counts.tolist(), pa.int64())})


@torch.no_grad()
def similar(tokenizer: MaskTokenizer, masks_of: np.ndarray, seed: int) -> pa.Table:
    """Pairs of masks: their IoU, and the share of their tokens that differ. Source: TamperTok, Fig. 3(b), whose pairs
    are not described.

    `kind`: `moved` (a mask and itself shifted or scaled), `other` (two masks), and `replaced`: what a
    mask's tokens decode to before and after some of them were replaced by the code nearest to theirs.
    """
    rng, chosen = seeds.generator(seed, "masks", "similar"), masks_of[:PAIRS]
    own, tokens = shown(chosen), tokenizer.encode(shown(chosen))
    near = np.stack([moved(moved(mask, rng) if i % 2 else mask, rng) for i, mask in enumerate(chosen)])
    slight = np.stack([np.roll(mask, tuple(rng.integers(-4, 5, 2)), (0, 1)) for mask in chosen])
    neighbour = splatting.neighbourhoods(tokenizer.codebook(), 2).indices[:, 1]
    swap = torch.from_numpy(rng.random(tokens.shape) < rng.random((len(chosen), 1)))
    swapped = torch.where(swap, neighbour[tokens], tokens)
    columns: dict[str, list[Any]] = {"kind": [], "iou": [], "differing": []}
    for kind, pair, its in (
        ("moved", shown(near), None),
        ("moved", shown(slight), None),
        ("other", own.roll(1, 0), None),
        ("replaced", tokenizer.decode(swapped), swapped),
    ):
        base = own if its is None else tokenizer.decode(tokens)
        columns["kind"] += [kind] * len(chosen)
        columns["iou"] += overlap(base, pair).tolist()
        columns["differing"] += (tokens != (tokenizer.encode(pair) if its is None else its)).float().mean(1).tolist()
    return pa.table(columns)
