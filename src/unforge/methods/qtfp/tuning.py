"""What of CLIP's tower learns: Effort's residual, low-rank updates, or everything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from unforge.methods.qtfp.config import Config

ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Effort's matrices. Source: Effort, released code: every linear layer of self-attention."""
LINEAR = (*ATTENTION, "fc1", "fc2")
"""LoRA's."""


class Residual(nn.Module):
    """A linear layer of which the smallest singular directions learn and everything else is frozen, its bias too.

    Source: Effort, released code (`SVDResidualLinear`); names of tensors are its own. With W = U diag(S) V, the frozen
    `weight_main` holds all but the last `rank` directions. Deviation: the residual is applied as a product of its
    factors, and not added to the matrix first; the same within rounding, and no gradient of a whole matrix is computed.
    """

    def __init__(self, linear: nn.Linear, rank: int, regular: bool = False, split: bool = True) -> None:
        """`regular`: keep what Effort's two losses need; `split`: decompose the weight (False: values come with a state
        dict). ValueError when `rank` is not from 1 to the rank of the matrix."""
        super().__init__()
        out, into = linear.weight.shape
        kept = min(out, into) - rank
        if not 0 < rank <= min(out, into):
            raise ValueError(f"rank {rank} of a {out}x{into} matrix: 1 to {min(out, into)} is accepted")
        device = linear.weight.device
        self.weight_main = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        bias = None if linear.bias is None else linear.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.U_residual = nn.Parameter(torch.empty(out, rank, device=device))
        self.S_residual = nn.Parameter(torch.empty(rank, device=device))
        self.V_residual = nn.Parameter(torch.empty(rank, into, device=device))
        if regular:
            self.register_buffer("U_r", torch.empty(out, kept, device=device))
            self.register_buffer("V_r", torch.empty(kept, into, device=device))
            self.register_buffer("squared_norm", torch.empty((), device=device))
        if split and not linear.weight.is_meta:
            self._split(kept, regular)

    @torch.no_grad()
    def _split(self, kept: int, regular: bool) -> None:
        u, s, v = torch.linalg.svd(self.weight_main, full_matrices=False)
        if regular:
            self.get_buffer("U_r").copy_(u[:, :kept])
            self.get_buffer("V_r").copy_(v[:kept])
            self.get_buffer("squared_norm").copy_(self.weight_main.square().sum())
        self.U_residual.copy_(u[:, kept:])
        self.S_residual.copy_(s[kept:])
        self.V_residual.copy_(v[kept:])
        self.weight_main.sub_(self.residual())

    def residual(self) -> Tensor:
        """The learnt part of the matrix, (out, in)."""
        return (self.U_residual * self.S_residual) @ self.V_residual

    def forward(self, x: Tensor) -> Tensor:
        """(...,in) to (...,out)."""
        return F.linear(x, self.weight_main, self.bias) + F.linear(
            F.linear(x, self.V_residual), self.U_residual * self.S_residual
        )

    def orthogonality(self) -> Tensor:
        """Half the Frobenius distances of U^T U and V V^T from the identity, over kept and learnt directions."""
        found = []
        kept_u, kept_v = self.get_buffer("U_r"), self.get_buffer("V_r")
        for basis in (torch.cat([kept_u, self.U_residual], 1), torch.cat([kept_v, self.V_residual]).T):
            gram = basis.T @ basis
            found.append((gram - torch.eye(len(gram), device=gram.device)).square().sum().clamp(min=1e-12).sqrt())
        return 0.5 * (found[0] + found[1])

    def drift(self) -> Tensor:
        """By how much the matrix's squared Frobenius norm differs from what it was."""
        return ((self.weight_main + self.residual()).square().sum() - self.get_buffer("squared_norm")).abs()


def apply(model: Any, config: Config, split: bool) -> None:
    """Make `model` (transformers' tower) learn as `config.tuning` says, in place; what does not learn is frozen.

    `split` False: weights are loaded later, and matrices are not decomposed.
    """
    model.requires_grad_(config.tuning == "full")
    if config.tuning == "lora":
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(LINEAR),
        )
        inject_adapter_in_model(settings, model)
    if config.tuning == "effort":
        regular = bool(config.orthogonality or config.singular)
        for layer in model.encoder.layers:
            for name in ATTENTION:
                linear = getattr(layer.self_attn, name)
                setattr(layer.self_attn, name, Residual(linear, config.rank, regular, split))


def residuals(model: nn.Module) -> list[Residual]:
    """Effort's layers of a tower, in order."""
    return [module for module in model.modules() if isinstance(module, Residual)]
