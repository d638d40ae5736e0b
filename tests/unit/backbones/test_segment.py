"""Tokens to SAM: what is frozen, what the prompt is, and that a saved run is made anew from its own files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unforge import backbones
from unforge.backbones import forensic, llava, sam, segment


@pytest.fixture(scope="module")
def parts() -> tuple[llava.Llava, sam.Sam, list[int]]:
    torch.manual_seed(0)
    return segment.assemble(llava.SMALL, sam.SMALL, {}, ["[SEG]"])


@pytest.fixture(scope="module")
def segmenter(parts: tuple[llava.Llava, sam.Sam, list[int]]) -> segment.Segmenter:
    torch.manual_seed(1)
    return segment.Segmenter(parts[1], parts[0].width).eval()


def test_only_the_decoder_and_the_projection_learn(segmenter: segment.Segmenter) -> None:
    shown = torch.rand(2, segmenter.sam.model.config.vision_config.num_channels, 16, 16)
    segmenter(shown, segmenter.prompt(torch.randn(2, 96))).sum().backward()
    reached = {name for name, p in segmenter.named_parameters() if p.grad is not None}
    trained = {name for name, p in segmenter.named_parameters() if p.requires_grad}
    assert reached == trained
    assert {name.split(".")[2] for name in trained if name.startswith("sam.")} == {"mask_decoder"}
    assert any(name.startswith("text_hidden_fcs") for name in trained)


def test_the_prompt_is_one_sparse_token(segmenter: segment.Segmenter) -> None:
    shown = torch.rand(1, segmenter.sam.model.config.vision_config.num_channels, 16, 16)
    states = torch.randn(1, 96)
    first, _, last = segmenter.text_hidden_fcs
    with torch.no_grad():
        prompt = last(first(states).clamp_min(0))
        expected = segmenter.sam.model.mask_decoder(
            image_embeddings=segmenter.sam.embed(shown),
            image_positional_embeddings=segmenter.sam.model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=prompt[:, None, None],
            dense_prompt_embeddings=segmenter.sam.model.prompt_encoder.no_mask_embed.weight[..., None, None],
            multimask_output=False,
        )[0][:, 0]
        assert torch.allclose(segmenter(shown, segmenter.prompt(states)), expected, atol=1e-5)
        assert segmenter.logits(shown, prompt, (50, 30)).shape == (1, 1, 50, 30)
        dense = torch.randn(1, 64, 16, 16)
        assert not torch.allclose(segmenter(shown, prompt, dense), expected, atol=1e-3)


def test_frozen_tokens_are_made_once(
    parts: tuple[llava.Llava, sam.Sam, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    talking, masking, _ = parts
    assert masking.forensic is None
    calls = []
    real = forensic.Forensic.tokens
    monkeypatch.setattr(forensic.Forensic, "tokens", lambda *a: calls.append(1) or real(*a))
    first, second = segment.shown(talking, masking, torch.rand(1, 3, 64, 48))
    assert torch.equal(first, second)
    assert len(calls) == 1


def test_a_run_is_made_from_its_own_files(parts: tuple[llava.Llava, sam.Sam, list[int]], tmp_path: Path) -> None:
    talking, masking, ids = parts
    segment.save(talking, masking, tmp_path)
    # other sizes are asked for: the saved ones count
    again, mask_again, ids_again = segment.assemble(llava.Config(), sam.Config(), {"run": tmp_path}, ["[SEG]"])
    assert ids_again == ids
    for old, new in ((talking, again), (masking, mask_again)):
        shapes = {name: value.shape for name, value in old.state_dict().items()}
        assert {name: value.shape for name, value in new.state_dict().items()} == shapes


def test_trained_parts_are_taken(tmp_path: Path) -> None:
    torch.manual_seed(7)
    wide = forensic.Config(width=16)
    traces = forensic.build(wide, {})
    folders = {name: tmp_path / name for name in ("forensic", "llava", "sam")}
    for folder in folders.values():
        folder.mkdir()
    backbones.save(traces, "forensic", wide, folders["forensic"])
    language = llava.build(llava.SMALL, {"forensic": folders["forensic"]})
    masks = sam.build(sam.SMALL, {"forensic": folders["forensic"]})
    backbones.save(language, "llava", llava.SMALL, folders["llava"])
    backbones.save(masks, "sam", sam.SMALL, folders["sam"])
    assets = {"backbone": folders["llava"], "sam": folders["sam"]}
    talking, masking, _ = segment.assemble(llava.SMALL, sam.SMALL, assets, ["[SEG]"])
    assert talking.forensic is not None
    assert talking.forensic.width == 17
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(talking.forensic.tokens(image, 4), traces.tokens(image, 4))
    kept = dict(masks.model.named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in masking.model.named_parameters())
    segment.save(talking, masking, tmp_path)
    again, _, _ = segment.assemble(llava.SMALL, sam.SMALL, {"run": tmp_path}, ["[SEG]"])
    again.load_state_dict(talking.state_dict())


def test_layers_between_are_new_where_none_were_trained(tmp_path: Path) -> None:
    torch.manual_seed(2)
    folder = tmp_path / "llava"
    folder.mkdir()
    backbones.save(llava.build(llava.SMALL, {}), "llava", llava.SMALL, folder)
    talking, segmenter, ids = segment.grounded(llava.SMALL, sam.SMALL, {"backbone": folder}, ["[SEG]"])
    assert segmenter.text_hidden_fcs[0].in_features == talking.width
    assert segmenter.sam.forensic is None
    assert talking.encode("[SEG]") == ids


def test_what_does_not_talk_is_refused(tmp_path: Path) -> None:
    masks = sam.build(sam.SMALL, {})
    backbones.save(masks, "sam", sam.SMALL, tmp_path)
    with pytest.raises(ValueError, match="lisa are accepted"):
        segment.assemble(llava.SMALL, sam.SMALL, {"backbone": tmp_path}, ["[SEG]"])
