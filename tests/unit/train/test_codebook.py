"""Tokenizers and inverse decoders as artefacts: what is learnt, written and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from unforge import paths, seeds, shards, tokenizers
from unforge.profiles import Machine
from unforge.train import codebook, invert
from unforge.train.distributed import World
from unforge.types import Sample

MACHINE = Machine(device="cpu", dtype="float32", threads=1, workers=0)
WORLD = World(device=torch.device("cpu"))
VALUES = {"steps": 12, "batch": 4, "checkpoint_every": 6}


@pytest.fixture
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> shards.ShardSet:
    monkeypatch.chdir(tmp_path)
    samples = []
    for i in range(24):
        rng = seeds.generator(0, str(i), "view")
        ramp = np.linspace(0, 255, 32)[:, None, None] * rng.random(3) + rng.integers(0, 60, (1, 32, 1))
        image = shards.encode_png(np.clip(ramp, 0, 255).astype(np.uint8))
        samples.append(
            Sample(
                key=f"views-{i:02}", image=image, extension="png", mask=None, label=0, kind="authentic",
                source=(f"p{i}",), unit=f"views-{i:02}", split="val" if i % 4 == 0 else "train",
            )
        )  # fmt: skip
    shards.write(tmp_path / "views", samples, name="views", data="stand_in", version="1")
    return shards.ShardSet(tmp_path / "views")


def learnt(name: str, views: shards.ShardSet) -> Path:
    target = paths.codebook("tiny", name)
    codebook.learn(name, VALUES, views, target, machine=MACHINE, seed=0, world=WORLD)
    return target


def test_a_tokenizer_is_written_with_what_it_does_on_views_it_has_not_seen(views: shards.ShardSet) -> None:
    target = learnt("taming", views)
    tokenizer = tokenizers.load(target)
    said = paths.read_json(target / "meta.json")["config"]["measured"]
    val = codebook.pixels(views, "val")
    assert val.shape == (6, 3, 32, 32)
    with torch.no_grad():
        error = (tokenizer.to_image(tokenizer.quantize(tokenizer.encode(val)).features) - val).square().mean((1, 2, 3))
    assert said["psnr"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    assert 1 < said["used"] <= 512  # started from data: it did not collapse
    assert pq.read_table(target / "log.parquet").num_rows
    again = target.with_name("again")
    target.rename(again)
    assert (learnt("taming", views) / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert not list((Path(".unforge") / "resume").glob("*"))


def test_a_tokenizer_made_of_another_one_has_its_weights(views: shards.ShardSet) -> None:
    taming = tokenizers.load(learnt("taming", views))
    made = tokenizers.load(learnt("vqdiffusion", views))
    assert torch.equal(made.encoder.state_dict()["conv_in.weight"], taming.encoder.state_dict()["conv_in.weight"])
    val = codebook.pixels(views, "val")
    with torch.no_grad():
        assert torch.equal(made.encode(val), taming.encode(val))
    inputs = paths.read_json(paths.codebook("tiny", "vqdiffusion") / "meta.json")["inputs"]
    assert inputs["models/tiny/codebooks/taming"] == paths.sha256(
        paths.codebook("tiny", "taming") / "model.safetensors"
    )


def test_released_weights_are_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"get vae_ch160v4096z32\.pth and give path and SHA-256 .* codebook\.var"):
        codebook.released("var", tmp_path / "var", file=None, sha256=None)
    with pytest.raises(ValueError, match=r"taming_vqvae_974\.pt"):
        codebook.released("vqdiffusion", tmp_path / "vq", file="x", sha256="y", mapping=None)
    assert not list(tmp_path.iterdir())


def generated(tokenizer: tokenizers.Tokenizer, folder: Path, tokens: bool = True) -> shards.ShardSet:
    samples = []
    for i in range(16):
        drawn = torch.from_numpy(seeds.generator(0, str(i), "tokens").integers(0, 512, (1, 64)))
        with torch.no_grad():
            pixels = tokenizer.to_image(tokenizer.lookup(drawn))[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        samples.append(
            Sample(
                key=f"taming-{i:02}", image=shards.encode_png(pixels), extension="png", mask=None, label=1,
                kind="generated", origin="taming", source=(f"taming-{i:02}",), unit=f"taming-{i:02}",
                split="val" if i % 4 == 0 else "train",
                tokens=shards.encode_npy(drawn[0].numpy()) if tokens else None,
            )
        )  # fmt: skip
    shards.write(folder, samples, name="generated_taming", data="stand_in", version="1")
    return shards.ShardSet(folder)


def test_an_inverse_decoder_comes_nearer_to_the_features(views: shards.ShardSet, tmp_path: Path) -> None:
    folder = learnt("taming", views)
    images = generated(tokenizers.load(folder), tmp_path / "generated_taming")
    values = {"steps": 30, "batch": 8, "lr": 2e-3, "validate_every": 10, "checkpoint_every": 10}
    for augmented in (False, True):
        target = paths.inverse("tiny", "taming_augmented" if augmented else "taming")
        invert.learn("taming", augmented, values, folder, images, target, machine=MACHINE, seed=0, world=WORLD)
        said = paths.read_json(target / "meta.json")["config"]
        assert said["after"] < said["before"]
        assert said["images"] == 12  # those of split val are not learnt from
    weights = [(paths.inverse("tiny", n) / "inverse.safetensors").read_bytes() for n in ("taming", "taming_augmented")]
    assert weights[0] != weights[1]


def test_images_without_tokens_cannot_be_learnt_from(views: shards.ShardSet, tmp_path: Path) -> None:
    folder = learnt("taming", views)
    images = generated(tokenizers.load(folder), tmp_path / "generated_taming", tokens=False)
    with pytest.raises(ValueError, match="no image of split 'train' with its tokens"):
        invert.pairs(images, "train")
    with pytest.raises(ValueError, match="the tokens of taming-00 are not known"):
        images.tokens("taming-00")
