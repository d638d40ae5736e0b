"""InternVL through transformers: text, labels, generation, adapters, checkpoints, counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from unforge import backbones
from unforge.backbones import describe, forensic, internvl, words
from unforge.types import Batch

TINY = dataclasses.replace(
    internvl.SMALL, grid=4, patch=1, vision_width=16, vision_depth=2, vision_heads=2, vision_hidden=16, width=16,
    depth=2, heads=2, kv_heads=1, hidden=16,
)  # fmt: skip
PIXELS = dataclasses.replace(TINY, grid=0, size=28, patch=7, max_tiles=4, thumbnail=True, system="You look.")


@pytest.fixture
def model() -> internvl.InternVL:
    torch.manual_seed(0)
    return internvl.build(TINY, {}).eval()


def images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1)) / 255


def asked(model: internvl.InternVL, count: int = 2, question: str = "Where is it?") -> tuple[internvl.Encoded, ...]:
    seen = model.tiles(images(count))
    features = model.image_features(seen.values)
    encoded = model.encode([[(question, None)]] * count, [features.shape[1]] * count, features.device)
    return encoded, features


def test_the_small_tower_runs_on_forensic_tokens(model: internvl.InternVL) -> None:
    image = images(2, 40, 24)
    assert model.forensic is not None
    values = model.tiles(image).values
    assert torch.equal(values.flatten(2).transpose(1, 2), model.forensic.tokens(image, 4))
    assert model.image_features(values).shape == (2, 4, 16) == (2, model.tile_tokens, model.width)
    embedding = model.network.model.vision_tower.embeddings.patch_embeddings.projection
    assert (embedding.kernel_size, embedding.in_channels) == ((1, 1), model.forensic.width)
    assert not any(p.requires_grad for p in model.forensic.parameters())


def test_tiles_and_thumbnail_at_paper_scale() -> None:
    model = internvl.build(PIXELS, {}).eval()
    seen = model.tiles(images(2, 40, 80))
    assert seen.counts == (3, 3)
    assert seen.shown.shape == seen.values.shape == (6, 3, 28, 28)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen.values, (seen.shown - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert model.image_features(seen.values).shape == (6, 4, 16)


def test_the_chat_is_internvls() -> None:
    model = internvl.build(PIXELS, {})
    assert model.text([("Where?", "Here."), ("Sure?", None)], 2) == (
        "<|im_start|>system\nYou look.<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nWhere?"
        "<|im_end|>\n<|im_start|>assistant\nHere.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_labels_are_the_answers_and_their_ends(model: internvl.InternVL) -> None:
    talk = [("Is there a manipulated region?", "No."), ("Where is it?", "rows 1")]
    other = [("Where is it?", "No.")]
    encoded = model.encode([talk, other], [1, 1], torch.device("cpu"))
    whole = model.text(talk, 1)
    assert encoded.ids[0].tolist() == model.tokenizer(whole)["input_ids"]
    learnt = encoded.ids[0][encoded.labels[0] != internvl.IGNORED]
    assert model.tokenizer.decode(learnt) == "No.<|im_end|>rows 1<|im_end|>"
    assert torch.equal(learnt, encoded.labels[0][encoded.labels[0] != internvl.IGNORED])
    assert encoded.lengths[1] < encoded.lengths[0] == encoded.ids.shape[1]
    assert (encoded.ids[1, encoded.lengths[1] :] == model.tokenizer.pad_token_id).all()


def test_logits_are_those_before_each_answer_token_whatever_the_padding(model: internvl.InternVL) -> None:
    features = model.image_features(model.tiles(images(2)).values)
    short, long = [("Where is it?", "No.")], [("Where is it?", "rows 1 to 2, columns 3 to 4.")]
    alone = model.encode([short], [4], features.device)
    both = model.encode([short, long], [4, 4], features.device)
    single, joint = model(alone, features[:1]), model(both, features)
    torch.testing.assert_close(joint.logits[joint.row == 0], single.logits, atol=1e-5, rtol=1e-5)
    every = model.network.lm_head(model.hidden(alone.ids, features[:1])[-1])[0]
    place = (alone.labels[0] != internvl.IGNORED).nonzero()[:, 0]
    torch.testing.assert_close(single.logits, every[place - 1], atol=1e-5, rtol=1e-5)
    assert torch.equal(single.target, alone.labels[0, place])


def test_images_must_fit_the_text(model: internvl.InternVL) -> None:
    encoded = model.encode([[("Where is it?", None)]], [3], torch.device("cpu"))
    with pytest.raises(ValueError, match="3 image tokens"):
        model.embed(encoded.ids, torch.zeros(1, 4, 16))


def test_the_cache_changes_no_token(model: internvl.InternVL) -> None:
    encoded, features = asked(model)
    fast = model.generate(encoded, features, [1, 1], 12)
    slow = model.generate(encoded, features, [1, 1], 12, cache=False)
    assert torch.equal(fast.ids, slow.ids)
    torch.testing.assert_close(fast.logits, slow.logits, atol=1e-4, rtol=1e-4)


def test_generation_takes_the_likeliest_token_each_time(model: internvl.InternVL) -> None:
    encoded, features = asked(model)
    found = model.generate(encoded, features, [1, 1], 6).ids
    given = model.embed(encoded.ids, features)
    for step in range(found.shape[1]):
        states = model.network.model.language_model(inputs_embeds=given, use_cache=False).last_hidden_state
        best = model.network.lm_head(states[:, -1]).argmax(-1)
        assert torch.equal(best, found[:, step])
        given = torch.cat([given, model.network.get_input_embeddings()(best)[:, None]], dim=1)


def test_a_constraint_holds_and_an_answer_ends(model: internvl.InternVL) -> None:
    encoded, features = asked(model)
    end = model.id(internvl.END)

    def third_ends(written: torch.Tensor) -> torch.Tensor:
        allowed = torch.zeros(len(written), model.rows, dtype=torch.bool)
        allowed[0, end if written.shape[1] == 2 else 10] = True
        allowed[1, 11] = True
        return allowed

    made = model.generate(encoded, features, [1, 1], 5, third_ends)
    assert made.ids.tolist() == [[10, 10, end, 0, 0], [11] * 5]
    assert made.logits.shape == (2, 5, model.rows)
    assert bool(made.logits.isfinite().all()), "logits are those before the constraint"


def test_conversations_of_different_lengths_are_continued_as_if_alone(model: internvl.InternVL) -> None:
    features = model.image_features(model.tiles(images(2)).values)
    talks = [[("Where is it?", None)], [("How many cells of each row and column does it cover?", None)]]
    both = model.generate(model.encode(talks, [4, 4], features.device), features, [1, 1], 5)
    for i, talk in enumerate(talks):
        alone = model.generate(model.encode([talk], [4], features.device), features[i : i + 1], [1], 5)
        assert both.ids[i, : alone.ids.shape[1]].tolist() == alone.ids[0].tolist()


def test_new_tokens_get_rows_and_old_ones_stay(model: internvl.InternVL) -> None:
    encoded, features = asked(model)
    before, rows = model.hidden(encoded.ids, features)[-1], model.rows
    ids = model.add_tokens(["<|a|>", "<|b|>"])
    assert ids == [rows, rows + 1]
    assert (
        model.rows == rows + 2 == len(model.network.lm_head.weight) == len(model.network.get_input_embeddings().weight)
    )
    assert torch.equal(model.hidden(encoded.ids, features)[-1], before)
    assert model.add_tokens(["<|b|>"]) == [rows + 1]
    assert model.rows == rows + 2
    with pytest.raises(ValueError, match=r"<\|c\|>"):
        model.id("<|c|>")


def test_lora_starts_from_the_model_and_trains_little(model: internvl.InternVL) -> None:
    encoded, features = asked(model)
    before = model.hidden(encoded.ids, features)[-1]
    model.adapt(internvl.LoRA(rank=2, alpha=4, dropout=0.0))
    assert torch.equal(model.hidden(encoded.ids, features)[-1], before)
    language = model.network.model.language_model
    trained = {name for name, p in language.named_parameters() if p.requires_grad}
    assert "embed_tokens.weight" in trained
    adapters = {name for name in trained if "lora_" in name}
    assert len(adapters) == 2 * 2 * TINY.depth
    assert trained == adapters | {"embed_tokens.weight"}
    added = sum(p.numel() for n, p in language.named_parameters() if "lora_" in n)
    assert added == 2 * 2 * (16 + 16) + 2 * 2 * (16 + 8)


def test_it_learns_to_describe_masks(model: internvl.InternVL) -> None:
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, 8:16, 8:24] = 1
    batch = Batch(
        image=images(2), mask=mask, label=torch.tensor([1, 0]), key=("a", "b"), unit=("a", "b"), source=((), ())
    )
    model.train()
    optimiser = torch.optim.AdamW(model.parameter_groups(0.01), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model.loss(batch)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(float(loss.total.detach()))
    assert losses[-1] < 0.7 * losses[0]
    assert len(model.memory.kept) == 2, "an image is looked at once"
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    with pytest.raises(ValueError, match="mask"):
        model.loss(dataclasses.replace(batch, mask=None))


def test_turned_maps_go_together() -> None:
    torch.manual_seed(0)
    maps = torch.arange(64 * 9.0).view(64, 1, 3, 3)
    values, other = internvl.turned(maps, F.interpolate(maps, scale_factor=2, mode="nearest"))
    assert torch.equal(F.avg_pool2d(other, 2), values)
    first = {tuple((one - one.min()).flatten().tolist()) for one in values}
    assert len(first) == 8, "all eight ways occur"
    assert all(sorted(one) == list(range(9)) for one in first)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = internvl.build(dataclasses.replace(TINY, checkpointing=checkpointing), {}).train()
        encoded = model.encode([[("Where is it?", "No.")]], [4], torch.device("cpu"))
        answers = model(encoded, model.image_features(model.tiles(images(1)).values))
        F.cross_entropy(answers.logits, answers.target).backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_save_and_load(model: internvl.InternVL, tmp_path: Path) -> None:
    model.add_tokens(["<|a|>"])
    backbones.save(model, "internvl", TINY, tmp_path)
    model.save_files(tmp_path)
    again = backbones.load(tmp_path, {"run": tmp_path})
    assert isinstance(again, internvl.InternVL)
    assert again.id("<|a|>") == model.id("<|a|>")
    first, second = asked(model), asked(again)
    assert torch.equal(first[0].ids, second[0].ids)
    assert torch.equal(model.hidden(first[0].ids, first[1])[-1], again.hidden(second[0].ids, second[1])[-1])


def test_the_forensic_backbone_is_taken_over(tmp_path: Path) -> None:
    torch.manual_seed(5)
    eyes = forensic.build(forensic.SMALL, {})
    backbones.save(eyes, "forensic", forensic.SMALL, tmp_path)
    model = internvl.build(TINY, {"forensic": tmp_path})
    assert model.forensic is not None
    assert torch.equal(model.forensic.tokens(images(1), 4), eyes.tokens(images(1), 4))


def test_an_official_checkpoint_directory(tmp_path: Path) -> None:
    from transformers import InternVLForConditionalGeneration

    torch.manual_seed(0)
    tokenizer = words.build([*describe.texts(), "You look."], internvl.MARKS)
    official = InternVLForConditionalGeneration(internvl.architecture(PIXELS, len(tokenizer) + 5))
    official.save_pretrained(tmp_path)
    words.save(tokenizer, tmp_path)
    model = internvl.build(dataclasses.replace(internvl.Config(), max_tiles=2), {"checkpoint": tmp_path}).eval()
    assert (model.config.size, model.config.patch, model.rows) == (28, 7, len(tokenizer) + 5)
    values = model.tiles(images(1, 28, 28)).values
    with torch.no_grad():
        expected = official.eval().get_image_features(pixel_values=values, return_dict=True).pooler_output
        assert torch.equal(model.image_features(values), expected)
        encoded = model.encode([[("Where is it?", None)]], [4], values.device)
        logits = model.network.lm_head(model.hidden(encoded.ids, expected)[-1])
        # The official model's own way of putting an image into the text.
        official.config.image_token_id = official.model.config.image_token_id = model.id(internvl.IMAGE)
        own = official(input_ids=encoded.ids, pixel_values=values).logits
    torch.testing.assert_close(logits, own, atol=1e-5, rtol=1e-5)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        internvl.build(internvl.Config(), {"checkpoint": tmp_path / "nothing"})


def test_parameters_at_paper_scale() -> None:
    with torch.device("meta"):
        model = internvl.build(internvl.Config(), {})
    # InternViT-300M, the two-layer projector of 4,096, InternLM2.5-7B with 92,553 rows in embedding and head.
    vision = 24 * (4 * 1024**2 + 4 * 1024 + 2 * 4096 * 1024 + 4096 + 1024 + 4 * 1024 + 2 * 1024)
    vision += 1025 * 1024 + 1024 + 3 * 14 * 14 * 1024 + 1024
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    assert model.parts() == {
        "vision": vision,
        "projector": 2 * 4096 + 2 * (4096**2 + 4096),
        "language": 32 * layer + 4096 + 2 * 92553 * 4096,
    }
    assert 8.07e9 < sum(model.parts().values()) < 8.09e9
