"""Query tokens that look at the last layer's patches; their mean is the global token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Queries(nn.Module):
    """K learnt queries and one multi-head attention. Source: QTFP: A = softmax(Q Z^T / sqrt(D)), Z~ = A Z.

    ASSUMPTION(paper): the attention is torch's, with its projections: 4,198,400 parameters at width 1024, which is by
    how much the printed counts differ. No norm, no residual, no second layer.
    """

    def __init__(self, width: int, queries: int, heads: int, spread: float) -> None:
        """ValueError without a query, or when heads do not divide the width."""
        super().__init__()
        if queries < 1 or heads < 1 or width % heads:
            raise ValueError(f"{queries} queries of {heads} heads at width {width}: at least 1, and a divisor of it")
        self.tokens = nn.Parameter(torch.randn(queries, width) * spread)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(B,N,D) to what each query found (B,K,D) and its attention (B,K,N), mean over heads.

        What `self.attention(tokens, patches, patches)` gives, in another order of products: the queries are the same
        for all images, so the key projection is applied to them and the value projection to what they found, K times
        heads rows each, instead of to N patches. The bias of keys shifts all of a query's logits alike: softmax does
        not see it, and it never learns.
        """
        heads, width = self.attention.num_heads, patches.shape[2]
        to_query, to_key, to_value = self.attention.in_proj_weight.chunk(3)
        biases = self.attention.in_proj_bias.chunk(3)
        query = F.linear(self.tokens, to_query, biases[0]).unflatten(1, (heads, -1)).transpose(0, 1)
        # (H,K,d) by (H,d,D)
        query = query @ to_key.unflatten(0, (heads, -1)) * (width // heads) ** -0.5
        weights = (patches @ query.flatten(0, 1).T).transpose(1, 2).softmax(-1)
        found = (weights @ patches).unflatten(1, (heads, -1))
        # (B,H,K,D) by (H,D,d)
        values = found @ to_value.unflatten(0, (heads, -1)).transpose(1, 2)
        values = values.transpose(1, 2).flatten(2) + biases[2]
        return self.attention.out_proj(values), weights.unflatten(1, (heads, -1)).mean(1)
