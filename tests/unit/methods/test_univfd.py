"""UnivFD against its counts, official key names and CLIP's embedding taken apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unforge import backbones, methods
from unforge.backbones import forensic, llava
from unforge.methods import univfd
from unforge.types import Batch

TINY = replace(univfd.Config(), width=32, layers=2, heads=2, mlp=64, patch=56)


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
    found = methods.counts("univfd")
    assert found["head"][0] == 769
    assert found["vision_tower"][0] == 303_966_208
    with torch.device("meta"):
        method = univfd.build(univfd.Config(), {})
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 769


def test_key_names_of_clip_are_official() -> None:
    with torch.device("meta"):
        tower = univfd.build(univfd.Config(), {}).tower
    expected = {"visual_projection.weight"}
    expected |= {f"vision_model.embeddings.{name}" for name in ("class_embedding", "patch_embedding.weight")}
    expected |= {"vision_model.embeddings.position_embedding.weight"}
    # "pre_layrnorm" is how transformers writes it
    for norm in ("pre_layrnorm", "post_layernorm"):
        expected |= {f"vision_model.{norm}.{part}" for part in ("weight", "bias")}
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    for layer in range(24):
        for name in (*parts, "layer_norm1", "layer_norm2"):
            expected |= {f"vision_model.encoder.layers.{layer}.{name}.{part}" for part in ("weight", "bias")}
    assert set(tower.state_dict()) - {"vision_model.embeddings.position_ids"} == expected


def test_the_feature_is_the_projected_class_token_of_any_norm() -> None:
    torch.manual_seed(0)
    method = univfd.build(TINY, {}).eval()
    shown = method.prepared(torch.rand(2, 3, 224, 224))
    features = method.features(shown)
    assert features.shape == (2, 768)
    seen = {}
    model = method.tower.vision_model
    model.encoder.layers[-1].register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    method.features(shown)
    last = seen["last"][0] if isinstance(seen["last"], tuple) else seen["last"]
    by_hand = model.post_layernorm(last[:, 0]) @ method.tower.visual_projection.weight.T
    torch.testing.assert_close(features, by_hand)
    assert (features.norm(dim=1) - 1).abs().min() > 0.05
    # the head is linear in it
    torch.testing.assert_close(method.logits(shown), by_hand @ method.fc.weight.T + method.fc.bias)


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
    weight, bias = torch.rand(1, 768), torch.rand(1)
    head = {f"{prefix}weight": weight, f"{prefix}bias": bias}
    trained = {"model": {"model.visual.proj": torch.rand(2, 2), **head}, "optimizer": {}, "total_steps": 1}
    torch.save(trained if prefix else head, tmp_path / "fc_weights.pth")
    univfd.load_official(method, tmp_path / "fc_weights.pth")
    assert torch.equal(method.fc.weight, weight)
    assert torch.equal(method.fc.bias, bias)
    torch.save({"weight": torch.rand(1, 512), "bias": bias}, tmp_path / "fc_weights.pth")
    with pytest.raises(ValueError, match=r"another shape: weight \(1, 512\)"):
        univfd.load_official(method, tmp_path / "fc_weights.pth")


def test_clip_is_read_from_a_folder_as_transformers_writes_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = univfd.build(TINY, {})
    first.tower.save_pretrained(tmp_path)
    second = univfd.build(univfd.Config(), {"backbone": tmp_path})
    image = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(second.features(image), first.features(image))
    with pytest.raises(ValueError, match="projects to 768: 512 is accepted"):
        univfd.build(replace(univfd.Config(), projection=512), {"backbone": tmp_path})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA as if it had been trained."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("llava")
    backbones.save(llava.build(llava.SMALL, {}), "llava", llava.SMALL, folder)
    return folder


def test_a_backbone_of_another_kind_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no CLIP projection"):
        univfd.build(univfd.Config(), {"backbone": trained})
    backbones.save(forensic.build(forensic.SMALL, {}), "forensic", forensic.SMALL, tmp_path)
    with pytest.raises(ValueError, match="is no LLaVA"):
        univfd.build(methods.config("univfd", "", "small"), {"backbone": tmp_path})
    with pytest.raises(ValueError, match="tower 'dino'"):
        univfd.build(replace(TINY, tower="dino"), {})


def test_the_small_tower_is_llavas(trained: Path) -> None:
    method = univfd.build(methods.config("univfd", "", "small"), {"backbone": trained}).eval()
    tower = backbones.load(trained)
    image = torch.rand(2, 3, 64, 72)
    patches = tower.features(tower.prepared(image))
    assert patches.shape[1] == 256
    features = method.features(method.prepared(image))
    assert torch.equal(features, patches.amax(dim=1))
    mean = univfd.build(replace(method.config, pool="mean"), {"backbone": trained})
    torch.testing.assert_close(mean.features(mean.prepared(image)), patches.mean(dim=1))


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
