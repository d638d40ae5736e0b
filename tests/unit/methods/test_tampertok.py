"""TamperTok at a tiny size: what is learnt, what is written, how it is decoded, what is saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from unforge import backbones, counts, explanations, masks, methods
from unforge.backbones import internvl
from unforge.methods import tampertok
from unforge.methods.tampertok import VARIANTS, answers
from unforge.types import Batch

MODEL = dataclasses.replace(
    internvl.SMALL, grid=4, patch=1, vision_width=16, vision_heads=2, vision_hidden=16, width=16, depth=1, heads=2,
    kv_heads=1, hidden=16,
)  # fmt: skip
MASKS = dataclasses.replace(masks.SMALL, size=16, widths=(4, 4), groups=2, codes=24, latents=4)


def small(variant: str = "", assets: dict[str, Path] | None = None, **changes: Any) -> tampertok.TamperTok:
    torch.manual_seed(0)
    config = dataclasses.replace(methods.config("tampertok", variant, "small"), internvl=MODEL, masks=MASKS, **changes)
    if config.expert != "sparsevit":
        config = dataclasses.replace(config, expert="sparsevit")
    method: tampertok.TamperTok = methods.build("tampertok", config, assets)
    return method


def batch(count: int = 2, size: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(count, 1, size, size)
    mask[0, :, 4:20, 8:28] = 1
    names = tuple("abcdefgh"[:count])
    return Batch(
        image=torch.randint(0, 256, (count, 3, size, size), generator=generator) / 255, mask=mask,
        label=torch.tensor([1] + [0] * (count - 1)), key=names, unit=names, source=tuple((n,) for n in names),
    )  # fmt: skip


@pytest.mark.parametrize("variant", sorted({*VARIANTS} - {"mvss", "pscc", "k5", "k20", "explained"}))
def test_trains_every_parameter_that_requires_it(variant: str) -> None:
    method = small(variant).train()
    losses = method.loss(batch())
    assert set(losses.terms) == {"text", "ksd", "bce", "dice"}
    losses.total.backward()
    assert [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    grouped = [id(p) for group in method.parameter_groups(0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    frozen = [*method.masks.parameters(), *(method.expert.parameters() if method.expert else [])]
    assert not any(p.requires_grad for p in frozen)
    assert not method.masks.training
    assert method.expert is None or not method.expert.training


def test_what_takes_in_the_expert_learns_twice_as_fast() -> None:
    method = small()
    fast = {id(p) for g in method.parameter_groups(0.1) if g.get("lr_scale") == 2.0 for p in g["params"]}
    assert fast == {id(p) for p in method.injection.parameters()}


def test_training_starts_from_the_backbone_bit_for_bit() -> None:
    without, with_expert = small("cbd").eval(), small().eval()
    with_expert.model.load_state_dict(without.model.state_dict())
    image = batch().image
    tiles = with_expert.model.tiles(image)
    seen = with_expert.see(tiles.values, with_expert.expert_maps(tiles.shown), tiles.counts)
    assert torch.equal(seen.tokens, without.model.image_features(tiles.values))


def test_one_neighbour_is_cross_entropy() -> None:
    """K = 1: the loss of the mask tokens is the language model's own, over its whole vocabulary."""
    method = small("cbd", imitated=0.0).requires_grad_(False).eval()
    sample = batch()
    terms = method.loss(sample).terms
    tiles = method.model.tiles(sample.image)
    seen = method.see(tiles.values, (), tiles.counts)
    codes = method.masks.encode(sample.mask)
    texts = [
        answers.filled(answers.plain(kind), row) for kind, row in zip(("tampered", "real"), codes.tolist(), strict=True)
    ]
    encoded = method.encode(seen, [answers.QUESTION] * 2, texts)
    logits = method.model.network.lm_head(method.model.hidden(encoded.ids, seen.tokens)[-1])[:, :-1]
    entropy = F.cross_entropy(logits.transpose(1, 2), encoded.labels[:, 1:], reduction="none")
    code = method.words.is_code(encoded.labels[:, 1:])
    words = (encoded.labels[:, 1:] >= 0) & ~code
    assert int(code.sum()) == 2 * MASKS.latents
    assert float(terms["ksd"]) == pytest.approx(float(entropy[code].mean()), rel=1e-5)
    assert float(terms["text"]) == pytest.approx(float(entropy[words].mean()), rel=1e-5)


