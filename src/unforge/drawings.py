"""The YAML of a paper's figures, strictly parsed. Read by `unforge.specs`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """Strict and frozen: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(Spec):
    """One curve: a row measured over the levels of a perturbation. Of `weights` one point of every curve, of
    `attention` one column of pictures."""

    id: str
    label: str
    method: str
    variant: str = ""
    block: str = ""
    level: float | None = None
    """Of `weights`: the weight this variant was trained with."""
    signals: str = ""
    """Of `quantiles`: what the names of the signals begin with; the rest is the number of the quantile."""
    extra: str = ""
    """Of `attention`: which of the method's extras is shown (`attention_cls`)."""


class Panel(Spec):
    """One perturbation family of a robustness figure; every level of the family's module is a point."""

    label: str
    perturbation: str
    testset: str
    clean: float | None = None
    """Level at which the unperturbed set stands on the axis (blur 0, noise 0); None: not shown."""


class Figure(Spec):
    """`figure_N.yaml`: `curves` over the levels of perturbations; a metric for each kind of forgery, `by_type`; scalars
    that a method gives beside its prediction, `signals_by_type`; what a codebook's codes are used for, `codebook`;
    accuracy of each class while a run trains, `dynamics`; the states of images in a plane, `states`; single images
    with what a run says of them, `samples`; a metric over the weight of a loss, `weights`; the distribution of a signal
    on real images, `quantiles`; where runs look in the same images, `attention`."""

    caption: str
    place: str
    kind: Literal[
        "curves", "by_type", "signals_by_type", "codebook", "dynamics", "states", "samples", "weights", "quantiles",
        "attention",
    ] = "curves"  # fmt: skip
    protocol: str | None = None
    metric: str | None = None
    """Of `curves`, `by_type`, `weights` and `states` (the number beside the picture): a module-level name of
    `unforge.metrics`."""
    panels: tuple[Panel, ...] = ()
    series: tuple[Series, ...] = ()
    testsets: tuple[str, ...] = ()
    """The sets whose images are taken; of `dynamics`, where the trained run is scored (may be left out)."""
    labels: dict[str, str] = {}
    """Of `weights`: what the paper calls the test sets."""
    axis: str = ""
    """Of `weights`: what the weight is of."""
    shows: tuple[Literal["image", "attention", "prediction", "mask", "text"], ...] = ()
    """Of `samples`: what stands beside each other, by the columns of `evaluate.SAMPLES`."""
    frames: tuple[Literal["real", "fake"], ...] = ()
    """Of `attention`: whose images are shown."""
    images: int = Field(default=4, ge=1)
    """Of `samples` and of each of the `frames`: how many, at most."""
    signals: str = ""
    """What the names of the signals begin with; the rest is a number (`i_avg_` and the layer)."""
    codebook: str = ""
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _shape(self) -> Figure:
        wanted = {
            "curves": ("protocol", "metric", "panels", "series"),
            "by_type": ("protocol", "metric", "testsets", "series"),
            "signals_by_type": ("protocol", "testsets", "series", "signals"),
            "codebook": ("codebook",),
            "dynamics": ("protocol", "series"),
            "states": ("protocol", "metric", "testsets", "series"),
            "samples": ("protocol", "testsets", "series", "shows"),
            "weights": ("protocol", "metric", "testsets", "series", "axis"),
            "quantiles": ("protocol", "testsets", "series"),
            "attention": ("protocol", "testsets", "series", "frames"),
        }[self.kind]
        free = ("testsets",) if self.kind == "dynamics" else ()
        names = ("protocol", "metric", "panels", "series", "testsets", "signals", "codebook", "shows", "axis", "frames")
        for name in names:
            if name not in free and bool(getattr(self, name)) != (name in wanted):
                raise ValueError(f"a figure of kind {self.kind} has {', '.join(wanted)}: see {name}")
        if (self.labels and self.kind != "weights") or set(self.labels) - set(self.testsets):
            raise ValueError(f"labels are of the test sets of weights, not {', '.join(self.labels)}")
        for series in self.series:
            if (series.level is not None) != (self.kind == "weights"):
                raise ValueError(f"series {series.id}: a level goes with weights and only with them")
            if bool(series.signals) != (self.kind == "quantiles"):
                raise ValueError(f"series {series.id}: signals go with quantiles and only with them")
            if bool(series.extra) != (self.kind == "attention"):
                raise ValueError(f"series {series.id}: an extra goes with attention and only with it")
        return self
