"""Heads against the formulas they implement."""

import pytest
import torch
import torch.nn.functional as F

from unforge.nn.heads import HEADS, LFF

CHANNELS = [10, 10, 10, 10, 16, 16]


def maps() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 8, 6, 10) for _ in range(4)] + [torch.randn(2, 4, 3, 16) for _ in range(2)]


@pytest.mark.parametrize("name", sorted(HEADS))
def test_gives_logits_on_its_grid_and_trains_everything(name: str) -> None:
    head = HEADS[name](CHANNELS, 16, 0.5)
    logits = head(maps())
    assert logits.shape == (2, 1, *((4, 3) if name == "single" else (8, 6)))
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_batch_of_one_pixel_works_in_eval(name: str) -> None:
    head = HEADS[name]([10, 16], 16, 0.5).eval()
    assert torch.isfinite(head([torch.randn(1, 1, 1, 10), torch.randn(1, 1, 1, 16)])).all()


def test_lff_is_equations_3_to_7_with_a_layer_norm() -> None:
    head = LFF(CHANNELS, 16, 1e-6)
    assert all(torch.equal(head.get_parameter(f"gamma{i}"), torch.full((16,), 1e-6)) for i in range(1, 7))
    with torch.no_grad():
        for i in range(1, 7):
            head.get_parameter(f"gamma{i}").copy_(torch.rand(16))
    sides = [x.permute(0, 3, 1, 2) for x in maps()]
    fused = torch.zeros(2, 16, 8, 6)
    for i, x in enumerate(sides, start=1):
        if i <= 4:
            x = getattr(head, f"conv_layer{i}")(x)
        else:
            x = F.interpolate(x, size=(8, 6), mode="bilinear", align_corners=False)
        fused += head.get_parameter(f"gamma{i}").view(1, -1, 1, 1) * x
    centred = fused - fused.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(head(maps()), head.conv_last(normed), atol=1e-5, rtol=1e-5)
