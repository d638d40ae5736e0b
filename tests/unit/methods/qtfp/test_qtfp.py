"""QTFP: printed parameter counts, what learns, what is predicted, and that it learns at all."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unforge import backbones, counts, methods
from unforge.backbones import clip
from unforge.methods import qtfp
from unforge.methods.qtfp import losses
from unforge.methods.qtfp.queries import Queries
from unforge.train import optimiser
from unforge.types import Batch

ROOT = Path(__file__).resolve().parents[4]
TINY = clip.Config(width=16, layers=2, heads=2, mlp=24, image_size=28, patch=7, init=4.0)


def batch(count: int = 4, size: int = 32, masks: bool = True) -> Batch:
    """Real and fake in turn; a fake image has an even square, which is what is forged."""
    torch.manual_seed(4)
    image, mask = torch.rand(count, 3, size, size), torch.zeros(count, 1, size, size)
    half = size // 2
    for i in range(1, count, 2):
        image[i, :, :half, :half], mask[i, :, :half, :half] = 0.5, 1
    image = image.mul(255).round().div(255)
    names = tuple(map(str, range(count)))
    source = tuple((name,) for name in names)
    label = torch.arange(count) % 2
    return Batch(
        image=image, mask=mask if masks else None, label=label, key=names, unit=names, source=source
    )  # fmt: skip


def made(variant: str = "", **changes: Any) -> qtfp.Qtfp:
    """A variant on pixels, so small that a pass takes some milliseconds."""
    torch.manual_seed(0)
    config = replace(methods.config("qtfp", variant, "small"), clip=TINY, heads=2, anchors=1.0, turned=False)
    return methods.build("qtfp", replace(config, **changes))


def learnt(method: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in method.named_parameters() if p.requires_grad}


# Trained parameters as Table 5 prints them (M), of tower and queries; the head of 2,050 comes on top.
QUERIES = qtfp.Config().queries
PRINTED = {"effort": 196_704, "lora": 1_769_472, "tuned": 303_179_776}


@pytest.mark.parametrize("variant", PRINTED)
def test_trained_parameters_at_paper_scale(variant: str) -> None:
    ours = {"effort": "", "lora": "lora_ours", "tuned": "tuned_ours"}[variant]
    with torch.device("meta"):
        plain, full = (qtfp.build(methods.config("qtfp", name), {}) for name in (variant, ours))
    found = [sum(p.numel() for p in learnt(method).values()) for method in (plain, full)]
    assert found[0] == PRINTED[variant] + 2050
    assert found[1] - found[0] == 4_198_400 + QUERIES * 1024
    assert full.queries is not None
    assert sum(p.numel() for p in full.queries.attention.parameters()) == 4_198_400
    if variant == "effort":
        # 96 matrices of 1024 x 1024: a column, a value and a row each
        assert PRINTED[variant] == 24 * 4 * (1024 + 1 + 1024)


def test_what_is_trained_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: qtfp.VARIANTS[name] for name in ("", "effort", "weighted", "concat")}
    monkeypatch.setattr(qtfp, "VARIANTS", few)
    counted = {(row["variant"], row["part"]): row for row in counts.rows("qtfp")}
    trained = {variant: counted[variant, "trainable"] for variant in few}
    assert trained["effort"]["params"] == 196_704 + 2050
    assert trained[""]["params"] == 196_704 + 2050 + 4_198_400 + QUERIES * 1024
    assert trained["concat"]["params"] == trained[""]["params"] + 2048
    assert trained["weighted"]["params"] == trained[""]["params"] + 2
    assert trained[""]["macs"] == counted["", ""]["macs"]
    assert counted["", "queries"]["params"] == 4_198_400 + QUERIES * 1024
    assert ("effort", "queries") not in counted
    # other methods have no such part
    assert {row["part"] for row in counts.rows("constant")} == {""}


def test_macs_at_paper_scale() -> None:
    """By hand, without norms: matrix products of 24 layers, 257 tokens; the queries hardly count."""
    found = counts.of("qtfp", "tuned"), counts.of("qtfp", "tuned_ours")
    products = 24 * 257 * (12 * 1024**2 + 2 * 257 * 1024) + 256 * 3 * 14 * 14 * 1024
    norms = 5 * 1024 * (2 * 24 * 257 + 257 + 1 + 256)
    assert found[0][""][1] == pytest.approx(products + norms + 2048, rel=1e-6)
    assert set(found[0]) == {"", "tower", "head", "trainable"}
    added = found[1][""][1] - found[0][""][1]
    assert found[1]["queries"][1] == pytest.approx(added, rel=0.01)
    # rows, one for each query and head, look at 256 patches and gather them; four projections, of rows, not of patches
    rows = 16 * QUERIES
    # and two means, over queries and over heads, one for each value read
    assert added == 2 * rows * 256 * 1024 + 4 * QUERIES * 1024 * 1024 + QUERIES * 1024 + rows * 256
    assert added < 0.001 * products


def test_queries_are_torchs_attention() -> None:
    torch.manual_seed(1)
    queries = Queries(24, 3, 4, spread=1.0)
    nn.init.normal_(queries.attention.in_proj_bias)
    patches = torch.randn(2, 7, 24, requires_grad=True)
    found, weights = queries(patches)
    expected, looked = queries.attention(queries.tokens.expand(2, -1, -1), patches, patches)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(weights, looked, atol=1e-6)
    parameters = [patches, queries.tokens, queries.attention.in_proj_weight, queries.attention.in_proj_bias]
    upstream = torch.randn_like(found)
    ours = torch.autograd.grad((found * upstream).sum() + weights.square().sum(), parameters)
    theirs = torch.autograd.grad((expected * upstream).sum() + looked.square().sum(), parameters)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs, strict=True))
    for width, count, heads in ((24, 0, 4), (24, 3, 5)):
        with pytest.raises(ValueError, match="at least 1"):
            Queries(width, count, heads, 1.0)


@pytest.mark.parametrize("variant", list(qtfp.VARIANTS))
def test_every_variant_learns_what_it_reaches(variant: str) -> None:
    method = made(variant).train()
    found = method.loss(batch())
    assert set(found.terms) == {"ce", "flcl", "raal", "snr"}
    assert all(term.ndim == 0 and term.isfinite() for term in found.terms.values())
    config = method.config
    expected = found.terms["ce"] + config.contrast_weight * found.terms["flcl"]
    expected = expected + config.align_weight * found.terms["raal"]
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (found.terms["flcl"] > 0) == (config.contrast_weight > 0)
    assert (found.terms["raal"] > 0) == (config.align_weight > 0)
    assert found.terms["snr"] > 0
    found.total.backward()
    assert {name for name, p in learnt(method).items() if p.grad is None} == set()
    assert all(p.grad is None for p in method.parameters() if not p.requires_grad)
    groups = method.parameter_groups(0.1)
    assert {id(p) for group in groups for p in group["params"]} == {id(p) for p in learnt(method).values()}


def test_the_terms_are_those_of_what_is_seen() -> None:
    method, one = made().eval(), batch()
    with torch.no_grad():
        found = method.loss(one)
        read = method.read(method.tower.prepared(one.image))
    fake, patches = one.label > 0, read.seen.patches
    assert read.seen.attention is not None
    assert read.attention is not None
    assert found.terms["ce"].item() == pytest.approx(
        nn.functional.cross_entropy(read.logits, one.label).item(), rel=1e-5
    )
    assert found.terms["flcl"].item() == pytest.approx(losses.flcl(patches, fake, 0.1, 0.1).item(), rel=1e-4)
    raal = losses.attention_distance(read.attention, read.seen.attention, fake, "kl")
    assert found.terms["raal"].item() == pytest.approx(raal.item(), rel=1e-4)
    assert found.terms["snr"].item() == pytest.approx(losses.signal_to_noise(patches, fake).item(), rel=1e-5)


@pytest.mark.parametrize("variant", ["", "token_alignment"])
def test_alignment_never_reaches_the_class_token(variant: str) -> None:
    method = made(variant, tuning="full").train()
    read = method.read(method.tower.prepared(batch().image))
    assert read.seen.token.requires_grad
    value = method._aligned(read, batch().label > 0)
    to_token, to_patches = torch.autograd.grad(value, [read.seen.token, read.seen.patches], allow_unused=True)
    assert to_token is None
    assert to_patches.abs().sum() > 0
    assert read.seen.attention is not None
    assert not read.seen.attention.requires_grad


def test_fusions_by_hand() -> None:
    token, found = torch.tensor([[1.0] * 16]), torch.tensor([[3.0] * 16])
    assert torch.equal(made("average")._classified(token, found), torch.full((1, 16), 2.0))
    weighted = made("weighted")
    assert weighted.mix is not None
    assert torch.equal(weighted._classified(token, found), torch.full((1, 16), 2.0))
    with torch.no_grad():
        weighted.mix.copy_(torch.tensor([0.0, np.log(3.0)]))
    assert torch.allclose(weighted._classified(token, found), torch.full((1, 16), 0.25 * 1 + 0.75 * 3))
    concat = made("concat")
    assert torch.equal(concat._classified(token, found)[0], torch.tensor([1.0] * 16 + [3.0] * 16))
    assert concat.head.in_features == 32
    assert torch.equal(made()._classified(token, found), found)


def test_forged_patches_are_those_with_any_forged_pixel() -> None:
    method = made("macl")
    mask = torch.zeros(1, 1, 32, 32)
    # four patches of 8 pixels along a side: one pixel in the second of the first row, all of the last one
    mask[0, 0, 0, 8], mask[0, 0, 24:, 24:] = 1, 1
    assert method._forged(mask).flatten().nonzero()[:, 0].tolist() == [1, 15]
    assert made("macl", forged_share=0.5)._forged(mask).flatten().nonzero()[:, 0].tolist() == [15]
    with pytest.raises(ValueError, match="masks"):
        method.loss(batch(masks=False))
    # nothing else needs one
    assert made().loss(batch(masks=False)).total.isfinite()


def test_images_and_masks_are_turned_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = methods.build("qtfp", methods.config("qtfp", "macl", "small")).train()
    one = batch(size=64)
    assert one.mask is not None
    cells = nn.functional.adaptive_avg_pool2d(one.mask, 8)
    # the tower sees the mask itself: what is forged must be where the mask is, whatever the turn
    seen: list[Tensor] = []
    monkeypatch.setattr(method.tower, "prepared", lambda image: cells.expand(-1, 33, -1, -1))
    look = method.tower.look
    monkeypatch.setattr(method.tower, "look", lambda shown, attention: (seen.append(shown), look(shown, attention))[1])
    contrast = losses.macl
    monkeypatch.setattr(losses, "macl", lambda p, forged, t, a: (seen.append(forged), contrast(p, forged, t, a))[1])
    for _ in range(3):
        method.loss(one)
    for shown, forged in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(shown[:, 0].flatten(1) > 0, forged)
    assert any(not torch.equal(shown, seen[0]) for shown in seen[2::2])
    method.eval().loss(one)
    assert torch.equal(seen[-2][:, :1], cells)


@pytest.mark.parametrize("variant", ["", "effort"])
def test_predictions(variant: str) -> None:
    method = made(variant).eval()
    assert set(inspect.signature(method.predict).parameters) == {"image", "extras"}
    for size in ((1, 1), (31, 77), (28, 28)):
        image = torch.rand(2, 3, *size)
        found = method.predict(image, extras=True)
        assert found.score is not None
        assert found.mask is None
        assert found.signals is not None
        assert torch.allclose(found.score, method(image).softmax(1)[:, 1], atol=1e-6)
        kinds = ("cls", "query") if variant == "" else ("cls",)
        assert set(found.signals) == {f"{kind}_attention_{i:02d}" for kind in kinds for i in range(16)}
        maps = {name: one.flatten(1) for name, one in found.extras.items()}
        assert set(maps) == set(qtfp.Qtfp.EXTRAS)
        assert found.extras["attention_last"].shape == (2, 1, 1, 4, 4)
        assert torch.allclose(maps["attention_last"].sum(1), torch.ones(2))
        for kind, name in (("cls", "attention_cls"), (kinds[-1], "attention_last")):
            expected = np.quantile(16 * maps[name].detach().numpy(), np.linspace(0, 1, 16), axis=1)
            given = np.stack([found.signals[f"{kind}_attention_{i:02d}"].numpy() for i in range(16)])
            np.testing.assert_allclose(given, expected, rtol=1e-5)
        assert torch.equal(maps["attention_last"], maps["attention_cls"]) == (variant == "effort")
    alone = method.predict(image[:1])
    assert alone.score is not None
    assert not alone.extras
    assert torch.allclose(alone.score, found.score[:1], atol=1e-6)


@pytest.mark.parametrize("variant", ["", "effort", "lora_ours", "tuned", "weighted"])
def test_a_saved_run_needs_nothing_else(variant: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = methods.config("qtfp", variant, "small")
    method = methods.build("qtfp", config).eval()
    methods.save(method, "qtfp", variant, config, tmp_path)
    torch.manual_seed(9)
    again = methods.load(tmp_path)
    state = method.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    assert set(learnt(again)) == set(learnt(method))
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(again.predict(image).score, method.predict(image).score)
    first = (tmp_path / "model.safetensors").read_bytes()
    methods.save(again, "qtfp", variant, config, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_efforts_losses_are_options(tmp_path: Path) -> None:
    method = made("effort", orthogonality=1.0, singular=1.0).train()
    found = method.loss(batch())
    assert found.total.item() == pytest.approx((found.terms["ce"] + found.terms["effort"]).item(), rel=1e-6)
    assert found.terms["effort"].item() == pytest.approx(0, abs=1e-3)
    methods.save(method, "qtfp", "effort", method.config, tmp_path)
    again = methods.load(tmp_path).train()
    assert again.loss(batch()).terms["effort"].item() == pytest.approx(found.terms["effort"].item(), abs=1e-6)


def test_it_starts_from_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    tower = clip.build(clip.SMALL, {}).eval()
    (tmp_path / "clip").mkdir()
    backbones.save(tower, "clip", clip.SMALL, tmp_path / "clip")
    method = methods.build("qtfp", methods.config("qtfp", "", "small"), {"backbone": tmp_path / "clip"}).eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = (one.look(one.prepared(image)) for one in (method.tower, tower))
    assert torch.allclose(ours.token, theirs.token, atol=1e-5)
    assert torch.allclose(ours.patches, theirs.patches, atol=1e-5)
    # an official folder does too
    pixels = clip.build(TINY, {})
    pixels.model.save_pretrained(tmp_path / "official")
    official = methods.build("qtfp", methods.config("qtfp", "effort", "small"), {"backbone": tmp_path / "official"})
    assert (official.tower.width, official.tower.side) == (16, 4)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    from unforge.backbones import forensic

    backbones.save(forensic.build(forensic.SMALL, {}), "forensic", forensic.SMALL, tmp_path)
    with pytest.raises(ValueError, match="Forensic"):
        methods.build("qtfp", methods.config("qtfp", "", "small"), {"backbone": tmp_path})


def trained(variant: str, steps: int) -> qtfp.Qtfp:
    method, one = made(variant), batch(16)
    method.train()
    optimise = optimiser.build(method.config.recipe, method.parameter_groups(0.0))
    for group in optimise.param_groups:
        group["lr"] = 1e-2
    for _ in range(steps):
        method.loss(one).total.backward()
        optimise.step()
        optimise.zero_grad()
    return method.eval()


@pytest.mark.parametrize("variant", ["", "effort", "lora_ours", "tuned_ours", "macl"])
def test_it_learns(variant: str) -> None:
    method = trained(variant, 40)
    one = batch(16)
    score = method.predict(one.image).score
    assert score is not None
    assert score[one.label == 1].min() > score[one.label == 0].max()


def test_the_same_start_gives_the_same_end() -> None:
    first, second = (trained("", 3).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
