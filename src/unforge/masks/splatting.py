"""The loss of the Kernel Splatting Decoder: a token is held to the neighbours of its code too.

Source: TamperTok, Eq. 4-7. ASSUMPTION(paper): the temperature of Eq. 6 stands outside the exponential, where it
cancels; read as exp(z e / (sqrt(d) temperature)) with codes of norm 1, and 0.02 by default, where a neighbour of cosine
0.9 weighs a quarter of the code itself (12 dimensions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["topk", "centroid"]
ROUNDS = 50
"""Of k-means, at most."""


@dataclass(frozen=True, kw_only=True)
class Neighbourhoods:
    """What a token counts as, beside its own code."""

    indices: Tensor
    """(K,k) int64: the code itself, then its neighbours, the nearest first."""
    weights: Tensor
    """(K,k), rows sum to 1; 0 where a cluster has fewer members."""

    def to(self, device: torch.device) -> Neighbourhoods:
        """The same on `device`."""
        return Neighbourhoods(indices=self.indices.to(device), weights=self.weights.to(device))


@torch.no_grad()
def neighbourhoods(
    codebook: Tensor, k: int, temperature: float = 0.02, kind: Kind = "topk", seed: int = 0
) -> Neighbourhoods:
    """Neighbourhood of each code of `codebook` (K,D): its `k` codes of largest product with it, itself among them,
    weighed as in Eq. 6 with the code for z. ValueError unless 1 <= k <= K and the temperature is positive.

    ASSUMPTION(paper): "cluster" is this neighbourhood (`topk`), since K is both the cluster's size and the number of
    terms. `centroid`: Eq. 4-5 read literally, k-means of K/k clusters; of the target's cluster the k members nearest
    to it.
    """
    _check(codebook, k, temperature)
    similarity = codebook @ codebook.T
    ranked = similarity.clone().fill_diagonal_(math.inf)
    if kind == "centroid":
        labels = clusters(codebook, k, seed)[0]
        ranked.masked_fill_(labels[:, None] != labels[None, :], -math.inf)
    elif kind != "topk":
        raise ValueError(f"neighbourhood {kind!r}: topk and centroid are accepted")
    value, indices = ranked.topk(k, dim=1)
    scores = similarity.gather(1, indices) / (math.sqrt(codebook.shape[1]) * temperature)
    weights = scores.masked_fill(value == -math.inf, -math.inf).softmax(dim=1)
    return Neighbourhoods(indices=indices, weights=weights)


def loss(logits: Tensor, target: Tensor, neighbourhoods: Neighbourhoods) -> Tensor:
    """Mean over N of sum_i w_i CE_i for logits (N,K) and target codes (N,): Eq. 6 with the target's code for z, so
    that the weights have no gradient. With k = 1 it is the cross-entropy, bit for bit.

    ASSUMPTION(paper): z and a code have no product where z is a hidden state of the language model.
    """
    if neighbourhoods.indices.shape[1] == 1:
        return F.cross_entropy(logits, target)
    weights, indices = neighbourhoods.weights[target], neighbourhoods.indices[target]
    terms = -logits.log_softmax(dim=1).gather(1, indices)
    return (weights.to(terms.dtype) * terms).sum(dim=1).mean()


def query_loss(
    z: Tensor,
    codebook: Tensor,
    logits: Tensor,
    k: int,
    temperature: float = 0.02,
    centres: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Eq. 6 read literally, for z (N,D) in the space of `codebook` (K,D) and logits (N,K) over the codes, mean over N.

    The members are the `k` codes of largest product with z, or with `centres` (labels and centres of `clusters`)
    those of the cluster whose centre is nearest to z (Eq. 4). The weights depend on z: the gradient is that of Eq. 7,
    its second term over the temperature. With k = 1 the cross-entropy of the nearest code, bit for bit.
    """
    _check(codebook, k, temperature)
    products = z @ codebook.T
    ranked = products.detach()
    if centres is not None:
        labels, middles = centres
        own = torch.cdist(z.detach(), middles.to(z)).argmin(1)
        ranked = ranked.masked_fill(labels[None, :] != own[:, None], -math.inf)
    value, indices = ranked.topk(k, dim=1)
    if k == 1:
        return F.cross_entropy(logits, indices[:, 0])
    scores = products.gather(1, indices) / (math.sqrt(codebook.shape[1]) * temperature)
    weights = scores.masked_fill(value == -math.inf, -math.inf).softmax(dim=1)
    return (weights * -logits.log_softmax(dim=1).gather(1, indices)).sum(dim=1).mean()


def clusters(codebook: Tensor, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Labels (K,) int64 and centres (M,D) of the codes: k-means of ceil(K / k) clusters, started as k-means++
    does; empty ones are left out. Source: Eq. 5. ASSUMPTION(paper): neither algorithm nor number of clusters is
    given."""
    points = codebook.detach().cpu().double().numpy()
    rng = np.random.Generator(np.random.PCG64(seed))
    chosen = [int(rng.integers(len(points)))]
    while len(chosen) < -(-len(points) // k):
        far = ((points[:, None, :] - points[None, chosen, :]) ** 2).sum(2).min(1) + 1e-12
        far[chosen] = 0
        chosen.append(int(rng.choice(len(points), p=far / far.sum())))
    centres = points[chosen]
    labels = np.full(len(points), -1)
    for _ in range(ROUNDS):
        distances = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(2)
        found = distances.argmin(1)
        if (found == labels).all():
            break
        labels = found
        for m in np.unique(labels):
            centres[m] = points[labels == m].mean(0)
    there, labels = np.unique(labels, return_inverse=True)
    return torch.from_numpy(labels).to(codebook.device), torch.from_numpy(centres[there]).to(codebook)


def _check(codebook: Tensor, k: int, temperature: float) -> None:
    if codebook.ndim != 2 or not 1 <= k <= len(codebook) or temperature <= 0:
        raise ValueError(
            f"codebook {tuple(codebook.shape)}, k {k}, temperature {temperature}: give (K,D), 1 <= k <= K, above 0"
        )
