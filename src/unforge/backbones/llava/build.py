"""LLaVA from sizes, from a saved folder, or from released weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unforge.backbones import forensic, seen, words
from unforge.backbones.llava.answers import IMAGE, texts
from unforge.backbones.llava.config import Config, for_tower
from unforge.backbones.llava.model import Llava


def build(config: Config, assets: Mapping[str, Path]) -> Llava:
    """LLaVA for `config`.

    Assets: `checkpoint`, a local directory in the official format, whose sizes are taken; `run`, a saved directory,
    whose sizes and tokenizer are; `forensic`, the backbone whose tokens are seen. Without any: random, with the small
    tokenizer.
    """
    saved = seen.architecture(assets, "llava")
    config = _saved(assets, saved) if saved else config
    traces = seen.forensic_of(assets) if config.forensic else None
    if "checkpoint" in assets:
        model = _official(assets["checkpoint"])
        sizes = model.config.vision_config
        config = replace(
            for_tower(config, sizes.model_type),
            image_size=sizes.image_size,
            patch=sizes.patch_size,
            feature_layer=model.config.vision_feature_layer,
        )
        return Llava(config, words.load(assets["checkpoint"]), traces, model)
    tokenizer = words.load(assets["run"] / "tokenizer") if saved else words.build(texts(), [IMAGE])
    return Llava(config, tokenizer, traces, _fresh(config, tokenizer, traces, saved))


def _saved(assets: Mapping[str, Path], saved: Mapping[str, Any]) -> Config:
    config: Config = seen.config(Config, assets, "llava")
    return for_tower(config, saved["vision_config"]["model_type"])


def _official(directory: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(str(directory), local_files_only=True)


def _fresh(config: Config, tokenizer: Any, traces: forensic.Forensic | None, saved: dict[str, Any] | None) -> Any:
    """A random model of the sizes in `config`, or of those once saved."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipVisionConfig,
    )

    if saved:
        return LlavaForConditionalGeneration(LlavaConfig.from_dict(saved))
    sizes: dict[str, Any] = {
        "hidden_size": config.vision_width,
        "intermediate_size": config.vision_mlp,
        "num_hidden_layers": config.vision_layers,
        "num_attention_heads": config.vision_heads,
        "num_channels": 3 if traces is None else traces.width,
        "image_size": config.image_size,
        "patch_size": config.patch,
    }
    siglip = config.tower == "siglip"
    # SigLIP's pooling head comes after the patches that are read
    vision = SiglipVisionConfig(**sizes, vision_use_head=False) if siglip else CLIPVisionConfig(**sizes)
    text = LlamaConfig(
        vocab_size=max(config.vocabulary, len(tokenizer)),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.positions,
        initializer_range=config.init,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
            image_seq_length=config.tokens,
            vision_feature_layer=config.feature_layer,
            vision_feature_select_strategy="full" if siglip else "default",
        )
    )
