"""What learns of the tower: Effort by linear algebra, LoRA and all of it by counting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from unforge.backbones import clip
from unforge.methods.qtfp import Config, tuning

TOWER = clip.Config(width=16, layers=2, heads=2, mlp=24, image_size=28, patch=14, init=4.0)


def linear(out: int = 12, into: int = 8) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(into, out)


def basis(layer: tuning.Residual) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.cat([layer.get_buffer("U_r"), layer.U_residual], 1),
        torch.cat([layer.get_buffer("V_r"), layer.V_residual]),
    )


@pytest.mark.parametrize(("out", "into", "rank"), [(12, 8, 1), (8, 12, 1), (8, 8, 3)])
def test_main_and_residual_are_the_matrix(out: int, into: int, rank: int) -> None:
    source = linear(out, into)
    layer = tuning.Residual(source, rank, regular=True)
    weight = source.weight.detach()
    assert torch.allclose(layer.weight_main + layer.residual(), weight, atol=1e-5)
    u, v = basis(layer)
    size = min(out, into)
    assert torch.allclose(u.T @ u, torch.eye(size), atol=1e-5)
    assert torch.allclose(v @ v.T, torch.eye(size), atol=1e-5)
    # the residual is the smallest singular directions, the frozen part all others
    values = torch.linalg.svdvals(weight.double())
    assert torch.allclose(torch.linalg.svdvals(layer.residual().detach().double())[:rank], values[-rank:], atol=1e-5)
    assert torch.allclose(torch.linalg.svdvals(layer.weight_main.double())[: size - rank], values[:-rank], atol=1e-5)
    x = torch.randn(3, 5, into)
    assert torch.allclose(layer(x), source(x), atol=1e-5)
    assert layer.orthogonality().item() < 1e-4
    assert layer.drift().item() < 1e-4


def test_the_gradient_is_of_the_residual_alone() -> None:
    layer = tuning.Residual(linear(), 1)
    x, upstream = torch.randn(7, 8), torch.randn(7, 12)
    layer(x).backward(upstream)
    learnt = {name for name, p in layer.named_parameters() if p.requires_grad}
    assert (
        learnt
        == {"U_residual", "S_residual", "V_residual"}
        == {n for n, p in layer.named_parameters() if p.grad is not None}
    )
    # by hand: G is the gradient of the whole matrix
    whole = upstream.T @ x
    u, s, v = layer.U_residual.detach(), layer.S_residual.detach(), layer.V_residual.detach()
    assert layer.U_residual.grad is not None
    assert layer.S_residual.grad is not None
    assert layer.V_residual.grad is not None
    assert torch.allclose(layer.U_residual.grad, whole @ v.T * s, atol=1e-5)
    assert torch.allclose(layer.S_residual.grad, (u.T @ whole @ v.T)[0], atol=1e-4)
    assert torch.allclose(layer.V_residual.grad, s[:, None] * (u.T @ whole), atol=1e-5)


def test_efforts_two_losses_by_hand() -> None:
    layer = tuning.Residual(linear(), 1, regular=True)
    before = linear().weight.square().sum()
    with torch.no_grad():
        layer.U_residual.mul_(2)
    # U^T U has 4 where the identity has 1; V is orthonormal still
    assert layer.orthogonality().item() == pytest.approx(0.5 * 3, abs=1e-4)
    after = (layer.weight_main + layer.residual()).square().sum()
    assert layer.drift().item() == pytest.approx((after - before).abs().item(), rel=1e-4)
    assert layer.drift().item() == pytest.approx(3 * layer.S_residual.item() ** 2, rel=1e-3)
    (layer.orthogonality() + layer.drift()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters() if p.requires_grad)


def test_a_rank_that_does_not_exist_is_refused() -> None:
    for rank in (0, 9):
        with pytest.raises(ValueError, match=f"rank {rank}"):
            tuning.Residual(linear(), rank)


@pytest.mark.parametrize("kind", ["effort", "lora", "full"])
def test_tuning_starts_from_the_pretrained_function(kind: str) -> None:
    torch.manual_seed(0)
    tower = clip.build(TOWER, {}).eval()
    shown = tower.prepared(torch.rand(2, 3, 28, 28))
    with torch.no_grad():
        before = tower.look(shown)
        tuning.apply(tower.model, replace(Config(), tuning=kind), split=True)
        after = tower.look(shown)
    assert torch.allclose(before.token, after.token, atol=1e-5)
    assert torch.allclose(before.patches, after.patches, atol=1e-5)
    assert before.attention is not None
    assert after.attention is not None
    assert torch.allclose(before.attention, after.attention, atol=1e-6)
    learnt = {name.split(".", 4)[-1] for name, p in tower.model.named_parameters() if p.requires_grad}
    if kind == "effort":
        names = {f"{name}.{part}_residual" for name in tuning.ATTENTION for part in "USV"}
        assert learnt == names
        # 4 matrices, 2 layers, 16 + 1 + 16 each
        assert sum(p.numel() for p in tower.model.parameters() if p.requires_grad) == 8 * 33
        assert len(tuning.residuals(tower.model)) == 8
    elif kind == "lora":
        assert all("lora_" in name for name in learnt)
        # rank 4: 4 of 16 + 16, 2 of 16 + 24, 2 layers
        assert sum(p.numel() for p in tower.model.parameters() if p.requires_grad) == 2 * 4 * (4 * 32 + 2 * 40)
    else:
        assert all(p.requires_grad for p in tower.model.parameters())


def test_what_is_loaded_later_is_not_decomposed(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = clip.build(TOWER, {})
    monkeypatch.setattr(torch.linalg, "svd", None)
    tuning.apply(tower.model, Config(), split=False)
    assert len(tuning.residuals(tower.model)) == 8