def test_more_neighbours_are_soft_labels() -> None:
    method = small("k5", imitated=0.0, fusion="none").requires_grad_(False).eval()
    logits = torch.randn(MASKS.latents, method.words.size)
    target = torch.randint(0, MASKS.codes, (MASKS.latents,))
    said = internvl.Answers(
        logits=torch.cat([logits, torch.zeros(1, method.words.size)]),
        target=torch.cat([target + method.words.first, torch.tensor([7])]), row=torch.zeros(MASKS.latents + 1),
    )  # fmt: skip
    found = method._losses(said, torch.zeros(1, 1, 16, 16)).terms["ksd"]
    soft = torch.zeros(MASKS.latents, method.words.size)
    soft.scatter_(1, method.near[target] + method.words.first, method.near_weights[target])
    assert method.near.shape == (MASKS.codes, 5)
    assert float(found) == pytest.approx(float(F.cross_entropy(logits, soft)), rel=1e-5)


def test_the_localisation_loss_is_that_of_the_soft_mask() -> None:
    method = small("cbd").requires_grad_(False).eval()
    logits = torch.randn(MASKS.latents, method.words.size)
    said = internvl.Answers(
        logits=torch.cat([logits, torch.zeros(1, method.words.size)]),
        target=torch.cat([torch.full((MASKS.latents,), method.words.first), torch.tensor([7])]),
        row=torch.zeros(MASKS.latents + 1),
    )  # fmt: skip
    square = (torch.rand(1, 1, 16, 16) > 0.5).float()
    losses = method._losses(said, square)
    weights = (2 * logits[None, :, method.words.first : method.words.first + MASKS.codes]).softmax(-1)
    p = method.masks.decode_soft(weights)
    assert float(losses.terms["bce"]) == pytest.approx(float(F.binary_cross_entropy(p, square)), rel=1e-4)
    total = losses.terms["text"] + losses.terms["ksd"] + losses.terms["bce"] + 0.25 * losses.terms["dice"]
    assert float(losses.total) == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize("variant", ["", "cbd", "dimension", "sequence", "hard"])
@pytest.mark.parametrize("size", [(37, 51), (1, 1)])
def test_predicts_images_of_any_size(variant: str, size: tuple[int, int]) -> None:
    method = small(variant).eval()
    image = torch.randint(0, 256, (1, 3, *size), generator=torch.Generator().manual_seed(0)) / 255
    found = method.predict(image, extras=True)
    side = max(size)
    assert found.mask.shape == (1, 1, *(max(1, round(16 * length / side)) for length in size))
    assert found.mask.min() >= 0
    assert found.mask.max() <= 1
    assert float(found.score) == float(found.mask.max())
    parsed = explanations.parse(found.text[0], MASKS.latents, MASKS.codes)
    assert parsed.tokens == tuple(found.tokens[0].tolist()), "the text says what was decoded"
    assert set(found.extras) == set(method.EXTRAS)
    assert found.extras["malformed"].tolist() == [0.0]
    if variant in ("", "hard"):
        assert sorted(found.signals) == ["i_avg_1", "i_avg_2"]
        assert all(value.shape == (1,) and float(value) > 0 for value in found.signals.values())
    else:
        assert found.signals is None
    again = method.predict(image)
    assert torch.equal(again.mask, found.mask)
    assert again.text == found.text


