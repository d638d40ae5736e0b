"""Configurations of SparseViT: the paper's, the small one and the ablation rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from unforge.methods import _localisers
from unforge.types import Recipe

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        source="SparseViT, App. A, Implementation",
        optimiser="adam",
        lr=1e-4,
        min_lr=1e-7,
        batch=16,
        epochs=200,
        # ASSUMPTION(paper): the length of an epoch is the released code's, seven sets of 1,840 images.
        samples_per_epoch=12880,
        # "flipping, blurring, compression, and simple manipulation operations";
        # ASSUMPTION(paper): with the released code's settings and in its order.
        augment=("copy_move", "inpaint", "flip_horizontal", "flip_vertical", "jpeg", "blur"),
    ),
    "code": Recipe(
        source="released code (main_train.py, train.sh)",
        optimiser="adamw",
        lr=2e-4,
        min_lr=5e-7,
        batch=16,
        epochs=200,
        samples_per_epoch=12880,
        warmup_epochs=4.0,
        weight_decay=0.05,
        betas=(0.9, 0.999),
        dtype="float16",
        augment=_localisers.CODE_AUGMENT,
    ),
    "small": _localisers.SMALL_RECIPE,
}
"""`paper` and `code` disagree; both are kept. `small` is for seconds on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """SparseViT at the paper's scale. Sizes of the UniFormer come from the released code."""

    backbone: Literal["uniformer", "vit", "volo"] = "uniformer"
    """Source: SparseViT, App. E."""
    head: Literal["lff", "single", "mlp", "aspp", "aff"] = "lff"
    """Source: SparseViT, Tables 3 and 7."""
    sparse: bool = True
    """False: dense attention everywhere, the maps taken at the same blocks."""
    fixed_rate: int = 0
    """One rate for all sparse blocks, 0 for the schedule. Source: SparseViT, Table 6."""
    extractor: Literal["", "sobel", "bayar", "dct", "srm", "stem"] = ""
    """Class of `unforge.nn.extractors` whose maps join the backbone's tokens. `stem` is ours: its maps take the
    place of the RGB image."""
    extractor_overlap: bool = False
    """Overlapping convolutions from the image and the extractor's maps, side by side, to the first tokens
    (`nn.extractors.LocalPath`), in place of the sum of two patch embeddings."""

    dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (5, 8, 20, 7)
    strides: tuple[int, ...] = (4, 2, 2, 2)
    head_dim: int = 64
    mlp_ratio: float = 4.0
    rates3: tuple[int, ...] = (8, 4, 2, 1)
    """Sparsity rates of stage 3, each for an equal run of blocks. Source: SparseViT, Eq. 1."""
    rates4: tuple[int, ...] = (2, 1)
    """Source: SparseViT, Eq. 2."""
    drop_path: float = 0.2
    """Linear over all blocks. Source: released code."""
    layer_scale: float = 1e-6
    """Start of the blocks' layer scales. Source: released code."""

    fusion_width: int = 512
    """Channels in which the heads fuse. Source: SparseViT, Sec. LFF."""
    fusion_scale: float = 1e-6
    """Start of LFF's vectors. Source: SparseViT, Sec. LFF."""
    context_grid: int = 32
    """Cells (per direction) of the extractor's global path. ASSUMPTION(paper): see `network.py`."""

    vit_dim: int = 768
    """ASSUMPTION(paper): "vanilla ViT" is ViT-B/16, 12 blocks, with stage 3's schedule, three blocks a rate."""
    vit_depth: int = 12
    vit_heads: int = 12
    vit_strides: tuple[int, ...] = (16,)
    vit_grid: int = 32
    """Positions learnt per direction; other sizes are interpolated."""
    volo_dims: tuple[int, int] = (192, 384)
    """ASSUMPTION(paper): "VOLO" is VOLO-D1 (4 outlookers, 14 blocks) without class attention."""
    volo_depths: tuple[int, int] = (4, 14)
    volo_heads: tuple[int, int] = (6, 12)
    volo_hidden: int = 64
    volo_mlp_ratio: float = 3.0
    volo_strides: tuple[int, int] = (2, 4)
    volo_grid: int = 32

    bce: float = 1.0
    """Weight of binary cross-entropy. Source: released code, the only loss."""
    dice: float = 0.0
    """Weight of the Dice loss over the batch."""

    input_size: int | None = 512
    """Images are resized to this many pixels squared; None: they are used as they are."""
    count_size: int = 512
    """Size for which parameters and MACs are printed. Source: SparseViT, Table 5."""
    recipe: Recipe = RECIPES["paper"]


SMALL = replace(
    Config(),
    dims=(12, 16, 24, 32),
    depths=(1, 1, 3, 1),
    strides=(2, 2, 2, 2),
    head_dim=8,
    mlp_ratio=2.0,
    rates3=(4, 2, 1),
    rates4=(2,),
    drop_path=0.0,
    # 1e-6 needs a pretrained start and long training: in hundreds of steps such blocks would stay off.
    layer_scale=0.3,
    fusion_width=32,
    fusion_scale=1.0,
    extractor_overlap=True,
    context_grid=4,
    vit_dim=32,
    vit_depth=4,
    vit_heads=4,
    vit_strides=(2, 2, 2),
    vit_grid=12,
    volo_dims=(16, 32),
    volo_depths=(1, 3),
    volo_heads=(2, 4),
    volo_hidden=12,
    volo_mlp_ratio=2.0,
    volo_strides=(2, 2),
    volo_grid=12,
    dice=0.5,
    input_size=None,
    recipe=RECIPES["small"],
)
"""About 40,000 parameters on grids of 1/2, 1/4, 1/8 and 1/16; chosen on the validation photographs of the pool."""


def _variants() -> dict[str, Config]:
    full = Config()
    plain = {
        "": full,
        "dense": replace(full, sparse=False, head="single"),
        "sparse": replace(full, head="single"),
        "lff": replace(full, sparse=False),
        "mlp": replace(full, head="mlp"),
        "aspp": replace(full, head="aspp"),
        "aff": replace(full, head="aff"),
        # ASSUMPTION(paper): a single rate holds in both stages.
        "s2": replace(full, fixed_rate=2),
        "s4": replace(full, fixed_rate=4),
        "s8": replace(full, fixed_rate=8),
        "vit": replace(full, backbone="vit", sparse=False, head="single"),
        "vit_sparse": replace(full, backbone="vit", head="single"),
        "volo": replace(full, backbone="volo", sparse=False, head="single"),
        "volo_sparse": replace(full, backbone="volo", head="single"),
    }
    handcrafted = {
        f"{name}_lff": replace(full, sparse=False, extractor=name) for name in ("sobel", "bayar", "dct", "srm")
    }
    stems = {f"stem_{name}" if name else "stem": replace(config, extractor="stem") for name, config in plain.items()}
    return plain | handcrafted | stems


VARIANTS: dict[str, Config] = _variants()
"""Rows of Tables 2, 3, 6, 7 and 9; "" is the full method. `stem_` puts the truncated trainable stem in the image's
place (ours)."""
