"""How an InternVL comes about: fresh, from an official checkpoint, as it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unforge import paths
from unforge.backbones import describe, forensic, words
from unforge.backbones.internvl.config import Config
from unforge.backbones.internvl.model import MARKS, InternVL


def architecture(config: Config, rows: int, channels: int = 3) -> Any:
    """transformers' configuration; `rows`: of the embedding; `channels`: of what the vision tower takes."""
    from transformers import InternVLConfig, InternVLVisionConfig, LlamaConfig

    vision = InternVLVisionConfig(
        hidden_size=config.vision_width,
        num_hidden_layers=config.vision_depth,
        num_attention_heads=config.vision_heads,
        intermediate_size=config.vision_hidden,
        attention_bias=True,
        image_size=(config.grid or config.size,) * 2,
        patch_size=(config.patch,) * 2,
        num_channels=channels,
        layer_scale_init_value=config.layer_scale,
        initializer_range=config.initial,
    )
    text = LlamaConfig(
        vocab_size=rows,
        hidden_size=config.width,
        intermediate_size=config.hidden,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope},
        rms_norm_eps=config.norm,
        initializer_range=config.initial,
        tie_word_embeddings=config.tied,
    )
    return InternVLConfig(vision_config=vision, text_config=text, tie_word_embeddings=config.tied)


def vocabulary() -> list[str]:
    """Texts whose words a small language model knows."""
    from unforge import explanations

    return [*describe.texts(), *explanations.vocabulary()]


def build(config: Config, assets: Mapping[str, Path]) -> InternVL:
    """The model. Assets, each optional: `checkpoint`, a directory of an official checkpoint (transformers' format,
    safetensors), whose weights, sizes and tokenizer are taken; `run`, a directory that `save_files` wrote into, of the
    same architecture; `forensic`, the backbone it sees through at small scale. Nothing is downloaded.
    """
    if "checkpoint" in assets:
        return _official(config, assets["checkpoint"])
    if "run" in assets:
        return _again(assets["run"])
    from transformers import InternVLForConditionalGeneration

    tokenizer = words.build(vocabulary(), MARKS)
    eyes = _eyes(assets) if config.grid else None
    sizes = architecture(config, config.vocabulary or len(tokenizer), 3 if eyes is None else eyes.width)
    network = InternVLForConditionalGeneration(sizes)
    if config.spread:
        nn.init.normal_(network.model.vision_tower.embeddings.position_embeddings, std=config.spread)
    return InternVL(config, network, tokenizer, eyes)


def _eyes(assets: Mapping[str, Path]) -> forensic.Forensic:
    from unforge import backbones

    if "forensic" not in assets:
        return forensic.build(forensic.SMALL, {})
    found = backbones.load(assets["forensic"])
    if not isinstance(found, forensic.Forensic):
        raise ValueError(f"{assets['forensic']} holds a {type(found).__name__}, not the forensic backbone")
    return found


def _again(run: Path) -> InternVL:
    """The architecture that was saved in `run`, without its weights."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    from unforge.backbones import restore

    saved = paths.read_json(run / "internvl.json")
    eyes = forensic.build(restore(forensic.Config, saved["forensic"]), {}) if saved["forensic"] else None
    sizes = InternVLConfig.from_pretrained(str(run / "architecture"), local_files_only=True)
    network = InternVLForConditionalGeneration(sizes)
    return InternVL(restore(Config, saved["config"]), network, words.load(run / "tokenizer"), eyes)


def _official(config: Config, checkpoint: Path) -> InternVL:
    """Weights, sizes and tokenizer of a checkpoint directory; tiling and the system message of `config`."""
    from transformers import InternVLForConditionalGeneration

    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint: config.json, *.safetensors and a tokenizer belong there"
        )
    network = InternVLForConditionalGeneration.from_pretrained(
        str(checkpoint), local_files_only=True, use_safetensors=True, dtype=torch.float32
    )
    vision = network.config.vision_config
    config = replace(config, grid=0, size=vision.image_size[0], patch=vision.patch_size[0])
    return InternVL(config, network, words.load(checkpoint), None)
