"""The 13B configuration: its published size; the small one trains and is read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unforge import backbones
from unforge.backbones import llava, llava_large


@pytest.mark.parametrize(
    ("config", "billions"),
    # 7.06 and 13.35 B: llava-hf/llava-1.5-7b-hf and -13b-hf, as their model pages have them
    [(llava.V1_5, 7.06), (llava_large.Config(), 13.35)],
)
def test_published_sizes(config: llava.Config, billions: float) -> None:
    with torch.device("meta"):
        model = llava_large.build(config, {}).model
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert config.tokens == 576


def test_vicuna_13b_exactly() -> None:
    with torch.device("meta"):
        model = llava_large.build(llava_large.Config(), {}).model
    width, mlp = 5120, 13824
    layer = 4 * width * width + 3 * width * mlp + 2 * width
    language = sum(p.numel() for p in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    assert language == 40 * layer + width + 2 * 32000 * width == 13_015_864_320


def test_the_small_one_is_larger_and_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llava_large.build(llava_large.SMALL, {}).eval()
    small = llava.build(llava.SMALL, {})
    assert sum(p.numel() for p in model.parameters()) > 1.5 * sum(p.numel() for p in small.parameters())
    backbones.save(model, "llava_large", llava_large.SMALL, tmp_path)
    again = backbones.load(tmp_path)
    image, ids = torch.rand(1, 3, 20, 20), model.sequences([llava.QUESTION]).ids
    with torch.no_grad():
        states = again.run(again.prepared(image), ids, layers=True)
        assert torch.equal(states.last, model.run(model.prepared(image), ids).last)
    # the embeddings and three layers
    assert [tuple(x.shape[::2]) for x in states.layers] == [(1, 128)] * 4
