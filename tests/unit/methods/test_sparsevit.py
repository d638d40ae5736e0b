"""SparseViT at the small scale: every variant, any size, what trains, and that it learns."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from unforge import methods
from unforge.methods.sparsevit import RECIPES, SMALL, VARIANTS, Config
from unforge.types import Batch


def noise_batch(count: int, size: int, seed: int) -> Batch:
    """Smooth images with noise of 4 grey levels, of 1 level inside a square."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 3, 8, 8, generator=generator)
    image = F.interpolate(low, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1) * 0.8 + 0.1
    mask = torch.zeros(count, 1, size, size)
    for i in range(count):
        side = int(torch.randint(size // 4, size // 2, (1,), generator=generator))
        y, x = torch.randint(0, size - side, (2,), generator=generator).tolist()
        mask[i, :, y : y + side, x : x + side] = 1
    sigma = torch.where(mask > 0, 1.0, 4.0) / 255
    image = (image + torch.randn(image.shape, generator=generator) * sigma).clamp(0, 1)
    names = tuple(str(i) for i in range(count))
    return Batch(
        image=(image * 255).round() / 255,
        mask=mask,
        label=torch.ones(count, dtype=torch.long),
        key=names,
        unit=names,
        source=tuple((n,) for n in names),
    )


def small(variant: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = dataclasses.replace(methods.config("sparsevit", variant, "small"), **changes)
    return methods.build("sparsevit", config)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_trains_every_parameter_that_requires_it(variant: str) -> None:
    method = small(variant)
    batch = noise_batch(2, 64, 0)
    losses = method.loss(batch)
    assert set(losses.terms) == {"bce", "dice"}
    losses.total.backward()
    idle = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == [], "DistributedDataParallel would need find_unused_parameters"
    groups = method.parameter_groups(0.1)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in method.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "variant", ["", "stem_dense", "srm_lff", "dct_lff", "aspp", "aff", "mlp", "stem_vit_sparse", "volo"]
)
@pytest.mark.parametrize("size", [(37, 51), (96, 64), (1, 1)])
def test_any_size_gives_a_mask_of_that_size(variant: str, size: tuple[int, int]) -> None:
    method = small(variant).eval()
    prediction = method.predict(torch.rand(1, 3, *size), extras=True)
    assert prediction.mask.shape == (1, 1, *size)
    assert torch.isfinite(prediction.mask).all()
    assert set(prediction.extras) == set(method.EXTRAS)
    for maps in prediction.extras.values():
        torch.testing.assert_close(maps.sum((3, 4)), torch.ones(maps.shape[:3]))


def test_a_size_that_divides_needs_no_padding() -> None:
    """Plain upsampling of the head's logits is the result, as in the released code."""
    method = small("").eval()
    image = torch.rand(1, 3, 64, 96)
    coarse = method.lmu(method.encoder_net((image - method.mean) / method.std))
    expected = F.interpolate(coarse, size=(64, 96), mode="bilinear", align_corners=False).sigmoid()
    torch.testing.assert_close(method.predict(image).mask, expected, atol=1e-6, rtol=1e-5)


def test_padding_changes_little_away_from_the_added_border() -> None:
    method = small("").eval()
    image = torch.rand(1, 3, 128, 128)
    whole, cut = method.predict(image).mask, method.predict(image[:, :, :127, :125]).mask
    assert cut.shape == (1, 1, 127, 125)
    assert (whole[:, :, :32, :32] - cut[:, :, :32, :32]).abs().max() < 0.1


def test_the_input_size_is_the_methods_own() -> None:
    method = small("", input_size=64).eval()
    image = torch.rand(1, 3, 128, 40)
    assert method.predict(image).mask.shape == (1, 1, 64, 64)
    resized = F.interpolate(image, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(method.predict(image).mask, method.predict(resized).mask)
    batch = dataclasses.replace(noise_batch(2, 96, 0), image=torch.rand(2, 3, 96, 96))
    assert torch.isfinite(method.loss(batch).total)


def test_bias_norm_scale_and_fusion_are_not_decayed() -> None:
    method = small("stem_vit")
    names = {id(p): n for n, p in method.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in method.parameter_groups(0.05))
    assert "encoder_net.pos_embed.weight" in free
    assert "encoder_net.blocks.0.attn.qkv.weight" in decayed
    method = small("")
    names = {id(p): n for n, p in method.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in method.parameter_groups(0.05))
    assert {"lmu.gamma1", "encoder_net.blocks3.0.gamma_1", "encoder_net.blocks3.0.norm1.weight"} <= free
    assert not any(n.endswith(".bias") for n in decayed)
    assert {g["weight_decay"] for g in method.parameter_groups(0.05)} == {0.05, 0.0}


def test_loss_without_masks_is_an_error() -> None:
    with pytest.raises(ValueError, match="masks"):
        small("").loss(dataclasses.replace(noise_batch(1, 32, 0), mask=None))


def test_features_have_the_released_names() -> None:
    features = (
        small("", depths=(1, 1, 4, 2), rates3=(8, 4, 2, 1), rates4=(2, 1)).eval().features(torch.rand(1, 3, 64, 64))
    )
    assert list(features) == ["third1", "third2", "third3", "third", "last1", "last"]


def test_recipes_state_their_source_and_default_to_the_paper() -> None:
    assert Config().recipe == RECIPES["paper"]
    assert (RECIPES["paper"].optimiser, RECIPES["paper"].lr, RECIPES["paper"].min_lr) == ("adam", 1e-4, 1e-7)
    assert (RECIPES["code"].optimiser, RECIPES["code"].lr, RECIPES["code"].weight_decay) == ("adamw", 2e-4, 0.05)
    assert all(r.source for r in RECIPES.values())


def test_variants_differ_at_the_small_scale_as_at_the_papers() -> None:
    for name, variant in VARIANTS.items():
        own = methods.config("sparsevit", name, "small")
        for field in dataclasses.fields(Config):
            changed = getattr(variant, field.name) != getattr(Config(), field.name)
            expected = getattr(variant if changed else SMALL, field.name)
            assert getattr(own, field.name) == expected


@pytest.mark.slow
def test_a_truncated_extractor_learns_noise_in_a_hundred_steps() -> None:
    """F1 far above calling everything manipulated; the same numbers at every run."""
    method = small("srm_lff")
    optimiser = torch.optim.AdamW(method.parameter_groups(0.01), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=100, pct_start=0.1)
    losses = []
    for step in range(100):
        loss = method.loss(noise_batch(8, 96, 100 + step)).total
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    test = noise_batch(16, 96, 0)
    with torch.no_grad():
        found = method.eval().predict(test.image).mask > 0.5
    truth = test.mask > 0.5
    hits = (found & truth).sum((1, 2, 3))
    f1 = (2 * hits / (found.sum((1, 2, 3)) + truth.sum((1, 2, 3)))).mean().item()
    share = test.mask.mean((1, 2, 3))
    baseline = (2 * share / (1 + share)).mean().item()
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert f1 > baseline + 0.3