def test_pixels_in_tiles_as_at_paper_scale() -> None:
    """Without the forensic backbone: tiles and a thumbnail, of each of which the expert gives its own features."""
    pixels = dataclasses.replace(MODEL, grid=0, size=28, patch=7, max_tiles=2, thumbnail=True)
    torch.manual_seed(0)
    config = dataclasses.replace(methods.config("tampertok", "", "small"), internvl=pixels, masks=MASKS, imitated=0.0)
    settings = methods.config("sparsevit", "", "small")
    entry = {"method": "sparsevit", "variant": "", "scale": "small", "config": dataclasses.asdict(settings)}
    expert = methods.build("sparsevit", settings)
    method = tampertok.TamperTok(config, internvl.build(pixels, {}), masks.build(MASKS), expert, entry).eval()
    image = batch().image.repeat(1, 1, 1, 2)
    tiles = method.model.tiles(image)
    assert tiles.counts == (3, 3)
    assert [len(maps) for maps in method.expert_maps(tiles.shown)] == [6, 6]
    found = method.predict(image)
    assert found.mask.shape == (2, 1, 8, 16)
    assert found.signals["i_avg_1"].shape == (2,)
    alone = method.predict(image[1:])
    assert alone.text[0] == found.text[1]
    torch.testing.assert_close(alone.signals["i_avg_2"], found.signals["i_avg_2"][1:])
    sample = dataclasses.replace(batch(), image=image, mask=batch().mask.repeat(1, 1, 1, 2))
    method.train().loss(sample).total.backward()
    assert all(p.grad is not None for p in method.injection.parameters())


def test_soft_and_hard_decoding() -> None:
    soft, hard = small("cbd").eval(), small("cbd", decode="hard").eval()
    image = batch().image
    tiles = soft.model.tiles(image)
    written = soft.write(soft.see(tiles.values, (), tiles.counts))
    assert torch.equal(written.weights.argmax(-1), written.codes)
    assert torch.equal(hard.decode(written), soft.masks.decode(written.codes))
    mean = written.weights @ soft.masks.codebook()
    torch.testing.assert_close(soft.decode(written), soft.masks.logits(mean).sigmoid())
    assert not torch.allclose(hard.decode(written), soft.decode(written))


def test_the_cache_changes_no_answer() -> None:
    method = small("cbd").eval()
    tiles = method.model.tiles(batch().image)
    seen = method.see(tiles.values, (), tiles.counts)
    fast, slow = method.write(seen), method.write(seen, cache=False)
    assert fast.text == slow.text
    assert torch.equal(fast.codes, slow.codes)
    torch.testing.assert_close(fast.weights, slow.weights, atol=1e-5, rtol=1e-4)


def test_malformed_answers_are_empty_masks_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    method = small("free", fusion="none").eval()
    words = method.words
    good = [words.start, *(words.first + i for i in range(MASKS.latents)), words.end, words.stop]
    bad = [words.start, words.first, words.end, words.stop]

    def written(encoded: Any, *rest: Any) -> internvl.Generated:
        ids = torch.tensor([good, bad + [0] * (len(good) - len(bad))])
        return internvl.Generated(ids=ids, logits=torch.randn(2, len(good), words.size))

    monkeypatch.setattr(method.model, "generate", written)
    tiles = method.model.tiles(batch().image)
    found = method.write(method.see(tiles.values, (), tiles.counts))
    assert found.reasons[0] == ""
    assert found.reasons[1].startswith("1 mask tokens")
    assert found.codes.tolist() == [list(range(MASKS.latents)), [-1] * MASKS.latents]
    prediction = method.predict(batch().image, extras=True)
    assert prediction.mask[0].max() > 0
    assert float(prediction.mask[1].max()) == 0.0 == float(prediction.score[1])
    assert prediction.extras["malformed"].tolist() == [0.0, 1.0]
    assert prediction.text[1] == "<|mt_start|><|mt_0|><|mt_end|>"


def test_an_unconstrained_fresh_model_does_not_crash() -> None:
    prediction = small("free").eval().predict(batch().image)
    assert prediction.mask.shape == (2, 1, 16, 16)


