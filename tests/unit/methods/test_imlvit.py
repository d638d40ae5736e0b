"""IML-ViT against its counts, official key names and numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.unit.methods import samples
from unforge import counts, methods
from unforge.methods import imlvit
from unforge.methods.imlvit import encoder, network


def small(variant: str = "", **changes: object) -> imlvit.IMLViT:
    torch.manual_seed(0)
    return imlvit.build(replace(methods.config("imlvit", variant, "small"), **changes), {})


def official_keys() -> set[str]:
    """Names of the released state dict, from what is known of it."""
    both = ("weight", "bias")
    keys = {"encoder_net.pos_embed"} | {f"encoder_net.patch_embed.proj.{part}" for part in both}
    for i in range(12):
        block = f"encoder_net.blocks.{i}"
        layers = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        keys |= {f"{block}.{layer}.{part}" for layer in layers for part in both}
        keys |= {f"{block}.attn.rel_pos_{axis}" for axis in "hw"}
    for plain in ("simfp_2.0", "simfp_2.1", "simfp_2.3", "simfp_3.0"):
        keys |= {f"featurePyramid_net.{plain}.{part}" for part in both}
    for conv in ("2.4", "2.5", "3.1", "3.2", "4.0", "4.1", "5.1", "5.2"):
        keys |= {f"featurePyramid_net.simfp_{conv}.{part}" for part in ("weight", "norm.weight", "norm.bias")}
    keys |= {f"predict_head.{layer}.{part}" for layer in ("linear_fuse", "norm", "linear_predict") for part in both}
    return keys | {f"predict_head.norm.{part}" for part in ("running_mean", "running_var", "num_batches_tracked")}


def test_counts_are_those_of_the_official_network() -> None:
    found = counts.of("imlvit")
    parameters = {part: params for part, (params, _) in found.items()}
    assert parameters == {"": 91_777_729, "encoder": 85_889_024, "pyramid": 5_560_000, "head": 328_705}
    # ours has norms and resizing in it
    assert found[""][1] == pytest.approx(575.98e9, rel=0.005)


def test_key_names_are_official() -> None:
    with torch.device("meta"):
        own = imlvit.build(imlvit.Config(), {}).state_dict()
    assert set(own) == official_keys()
    assert len(own) == 212
    assert own["encoder_net.pos_embed"].shape == (1, 197, 768)
    assert own["encoder_net.blocks.0.attn.rel_pos_h"].shape == (27, 64)
    assert own["encoder_net.blocks.11.attn.rel_pos_w"].shape == (127, 64)
    assert own["featurePyramid_net.simfp_2.0.weight"].shape == (768, 384, 2, 2)
    assert own["predict_head.linear_fuse.weight"].shape == (256, 1280, 1, 1)


def test_blocks_look_within_windows_or_everywhere() -> None:
    with torch.device("meta"):
        blocks = imlvit.build(imlvit.Config(), {}).encoder_net.blocks
    assert [i for i, block in enumerate(blocks) if not block.window] == [2, 5, 8, 11]
    assert {block.window for block in blocks} == {0, 14}
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_relative_positions_by_hand() -> None:
    table = torch.tensor([[-20.0], [-10.0], [0.0], [10.0], [20.0]])  # distances -2 to 2
    assert encoder.distances(table, 3)[..., 0].tolist() == [[0, -10, -20], [10, 0, -10], [20, 10, 0]]
    assert encoder.distances(table, 2)[..., 0].tolist() == [[0, -10], [10, 0]]
    # seven distances from five values, cell centres: 5/7 of a value apart
    longer = encoder.distances(table, 4)[..., 0]
    step = 10 * 5 / 7
    assert longer[0].tolist() == pytest.approx([0, -step, -2 * step, -20], abs=1e-4)


def test_attention_by_hand() -> None:
    layer = encoder.Attention(2, 1, 2)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([torch.eye(2), torch.eye(2), torch.eye(2)]))
        layer.qkv.bias.zero_()
        layer.proj.weight.copy_(torch.eye(2))
        layer.proj.bias.zero_()
        layer.rel_pos_h.copy_(torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]))
        layer.rel_pos_w.copy_(torch.tensor([[-0.1, 0.7], [0.0, 0.2], [0.9, -0.3]]))
    x = torch.tensor([[[1.0, 2.0], [0.5, -1.0]], [[-1.0, 0.3], [2.0, 1.0]]])
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    expected = []
    for y, z in places:
        query = x[y, z]
        logits = []
        for key_y, key_z in places:
            by_row, by_column = layer.rel_pos_h[y - key_y + 1].detach(), layer.rel_pos_w[z - key_z + 1].detach()
            product = float(query @ x[key_y, key_z]) / math.sqrt(2)
            logits.append(product + float(query @ by_row) + float(query @ by_column))
        total = sum(map(math.exp, logits))
        weights = [math.exp(logit) / total for logit in logits]
        expected.append(sum(weight * x[place] for weight, place in zip(weights, places, strict=True)))
    torch.testing.assert_close(layer(x[None])[0].view(4, 2), torch.stack(expected))


def test_windows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    block = encoder.Block(8, 2, 2.0, 0.0, window=3, table=5).eval()
    x = torch.rand(1, 5, 7, 8)
    moved = x.clone()
    moved[0, 1, 4] += 1
    with torch.no_grad():
        changed = (block(x) != block(moved)).any(-1)[0]
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[:3, 3:6] = True
    assert torch.equal(changed, expected)
    # a window over the map's end has tokens of zeros, which are seen: weights are not those of the map alone
    seen = encoder.in_windows(torch.ones(1, 4, 4, 1), 3, lambda w: w.mean((1, 2), keepdim=True).expand_as(w))
    assert seen[0, 0, :, 0].tolist() == pytest.approx([1, 1, 1, 1 / 3])
    assert seen[0, 3, 3, 0].item() == pytest.approx(1 / 9)


def test_positions_leave_out_the_class_token() -> None:
    net = small(strides=(8,), positions=4).encoder_net
    table = net.placed(4, 4)
    assert torch.equal(table.reshape(16, -1), net.pos_embed[0, 1:])
    assert net.placed(6, 5).shape == (1, 6, 5, net.pos_embed.shape[2])


def test_the_band_of_the_edge_by_hand() -> None:
    mask = torch.zeros(1, 1, 9, 9)
    mask[:, :, 2:7, 2:7] = 1
    band = network.edge_band(mask, 3)[0, 0]
    expected = torch.zeros(9, 9)
    expected[2:7, 2:7] = 1
    expected[3:6, 3:6] = 0
    expected[1, 2:7] = expected[7, 2:7] = expected[2:7, 1] = expected[2:7, 7] = 1
    assert torch.equal(band, expected)
    assert network.edge_band(mask, 7)[0, 0, 4, 4] == 1
    assert network.edge_band(mask, 5)[0, 0, 4, 4] == 0
    # the image's border is no edge
    assert network.edge_band(torch.ones(1, 1, 5, 5), 7).sum() == 0
    with pytest.raises(ValueError, match="band 4"):
        network.edge_band(mask, 4)


def test_loss_by_hand() -> None:
    method = small(band=3).eval()
    mask = torch.zeros(2, 1, 32, 32)
    mask[0, :, 8:20, 4:12] = 1
    given = samples.forged(mask)
    with torch.no_grad():
        found = method.loss(given)
        logits = method(given.image)
    each = torch.log1p(torch.exp(-logits.double().where(mask > 0, -logits.double())))
    band = network.edge_band(mask, 3)
    # the mean is over all pixels, not over those of the band
    edge = float((each * band).sum()) / mask.numel()
    assert float(found.terms["bce"]) == pytest.approx(float(each.mean()), rel=1e-5)
    assert float(found.terms["edge"]) == pytest.approx(edge, rel=1e-5)
    assert float(found.total) == pytest.approx(float(each.mean()) + 20 * edge, rel=1e-5)
    with pytest.raises(ValueError, match="learns from masks"):
        method.loss(replace(given, mask=None))


def test_images_are_padded_before_they_are_normalised() -> None:
    method = small(input_size=64)
    seen = method.seen(torch.full((1, 3, 40, 24), 0.5))
    assert seen.shape == (1, 3, 64, 64)
    dark = [-m / s for m, s in zip(network.MEAN, network.STD, strict=True)]
    grey = [(0.5 - m) / s for m, s in zip(network.MEAN, network.STD, strict=True)]
    assert seen[0, :, 39, 23].tolist() == pytest.approx(grey)
    assert seen[0, :, 40, 23].tolist() == seen[0, :, 39, 24].tolist() == pytest.approx(dark)
    large = torch.rand(1, 3, 80, 70)
    assert torch.equal(method.squared(large), large[:, :, :64, :64])
    assert imlvit.Config().input_size == 1024


def test_what_is_beyond_the_size_is_not_manipulated() -> None:
    method = small(input_size=32).eval()
    image = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        mask = method.predict(image).mask
        assert mask is not None
        same = method.predict(image[:, :, :32, :32]).mask
    assert mask.shape == (1, 1, 40, 48)
    assert torch.equal(mask[:, :, :32, :32], same)
    assert float(mask[:, :, 32:].max()) == float(mask[:, :, :, 32:].max()) == 0


def test_the_pyramid_has_five_levels() -> None:
    net = network.Pyramid(16, 6)
    maps = net(torch.rand(1, 16, 8, 4))
    assert [tuple(x.shape[1:]) for x in maps] == [(6, 32, 16), (6, 16, 8), (6, 8, 4), (6, 4, 2), (6, 2, 1)]
    assert torch.equal(maps[4], F.max_pool2d(maps[3], 1, stride=2))
    # a layer norm ends each level: mean 0 and variance 1 over the channels
    torch.testing.assert_close(maps[0].mean(1), torch.zeros(1, 32, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps[0].var(1, unbiased=False), torch.ones(1, 32, 16), atol=1e-3, rtol=0)


@pytest.mark.parametrize("variant", ["", "stem"])
@pytest.mark.parametrize("size", [(50, 44), (1, 1), (7, 65)])
def test_prediction_and_saving(tmp_path: Path, variant: str, size: tuple[int, int]) -> None:
    method = small(variant).eval()
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        found = method.predict(image, extras=True)
    assert found.mask is not None
    assert found.score is not None
    assert found.mask.shape == (2, 1, *size)
    assert torch.equal(found.score, found.mask.amax((1, 2, 3)))
    assert set(found.extras) == set(method.EXTRAS)
    methods.save(method, "imlvit", variant, method.config, tmp_path)
    with torch.no_grad():
        assert torch.equal(methods.load(tmp_path).predict(image).mask, found.mask)


@pytest.mark.parametrize("variant", ["", "stem"])
def test_every_parameter_learns(variant: str) -> None:
    method = small(variant).train()
    mask = torch.zeros(2, 1, 96, 96)
    mask[0, :, 20:50, 30:70] = 1
    method.loss(samples.forged(mask)).total.backward()
    assert [name for name, p in method.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_official_weights_load_strictly() -> None:
    source, method = small(), small()
    given = {key: value + 1 for key, value in source.state_dict().items()}
    imlvit.load_official(method, {"model": given})
    assert all(torch.equal(value, given[key]) for key, value in method.state_dict().items())
    with pytest.raises(ValueError, match=r"missing: predict_head\.norm\.bias"):
        imlvit.load_official(method, {key: value for key, value in given.items() if key != "predict_head.norm.bias"})
    with pytest.raises(ValueError, match="unexpected: extra"):
        imlvit.load_official(method, given | {"extra": torch.zeros(1)})


def test_mae_fills_the_encoder() -> None:
    method = small()
    own = {key: value.clone() for key, value in method.state_dict().items()}
    given = {key: value + 1 for key, value in method.encoder_net.state_dict().items() if "rel_pos" not in key}
    more = {"cls_token": torch.zeros(1), "norm.weight": torch.zeros(1), "decoder_embed.weight": torch.zeros(1)}
    imlvit.load_official(method, {"model": given | more})
    for key, value in method.state_dict().items():
        name = key.removeprefix("encoder_net.")
        assert torch.equal(value, given.get(name, own[key]) if name != key else own[key]), key
    with pytest.raises(ValueError, match="MAE's ViT"):
        imlvit.load_official(method, {"pos_embed": torch.zeros(1)})


def test_groups_hold_what_is_trained_once() -> None:
    method = small("stem")
    groups = method.parameter_groups(0.05)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(method.parameters()))
    plain = {id(p) for name, p in method.named_parameters() if name.endswith("bias") or "norm" in name}
    assert plain <= {id(p) for p in groups[1]["params"]}


def test_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'srm'.*'rgb' and 'stem'"):
        small(source="srm")
