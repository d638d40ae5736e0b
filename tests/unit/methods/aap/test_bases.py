"""What AAP starts from: saved runs, a LISA, another anchor, official checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.unit.methods.aap.samples import batch, build
from unforge import backbones, methods
from unforge.backbones import consistency, lisa, llava, sam, words
from unforge.methods import aap

REAL, SYNTHETIC, TAMPERED = llava.REAL, llava.SYNTHETIC, llava.TAMPERED


@pytest.mark.parametrize("variant", ["", "black_box", "control", "large", "siglip"])
def test_a_saved_run_needs_nothing_else(variant: str, tmp_path: Path) -> None:
    one = build(variant)
    methods.save(one, "aap", variant, one.config, tmp_path)
    again = methods.load(tmp_path)
    state = one.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    image = torch.rand(1, 3, 40, 40)
    first, second = one.predict(image, extras=True), again.predict(image, extras=True)
    assert torch.equal(first.class_probs, second.class_probs)
    assert torch.equal(first.mask, second.mask)
    assert all(torch.equal(value, second.signals[name]) for name, value in first.signals.items())


def test_a_lisa_lends_all_it_has_learnt(tmp_path: Path) -> None:
    torch.manual_seed(4)
    base = lisa.build(lisa.SMALL, {})
    backbones.save(base, "lisa", lisa.SMALL, tmp_path)
    one = aap.build(methods.config("aap", "", "small"), {"backbone": tmp_path})
    assert one.seg == base.token
    words_of = one.llava.model.get_input_embeddings().weight
    assert torch.equal(words_of[: base.token + 1], base.llava.model.get_input_embeddings().weight[: base.token + 1])
    for name in ("text_hidden_fcs.0.weight", "sam.model.mask_decoder.mask_tokens.weight"):
        assert torch.equal(one.segmenter.state_dict()[name], base.segmenter.state_dict()[name])
    trained = {name.split(".")[1] for name, p in one.named_parameters() if p.requires_grad and "segmenter" in name}
    assert trained == {"sam", "text_hidden_fcs"}


def test_a_control_is_held_to_the_other_networks_tokens(tmp_path: Path) -> None:
    torch.manual_seed(9)
    other = consistency.build(consistency.SMALL, {})
    backbones.save(other, "consistency", consistency.SMALL, tmp_path)
    torch.manual_seed(0)
    one = aap.build(methods.config("aap", "control", "small"), {"anchor": tmp_path}).eval()
    image = torch.rand(1, 3, 48, 48)
    read = one.read(image)
    truth = other.freeze().tokens(image, 16)
    projected = one.projector(read.states.at_image(1))
    assert torch.allclose(read.errors, 1 - F.cosine_similarity(projected, truth, dim=-1), atol=1e-5)
    assert not any(p.requires_grad for p in one.control.parameters())
    # batch norms keep the statistics of their own training
    one.train()
    before = {name: value.clone() for name, value in one.control.state_dict().items()}
    one.loss(batch([REAL, TAMPERED]))
    assert all(torch.equal(value, before[name]) for name, value in one.control.state_dict().items())
    with pytest.raises(ValueError, match="control"):
        aap.build(methods.config("aap", "", "small"), {"anchor": tmp_path})


def test_official_checkpoints_are_a_base(tmp_path: Path) -> None:
    """Directories as transformers' own classes write them; images of any shape are seen as squares."""
    torch.manual_seed(0)
    talking = llava.build(
        llava.Config(
            vision_width=16, vision_layers=3, vision_heads=2, vision_mlp=32, image_size=28, patch=7, width=32,
            layers=4, heads=2, mlp=48, vocabulary=0, positions=256, init=0.2,
        ),
        {},
    )  # fmt: skip
    talking.model.save_pretrained(tmp_path / "llava")
    words.save(talking.tokenizer, tmp_path / "llava")
    masking = sam.build(
        sam.Config(
            width=16, layers=2, heads=2, mlp=32, window=4, global_layers=(1,), image_size=64, patch=8, prompt=16,
            decoder_heads=2, decoder_mlp=32, init=0.1,
        ),
        {},
    )  # fmt: skip
    masking.model.save_pretrained(tmp_path / "sam")
    assets = {"backbone": tmp_path / "llava", "sam": tmp_path / "sam"}
    one = aap.build(dataclasses.replace(methods.config("aap", "llava"), input_size=64), assets).eval()
    assert one.layer == 2
    image = torch.rand(1, 3, 40, 90)
    square = F.interpolate(image, size=(64, 64), mode="bilinear", antialias=True, align_corners=False)
    with torch.no_grad():
        seen = talking.model.model.vision_tower(talking.prepared(square), output_hidden_states=True).hidden_states
    read = one.read(one.squared(image))
    assert torch.allclose(one.truth(square, read.states), seen[-2][:, 1:], atol=1e-5)
    found = one.predict(image, extras=True)
    assert found.mask.shape == (1, 1, 40, 90)
    assert found.extras["attention_last"].shape == (1, 1, 1, 4, 4)
    one.train()
    sample = batch([REAL, TAMPERED, SYNTHETIC], size=64)
    with torch.autocast("cpu", torch.bfloat16):
        losses = one.loss(sample)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in one.parameters() if p.requires_grad)
    # the anchor pulls at the layers up to the middle one, through what checkpointing computes again
    one.zero_grad()
    one.loss(sample).terms["arl"].backward()
    pulled = {
        name.split("layers.")[1][0]
        for name, p in one.named_parameters()
        if "lora_B" in name and p.grad is not None and p.grad.abs().max() > 0
    }
    assert pulled == {"0", "1"}