def test_explanations_are_learnt_and_written(tmp_path: Path) -> None:
    file = tmp_path / "texts.parquet"
    text = "Conclusion: This image is tampered; I will provide the tampered-region mask. {mask}"
    pq.write_table(pa.table({"key": ["a"], "text": [text]}), file)
    method = small("explained", {"explanations": file}, fusion="none", imitated=0.0, limit=24)
    assert method.explained
    seen: list[Any] = []
    encode = method.model.encode
    method.model.encode = lambda talks, *rest: (seen.extend(talks), encode(talks, *rest))[1]  # type: ignore[method-assign]
    method.eval().loss(batch())
    (first,), (second,) = seen
    codes = method.masks.encode(batch().mask)
    assert first == (answers.EXPLAIN, answers.filled(text, codes[0].tolist()))
    assert second == (answers.QUESTION, answers.filled(answers.plain("real"), codes[1].tolist()))
    prediction = method.eval().predict(batch().image)
    assert seen[-1] == [(answers.EXPLAIN, None)]
    assert all(explanations.parse(one, MASKS.latents).tokens for one in prediction.text)
    wrong = tmp_path / "wrong.parquet"
    pq.write_table(pa.table({"name": ["a"]}), wrong)
    with pytest.raises(ValueError, match="name"):
        small("cbd", {"explanations": wrong})
    with pytest.raises(ValueError, match="explanations"):
        small("explained", fusion="none").loss(batch())


def test_turned_images_keep_their_masks_in_place() -> None:
    """What is learnt of a turned image is the turned mask: with features that are the mask itself, in training."""
    method = small("cbd", imitated=0.0).train()
    sample = batch()
    shown: list[torch.Tensor] = []
    squares: list[torch.Tensor] = []
    model, tokenizer = method.model, method.masks
    cells = F.adaptive_avg_pool2d(sample.mask, 4).expand(-1, model.forensic.width, -1, -1)
    model.tiles = lambda image: internvl.Tiles(shown=image, values=cells, counts=(1, 1))  # type: ignore[method-assign]
    features, squared = model.image_features, tokenizer.squared
    model.image_features = lambda values: (shown.append(values), features(values))[1]  # type: ignore[method-assign]
    tokenizer.squared = lambda mask: (squares.append(squared(mask)), squares[-1])[1]  # type: ignore[method-assign]
    for _ in range(4):
        method.loss(sample)
    pairs = [(values[:, :1], F.avg_pool2d(square, 4)) for values, square in zip(shown, squares[::2], strict=True)]
    assert all(torch.allclose(values, square) for values, square in pairs)
    assert any(not torch.equal(values, cells[:, :1]) for values, _ in pairs)


def test_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    method = small()
    folder = tmp_path / "run"
    folder.mkdir()
    methods.save(method, "tampertok", "", method.config, folder)
    again = methods.load(folder)
    image = batch().image[:1]
    first, second = method.eval().predict(image, extras=True), again.predict(image, extras=True)
    assert torch.equal(first.mask, second.mask)
    assert first.text == second.text
    assert first.signals == second.signals
    assert all(torch.equal(first.extras[name], second.extras[name]) for name in method.EXTRAS)
    other = dataclasses.replace(method.config, decode="hard")
    assert methods.build("tampertok", other, {"run": folder}).load_state_dict(method.state_dict())


def test_assets_are_taken_over(tmp_path: Path) -> None:
    for name in ("backbone", "codebook", "expert"):
        (tmp_path / name).mkdir()
    torch.manual_seed(7)
    model = internvl.build(MODEL, {})
    backbones.save(model, "internvl", MODEL, tmp_path / "backbone")
    model.save_files(tmp_path / "backbone")
    tokenizer = masks.build(MASKS)
    masks.save(tokenizer, tmp_path / "codebook")
    settings = methods.config("sparsevit", "stem", "small")
    expert = methods.build("sparsevit", settings)
    methods.save(expert, "sparsevit", "stem", settings, tmp_path / "expert")
    assets = {name: tmp_path / name for name in ("backbone", "codebook", "expert")}
    method = small(assets=assets)
    assert torch.equal(method.masks.codebook(), tokenizer.codebook())
    image = batch().image
    ours, own = method._maps(image), expert.eval().features(image)
    assert torch.equal(ours[0], own["third1"])
    assert torch.equal(ours[1], own["last"])
    layer = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(method.model.network.state_dict()[layer], model.network.state_dict()[layer])
    config = dataclasses.replace(method.config, expert="psccnet")
    with pytest.raises(ValueError, match="sparsevit"):
        methods.build("tampertok", config, assets)
    with pytest.raises(ValueError, match="third1"):
        small(assets=assets, maps=("first", "last"))


