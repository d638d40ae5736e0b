"""SAM: against transformers' own forward, and hand-worked losses and prompts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from unforge import backbones
from unforge.backbones import sam
from unforge.types import Batch

PIXELS = sam.Config(
    width=16, layers=2, heads=2, mlp=32, window=4, global_layers=(1,), image_size=64, patch=8, prompt=16,
    decoder_heads=2, decoder_mlp=32, init=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def small() -> sam.Sam:
    torch.manual_seed(0)
    return sam.build(sam.SMALL, {}).eval()


@pytest.fixture(scope="module")
def pixels() -> sam.Sam:
    torch.manual_seed(0)
    return sam.build(PIXELS, {}).eval()


def batch(images: Tensor, mask: Tensor | None) -> Batch:
    names = tuple(map(str, range(len(images))))
    label = torch.ones(len(images), dtype=torch.int64) if mask is None else mask.flatten(1).any(1).long()
    return Batch(image=images, mask=mask, label=label, key=names, unit=names, source=tuple((n,) for n in names))


def test_binary_cross_entropy_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3)]).view(1, 1, 1, 2)
    # -log(1/2) and -log(1 - 3/4)
    assert sam.bce(logits, torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)).item() == pytest.approx(1.5 * math.log(2))


def test_dice_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3), -math.log(3), 0.0]).view(1, 1, 2, 2)
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 2, 2)
    # p = 1/2, 3/4, 1/4, 1/2: 2 * 5/4 over 2 + 2
    assert sam.dice(logits, mask, scale=1.0, smooth=0.0).item() == pytest.approx(1 - 2.5 / 4)
    assert sam.dice(logits, mask, scale=1.0, smooth=1.0).item() == pytest.approx(1 - 3.5 / 5)


def test_the_scale_weighs_the_smoothing_only() -> None:
    torch.manual_seed(1)
    logits, mask = torch.randn(3, 1, 4, 4).double(), (torch.rand(3, 1, 4, 4) > 0.5).double()
    released = sam.dice(logits, mask)
    assert released.item() == pytest.approx(sam.dice(logits, mask, scale=1.0, smooth=1e-3).item(), rel=1e-12)
    # an empty mask: 1 - smooth / (sum p / scale + smooth)
    expected = 1 - 1e-6 / (8 / 1000 + 1e-6)
    assert sam.dice(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).item() == pytest.approx(expected)


@pytest.mark.parametrize("which", ["small", "pixels"])
def test_prompts_and_masks_are_those_of_transformers(which: str, request: pytest.FixtureRequest) -> None:
    model: sam.Sam = request.getfixturevalue(which)
    size = model.config.image_size
    shown = model.prepared(torch.rand(2, 3, 64, 64))
    points, boxes = torch.rand(2, 3, 2), torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]])
    labels = torch.tensor([[1, 0, 1], [1, 1, 0]])
    with torch.no_grad():
        embedding = model.embed(shown)
        for sparse, prompt in (
            (
                model.points(points, labels),
                {"input_points": points[:, None] * size - 0.5, "input_labels": labels[:, None]},
            ),
            (model.boxes(boxes), {"input_boxes": boxes[:, None] * size - 0.5}),
        ):
            expected = model.model(pixel_values=shown, multimask_output=False, **prompt).pred_masks[:, 0]
            found = model.decode(embedding, sparse)
            assert found.shape == (2, 1, 4 * model.grid, 4 * model.grid)
            assert torch.allclose(found, expected, atol=1e-5)


def test_a_dense_map_is_added_to_that_of_no_mask(pixels: sam.Sam) -> None:
    embedding, sparse = torch.rand(1, 16, 8, 8), torch.rand(1, 1, 16)
    dense = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        # SAM adds the dense prompt to the image embedding
        assert torch.allclose(
            pixels.decode(embedding, sparse, dense), pixels.decode(embedding + dense, sparse), atol=1e-6
        )
        assert not torch.allclose(pixels.decode(embedding, sparse, dense), pixels.decode(embedding, sparse))


def test_an_image_fills_the_square_from_the_top_left(pixels: sam.Sam) -> None:
    image = torch.rand(1, 3, 32, 16)
    shown = pixels.prepared(image)
    assert shown.shape == (1, 3, 64, 64)
    assert pixels.covered((32, 16)) == (1.0, 0.5)
    assert shown[..., 32:].abs().max() == 0
    # a constant image stays constant where it is
    flat = pixels.prepared(torch.full((1, 3, 32, 16), 0.5))[..., :32]
    assert torch.allclose(flat, ((0.5 - pixels.mean) / pixels.std).expand_as(flat), atol=1e-5)


def test_a_mask_is_cut_where_the_image_ends(pixels: sam.Sam) -> None:
    logits = torch.zeros(1, 1, 32, 32)
    logits[..., 16:] = 8.0
    # the right half is padding of an image half as wide as high
    assert pixels.fitted(logits, (32, 16)).shape == (1, 1, 32, 16)
    assert pixels.fitted(logits, (32, 16))[..., :14].max() < 1e-4
    assert pixels.fitted(logits, (40, 40))[..., 22:].min() > 7.9


def test_points_are_drawn_within_the_mask() -> None:
    torch.manual_seed(0)
    cells = torch.zeros(1, 4, 8)
    cells[0, 2, 5] = 1
    points = torch.cat([sam.draw_points(cells) for _ in range(50)])
    assert ((points * torch.tensor([8, 4])).floor().clamp(max=5) == torch.tensor([5, 2])).all()
    anywhere = torch.cat([sam.draw_points(torch.zeros(1, 4, 8)) for _ in range(200)])
    assert anywhere.min() < 0.1
    assert anywhere.max() > 0.9


def test_boxes_are_drawn_around_the_mask() -> None:
    torch.manual_seed(0)
    cells = torch.zeros(1, 10, 10)
    cells[0, 2:6, 3:8] = 1
    boxes = torch.cat([sam.draw_boxes(cells) for _ in range(50)])
    assert (boxes - torch.tensor([0.3, 0.2, 0.8, 0.6])).abs().max() <= sam.JITTER * 0.5
    assert boxes.std(0).min() > 0
    anything = sam.draw_boxes(torch.zeros(1, 10, 10))[0]
    assert (anything[:2] <= anything[2:]).all()


def test_it_learns_to_obey_a_prompt_and_draws_from_torch_alone() -> None:
    torch.manual_seed(0)
    model = sam.build(dataclasses.replace(PIXELS, layers=1, global_layers=(0,)), {})
    mask = torch.zeros(4, 1, 64, 64)
    for i in range(4):
        mask[i, :, 16 * i : 16 * i + 16, 8:56] = 1
    one = batch(0.5 + 0.4 * mask.repeat(1, 3, 1, 1), mask)
    torch.manual_seed(3)
    first = model.loss(one)
    torch.manual_seed(3)
    assert torch.equal(first.total, model.loss(one).total)
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        loss = model.loss(one)
        loss.total.backward()
        optimiser.step()
    assert loss.terms["bce"] < 0.6 * first.terms["bce"]


def test_without_masks_it_says_so(pixels: sam.Sam) -> None:
    with pytest.raises(ValueError, match="masks"):
        pixels.loss(batch(torch.rand(1, 3, 64, 64), None))


def test_the_frozen_backbone_learns_nothing(small: sam.Sam) -> None:
    assert small.forensic is not None
    trained = {id(p) for group in small.parameter_groups(0.1) for p in group["params"]}
    assert not trained & {id(p) for p in small.forensic.parameters()}
    constants = [p for n, p in small.named_parameters() if "positional_embedding" in n]
    assert torch.equal(*constants)
    assert not any(p.requires_grad for p in constants)


def test_saved_and_loaded_it_is_the_same(small: sam.Sam, tmp_path: Path) -> None:
    backbones.save(small, "sam", sam.SMALL, tmp_path)
    again = backbones.load(tmp_path)
    state = small.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())


def test_an_official_checkpoint_is_read_by_its_own_names(pixels: sam.Sam, tmp_path: Path) -> None:
    pixels.model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name.split(".")[0] for name in names} >= {"vision_encoder", "prompt_encoder", "mask_decoder"}
    assert "vision_encoder.layers.0.attn.rel_pos_h" in names
    assert "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight" in names
    # other sizes are asked for: the checkpoint's count
    loaded = sam.build(sam.Config(), {"checkpoint": tmp_path}).eval()
    image = torch.rand(1, 3, 20, 30)
    with torch.no_grad():
        assert torch.equal(loaded.embed(loaded.prepared(image)), pixels.embed(pixels.prepared(image)))
        kept = tmp_path / "kept"
        kept.mkdir()
        backbones.save(loaded, "sam", sam.Config(), kept)
        again = backbones.load(kept)
        assert torch.equal(again.embed(again.prepared(image)), loaded.embed(loaded.prepared(image)))


def test_the_paper_s_sizes() -> None:
    with torch.device("meta"):
        model = sam.build(sam.Config(), {}).model
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    # SAM ViT-H: 637 M in the image encoder, 4.06 M in the mask decoder
    assert round(counts["vision_encoder"] / 1e6) == 637
    assert round(counts["mask_decoder"] / 1e6, 2) == 4.06
