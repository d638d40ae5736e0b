"""Parameters and MACs of methods at paper scale, counted on meta tensors: nothing is computed or allocated.

A method's module may have `PARTS`, the parts that are counted by themselves: {part: attribute of the method}. With
`TRAINABLE`, what learns is counted as a part too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unforge import methods


def of(name: str, variant: str = "") -> dict[str, tuple[int, float]]:
    """(parameters, MACs) of a variant, for one image of `Config.count_size` pixels squared: the whole network's as
    `""`, those of each of the module's `PARTS` that the variant has, and of what learns as `trainable` (its MACs are
    the whole network's). What does not run for an image has 0 MACs.

    MACs are counted as fvcore does, with which the papers of this field count: one per multiply-add of matrix products
    and convolutions (attention included); 5 per value of a layer norm and 2 of a batch norm (at inference), 4 per value
    a bilinear resize writes, 1 per value an adaptive mean reads. Activations, sums and products element by element are
    not counted.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    module = methods.load_module(name)
    settings = methods.config(name, variant, "paper")
    with torch.device("meta"):
        method: torch.nn.Module = module.build(settings, {}).to("meta").eval()
        image = torch.empty(1, 3, settings.count_size, settings.count_size)
    learnt = sum(p.numel() for p in method.parameters() if p.requires_grad)
    counter = FlopCounterMode(display=False, custom_mapping=_elementwise())
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        method(image)
    found = {"": (sum(p.numel() for p in method.parameters()), counter.get_total_flops() / 2)}
    present = dict(method.named_modules())
    for part, attribute in getattr(module, "PARTS", {}).items():
        if attribute in present:
            macs = _within(counter.get_flop_counts(), f"{type(method).__name__}.{attribute}") / 2
            found[part] = (sum(p.numel() for p in present[attribute].parameters()), macs)
    if getattr(module, "TRAINABLE", False):
        found["trainable"] = (learnt, found[""][1])
    return found


def rows(name: str | None = None) -> list[dict[str, Any]]:
    """Rows `method, variant, part, input_size, params, macs` of every variant of one method, or of all."""
    return [
        {
            "method": method,
            "variant": variant,
            "part": part,
            "input_size": methods.config(method, variant, "paper").count_size,
            "params": params,
            "macs": macs,
        }
        for method in ([name] if name else methods.names())
        for variant in methods.load_module(method).VARIANTS
        for part, (params, macs) in of(method, variant).items()
    ]


def _within(flops: Mapping[str, Mapping[Any, int]], name: str) -> int:
    """Of a module, or of those in it that are called by themselves."""
    inside = {called for called in flops if called == name or called.startswith(f"{name}.")}
    outer = [called for called in inside if not any(called.startswith(f"{other}.") for other in inside)]
    return sum(sum(flops[called].values()) for called in outer)


def _elementwise() -> dict[Any, Any]:
    """What torch's counter leaves out and fvcore counts, twice over: `of` halves the sum."""
    import torch

    def per_output(factor: int) -> Any:
        def count(*shapes: Any, out_shape: Any, **kwargs: Any) -> int:
            first = out_shape[0] if out_shape and isinstance(out_shape[0], (tuple, list, torch.Size)) else out_shape
            return 2 * factor * int(torch.Size(first).numel())

        return count

    def per_input(shape: Any, *rest: Any, **kwargs: Any) -> int:
        return 2 * int(torch.Size(shape).numel())

    aten = torch.ops.aten
    return {
        aten.native_layer_norm: per_output(5),
        aten.native_batch_norm: per_output(2),
        aten._native_batch_norm_legit_no_training: per_output(2),
        aten.upsample_bilinear2d: per_output(4),
        aten._adaptive_avg_pool2d: per_input,
        aten.mean: per_input,
    }