def test_the_configuration_at_paper_scale_on_meta_tensors() -> None:
    with torch.device("meta"):
        method = methods.build("tampertok", methods.config("tampertok", "", "paper"), {})
    sizes = {name: sum(p.numel() for p in child.parameters()) for name, child in method.named_children()}
    assert 8.08e9 < sizes["model"] < 8.09e9
    assert method.model.rows == 92553 + 1024 + 2
    assert sizes["masks"] == masks.counts()[""]
    assert 50.3e6 < sizes["expert"] < 50.4e6, "SparseViT"
    # Four layers: projections of 320 and 512 channels to 1,024 with their norms, three maps, an FFN of 4,096.
    layer = 2 * 320 + 2 * 512 + (320 + 512) * 1024 + 2 * 1024 + 3 * 1024**2 + 2 * 4096 * 1024 + 4096 + 1024
    assert sizes["injection"] == 4 * layer


def test_counts_of_the_parts_at_paper_scale() -> None:
    found = counts.of("tampertok", "cbd")
    assert set(found) == {"", "vision_tower", "projector", "language_model", "word_head", "codebook"}, "no fusion"
    parameters = {part: params for part, (params, _) in found.items()}
    # Per layer of the tower: two norms, four projections and an MLP with biases, two layer scales.
    layer = 4 * 1024 + 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 2 * 1024
    patches = 3 * 14**2 * 1024 + 1024
    assert parameters["vision_tower"] == 24 * layer + patches + 1024 + (1 + 32**2) * 1024
    # Four neighbours are joined, then 4,096 channels twice.
    assert parameters["projector"] == 2 * 4096 + 2 * (4096**2 + 4096)
    rows = 92553 + 1024 + 2
    assert parameters["word_head"] == rows * 4096
    block = 2 * 4096 + 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    assert parameters["language_model"] == 32 * block + rows * 4096 + 4096
    assert parameters["codebook"] == masks.counts()[""]
    assert parameters[""] == sum(parameters.values()) - parameters[""]
    macs = {part: count for part, (_, count) in found.items()}
    assert macs["codebook"] == 0
    assert sum(macs.values()) - macs[""] == pytest.approx(macs[""], rel=1e-9)
    matrices = 32**2 * 24 * (4 * 1024**2 + 2 * 1024 * 4096) + 24 * 2 * 1025**2 * 1024
    assert macs["vision_tower"] == pytest.approx(matrices, rel=0.01)
    # SwEI runs behind layers of the tower: its MACs are in the tower's too
    whole = counts.of("tampertok")
    assert whole["vision_tower"][0] == parameters["vision_tower"]
    assert whole["vision_tower"][1] - macs["vision_tower"] == pytest.approx(whole["injection"][1], rel=1e-6)
    assert whole["injection"][1] > 4 * 32**2 * (2 * 1024 * 4096 + 3 * 1024**2)
    assert whole["expert"][0] == counts.of("sparsevit")[""][0]
    assert whole["expert"][1] > 0


def test_variants_are_the_papers_rows() -> None:
    full = methods.config("tampertok", "", "paper")
    assert (full.k, full.fusion, full.expert, full.decode) == (10, "swei", "sparsevit", "soft")
    assert methods.config("tampertok", "cbd", "small").fusion == "none"
    assert methods.config("tampertok", "cbd", "small").k == 1
    assert [methods.config("tampertok", v, "paper").expert for v in ("mvss", "pscc")] == ["mvssnet", "psccnet"]
    recipe = full.recipe
    assert (recipe.optimiser, recipe.lr, recipe.weight_decay) == ("adamw", 2e-5, 0.05)
    assert full.swei_lr * recipe.lr == 4e-5
