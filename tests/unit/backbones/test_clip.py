"""CLIP's vision tower: against transformers' own output; official folders; the small pretraining by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

from unforge import backbones
from unforge.backbones import clip, forensic
from unforge.types import Batch

PIXELS = clip.Config(width=16, layers=3, heads=2, mlp=32, image_size=28, patch=14, init=4.0)


@pytest.fixture(scope="module")
def small() -> clip.Clip:
    torch.manual_seed(0)
    return clip.build(clip.SMALL, {}).eval()


@pytest.fixture(scope="module")
def pixels() -> clip.Clip:
    torch.manual_seed(0)
    return clip.build(PIXELS, {}).eval()


def batch(images: Tensor, mask: Tensor | None, label: list[int]) -> Batch:
    names = tuple(map(str, range(len(images))))
    source = tuple((name,) for name in names)
    return Batch(image=images, mask=mask, label=torch.tensor(label), key=names, unit=names, source=source)


@pytest.mark.parametrize("which", ["small", "pixels"])
def test_what_is_seen_is_what_transformers_gives(which: str, request: pytest.FixtureRequest) -> None:
    tower: clip.Clip = request.getfixturevalue(which)
    shown = tower.prepared(torch.rand(3, 3, 40, 48))
    sizes = copy.deepcopy(tower.model.config)
    sizes._attn_implementation = "eager"
    eager: nn.Module = CLIPVisionModel(sizes)
    eager.eval()
    eager.load_state_dict(tower.model.state_dict())
    with torch.no_grad():
        found = tower.look(shown)
        out = eager(shown, output_attentions=True)
    assert torch.allclose(found.token, out.pooler_output, atol=1e-5)
    assert torch.allclose(found.patches, eager.post_layernorm(out.last_hidden_state)[:, 1:], atol=1e-5)
    assert found.patches.shape == (3, tower.side**2, tower.width)
    looked = out.attentions[-1].mean(1)[:, 0, 1:]
    assert found.attention is not None
    assert torch.allclose(found.attention, looked / looked.sum(1, keepdim=True), atol=1e-6)
    assert torch.allclose(found.attention.sum(1), torch.ones(3))
    # it differs from an even one: the comparison above can fail
    assert (found.attention - 1 / tower.side**2).abs().max() > 1e-4


def test_attention_takes_no_gradient_and_leaves_nothing_behind(pixels: clip.Clip) -> None:
    shown = pixels.prepared(torch.rand(1, 3, 28, 28))
    found = pixels.look(shown)
    assert found.attention is not None
    assert not found.attention.requires_grad
    assert found.token.requires_grad
    assert pixels.look(shown, attention=False).attention is None
    last = pixels.model.encoder.layers[-1].self_attn
    assert not last.q_proj._forward_hooks
    assert not last.k_proj._forward_hooks


@pytest.mark.parametrize("whole", [True, False])
def test_an_official_folder_is_read(whole: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 30, "bos_token_id": 0, "eos_token_id": 1}
    official = CLIPModel(CLIPConfig(vision_config={**sizes, "image_size": 42, "patch_size": 14}, text_config=text))
    tower = official.vision_model.eval()
    (official if whole else tower).save_pretrained(tmp_path / "official")
    found = clip.build(clip.Config(), {"checkpoint": tmp_path / "official"}).eval()
    assert (found.width, found.side, found.config.layers, found.config.mlp) == (16, 3, 2, 24)
    image = torch.rand(2, 3, 42, 42)
    with torch.no_grad():
        assert torch.equal(found.look(found.prepared(image)).token, tower(found.prepared(image)).pooler_output)
    # and kept: nothing of the folder's place is
    (tmp_path / "kept").mkdir()
    backbones.save(found, "clip", found.config, tmp_path / "kept")
    assert str(tmp_path) not in (tmp_path / "kept" / "clip.json").read_text()
    again = backbones.load(tmp_path / "kept")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in found.state_dict().items())


def test_a_folder_without_the_tower_is_refused(tmp_path: Path) -> None:
    tower = clip.build(PIXELS, {}).model
    state = {name: value for name, value in tower.state_dict().items() if "fc1" not in name}
    tower.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="fc1"):
        clip.build(clip.Config(), {"checkpoint": tmp_path})


def test_a_saved_tower_needs_nothing_else(small: clip.Clip, tmp_path: Path) -> None:
    backbones.save(small, "clip", clip.SMALL, tmp_path)
    again = backbones.load(tmp_path)
    assert isinstance(again, clip.Clip)
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again.look(again.prepared(image)).token, small.look(small.prepared(image)).token)
    first = (tmp_path / "model.safetensors").read_bytes()
    backbones.save(again, "clip", clip.SMALL, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_whole_images_of_any_shape_are_seen(small: clip.Clip, pixels: clip.Clip) -> None:
    for shape in ((1, 1), (40, 13), (100, 28)):
        image = torch.rand(1, 3, *shape)
        assert pixels.prepared(image).shape == (1, 3, 28, 28)
        assert small.prepared(image).shape == (1, 33, 8, 8)
    # all of the image, both halves: proportions are not kept
    striped = torch.zeros(1, 3, 28, 84)
    striped[..., :42] = 1
    shown = pixels.prepared(striped) * pixels.get_buffer("std") + pixels.get_buffer("mean")
    assert shown[..., :13].mean() == pytest.approx(1, abs=0.01)
    assert shown[..., 15:].mean() == pytest.approx(0, abs=0.01)


def test_the_small_pretraining_tells_three_classes(small: clip.Clip) -> None:
    mask = torch.zeros(4, 1, 32, 32)
    mask[1], mask[2, :, 4:9, 4:9] = 1, 1
    # the last: a crop of a manipulated image, without what was manipulated
    one = batch(torch.rand(4, 3, 32, 32), mask, [0, 1, 1, 1])
    with torch.no_grad():
        losses = small.loss(one)
        assert small.classes is not None
        logits = small.classes(small.look(small.prepared(one.image)).token).log_softmax(1).tolist()
    expected = [0, 1, 2, 0]
    told = list(zip(logits, expected, strict=True))
    assert losses.total.item() == pytest.approx(-sum(row[kind] for row, kind in told) / 4, rel=1e-5)
    assert losses.terms["right"].item() == sum(row.index(max(row)) == kind for row, kind in told) / 4
    with pytest.raises(ValueError, match="masks"):
        small.loss(batch(one.image, None, [0, 1, 1, 1]))


def test_only_the_tower_learns() -> None:
    tower = clip.build(clip.SMALL, {})
    learnt = {name.split(".")[0] for name, p in tower.named_parameters() if p.requires_grad}
    assert learnt == {"model", "classes"}
    assert isinstance(tower.forensic, forensic.Forensic)
    groups = tower.parameter_groups(0.1)
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in tower.parameters() if p.requires_grad}


def test_the_papers_tower_has_the_printed_size() -> None:
    with torch.device("meta"):
        tower = clip.build(clip.Config(), {})
    # by hand: a layer is 4 (1024^2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 2048
    layer = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 2 * 1024
    embeddings = 1024 + 3 * 14 * 14 * 1024 + 257 * 1024
    assert sum(p.numel() for p in tower.parameters()) == 24 * layer + embeddings + 2 * 2 * 1024 == 303_179_776


def test_attention_by_hand() -> None:
    """Two heads of one channel, two patches: softmax of products, mean of heads, without the class token."""
    queries = torch.tensor([[[1.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    keys = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [2.0, -1.0]]])
    heads = []
    for query, values in ((1.0, (0.0, 1.0, 2.0)), (2.0, (1.0, 0.0, -1.0))):
        powers = [math.exp(query * value) for value in values]
        heads.append([power / sum(powers) for power in powers])
    mean = [(a + b) / 2 for a, b in zip(*heads, strict=True)][1:]
    expected = torch.tensor([[value / sum(mean) for value in mean]])
    assert torch.allclose(clip._class_attention(queries, keys, 2), expected, atol=1e-6)
