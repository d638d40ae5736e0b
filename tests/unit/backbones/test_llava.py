"""LLaVA: against transformers' own forward and generation; answers by hand."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from unforge import backbones, explanations, paths
from unforge.backbones import llava, words
from unforge.types import Batch

PIXELS = llava.Config(
    vision_width=16, vision_layers=3, vision_heads=2, vision_mlp=32, image_size=28, patch=14, width=32, layers=2,
    heads=2, mlp=48, vocabulary=0, positions=128, init=0.2, template="user <image>{prompt} assistant",
)  # fmt: skip


@pytest.fixture(scope="module")
def small() -> llava.Llava:
    torch.manual_seed(0)
    return llava.build(llava.SMALL, {}).eval()


@pytest.fixture(scope="module")
def pixels() -> llava.Llava:
    torch.manual_seed(0)
    return llava.build(PIXELS, {}).eval()


def batch(images: Tensor, mask: Tensor | None) -> Batch:
    names = tuple(map(str, range(len(images))))
    label = torch.ones(len(images), dtype=torch.int64) if mask is None else mask.flatten(1).any(1).long()
    return Batch(image=images, mask=mask, label=label, key=names, unit=names, source=tuple((n,) for n in names))


@pytest.mark.parametrize("which", ["small", "pixels"])
def test_one_pass_is_that_of_transformers(which: str, request: pytest.FixtureRequest) -> None:
    model: llava.Llava = request.getfixturevalue(which)
    shown = model.prepared(torch.rand(2, 3, 40, 48))
    ids = model.sequences([llava.QUESTION] * 2).ids
    with torch.no_grad():
        states = model.run(shown, ids, layers=True)
        expected = model.model(input_ids=ids, pixel_values=shown, output_hidden_states=True)
    assert torch.allclose(model.logits(states.last), expected.logits, atol=1e-5)
    assert torch.allclose(states.layers[1], expected.hidden_states[1], atol=1e-5)
    # the projected features stand where the image tokens stand
    image = ids[0] == model.model.config.image_token_id
    assert torch.equal(states.at_image(0), states.layers[0][:, image])
    assert torch.allclose(states.at_image(0), model.model.model.multi_modal_projector(states.vision), atol=1e-6)
    assert states.vision.shape == (2, model.config.tokens, model.config.vision_width)


def test_features_are_the_layer_before_the_last_without_the_class_token(pixels: llava.Llava) -> None:
    shown = pixels.prepared(torch.rand(1, 3, 28, 28))
    with torch.no_grad():
        out = pixels.model.model.vision_tower(shown, output_hidden_states=True)
        assert torch.equal(pixels.features(shown), out.hidden_states[2][:, 1:])


def test_the_anchor_is_the_penultimate_layer_or_the_frozen_tokens(small: llava.Llava, pixels: llava.Llava) -> None:
    ids = pixels.sequences([llava.QUESTION]).ids
    shown = pixels.prepared(torch.rand(1, 3, 28, 28))
    hidden = pixels.model.model.vision_tower(shown, output_hidden_states=True).hidden_states
    states = pixels.run(shown, ids)
    assert torch.equal(states.anchor, hidden[-2][:, 1:])
    assert torch.equal(states.anchor, pixels.anchor(shown))
    assert not states.anchor.requires_grad
    assert (pixels.anchor_width, pixels.side) == (16, 2)
    image = torch.rand(1, 3, 40, 60)
    shown = small.prepared(image)
    assert small.forensic is not None
    tokens = small.forensic.tokens(image, 16)
    assert torch.equal(small.anchor(shown), tokens)
    assert torch.equal(small.run(shown, small.sequences([llava.QUESTION]).ids).anchor, tokens)
    assert (small.anchor_width, small.side) == (33, 16)


def test_the_part_of_an_image_that_is_seen(small: llava.Llava, pixels: llava.Llava) -> None:
    assert pixels.region((100, 400)) == (0, 0.375, 1, 0.625)
    assert pixels.region((90, 60)) == pytest.approx((1 / 6, 0, 5 / 6, 1))
    assert small.region((100, 400)) == (0, 0, 1, 1)
    # a square in the middle of the long side, with the part's own ends, is all of what is seen
    striped = torch.zeros(1, 3, 28, 112)
    striped[..., 42:70] = 1
    assert torch.allclose(pixels.prepared(striped), ((1 - pixels.mean) / pixels.std).expand(1, 3, 28, 28), atol=1e-5)


def test_padding_changes_nothing_before_it(pixels: llava.Llava) -> None:
    shown = pixels.prepared(torch.rand(2, 3, 28, 28))
    short = pixels.sequences(["Is it real?"], ["The image is real."])
    answers = ["The image is real.", "The image is tampered at top left, middle center."]
    both = pixels.sequences(["Is it real?"] * 2, answers)
    with torch.no_grad():
        alone, together = pixels.run(shown[:1], short.ids), pixels.run(shown, both.ids)
        assert torch.allclose(alone.last[0], together.last[0, : short.ids.shape[1]], atol=1e-5)
        # only the answer and the end are learnt
        learnt = [pixels.text(row[row != llava.IGNORED]) for row in both.labels]
        assert learnt == answers
        # the loss is the mean over all answers' tokens of the log probability that the state before them gives
        logits = pixels.model(input_ids=both.ids, pixel_values=shown).logits.log_softmax(-1)
        told = [-logits[b, t - 1, both.ids[b, t]] for b, t in (both.labels != llava.IGNORED).nonzero().tolist()]
        assert pixels.cross_entropy(together, both).item() == pytest.approx(torch.stack(told).mean().item(), rel=1e-5)


def test_generation_is_that_of_transformers(pixels: llava.Llava) -> None:
    shown = pixels.prepared(torch.rand(2, 3, 33, 28))
    found = pixels.generate(shown, llava.QUESTION, 6)
    ids = pixels.sequences([llava.QUESTION] * 2).ids
    expected = pixels.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown, max_new_tokens=6, do_sample=False
    )[:, ids.shape[1] :]
    assert torch.equal(found.ids, expected)
    # the states are those that produce the tokens
    assert torch.equal(pixels.logits(found.states).argmax(-1), found.ids)


def test_the_state_before_a_token_is_the_one_that_predicts_it(pixels: llava.Llava) -> None:
    ids = torch.tensor([[5, 9, 7, 9], [5, 6, 7, 8]])
    last = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    states = llava.States(last=last, vision=last, anchor=last, image=slice(0, 1))
    state, present = pixels.before(states, ids, 9)
    assert torch.equal(state[0], last[0, 0])
    assert present.tolist() == [True, False]


def test_whole_images_of_any_shape_are_seen(small: llava.Llava, pixels: llava.Llava) -> None:
    for shape in ((1, 1), (40, 13), (100, 28)):
        image = torch.rand(1, 3, *shape)
        assert pixels.prepared(image).shape == (1, 3, 28, 28)
        assert small.prepared(image).shape[2:] == (16, 16)
    # the centre of the long side; a constant image is normalised with CLIP's mean and deviation
    striped = torch.zeros(1, 3, 28, 84)
    striped[..., 28:56] = 1
    assert torch.allclose(pixels.prepared(striped), ((1 - pixels.mean) / pixels.std).expand(1, 3, 28, 28), atol=1e-5)


def test_classes() -> None:
    mask = torch.zeros(4, 1, 4, 4)
    mask[1], mask[2, :, 0, 0] = 1, 1
    label = torch.tensor([0, 1, 1, 1])
    assert llava.three_classes(label, mask).tolist() == [0, 1, 2, 2]


def test_answers_by_hand() -> None:
    mask = torch.zeros(1, 9, 9)
    assert llava.answer(llava.REAL, mask) == "The image is real."
    mask[:, 0, 8] = 1
    assert llava.answer(llava.TAMPERED, mask) == "The image is tampered at top right."
    mask[:, 3:6, :3] = 1
    mask[:, 6:9, 1] = 1
    assert llava.answer(llava.TAMPERED, mask) == "The image is tampered at middle left, bottom left."
    assert llava.answer(llava.SYNTHETIC, mask) == "The image is fully synthetic."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The image is real.", 0),
        ("the image is fully synthetic , tampered", 1),
        ("Tampered: real colours", 2),
        ("unreal realism", None),
        ("", None),
    ],
)
def test_verdicts(text: str, expected: int | None) -> None:
    assert llava.verdict(text) == expected


def test_the_small_vocabulary_covers_what_is_said() -> None:
    tokenizer = words.build(llava.texts(), [llava.IMAGE])
    everywhere = llava.answer(llava.TAMPERED, torch.ones(1, 9, 9))
    explained = explanations.CONCLUSIONS["tampered"] + "\n" + explanations.SECTIONS[0] + ": " + explanations.NOTHING[1]
    for text in (*llava.INSTRUCTIONS, *llava.VERDICTS, " " + everywhere, explained):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_low_rank_updates_touch_query_and_value_only() -> None:
    torch.manual_seed(0)
    model = llava.build(PIXELS, {}).eval()
    shown, ids = model.prepared(torch.rand(1, 3, 28, 28)), model.sequences([llava.QUESTION]).ids
    with torch.no_grad():
        before = model.run(shown, ids).last
        model.add_lora(4, 8.0, 0.5)
        assert torch.equal(model.run(shown, ids).last, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in trained} == {"q_proj", "v_proj"}
    assert all("language_model" in name for name in trained)
    # two matrices of rank 4 for each of 2 projections in 2 layers
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * 2 * 2 * 4 * 32


def test_new_tokens_are_single_and_added_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = llava.build(PIXELS, {})
    old = model.model.get_input_embeddings().weight.detach().clone()
    ids = model.add_tokens(["[SEG]", "[CLS]"])
    assert model.encode("[CLS]") == [ids[1]]
    assert ids == [len(old), len(old) + 1]
    assert torch.equal(model.model.get_input_embeddings().weight[: len(old)], old)
    assert model.add_tokens(["[SEG]", "[CLS]"]) == ids
    model.save_files(tmp_path)
    again = llava.build(PIXELS, {"run": tmp_path})
    assert again.add_tokens(["[SEG]", "[CLS]"]) == ids
    assert again.state_dict().keys() == model.state_dict().keys()


def test_it_learns_to_tell_in_words() -> None:
    torch.manual_seed(0)
    model = llava.build(dataclasses.replace(PIXELS, vision_layers=2), {})
    mask = torch.zeros(3, 1, 28, 28)
    mask[1], mask[2, :, :14, :14] = 1, 1
    one = batch(0.3 + 0.4 * mask.repeat(1, 3, 1, 1), mask)
    optimiser = torch.optim.Adam(model.parameter_groups(0.0), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.loss(one)
        loss.total.backward()
        optimiser.step()
    assert loss.terms["verdict"] == 1
    answers = model.eval().generate(model.prepared(one.image), llava.QUESTION, 24)
    assert model.text(answers.ids[1]) == "The image is fully synthetic."
    assert llava.verdict(model.text(answers.ids[2])) == llava.TAMPERED


def test_without_masks_it_says_so(pixels: llava.Llava) -> None:
    with pytest.raises(ValueError, match="masks"):
        pixels.loss(batch(torch.rand(1, 3, 28, 28), None))


def test_saved_and_loaded_it_is_the_same(small: llava.Llava, tmp_path: Path) -> None:
    backbones.save(small, "llava", llava.SMALL, tmp_path)
    again = backbones.load(tmp_path)
    state = small.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in again.state_dict().items())
    assert again.tokenizer.get_vocab() == small.tokenizer.get_vocab()
    files = sorted(path.name for path in tmp_path.rglob("*"))
    backbones.save(again, "llava", llava.SMALL, tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == files


def test_what_is_saved_of_the_small_one_stays_as_it_is(small: llava.Llava, tmp_path: Path) -> None:
    """Folders trained earlier are read by it, and equal weights give equal bytes."""
    backbones.save(small, "llava", llava.SMALL, tmp_path)
    saved = paths.read_json(tmp_path / "config.json")
    assert saved["backbone"] == "llava"
    assert sorted(saved["config"]) == [
        "feature_layer", "forensic", "gradient_checkpointing", "heads", "image_size", "init", "layers", "mlp", "patch",
        "positions", "recipe", "template", "vision_heads", "vision_layers", "vision_mlp", "vision_width", "vocabulary",
        "width",
    ]  # fmt: skip
    assert paths.read_json(tmp_path / "llava.json")["config"] == saved["config"]
    vision = "model.model.vision_tower."
    names = set(small.state_dict())
    assert {
        "forensic.head.weight",
        "model.lm_head.weight",
        "model.model.language_model.layers.1.mlp.up_proj.weight",
    } <= names
    assert {f"{vision}embeddings.class_embedding", f"{vision}encoder.layers.1.self_attn.q_proj.weight"} <= names
    trained = paths.root() / paths.backbone("small", "llava")
    if not trained.is_dir():
        return
    again = tmp_path / "again"
    again.mkdir()
    loaded = backbones.load(trained)
    backbones.save(loaded, "llava", loaded.config, again)
    for name in ("model.safetensors", "config.json", "llava.json", "forensic.json"):
        assert (again / name).read_bytes() == (trained / name).read_bytes()


def test_an_official_checkpoint_is_read_by_its_own_names(pixels: llava.Llava, tmp_path: Path) -> None:
    pixels.model.save_pretrained(tmp_path)
    words.save(pixels.tokenizer, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    # llava-hf/llava-1.5-7b-hf has its vision tower's tensors one module deeper than transformers writes them today
    older = re.compile(r"^vision_tower\.(?!vision_model\.)")
    official = {older.sub("vision_tower.vision_model.", name): value for name, value in state.items()}
    assert {
        "language_model.lm_head.weight",
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.pre_layrnorm.weight",
    } <= set(official)
    save_file(official, tmp_path / "model.safetensors", {"format": "pt"})
    # other sizes are asked for: the checkpoint's count
    asked = llava.Config(template=PIXELS.template)
    loaded = llava.build(asked, {"checkpoint": tmp_path}).eval()
    shown, ids = pixels.prepared(torch.rand(1, 3, 30, 28)), pixels.sequences([llava.QUESTION]).ids
    with torch.no_grad():
        assert torch.equal(loaded.prepared(torch.ones(1, 3, 9, 9)), pixels.prepared(torch.ones(1, 3, 9, 9)))
        assert torch.equal(loaded.run(shown, loaded.sequences([llava.QUESTION]).ids).last, pixels.run(shown, ids).last)
    kept = tmp_path / "kept"
    kept.mkdir()
    loaded.add_tokens(["[SEG]"])
    backbones.save(loaded, "llava", asked, kept)
    again = backbones.load(kept)
    with torch.no_grad():
        assert torch.equal(again.run(shown, ids).last, loaded.run(shown, ids).last)


def test_checkpointed_gradients_are_the_same(pixels: llava.Llava) -> None:
    torch.manual_seed(0)
    again = llava.build(dataclasses.replace(PIXELS, gradient_checkpointing=True), {}).train()
    again.load_state_dict(pixels.state_dict())
    mask = F.pad(torch.ones(1, 1, 14, 14), (0, 14, 0, 14))
    one = batch(torch.rand(1, 3, 28, 28), mask)
    found = []
    for model in (pixels, again):
        model.zero_grad()
        model.loss(one).total.backward()
        found.append(model.model.model.language_model.layers[0].self_attn.q_proj.weight.grad.clone())
    pixels.zero_grad()
    assert torch.allclose(*found, atol=1e-6)


def test_the_paper_s_sizes() -> None:
    with torch.device("meta"):
        model = llava.build(llava.Config(), {}).model
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    # Vicuna-7B: 6,738,415,616 with its last layer; CLIP-L/14-224: 303.2 M
    assert count["language_model"] + model.lm_head.weight.numel() == 6_738_415_616
    assert round(count["vision_tower"] / 1e6, 1) == 303.2
