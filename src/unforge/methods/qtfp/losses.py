"""QTFP's losses on patch tokens and on attention. B images, N patches, D channels, K queries."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-8
"""Below it a share of attention counts as this in a logarithm."""


def prototypes(patches: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Means (D,) of all patches of real and of fake images. `patches` (B,N,D), `fake` (B,) bool, both kinds in it."""
    means = patches.mean(1)
    return means[~fake].mean(0), means[fake].mean(0)


@torch.no_grad()
def fake_likelihood(patches: Tensor, fake: Tensor, sharpness: float) -> Tensor:
    """(B,N) in [0,1]: sigmoid((cos(z, fake prototype) - cos(z, real prototype)) / sharpness). Detached.

    Source: QTFP, FLCL. ASSUMPTION(paper): the sigmoid.
    """
    real, forged = prototypes(patches, fake)
    directions = F.normalize(torch.stack([forged, real]), dim=1)
    similar = F.normalize(patches, dim=2) @ directions.T
    return ((similar[..., 0] - similar[..., 1]) / sharpness).sigmoid()


@torch.no_grad()
def signal_to_noise(patches: Tensor, fake: Tensor) -> Tensor:
    """|real prototype - fake prototype| over the patches' deviation from their own one; 0 without both kinds.

    Source: QTFP. ASSUMPTION(paper): the deviation is the root of the mean squared distance.
    """
    if not _both(fake):
        return patches.new_zeros(())
    real, forged = prototypes(patches, fake)
    own = torch.where(fake[:, None], forged, real)[:, None]
    spread = (patches - own).square().sum(2).mean().sqrt()
    return (forged - real).norm() / spread.clamp(min=TINY)


def flcl(patches: Tensor, fake: Tensor, temperature: float, sharpness: float, anchors: float = 1.0) -> Tensor:
    """Fake-likelihood contrastive loss: every patch of a fake image is forged, weighted by its likelihood.

    Source: QTFP, FLCL. ASSUMPTION(paper): patches are compared over the whole batch; positives are all patches of fake
    images. 0 for a batch without both kinds. `anchors`: see `contrast`.
    """
    if not _both(fake):
        return patches.sum() * 0
    weights = fake_likelihood(patches, fake, sharpness)
    return contrast(patches, fake[:, None].expand(weights.shape), weights, temperature, anchors)


def macl(patches: Tensor, forged: Tensor, temperature: float, anchors: float = 1.0) -> Tensor:
    """Mask-aware contrastive loss, the oracle: patches in the mask are forged, each of weight 1, all others are real.

    `forged` (B,N) bool. Source: QTFP, supplement, Sec. 2.1.
    """
    return contrast(patches, forged, forged.to(patches), temperature, anchors)


def contrast(patches: Tensor, forged: Tensor, weights: Tensor, temperature: float, anchors: float = 1.0) -> Tensor:
    """Mean over forged patches i of w_i (log sum_j e^{s_ij} - log sum_{j forged} e^{s_ij}), j other than i.

    s: cosine over `temperature` (at least 0.02). `patches` (B,N,D), `forged` (B,N) bool, `weights` (B,N), through which
    no gradient flows. With weights of 1 this is the supervised contrastive loss, sums inside the logarithm, of the
    forged class (up to the logarithm of the number of positives). 0 with fewer than two forged patches, or no other.

    `anchors`: i are only this share of each image's patches, drawn from torch's generator, at least one; j still all of
    them: in the mean over draws the same loss. ValueError unless above 0 and at most 1.

    One matrix product over the batch and no loop. Memory: one matrix, anchors by all patches, of 4 bytes each (33.5 MB
    for 16 images of 256 patches, half of them fake); it does not live longer than the call.
    """
    if temperature < 0.02:
        raise ValueError(f"temperature {temperature}: at least 0.02 is accepted, so that nothing overflows")
    places = forged if anchors == 1 else forged & _drawn(anchors, patches)
    if int(forged.sum()) < 2 or bool(forged.all()) or not bool(places.any()):
        return patches.sum() * 0
    with torch.autocast(patches.device.type, enabled=False):
        unit = F.normalize(patches.float(), dim=2).flatten(0, 1)
        return _Contrast.apply(unit, forged.flatten(), places.flatten(), weights.flatten().float(), temperature)


