"""UnivFD against its counts, official heads and transformers' own embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from unforge import backbones, counts, methods
from unforge.backbones import clip, forensic
from unforge.methods import univfd
from unforge.types import Batch

TINY = replace(univfd.Config(), clip=clip.Config(width=32, layers=2, heads=2, mlp=64, patch=56, projection=24))


def batch(image: Tensor) -> Batch:
    names = tuple(map(str, range(len(image))))
    return Batch(
        image=image,
        mask=None,
        label=torch.arange(len(image)) % 2,
        key=names,
        unit=names,
        source=tuple((name,) for name in names),
    )


def test_counts_are_published() -> None:
    found = counts.of("univfd")
    assert found["head"][0] == 769
    assert found["vision_tower"][0] == 303_966_208
    with torch.device("meta"):
        method = univfd.build(univfd.Config(), {})
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 769


def official(folder: Path, kind: Any) -> Any:
    """A random CLIP of TINY's sizes, written as transformers does."""
    torch.manual_seed(1)
    sizes = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=56,
        projection_dim=24, initializer_factor=4.0,
    )  # fmt: skip
    model = kind(sizes).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kept", [False, True])
def test_the_feature_is_the_projected_class_token_of_any_norm(kept: bool, tmp_path: Path) -> None:
    """Of an official folder, and of what the stage of backbones keeps of it."""
    theirs = official(tmp_path / "official", CLIPVisionModelWithProjection)
    folder = tmp_path / "official"
    if kept:
        folder = tmp_path / "kept"
        folder.mkdir()
        backbones.save(clip.build(clip.Config(), {"checkpoint": tmp_path / "official"}), "clip", clip.Config(), folder)
    method = univfd.build(univfd.Config(), {"backbone": folder}).eval()
    shown = method.prepared(torch.rand(2, 3, 224, 224))
    features = method.features(shown)
    with torch.no_grad():
        expected = theirs(pixel_values=shown).image_embeds
    assert features.shape == (2, 24)
    torch.testing.assert_close(features, expected)
    assert (features.norm(dim=1) - 1).abs().min() > 0.05
    # the head is linear in it
    torch.testing.assert_close(method.logits(shown), expected @ method.fc.weight.T + method.fc.bias)


def test_key_names_of_clip_are_official(tmp_path: Path) -> None:
    """Those of the release, in a file and, without its first part, in the tower."""
    expected = {"visual_projection.weight"}
    expected |= {f"vision_model.embeddings.{name}" for name in ("class_embedding", "patch_embedding.weight")}
    expected |= {"vision_model.embeddings.position_embedding.weight"}
    # "pre_layrnorm" is how transformers writes it
    for norm in ("pre_layrnorm", "post_layernorm"):
        expected |= {f"vision_model.{norm}.{part}" for part in ("weight", "bias")}
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    for layer in range(2):
        for name in (*parts, "layer_norm1", "layer_norm2"):
            expected |= {f"vision_model.encoder.layers.{layer}.{name}.{part}" for part in ("weight", "bias")}
    official(tmp_path, CLIPVisionModelWithProjection)
    assert set(load_file(tmp_path / "model.safetensors")) == expected
    ours = {name.replace("visual_", "").replace("vision_model.", "model.") for name in expected}
    assert set(univfd.build(TINY, {}).tower.state_dict()) == ours


def test_a_tower_without_projection_is_refused_at_paper_scale(tmp_path: Path) -> None:
    official(tmp_path, CLIPVisionModel)
    with pytest.raises(ValueError, match="has no projection: a whole CLIP"):
        univfd.build(univfd.Config(), {"backbone": tmp_path})


def test_tests_see_the_centre_with_clips_statistics() -> None:
    method = univfd.build(TINY, {}).eval()
    image = torch.rand(1, 3, 300, 225)
    shown = method.prepared(image)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    # 0.5 is rounded to 0
    torch.testing.assert_close(shown * std + mean, image[:, :, 38:262, :224])
    assert tuple(method.train().prepared(image).shape) == (1, 3, 224, 224)


@pytest.mark.parametrize("prefix", ["", "fc."])
def test_official_heads_load_strictly(tmp_path: Path, prefix: str) -> None:
    method = univfd.build(TINY, {})
    weight, bias = torch.rand(1, 24), torch.rand(1)
    head = {f"{prefix}weight": weight, f"{prefix}bias": bias}
    trained = {"model": {"model.visual.proj": torch.rand(2, 2), **head}, "optimizer": {}, "total_steps": 1}
    torch.save(trained if prefix else head, tmp_path / "fc_weights.pth")
    univfd.load_official(method, tmp_path / "fc_weights.pth")
    assert torch.equal(method.fc.weight, weight)
    assert torch.equal(method.fc.bias, bias)
    torch.save({"weight": torch.rand(1, 512), "bias": bias}, tmp_path / "fc_weights.pth")
    with pytest.raises(ValueError, match=r"another shape: weight \(1, 512\)"):
        univfd.load_official(method, tmp_path / "fc_weights.pth")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP as if it had been trained."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("clip")
    backbones.save(clip.build(clip.SMALL, {}), "clip", clip.SMALL, folder)
    return folder


def test_a_backbone_of_another_kind_is_refused(tmp_path: Path) -> None:
    backbones.save(forensic.build(forensic.SMALL, {}), "forensic", forensic.SMALL, tmp_path)
    with pytest.raises(ValueError, match="holds a Forensic: UnivFD builds on CLIP"):
        univfd.build(methods.config("univfd", "", "small"), {"backbone": tmp_path})


def test_the_small_tower_is_the_small_clip(trained: Path) -> None:
    method = univfd.build(methods.config("univfd", "", "small"), {"backbone": trained}).eval()
    tower = backbones.load(trained)
    assert isinstance(tower, clip.Clip)
    image = torch.rand(2, 3, 64, 72)
    assert torch.equal(method.features(method.prepared(image)), tower.look(tower.prepared(image)).token)


def test_the_head_alone_learns(trained: Path) -> None:
    method = univfd.build(methods.config("univfd", "", "small"), {"backbone": trained}).train()
    assert not any(module.training for module in method.tower.modules())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    one = batch(torch.rand(4, 3, 32, 32))
    optimiser = torch.optim.AdamW(method.parameter_groups(0.0), lr=1e-2)
    first = method.loss(one).total
    first.backward()
    optimiser.step()
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert method.loss(one).total < first


@pytest.mark.parametrize("variant", ["", "three"])
def test_small_ones_see_any_image_and_are_saved(trained: Path, tmp_path: Path, variant: str) -> None:
    config = methods.config("univfd", variant, "small")
    method = methods.build("univfd", config, {"backbone": trained}).eval()
    for height, width in ((1, 1), (7, 90), (256, 256)):
        prediction = method.predict(torch.rand(1, 3, height, width))
        assert 0 < prediction.score.item() < 1
        assert (prediction.class_probs is None) == (variant == "")
    methods.save(method, "univfd", variant, config, tmp_path)
    image = torch.rand(1, 3, 60, 40)
    assert torch.equal(methods.load(tmp_path)(image), method(image))
    # a further run starts from the sizes of that one
    assert methods.build("univfd", config, {"run": tmp_path}).fc.weight.shape == method.fc.weight.shape
    assert methods.build("univfd", config).fc.weight.shape == method.fc.weight.shape
