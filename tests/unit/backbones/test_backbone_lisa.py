"""LISA as a backbone: what learns, its loss by the parts' own, that it learns, and that methods start from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from unforge import backbones
from unforge.backbones import forensic, lisa, llava, sam, segment, words
from unforge.types import Batch

LANGUAGE = llava.Config(
    vision_width=16, vision_layers=3, vision_heads=2, vision_mlp=32, image_size=28, patch=14, width=32, layers=2,
    heads=2, mlp=48, vocabulary=0, positions=128, init=0.2, template="<image>{prompt}",
)  # fmt: skip
MASKS = sam.Config(
    width=16, layers=2, heads=2, mlp=32, window=2, global_layers=(1,), image_size=64, patch=16, prompt=16,
    decoder_heads=2, decoder_mlp=32, init=0.1,
)  # fmt: skip
PIXELS = lisa.Config(language=LANGUAGE, masks=MASKS)


@pytest.fixture
def model() -> lisa.Grounded:
    torch.manual_seed(0)
    return lisa.build(PIXELS, {})


def batch(image: Tensor, mask: Tensor | None) -> Batch:
    names = tuple(map(str, range(len(image))))
    label = torch.ones(len(image), dtype=torch.int64) if mask is None else mask.flatten(1).any(1).long()
    return Batch(image=image, mask=mask, label=label, key=names, unit=names, source=tuple((n,) for n in names))


def sample() -> Batch:
    mask = torch.zeros(2, 1, 64, 64)
    mask[1, :, :32, :32] = 1
    return batch(0.3 + 0.4 * mask.repeat(1, 3, 1, 1), mask)


def test_towers_stay_and_the_rest_learns(model: lisa.Grounded) -> None:
    model.loss(sample()).total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition("layers.")[0] or ".".join(name.split(".")[:4]) for name in reached} == {
        "llava.model.model.language_model",
        "llava.model.model.language_model.",
        "llava.model.lm_head.weight",
        "segmenter.sam.model.mask_decoder",
        "segmenter.sam.model.mask_decoder.output_hypernetworks_mlps.0.",
        "segmenter.sam.model.mask_decoder.transformer.",
        "segmenter.text_hidden_fcs.0.weight",
        "segmenter.text_hidden_fcs.0.bias",
        "segmenter.text_hidden_fcs.2.weight",
        "segmenter.text_hidden_fcs.2.bias",
    }
    held = [id(p) for group in model.parameter_groups(0.1) for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_the_loss_is_that_of_its_parts(model: lisa.Grounded) -> None:
    one = sample()
    model.eval()
    with torch.no_grad():
        found = model.loss(one)
        logits = model(one.image)
        p = logits.sigmoid()
        # the state that predicts [SEG] is the one before it
        said = model.llava.sequences([lisa.QUESTION] * 2, ["It is [SEG]."] * 2)
        last = model.llava.run(model.llava.prepared(one.image), said.ids).last
        place = said.ids[0].tolist().index(model.token)
        prompt = model.segmenter.prompt(last[:, place - 1])
        shown = model.segmenter.sam.prepared(one.image)
        assert torch.allclose(logits, model.segmenter.logits(shown, prompt, (64, 64)), atol=1e-5)
    bce = F.binary_cross_entropy(p, one.mask)
    both = 2 * (p * one.mask).flatten(1).sum(1) / 1000
    dice = 1 - (both + 1e-6) / ((p.flatten(1).sum(1) + one.mask.flatten(1).sum(1)) / 1000 + 1e-6)
    assert float(found.terms["bce"]) == pytest.approx(float(bce), rel=1e-4)
    assert float(found.terms["dice"]) == pytest.approx(float(dice.mean()), rel=1e-4)
    weighed = found.terms["ce"] + 2 * found.terms["bce"] + 0.5 * found.terms["dice"]
    assert float(found.total) == pytest.approx(float(weighed), rel=1e-6)
    with pytest.raises(ValueError, match="masks"):
        model.loss(batch(one.image, None))


def test_it_learns_to_answer_and_to_segment(model: lisa.Grounded) -> None:
    one = sample()
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        terms = model.loss(one).terms
        model.loss(one).total.backward()
        optimiser.step()
    assert terms["ce"] < 0.05
    model.eval()
    answers = model.llava.generate(model.llava.prepared(one.image), lisa.QUESTION, 6)
    assert model.llava.text(answers.ids[1]) == "It is [SEG]."
    with torch.no_grad():
        p = model(one.image).sigmoid()
    assert float((p[0] > 0.5).float().mean()) < 0.02
    assert float(((p[1] > 0.5) == one.mask[1].bool()).float().mean()) > 0.9


def test_the_small_one_starts_from_trained_parts_and_is_read_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    folders = {name: tmp_path / name for name in ("forensic", "llava", "sam", "lisa")}
    for folder in folders.values():
        folder.mkdir()
    backbones.save(forensic.build(forensic.SMALL, {}), "forensic", forensic.SMALL, folders["forensic"])
    language = llava.build(llava.SMALL, {"forensic": folders["forensic"]})
    masks = sam.build(sam.SMALL, {"forensic": folders["forensic"]})
    backbones.save(language, "llava", llava.SMALL, folders["llava"])
    backbones.save(masks, "sam", sam.SMALL, folders["sam"])
    model = lisa.build(lisa.SMALL, {name: folders[name] for name in lisa.NEEDS}).eval()
    kept = dict(language.model.named_parameters())
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert torch.equal(dict(model.llava.model.named_parameters())[name], kept[name])
    assert torch.equal(
        model.segmenter.sam.model.mask_decoder.iou_token.weight, masks.model.mask_decoder.iou_token.weight
    )
    backbones.save(model, "lisa", lisa.SMALL, folders["lisa"])
    again = backbones.load(folders["lisa"])
    assert isinstance(again, lisa.Grounded)
    assert again.config == lisa.SMALL
    image = torch.rand(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    # a method takes all of it, [SEG] with its embedding, and keeps what it adds beside it
    talking, segmenter, ids = segment.grounded(
        llava.SMALL, sam.SMALL, {"backbone": folders["lisa"]}, ["[CLS]", "[SEG]"]
    )
    assert ids == [model.token + 1, model.token]
    rows = model.llava.model.get_input_embeddings().weight
    assert torch.equal(talking.model.get_input_embeddings().weight[: len(rows)], rows)
    state = model.segmenter.state_dict()
    assert all(torch.equal(state[key], value) for key, value in segmenter.state_dict().items())
    # and makes itself anew from its own folder, whatever it started from
    run = tmp_path / "run"
    segment.save(talking, segmenter.sam, run)
    talking_again, segmenter_again, ids_again = segment.grounded(llava.Config(), sam.Config(), {"run": run}, ["[CLS]"])
    assert ids_again == ids[:1]
    talking_again.load_state_dict(talking.state_dict())
    segmenter_again.load_state_dict(segmenter.state_dict())


def test_released_parts_are_read(model: lisa.Grounded, tmp_path: Path) -> None:
    language = llava.build(LANGUAGE, {})
    language.model.save_pretrained(tmp_path / "llava")
    words.save(language.tokenizer, tmp_path / "llava")
    model.segmenter.sam.model.save_pretrained(tmp_path / "sam")
    with pytest.raises(FileNotFoundError, match="text_hidden_fcs"):
        lisa.build(PIXELS, {"checkpoint": tmp_path})
    state = model.segmenter.text_hidden_fcs.state_dict()
    official = {f"model.text_hidden_fcs.0.{name}": value for name, value in state.items()}
    assert sorted(official)[0] == "model.text_hidden_fcs.0.0.bias"
    save_file(official, tmp_path / lisa.PROMPTS)
    loaded = lisa.build(dataclasses.replace(PIXELS, masks=sam.Config()), {"checkpoint": tmp_path})
    assert loaded.segmenter.sam.config.image_size == 64
    for name, value in loaded.segmenter.state_dict().items():
        assert torch.equal(value, model.segmenter.state_dict()[name])
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(dict(loaded.llava.model.named_parameters())[name], dict(language.model.named_parameters())[name])
    assert loaded.llava.encode("[SEG]") == [loaded.token]
