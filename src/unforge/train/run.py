"""One training run: what the profile and the recipe say, put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unforge import paths
from unforge.profiles import Machine
from unforge.train import augment, checkpoint
from unforge.train.data import Member, Samples
from unforge.train.distributed import World
from unforge.train.loop import Fitted, fit
from unforge.train.validate import Validation
from unforge.types import Recipe

RUN = re.compile(
    r"(?P<paper>\w+)/(?P<protocol>\w+)/((?P<other>\w+)-)?(?P<variant>\w+)/s(?P<seed>\d+)"
    r"|(?P<method>\w+)/(?P<constant>\w+)"
)


@dataclass(frozen=True, kw_only=True)
class Name:
    """What the name of a run says."""

    method: str
    """The one the name says, else the paper's own (which the stage is told where it is not called as the paper)."""
    variant: str
    """`""`: the full method."""
    protocol: str
    """`""`: nothing is trained."""
    seed: int

    @staticmethod
    def parse(name: str) -> Name:
        """`<paper>/<protocol>/<variant>/s<seed>`, of a method that is not the paper's own
        `<paper>/<protocol>/<method>-<variant>/s<seed>`, or `<method>/<variant>` of one that learns nothing."""
        match = RUN.fullmatch(name)
        if match is None:
            raise ValueError(
                f"{name!r} is not a run: write <paper>/<protocol>/<variant>/s<seed>, or <method>/<variant>"
            )
        variant = match["variant"] or match["constant"]
        return Name(
            method=match["other"] or match["paper"] or match["method"],
            variant="" if variant == "full" else variant,
            protocol=match["protocol"] or "",
            seed=int(match["seed"] or 0),
        )


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much a run trains: the profile's values, and the recipe's where the profile says null."""

    steps: int
    batch: int
    size: int
    """Side of a training image (pixels)."""
    crop: bool
    """Whether a training image is a crop of `size`; else the whole image is resized to it."""
    checkpoint_every: int
    validate_every: int = 0
    """0: never."""
    validation_images: int | None = 0
    """None: all of the validation split."""
    backbone: str | None = None
    """Name of the pretrained backbone the method starts from; None: random."""

    @staticmethod
    def of(values: Mapping[str, Any], recipe: Recipe, input_size: int | None) -> Scale:
        """`values` as the profile has them; without `crop`, whole images at the method's `input_size` (pixels).

        Raises ValueError for an unknown key and when there is neither a crop nor an input size.
        """
        known = {"steps", "batch", "crop", "checkpoint_every", "validate_every", "validation_images", "backbone"}
        if set(values) - known:
            raise ValueError(f"unknown scale values {sorted(set(values) - known)}: accepted are {sorted(known)}")
        given = {**values}
        crop = given.pop("crop")
        size = input_size if crop is None else crop
        if size is None:
            raise ValueError("the method takes images of any size: give `crop` in the profile")
        if given["batch"] is None:
            given["batch"] = recipe.batch
        if given["steps"] is None:
            given["steps"] = recipe.epochs * (recipe.samples_per_epoch // (given["batch"] * recipe.accumulate))
        return Scale(**given, size=size, crop=crop is not None)

    def operations(self, recipe: Recipe) -> tuple[str, ...]:
        """The recipe's augmentation (`augment.DEFAULT` if it names none), brought to `size`.

        A crop comes first, so that nothing outside it is computed, and again where an operation
        changed the size; a resize comes last, as in the released SparseViT code.
        """
        named = recipe.augment or augment.DEFAULT
        return ("crop", *named, "crop") if self.crop else (*named, "resize")


def contents(asset: Path) -> str:
    """Hash of a file, or of a folder's files by name. FileNotFoundError says how to get what is not there."""
    if asset.is_file():
        return paths.sha256(asset)
    files = sorted(file for file in asset.rglob("*") if file.is_file())
    if not files:
        raise FileNotFoundError(f"{asset} is not there: `dvc repro` makes it, `dvc pull {asset}` fetches it")
    return paths.digest({str(file.relative_to(asset)): paths.sha256(file) for file in files})


def pretraining(assets: Mapping[str, Path]) -> str:
    """What a run starts from, for people: backbones, codebook and expert, joined by `+`; `none` if it has none."""
    if "run" in assets:
        return str(paths.read_json(assets["run"] / "meta.json")["config"]["pretraining"])
    roles = [role for role in ("backbone", "sam", "codebook", "expert") if role in assets]
    # a run's folder is called after its seed
    names = [assets[role].parent.name if role == "expert" else assets[role].name for role in roles]
    return "+".join(names) or "none"


def train(
    model: nn.Module,
    recipe: Recipe,
    scale: Scale,
    training: Sequence[Member],
    validation: Sequence[Member],
    *,
    world: World,
    machine: Machine,
    seed: int,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
) -> tuple[Fitted, Path]:
    """Train `model` in place; what it gives, and the folder of its state, to be removed once all is written.

    A model may bring its own loop, `model.fit`, with the arguments of `loop.fit`: one that is too large for a device.
    A killed run continues if `config`, the scale, the recipe, `inputs` (hashes), the machine and the code
    are the same.
    """
    settings = {**config, "scale": asdict(scale), "recipe": asdict(recipe), "machine": asdict(machine), "seed": seed}
    resume = checkpoint.folder(stage, {**settings, "world": world.size}, inputs)
    validate = None
    if scale.validate_every and scale.validation_images != 0:
        validate = Validation(validation, count=scale.validation_images, size=scale.size)
    samples = Samples(
        training,
        operations=scale.operations(recipe),
        size=scale.size,
        seed=seed,
        workers=machine.workers,
    )
    fitted = getattr(model, "fit", fit)(
        model,
        samples,
        validate,
        recipe,
        world=world,
        steps=scale.steps,
        batch=scale.batch,
        seed=seed,
        validate_every=scale.validate_every,
        checkpoint_every=scale.checkpoint_every,
        resume=resume,
        workers=machine.workers,
        name=stage,
    )
    return fitted, resume
