"""What the small vision towers see, and the groups of an optimiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from unforge import backbones
from unforge.backbones import forensic, llava, seen


def test_tokens_are_those_of_each_image_by_itself() -> None:
    torch.manual_seed(0)
    traces = forensic.build(forensic.SMALL, {}).freeze()
    images = torch.randint(0, 256, (3, 3, 40, 24)) / 255
    memory = forensic.Memory(seen.ROOM)
    found = seen.tokens(traces, memory, images, 4)
    assert found.shape == (3, traces.width, 4, 4)
    for image, tokens in zip(images, found, strict=True):
        alone = traces.tokens(image[None], 4)[0]
        assert torch.equal(tokens[:, 1, 2], alone[1 * 4 + 2])
    assert torch.equal(seen.tokens(traces, memory, images.flip(0), 4), found.flip(0))


def test_what_inference_mode_makes_is_not_kept() -> None:
    traces = forensic.build(forensic.SMALL, {}).freeze()
    memory, image = forensic.Memory(seen.ROOM), torch.zeros(1, 3, 16, 16)
    with torch.inference_mode():
        seen.tokens(traces, memory, image, 2)
    head = nn.Conv2d(traces.width, 1, 1)
    head(seen.tokens(traces, memory, image, 2)).sum().backward()
    assert head.weight.grad is not None


def test_every_trained_parameter_is_in_one_group() -> None:
    torch.manual_seed(0)
    model = llava.build(llava.SMALL, {})
    model.add_lora(2, 4.0, 0.0)
    model.model.get_input_embeddings().requires_grad_(True)
    model.model.lm_head.requires_grad_(True)
    decayed, free = seen.parameter_groups(model, 0.1)
    # two matrices for query and value of two layers, and the last layer; the embedding of words
    assert (len(decayed["params"]), decayed["weight_decay"]) == (9, 0.1)
    assert (len(free["params"]), free["weight_decay"]) == (1, 0.0)
    ids = [id(p) for group in (decayed, free) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    model = llava.build(llava.SMALL, {})
    backbones.save(model, "llava", llava.SMALL, tmp_path)
    with pytest.raises(ValueError, match="no forensic backbone"):
        seen.forensic_of({"forensic": tmp_path})
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        seen.opened(tmp_path / "missing", "llava", llava.SMALL)
