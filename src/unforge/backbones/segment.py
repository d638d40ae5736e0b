"""From a language model's tokens to a mask: what LISA and the methods built on it share. Not a backbone itself.

The last state of the token <SEG> goes through `text_hidden_fcs` and is SAM's sparse prompt; the dense prompt is SAM's
embedding for "no mask", plus a map where a method has one. SAM's image encoder is frozen, its mask decoder trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unforge.backbones import llava, sam, seen


class Segmenter(nn.Module):
    """`text_hidden_fcs` and SAM. `width`: channels of the language model's states.

    Source: LISA, released code: Linear(D,D), ReLU, Linear(D,256), and a Dropout of 0, which is left out.
    Parts of SAM's decoder that one mask per prompt does not need (the other masks' heads, the quality head) require no
    gradient.
    """

    def __init__(self, model: sam.Sam, width: int) -> None:
        super().__init__()
        self.sam = model.requires_grad_(False)
        decoder = model.model.mask_decoder.requires_grad_(True)
        decoder.output_hypernetworks_mlps[1:].requires_grad_(False)
        decoder.iou_prediction_head.requires_grad_(False)
        self.text_hidden_fcs = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, model.width))

    def prompt(self, states: Tensor) -> Tensor:
        """(...,D) last states to (...,P) prompt embeddings."""
        return self.text_hidden_fcs(states)

    def forward(self, shown: Tensor, prompt: Tensor, dense: Tensor | None = None) -> Tensor:
        """Logits (B,1,4g,4g) of the mask that `prompt` (B,P), or tokens (B,n,P), asks for.

        `shown`: what SAM's encoder sees; `dense` (B,P,g,g) is added to the dense prompt.
        """
        with torch.no_grad():
            embedding = self.sam.embed(shown)
        return self.sam.decode(embedding, prompt if prompt.ndim == 3 else prompt[:, None], dense)

    def logits(self, shown: Tensor, prompt: Tensor, size: tuple[int, int], dense: Tensor | None = None) -> Tensor:
        """The same at the image's `size` (H,W): (B,1,H,W)."""
        return self.sam.fitted(self(shown, prompt, dense), size).float()


def assemble(
    language: llava.Config, masks: sam.Config, assets: Mapping[str, Path], tokens: Sequence[str]
) -> tuple[llava.Llava, sam.Sam, list[int]]:
    """LLaVA with `tokens` in its vocabulary, SAM, and the tokens' ids.

    Assets: `run`, a saved run, whose sizes are made anew; else `backbone` and `sam`, directories of trained backbones
    or official checkpoints (a `backbone` that segments already has a SAM of its own, which is taken); what is not
    among the assets is made at random from its configuration.
    """
    talking, masking, ids, _ = _parts(language, masks, assets, tokens)
    return talking, masking, ids


def grounded(
    language: llava.Config, masks: sam.Config, assets: Mapping[str, Path], tokens: Sequence[str]
) -> tuple[llava.Llava, Segmenter, list[int]]:
    """As `assemble`, with the layers between LLaVA and SAM: those of a `backbone` that segments already, else random
    ones."""
    talking, masking, ids, learnt = _parts(language, masks, assets, tokens)
    return talking, learnt or Segmenter(masking, talking.width), ids


def _parts(
    language: llava.Config, masks: sam.Config, assets: Mapping[str, Path], tokens: Sequence[str]
) -> tuple[llava.Llava, sam.Sam, list[int], Segmenter | None]:
    talking, learnt = _opened(language, assets, "backbone")
    ids = talking.add_tokens(tokens)
    if "run" in assets:
        masking = sam.build(masks, {"run": assets["run"]})
    elif learnt is not None:
        masking = learnt.sam
    else:
        masking = seen.opened(assets["sam"], "sam", masks) if "sam" in assets else sam.build(masks, {})
    if masking.config.forensic and talking.config.forensic:
        masking.forensic = None
    return talking, masking, ids, learnt


def speaker(
    language: llava.Config, assets: Mapping[str, Path], tokens: Sequence[str], backbone: str = "backbone"
) -> tuple[llava.Llava, list[int]]:
    """LLaVA with `tokens` in its vocabulary, and their ids; from the asset `run`, or from the one named `backbone`."""
    talking, _ = _opened(language, assets, backbone)
    return talking, talking.add_tokens(tokens)


def _opened(language: llava.Config, assets: Mapping[str, Path], backbone: str) -> tuple[llava.Llava, Segmenter | None]:
    """LLaVA, and what turns its states into masks where the asset `backbone` has that too.

    ValueError for a backbone of another kind.
    """
    if "run" in assets:
        return llava.build(language, {"run": assets["run"]}), None
    if backbone not in assets:
        return llava.build(language, {}), None
    found = seen.opened(assets[backbone], "llava", language)
    talking, learnt = getattr(found, "llava", found), getattr(found, "segmenter", None)
    if not isinstance(talking, llava.Llava):
        raise ValueError(f"{assets[backbone]} is no LLaVA: llava, llava_siglip, llava_large and lisa are accepted")
    return talking, learnt


def save(talking: llava.Llava, masking: sam.Sam, directory: Path) -> None:
    """What `assemble` needs as the asset `run`, beside the weights."""
    masking.save_files(directory)
    talking.save_files(directory)


def shown(talking: llava.Llava, masking: sam.Sam, image: Tensor) -> tuple[Tensor, Tensor]:
    """What LLaVA and SAM see of `image` (B,3,H,W). Frozen tokens of the same grid are made once."""
    first = talking.prepared(image)
    if masking.config.forensic and talking.forensic is not None:
        side = masking.config.image_size
        if side == talking.config.image_size:
            return first, first
        return first, seen.tokens(talking.forensic, masking.memory, image, side)
    return first, masking.prepared(image)
