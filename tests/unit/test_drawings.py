"""The YAML of figures: what each kind needs, and what is refused."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from unforge.drawings import Figure

SHARED = "caption: C\nplace: nowhere\nprotocol: ffpp\ntestsets: [cdf_v2]\n"
WEIGHTS = (
    SHARED + "kind: weights\nmetric: video_auc\naxis: weight\nlabels: {cdf_v2: CDF-v2}\n"
    "series: [{id: none, label: '0', method: qtfp, variant: flcl_0, level: 0}]\n"
)
QUANTILES = SHARED + "kind: quantiles\nseries: [{id: cls, label: CLS, method: qtfp, signals: cls_attention_}]\n"
ATTENTION = (
    SHARED + "kind: attention\nframes: [real]\nseries: [{id: cls, label: CLS, method: qtfp, extra: attention_cls}]\n"
)


def read(text: str) -> Figure:
    return Figure.model_validate(yaml.safe_load(text))


def test_a_weight_of_nothing_is_a_level() -> None:
    figure = read(WEIGHTS)
    assert (figure.series[0].level, figure.labels) == (0.0, {"cdf_v2": "CDF-v2"})


def test_other_kinds_are_read() -> None:
    assert read(QUANTILES).series[0].signals == "cls_attention_"
    assert read(ATTENTION).frames == ("real",)


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (WEIGHTS, ", level: 0", "", "a level goes with weights"),
        (WEIGHTS, "axis: weight\n", "", "see axis"),
        (WEIGHTS, "metric: video_auc\n", "", "see metric"),
        (WEIGHTS, "labels: {cdf_v2: CDF-v2}", "labels: {cdf_v1: CDF-v1}", "not cdf_v1"),
        (QUANTILES, "kind: quantiles", "kind: quantiles\nlabels: {cdf_v2: CDF-v2}", "labels are of the test sets"),
        (QUANTILES, ", signals: cls_attention_", "", "signals go with quantiles"),
        (QUANTILES, "kind: quantiles", "kind: quantiles\nmetric: video_auc", "see metric"),
        (ATTENTION, ", extra: attention_cls", "", "an extra goes with attention"),
        (ATTENTION, "frames: [real]\n", "", "see frames"),
        (ATTENTION, "frames: [real]", "frames: [all]", "frames"),
        (ATTENTION, "kind: attention\nframes: [real]", "kind: quantiles", "signals go with quantiles"),
        (ATTENTION, "caption: C", "caption: C\ncolour: red", "colour"),
    ],
)
def test_what_is_refused(text: str, old: str, new: str, message: str) -> None:
    assert old in text
    with pytest.raises(ValidationError, match=message):
        read(text.replace(old, new))
