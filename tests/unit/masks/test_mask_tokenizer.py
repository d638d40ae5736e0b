"""Masks to tokens and back: what sees what, what a prefix decodes to, how codes are found, started and revived."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from unforge import masks
from unforge.masks import networks
from unforge.masks.tokenizer import Codebook

CONV = masks.Config(size=16, latents=4, codes=24, code_dim=5, encoder="conv", widths=(8, 16), groups=4)
VIT = masks.Config(
    size=16, latents=4, codes=24, code_dim=5, patch=4, width=16, depth=2, heads=2, pixel_width=8,
    multipliers=(1, 1, 2), pixel_blocks=1, groups=4,
)  # fmt: skip
BOTH = pytest.mark.parametrize("config", [CONV, VIT], ids=["conv", "vit"])


def tokenizer(config: masks.Config) -> masks.MaskTokenizer:
    torch.manual_seed(0)
    made = masks.build(config).eval()
    with torch.no_grad():
        made.codes.embedding.normal_()
        for layer in made.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.normal_(std=layer.in_features**-0.5)  # the start is so near 0 that nothing would show
    return made


def some(count: int = 6, size: int = 16) -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.rand(count, 1, size, size) > 0.5).float()


def test_the_papers_tokenizer_has_the_parameters_of_two_vit_l_and_a_pixel_decoder() -> None:
    counts = masks.counts()
    w, block = 1024, 12 * 1024**2 + 13 * 1024
    tokens = (257 + 32) * w  # positions of patches, class token and latents
    assert counts["encoder"] == 24 * block + (3 * 256 * w + w) + tokens + w + 32 * w + 4 * w + 12 * w + 12
    resblocks = 0
    for before, after in [(512, 512)] * 3 + [(512, 512), (512, 256), (256, 256), (256, 256), (256, 256)]:
        resblocks += 2 * before + 2 * after + 9 * before * after + 9 * after**2 + (before != after) * after**2
    for before, after in [(256, 128), (128, 128), (128, 128), (128, 128)]:
        resblocks += 2 * before + 2 * after + 9 * before * after + 9 * after**2 + (before != after) * after**2
    enlarged = sum(9 * c * c + c for c in (512, 256, 256, 128))
    pixels = (9 * 1024 * 512 + 512) + resblocks + enlarged + 256 + (9 * 128 * 3 + 3)
    assert counts["decoder.pixels"] == pixels
    vit = 24 * block + (12 * w + w) + tokens + 2 * w + 4 * w + (w * 2048 + 2048) + (2048 * 1024 + 1024)
    assert counts["decoder"] == vit + pixels
    assert counts["codes"] == 1024 * 12 + 12 * 12
    assert counts[""] == counts["encoder"] + counts["decoder"] + counts["codes"]


def test_the_small_tokenizer_is_small() -> None:
    assert 300_000 < masks.counts(masks.SMALL)[""] < 900_000


def test_a_latent_sees_the_patches_and_the_latents_before_it() -> None:
    encoder = tokenizer(VIT).encoder
    before = encoder(some())
    with torch.no_grad():
        encoder.latents[:, 2].normal_()
    after = encoder(some())
    assert torch.equal(before[:, :2], after[:, :2])
    assert ((before[:, 2:] - after[:, 2:]).abs().amax((0, 2)) > 1e-4).all()
    shown = some()
    shown[:, :, 12:, 12:] = 1 - shown[:, :, 12:, 12:]
    assert ((encoder(shown) - after).abs().amax((0, 2)) > 1e-5).all()


def test_the_attention_mask_by_hand() -> None:
    seen = networks.causal(2, 2, torch.device("cpu"))
    assert seen.tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


@BOTH
def test_a_prefix_decodes_without_the_later_latents(config: masks.Config) -> None:
    made = tokenizer(config)
    tokens = torch.randint(0, config.codes, (3, config.latents))
    for p in range(1, config.latents):
        other = tokens.clone()
        other[:, p:] = (other[:, p:] + 1) % config.codes
        lengths = torch.full((3,), p)
        with torch.no_grad():
            short = made.decode(tokens[:, :p])
            assert torch.equal(short, made.logits(made.lookup(other), lengths).sigmoid())
            assert not torch.allclose(short, made.decode(tokens), atol=1e-6)


@BOTH
def test_soft_decoding_of_one_code_is_hard_decoding_and_of_two_is_their_mean(config: masks.Config) -> None:
    made = tokenizer(config)
    tokens = torch.randint(0, config.codes, (3, config.latents))
    sure = torch.nn.functional.one_hot(tokens, config.codes).float()
    with torch.no_grad():
        torch.testing.assert_close(made.decode_soft(sure), made.decode(tokens))
        mixed = 0.5 * (sure + sure.roll(1, 0))
        codes = made.codebook()
        mean = made.logits(0.5 * (codes[tokens] + codes[tokens.roll(1, 0)])).sigmoid()
        torch.testing.assert_close(made.decode_soft(mixed), mean)
        torch.testing.assert_close(made.decode_soft(mixed[:, :2]), made.logits(mixed[:, :2] @ codes).sigmoid())


def test_soft_decoding_has_a_gradient() -> None:
    made = tokenizer(CONV)
    weights = torch.rand(2, 4, 24, requires_grad=True)
    made.decode_soft(weights).mean().backward()
    assert weights.grad is not None
    assert weights.grad.abs().sum() > 0


@BOTH
def test_a_token_is_the_nearest_code(config: masks.Config) -> None:
    made = tokenizer(config)
    tokens = made.encode(some())
    assert tokens.shape == (6, 4)
    assert tokens.dtype == torch.int64
    with torch.no_grad():
        raw = made.encoder(some()).double().numpy()
        codes = (made.codes.embedding @ made.codes.projection.weight.T).double().numpy()
    raw /= np.linalg.norm(raw, axis=-1, keepdims=True)
    codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
    distances = np.linalg.norm(raw[:, :, None] - codes, axis=-1)
    assert (distances.argmin(-1) == tokens.numpy()).all()
    torch.testing.assert_close(made.codebook().detach().norm(dim=1), torch.ones(24))


def test_masks_are_padded_to_a_square_at_the_bottom_and_the_right_and_averaged() -> None:
    made = tokenizer(CONV)
    mask = torch.zeros(1, 1, 16, 32)
    mask[0, 0, 0, 0] = 1  # one pixel of the first 2x2
    mask[0, 0, 14:, 30:] = 1
    square = made.squared(mask)
    wanted = torch.zeros(1, 1, 16, 16)
    wanted[0, 0, 0, 0] = 0.25
    wanted[0, 0, 7, 15] = 1
    assert torch.equal(square, wanted)
    assert made.crop_to(square, (16, 32)).shape == (1, 1, 8, 16)
    assert made.crop_to(square, (33, 10)).shape == (1, 1, 16, 5)
    assert made.crop_to(square, (4000, 1)).shape == (1, 1, 16, 1)
    assert torch.equal(made.squared(some()), some())


def test_the_gradient_of_codes_goes_to_the_latents_unchanged() -> None:
    made = tokenizer(CONV)
    latents = torch.nn.functional.normalize(torch.randn(2, 4, 5), dim=-1).requires_grad_()
    encoded = made.quantise(latents)
    slope = torch.randn(2, 4, 5)
    (encoded.quantised * slope).sum().backward()
    torch.testing.assert_close(latents.grad, slope)
    torch.testing.assert_close(encoded.quantised.detach(), made.codebook()[encoded.tokens].detach())


def test_a_codebook_starts_from_latents_and_dead_codes_go_to_latents() -> None:
    torch.manual_seed(0)
    book = Codebook(8, 5)
    latents = torch.nn.functional.normalize(torch.randn(64, 5), dim=1)
    book.prepare(latents, revive_after=3)
    assert bool(book.ready)
    assert ((book() @ latents.T).amax(1) > 0.99).all()
    with torch.no_grad():
        book.projection.weight += 0.3 * torch.randn(5, 5)
    before = book().detach()
    for _ in range(3):
        book.chosen(torch.tensor([0, 1, 2, 4, 5, 6, 7]))
    assert book.idle.tolist() == [0, 0, 0, 3, 0, 0, 0, 0]
    book.prepare(latents, revive_after=3)
    after = book().detach()
    assert torch.equal(before[[0, 1, 2, 4, 5, 6, 7]], after[[0, 1, 2, 4, 5, 6, 7]])
    assert float((after[3] @ latents.T).max()) > 0.99
    assert int(book.idle[3]) == 0


def test_quantisation_begins_after_the_first_steps_and_evaluation_changes_nothing() -> None:
    torch.manual_seed(0)
    made = masks.build(dataclasses.replace(CONV, unquantised_steps=2)).train()
    seen = []
    for _ in range(3):
        seen.append(set(made.loss(some()).terms))
    assert seen == [{"bce", "dice"}, {"bce", "dice"}, {"bce", "dice", "codebook", "commitment"}]
    made.eval()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    assert set(made.loss(some()).terms) == seen[-1]
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())


def test_prefix_lengths_of_training_are_all_lengths_alike() -> None:
    torch.manual_seed(0)
    drawn = masks.build(dataclasses.replace(CONV, truncated=1.0)).lengths(4000, torch.device("cpu"))
    assert torch.bincount(drawn, minlength=5)[1:].sub(1000).abs().max() < 120  # 4 deviations
    half = masks.build(dataclasses.replace(CONV, truncated=0.5)).lengths(4000, torch.device("cpu"))
    assert abs(int((half == 4).sum()) - 2500) < 130


@BOTH
def test_a_saved_tokenizer_is_the_same(config: masks.Config, tmp_path: Path) -> None:
    made = tokenizer(config)
    masks.save(made, tmp_path)
    again = masks.load(tmp_path)
    assert again.config == config
    tokens = made.encode(some())
    assert torch.equal(again.encode(some()), tokens)
    with torch.no_grad():
        assert torch.equal(again.decode(tokens), made.decode(tokens))
    saved = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match=r"no field \['tokens'\]"):
        masks.restored({**saved["config"], "tokens": 3})


def test_what_is_refused_says_what_is_accepted(tmp_path: Path) -> None:
    made = tokenizer(CONV)
    with pytest.raises(FileNotFoundError, match="dvc repro"):
        masks.load(tmp_path)
    with pytest.raises(ValueError, match=r"give \(B,p\), 1 <= p <= 4"):
        made.decode(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"there is 0 \.\. 23"):
        made.decode(torch.full((2, 4), 24))
    with pytest.raises(ValueError, match=r"give \(B,p,24\)"):
        made.decode_soft(torch.zeros(2, 4, 23))
    with pytest.raises(ValueError, match=r"give \(B,1,H,W\)"):
        made.encode(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="each level halves the side"):
        masks.build(dataclasses.replace(CONV, size=18))
    with pytest.raises(ValueError, match="multiple of the patch"):
        masks.build(dataclasses.replace(VIT, size=18))
    with pytest.raises(ValueError, match="enlarge by a power of 2"):
        masks.build(dataclasses.replace(VIT, multipliers=(1, 1)))
