"""How far a language model's image tokens are from the truth anchor, and what the mask decoder is shown of it.

Shapes: N image tokens on a square grid of h x w, row by row; D channels of the language model, A of the anchor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """P_phi: states of a middle layer (B,N,D) in the anchor's channels (B,N,A).

    ASSUMPTION(paper): "a simple MLP": LayerNorm, Linear(D, D/2), GELU, Linear(D/2, A).
    """

    def __init__(self, width: int, anchor: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, anchor))

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(self.norm(states))


class Cue(nn.Module):
    """P_psi: the error map as a dense prompt. Source: AAP, Eq. 5-6.

    ASSUMPTION(paper): "a lightweight convolutional projector": 3x3 convolutions with a GELU between. The last starts
    at 0 (ours): training starts exactly from the base.
    """

    def __init__(self, width: int, channels: int) -> None:
        """`channels`: of SAM's image embedding."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, channels, 3, padding=1)
        )
        last = self.layers[2]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, errors: Tensor, side: int) -> Tensor:
        """Errors (B,1,h,w) to (B,C,side,side); bilinear, and no gradient goes back into the errors.

        ASSUMPTION(paper): errors are not normalised; they lie in [0,2].
        """
        errors = errors.detach()
        if tuple(errors.shape[2:]) != (side, side):
            errors = F.interpolate(errors, size=(side, side), mode="bilinear", align_corners=False)
        return self.layers(errors)


def deviation(projected: Tensor, anchor: Tensor, epsilon: float) -> Tensor:
    """d_p (B,N) in [0,2]: cosine distance of each token from the anchor, both (B,N,A). Source: AAP, Eq. 3."""
    projected, anchor = projected.float(), anchor.float()
    lengths = projected.norm(dim=-1) * anchor.norm(dim=-1)
    return 1 - (projected * anchor).sum(dim=-1) / (lengths + epsilon)


def grid(errors: Tensor) -> Tensor:
    """M_e (B,1,h,w) of d_p (B,N). Source: AAP, Eq. 4. ValueError when N is no square."""
    side = round(errors.shape[1] ** 0.5)
    if side * side != errors.shape[1]:
        raise ValueError(f"{errors.shape[1]} image tokens are no square grid")
    return errors.unflatten(1, (1, side, side))


def anchoring(errors: Tensor, chosen: Tensor) -> Tensor:
    """L_arl: mean over tokens, then over the `chosen` (B,) bool images, of d_p (B,N); 0 where none is.

    Source: AAP, Eq. 2. Images that are not chosen get a gradient of exactly 0.
    """
    weight = chosen.to(errors)
    return (errors.mean(dim=1) * weight).sum() / weight.sum().clamp_min(1)


def lengths(errors: Tensor) -> Tensor:
    """||P_phi(z) - z_a|| of each image (B,): mean over tokens of the distance of vectors of length 1, sqrt(2 d_p).

    ASSUMPTION(paper): Sec. 3.2 subtracts what has not the same dimensions; after P_phi it has. L_arl fixes no lengths,
    so all are 1.
    """
    return (2 * errors.clamp_min(0)).sqrt().mean(dim=1)


def margin(errors: Tensor, real: Tensor, tampered: Tensor) -> Tensor:
    """Delta of Sec. 3.2: mean of `lengths` over `tampered` (B,) images minus that over `real` ones; 0 unless the batch
    has both."""
    found = lengths(errors.detach())
    both = bool(real.any()) and bool(tampered.any())
    return found[tampered].mean() - found[real].mean() if both else found.new_zeros(())


def states(values: Tensor, count: int) -> Tensor:
    """(B,min(D,count)): `values` (B,D) themselves, or a fixed random projection of wider ones, for pictures of them."""
    width = values.shape[1]
    if width <= count:
        return values.float()
    generator = torch.Generator("cpu").manual_seed(0)
    directions = torch.randn(width, count, generator=generator) / count**0.5
    return values.float() @ directions.to(values.device)
