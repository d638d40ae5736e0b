"""LLaVA with SigLIP: against transformers' own forward; nothing is dropped; official names and sizes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from unforge import backbones
from unforge.backbones import llava, llava_siglip, seen, words

PIXELS = llava_siglip.Config(
    vision_width=16, vision_layers=3, vision_heads=2, vision_mlp=32, image_size=28, patch=14, width=32, layers=2,
    heads=2, mlp=48, vocabulary=0, positions=128, init=0.2, template="user <image>{prompt} assistant",
)  # fmt: skip


@pytest.fixture(scope="module")
def pixels() -> llava.Llava:
    torch.manual_seed(0)
    return llava_siglip.build(PIXELS, {}).eval()


def test_one_pass_is_that_of_transformers(pixels: llava.Llava) -> None:
    shown = pixels.prepared(torch.rand(2, 3, 40, 48))
    ids = pixels.sequences([llava.QUESTION] * 2).ids
    with torch.no_grad():
        states = pixels.run(shown, ids)
        expected = pixels.model(input_ids=ids, pixel_values=shown)
    assert torch.allclose(pixels.logits(states.last), expected.logits, atol=1e-5)


def test_every_patch_is_a_feature_and_an_anchor(pixels: llava.Llava) -> None:
    shown = pixels.prepared(torch.rand(1, 3, 28, 28))
    with torch.no_grad():
        hidden = pixels.model.model.vision_tower(shown, output_hidden_states=True).hidden_states
        assert hidden[2].shape == (1, 4, 16)
        assert torch.equal(pixels.features(shown), hidden[2])
        assert torch.equal(pixels.anchor(shown), hidden[2])
    assert pixels.anchor_width == 16


def test_the_whole_image_is_seen_in_the_range_minus_one_to_one(pixels: llava.Llava) -> None:
    striped = torch.zeros(1, 3, 28, 84)
    striped[..., 42:] = 1
    shown = pixels.prepared(striped)
    assert shown.shape == (1, 3, 28, 28)
    assert torch.allclose(shown[..., :12], torch.tensor(-1.0), atol=1e-5)
    assert torch.allclose(shown[..., 16:], torch.tensor(1.0), atol=1e-5)
    assert pixels.region((28, 84)) == (0, 0, 1, 1)


def test_the_small_one_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llava_siglip.build(llava_siglip.SMALL, {}).eval()
    backbones.save(model, "llava_siglip", llava_siglip.SMALL, tmp_path)
    again = backbones.load(tmp_path)
    assert isinstance(again, llava.Llava)
    assert again.config == llava_siglip.SMALL
    image, ids = torch.rand(1, 3, 40, 30), model.sequences([llava.QUESTION]).ids
    with torch.no_grad():
        first, second = model.run(model.prepared(image), ids), again.run(again.prepared(image), ids)
    assert first.vision.shape == (1, 256, 64)
    assert torch.equal(first.last, second.last)
    assert torch.equal(first.anchor, second.anchor)


@pytest.mark.parametrize("deeper", [False, True])
def test_an_official_checkpoint_is_known_by_its_tower(pixels: llava.Llava, tmp_path: Path, deeper: bool) -> None:
    pixels.model.save_pretrained(tmp_path)
    words.save(pixels.tokenizer, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    assert {
        "vision_tower.embeddings.position_embedding.weight",
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.post_layernorm.weight",
    } <= {name.replace("vision_tower.vision_model.", "vision_tower.") for name in state}
    inner = re.compile(r"^vision_tower\.(vision_model\.)?")
    prefix = "vision_tower.vision_model." if deeper else "vision_tower."
    save_file(
        {inner.sub(prefix, name): v for name, v in state.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    # CLIP's sizes are asked for: the checkpoint's count
    loaded = seen.opened(tmp_path, "llava", llava.Config(template=PIXELS.template)).eval()
    assert isinstance(loaded.config, llava.Siglip)
    assert (loaded.config.image_size, loaded.config.patch, loaded.config.feature_layer) == (28, 14, -2)
    image, ids = torch.rand(1, 3, 30, 50), pixels.sequences([llava.QUESTION]).ids
    with torch.no_grad():
        expected = pixels.run(pixels.prepared(image), ids)
        assert torch.equal(loaded.run(loaded.prepared(image), ids).last, expected.last)


def test_another_tower_is_refused(pixels: llava.Llava) -> None:
    with pytest.raises(ValueError, match=r"'pixtral'.*siglip_vision_model are accepted"):
        llava.for_tower(pixels.config, "pixtral")


def test_a_checkpoint_with_clip_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    values = {name: value for name, value in vars(PIXELS).items() if name != "recipe"}
    clip = llava.build(llava.Config(**values), {})
    clip.model.save_pretrained(tmp_path)
    words.save(clip.tokenizer, tmp_path)
    with pytest.raises(ValueError, match="clip tower: one with siglip"):
        llava_siglip.build(PIXELS, {"checkpoint": tmp_path})


def test_the_paper_s_sizes() -> None:
    with torch.device("meta"):
        model = llava_siglip.build(llava_siglip.Config(), {}).model
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    w, mlp = 1152, 4304
    layer = 4 * (w * w + w) + w * mlp + mlp + mlp * w + w + 4 * w
    # 27 layers, patches of 14 px, 27 x 27 positions, the last norm
    assert count["vision_tower"] == 27 * layer + 3 * 14 * 14 * w + w + 729 * w + 2 * w
    # the released tower has 428,225,600 with its pooling head, which is not read
    head = 4 * (w * w + w) + w + 2 * w + w * mlp + mlp + mlp * w + w
    assert count["vision_tower"] + head == 428_225_600
    assert count["multi_modal_projector"] == 1152 * 4096 + 4096 + 4096 * 4096 + 4096
    assert llava_siglip.Config().tokens == 729