def _drawn(share: float, patches: Tensor) -> Tensor:
    """(B,N) bool: a share of each image's patches, at random."""
    if not 0 < share <= 1:
        raise ValueError(f"{share} of each image's patches as anchors: above 0 and up to 1 are accepted")
    order = torch.rand(patches.shape[:2], device="cpu").argsort(1)
    return (order < max(1, round(share * patches.shape[1]))).to(patches.device)


class _Contrast(torch.autograd.Function):
    """The loss with its gradient, which needs the same exponentials and is therefore computed at once.

    With E = e^s, sums over positives P_i and over all T_i, c_i = w_i / (n temperature), u_i = c_i (1/T_i - 1/P_i) and
    v_i = c_i / T_i: the loss changes by u_i E_ij with the cosine of anchor i and forged j, by v_i E_ij with a real j.
    """

    @staticmethod
    def forward(
        ctx: Any, unit: Tensor, is_forged: Tensor, is_anchor: Tensor, weights: Tensor, temperature: float
    ) -> Tensor:
        first, rest, rows = (part.nonzero()[:, 0] for part in (is_forged, ~is_forged, is_anchor))
        count = len(first)
        sorted_, anchors, weights = unit[torch.cat([first, rest])], unit[rows], weights[rows]
        # 2^x is several times as fast as e^x where the latter is that of a library for another maker's processors
        powers = torch.mm(anchors / (temperature * math.log(2)), sorted_.T).exp2_()
        own, other = powers[:, :count], powers[:, count:]
        own[torch.arange(len(rows), device=rows.device), is_forged.cumsum(0)[rows] - 1] = 0
        positive = own.sum(1)
        total = positive + other.sum(1)
        if ctx.needs_input_grad[0]:
            share = weights / (len(rows) * temperature)
            u, v = (share * (1 / total - 1 / positive))[:, None], (share / total)[:, None]
            gradient = torch.empty_like(unit)
            gradient[first] = own.T @ (u * anchors)
            gradient[rest] = other.T @ (v * anchors)
            gradient[rows] += u * (own @ sorted_[:count]) + v * (other @ sorted_[count:])
            ctx.save_for_backward(gradient)
        return (weights * (total.log() - positive.log())).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None, None


def attention_distance(found: Tensor, anchor: Tensor, fake: Tensor, kind: str) -> Tensor:
    """Real-aware attention loss: mean over real images and queries of the distance of `found` (B,K,N) from `anchor`
    (B,N), both shares that sum to 1. `kind`: `kl` (found from anchor), `l1`, `l2`. Nothing flows into the anchor.

    Source: QTFP, supplement, Eqs. 1-3. 0 without a real image.
    """
    if bool(fake.all()):
        return found.sum() * 0
    found, anchor = found[~fake], anchor.detach()[~fake][:, None]
    if kind == "kl":
        each = found * (found.clamp(min=TINY).log() - anchor.clamp(min=TINY).log())
        return each.sum(2).mean()
    if kind not in ("l1", "l2"):
        raise ValueError(f"distance {kind!r}: kl, l1 and l2 are accepted")
    return length(found - anchor, int(kind[1])).mean()


def token_distance(found: Tensor, anchor: Tensor, fake: Tensor) -> Tensor:
    """Mean over real images of the Euclidean distance of `found` (B,D) from `anchor` (B,D); 0 without a real image.

    Source: QTFP, supplement, Table 4. ASSUMPTION(paper): as for attention, nothing flows into the anchor.
    """
    if bool(fake.all()):
        return found.sum() * 0
    return length((found - anchor.detach())[~fake], 2).mean()


def length(values: Tensor, order: int) -> Tensor:
    """Norm of order 1 or 2 over the last dimension; its gradient at 0 is 0."""
    return values.abs().sum(-1) if order == 1 else torch.linalg.vector_norm(values, dim=-1)


def _both(fake: Tensor) -> bool:
    return bool(fake.any()) and not bool(fake.all())
