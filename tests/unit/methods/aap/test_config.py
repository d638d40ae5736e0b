"""Variants: one difference each; the paper's values; sizes of the 7B and 13B configurations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unforge import methods
from unforge.methods import aap
from unforge.methods.aap.config import sizes
from unforge.train import optimiser

LLAVA_7B, LLAVA_13B = 7_063_427_072, 13_350_839_296
"""Parameters of llava-hf/llava-1.5-7b-hf and -13b-hf."""
SAM_H = 641_090_608
"""Parameters of the released SAM ViT-H."""


def changed(variant: str) -> dict[str, object]:
    default, given = aap.VARIANTS[""], aap.VARIANTS[variant]
    names = [field.name for field in dataclasses.fields(default)]
    return {name: getattr(given, name) for name in names if getattr(given, name) != getattr(default, name)}


def test_every_variant_is_what_its_name_says() -> None:
    plain = {"anchored": (), "error_map": False}
    symmetric = {"anchored": ("real", "tampered")}
    assert {name: changed(name) for name in aap.VARIANTS} == {
        "": {},
        "black_box": plain,
        "symmetric": symmetric,
        "no_map": {"error_map": False},
        "control": {"control": True},
        "control_symmetric": {"control": True, **symmetric},
        "control_no_map": {"control": True, "error_map": False},
        "llava": {"base": "llava"},
        "llava_black_box": {"base": "llava", **plain},
        "siglip": {"base": "llava_siglip"},
        "siglip_black_box": {"base": "llava_siglip", **plain},
        "large": {"base": "llava_large"},
        "large_black_box": {"base": "llava_large", **plain},
        "explained": {"ce": 1.0},
    }
    for name in aap.VARIANTS:
        small = methods.config("aap", name, "small")
        assert small.small
        assert {key: getattr(small, key) for key in changed(name)} == changed(name)


def test_the_papers_values() -> None:
    config = methods.config("aap")
    assert (config.weight_cls, config.weight_seg, config.weight_arl) == (1, 1, 3)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout) == (8, 16, 0.05)
    assert config.anchored == ("real",)
    assert config.input_size == 1024
    recipe = config.recipe
    assert (recipe.optimiser, recipe.batch, recipe.epochs, recipe.weight_decay) == ("adam", 16, 20, 0)
    steps, warmup = 1000, optimiser.warmup_steps(recipe, 1000)
    rates = {optimiser.learning_rate(step, steps, warmup, recipe.lr, recipe.min_lr) for step in range(steps)}
    assert rates == {1e-4}


@pytest.mark.parametrize(
    ("variant", "layers", "width", "tokens", "tower"),
    [("", 32, 4096, 256, "clip"), ("llava", 32, 4096, 576, "clip"), ("siglip", 32, 4096, 729, "siglip"),
     ("large", 40, 5120, 576, "clip")],
)  # fmt: skip
def test_sizes_are_those_of_the_bases(variant: str, layers: int, width: int, tokens: int, tower: str) -> None:
    language, masks = sizes(aap.VARIANTS[variant])
    assert (language.layers, language.width, language.tokens, language.tower) == (layers, width, tokens, tower)
    assert language.gradient_checkpointing
    assert masks.grid == 64
    small, _ = sizes(methods.config("aap", variant, "small"))
    assert small.forensic
    assert small.tower == tower


@pytest.mark.parametrize(("variant", "base"), [("llava", LLAVA_7B), ("large", LLAVA_13B)])
def test_parameters_at_the_papers_scale(variant: str, base: int) -> None:
    with torch.device("meta"):
        method = aap.build(methods.config("aap", variant), {})
    total = sum(p.numel() for p in method.parameters())
    assert total == pytest.approx(base + SAM_H, rel=0.02)
    width, channels = method.llava.width, 1024
    assert method.layer == (16 if variant == "llava" else 20)
    assert sum(p.numel() for p in method.projector.parameters()) == (
        2 * width + (width + 1) * (width // 2) + (width // 2 + 1) * channels
    )
    assert sum(p.numel() for p in method.cue.parameters()) == (9 + 1) * 32 + (9 * 32 + 1) * 256
    trained = {name.split(".")[0] for name, p in method.named_parameters() if p.requires_grad}
    assert trained == {"llava", "segmenter", "cls_head", "projector", "cue"}
