"""QTFP's losses: against loops in numpy, autograd and numbers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unforge.methods.qtfp import losses

FAKE = torch.tensor([True, False, True, False])


def patches(images: int = 4, count: int = 6, width: int = 5) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(images, count, width, dtype=torch.float64).float()


def looped(tokens: np.ndarray, forged: np.ndarray, weights: np.ndarray, temperature: float) -> float:
    """The definition, one anchor at a time."""
    z = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    forged, weights = forged.reshape(-1), weights.reshape(-1)
    values = []
    for i in np.flatnonzero(forged):
        similar = [float(z[i] @ z[j]) / temperature for j in range(len(z))]
        everything = sum(math.exp(s) for j, s in enumerate(similar) if j != i)
        positives = sum(math.exp(s) for j, s in enumerate(similar) if j != i and forged[j])
        values.append(-weights[i] * math.log(positives / everything))
    return float(np.mean(values))


def supervised_contrastive(tokens: np.ndarray, labels: np.ndarray, temperature: float, anchor: int) -> float:
    """Supervised contrastive loss with the sums inside the logarithm (Khosla et al., Eq. 3, `L_in`), over anchors of
    one class, from the matrix of log-probabilities. A published definition, not the one above."""
    z = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    logits = z @ z.T / temperature
    np.fill_diagonal(logits, -np.inf)
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    same = (labels[:, None] == labels[None]) & ~np.eye(len(labels), dtype=bool)
    mean = np.array([np.exp(row[pairs]).mean() for row, pairs in zip(logits, same, strict=True)])
    return float(-np.log(mean)[labels == anchor].mean())


def test_even_weights_reduce_it_to_the_supervised_contrastive_loss() -> None:
    z = patches()
    forged = FAKE[:, None].expand(4, 6)
    found = losses.contrast(z, forged, torch.ones(4, 6), 0.1)
    labels = np.repeat([1, 0, 1, 0], 6)
    expected = supervised_contrastive(z.reshape(-1, 5).double().numpy(), labels, 0.1, anchor=1)
    # `L_in` has the mean over positives where this has the sum: 11 others of 12
    assert found.item() == pytest.approx(expected - math.log(11), rel=1e-5)
    # FLCL itself: likelihoods all one half where the difference of similarities does not count
    even = losses.flcl(z, FAKE, 0.1, sharpness=1e9)
    assert even.item() == pytest.approx(0.5 * (expected - math.log(11)), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_the_loss_is_its_definition(temperature: float) -> None:
    z = patches()
    weights = torch.rand(4, 6)
    forged = torch.rand(4, 6) > 0.5
    found = losses.contrast(z, forged, weights, temperature)
    assert found.item() == pytest.approx(looped(z.numpy(), forged.numpy(), weights.numpy(), temperature), rel=1e-4)


def test_mask_weights_reduce_it_to_the_oracle() -> None:
    z = patches()
    forged = torch.rand(4, 6) > 0.4
    forged[1] = forged[3] = False
    found = losses.macl(z, forged, 0.1)
    assert found.item() == pytest.approx(looped(z.numpy(), forged.numpy(), np.ones((4, 6)), 0.1), rel=1e-4)
    assert losses.contrast(z, forged, forged.float(), 0.1).item() == found.item()
    # where everything of a fake image is forged, both have the same anchors and the same positives
    everything = FAKE[:, None].expand(4, 6)
    assert losses.macl(z, everything, 0.1).item() == pytest.approx(2 * losses.flcl(z, FAKE, 0.1, 1e9).item(), rel=1e-5)


def test_the_gradient_is_that_of_autograd() -> None:
    z = patches().requires_grad_()
    weights, forged = torch.rand(4, 6), torch.rand(4, 6) > 0.5
    losses.contrast(z, forged, weights, 0.1).mul(3).backward()
    assert z.grad is not None
    other = z.detach().double().requires_grad_()
    unit = F.normalize(other, dim=2).flatten(0, 1)
    logits = (unit @ unit.T / 0.1).masked_fill(torch.eye(24, dtype=torch.bool), -torch.inf)
    flat = forged.flatten()
    each = logits.logsumexp(1) - logits[:, flat].logsumexp(1)
    (3 * (weights.flatten() * each)[flat].mean()).backward()
    assert other.grad is not None
    assert torch.allclose(z.grad.double(), other.grad, atol=1e-5)


def test_likelihoods_are_of_cosines_with_the_prototypes_and_take_no_gradient() -> None:
    z = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]]], requires_grad=True)
    fake = torch.tensor([True, False])
    real, forged = losses.prototypes(z, fake)
    assert (real.tolist(), forged.tolist()) == ([0, 3], [2, 0])
    weights = losses.fake_likelihood(z, fake, 0.5)
    assert not weights.requires_grad
    # cosines 1 and 0: sigmoid(1 / .5); and the other way round
    expected = 1 / (1 + math.exp(-2))
    assert torch.allclose(weights, torch.tensor([[expected] * 2, [1 - expected] * 2]))


def test_signal_to_noise_by_hand() -> None:
    z = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]]])
    # prototypes (2, 0) and (0, 3); every patch lies 1 from its own
    assert losses.signal_to_noise(z, torch.tensor([True, False])).item() == pytest.approx(math.sqrt(13))
    assert losses.signal_to_noise(z, torch.tensor([True, True])) == 0


def test_anchors_change_no_expectation() -> None:
    z, weights = patches(), torch.rand(4, 6)
    forged = FAKE[:, None].expand(4, 6)
    whole = losses.contrast(z, forged, weights, 0.1)
    assert losses.contrast(z, forged, weights, 0.1, anchors=1.0).item() == pytest.approx(whole.item(), rel=1e-5)
    torch.manual_seed(0)
    drawn = torch.stack([losses.contrast(z, forged, weights, 0.1, anchors=1 / 3) for _ in range(400)])
    assert drawn.std() > 0.01
    assert abs(drawn.mean() - whole) < 4 * drawn.std() / 20
    torch.manual_seed(0)
    assert torch.equal(drawn[0], losses.contrast(z, forged, weights, 0.1, anchors=1 / 3))
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="above 0 and up to 1"):
            losses.contrast(z, forged, weights, 0.1, anchors=share)


@pytest.mark.parametrize("fake", [[True] * 4, [False] * 4])
def test_a_batch_of_one_kind_gives_nothing_and_a_gradient(fake: list[bool]) -> None:
    z = patches().requires_grad_()
    value = losses.flcl(z, torch.tensor(fake), 0.1, 0.1)
    value.backward()
    assert value == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_a_temperature_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.001"):
        losses.flcl(patches(), FAKE, 0.001, 0.1)


@pytest.mark.parametrize("kind", ["kl", "l1", "l2"])
def test_equal_attention_costs_nothing(kind: str) -> None:
    anchor = torch.rand(4, 9).softmax(1)
    found = anchor[:, None].repeat(1, 3, 1).requires_grad_()
    value = losses.attention_distance(found, anchor, FAKE, kind)
    assert value.item() == pytest.approx(0, abs=1e-7)
    value.backward()
    assert found.grad is not None
    assert found.grad.isfinite().all()
    assert losses.attention_distance(torch.rand(4, 3, 9).softmax(2), anchor, FAKE, kind) > 0.01


def test_distances_of_attention_by_hand() -> None:
    found = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[1.0, 0.0], [0.0, 1.0]]])
    anchor = torch.tensor([[0.8, 0.2], [0.5, 0.5]])
    # the second image is fake: it does not count
    fake = torch.tensor([False, True])
    kl = [0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2), 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)]
    assert losses.attention_distance(found, anchor, fake, "kl").item() == pytest.approx(sum(kl) / 2, rel=1e-5)
    assert losses.attention_distance(found, anchor, fake, "l1").item() == pytest.approx((0.6 + 0.2) / 2, rel=1e-5)
    euclidean = (math.hypot(0.3, 0.3) + math.hypot(0.1, 0.1)) / 2
    assert losses.attention_distance(found, anchor, fake, "l2").item() == pytest.approx(euclidean, rel=1e-5)
    # attention on one patch alone is finite
    assert losses.attention_distance(found, anchor, ~fake, "kl").item() == pytest.approx(math.log(2), rel=1e-5)
    with pytest.raises(ValueError, match="cosine"):
        losses.attention_distance(found, anchor, fake, "cosine")


@pytest.mark.parametrize("kind", ["kl", "l1", "l2", "token"])
def test_nothing_flows_into_the_anchor(kind: str) -> None:
    anchor = torch.rand(4, 9).softmax(1).requires_grad_()
    found = torch.rand(4, 3, 9).softmax(2).requires_grad_()
    if kind == "token":
        losses.token_distance(found[:, 0], anchor, FAKE).backward()
    else:
        losses.attention_distance(found, anchor, FAKE, kind).backward()
    assert anchor.grad is None
    assert found.grad is not None
    # only real images count
    assert found.grad[FAKE].abs().sum() == 0
    assert found.grad[~FAKE].abs().sum() > 0
    none = torch.ones(4, dtype=torch.bool)
    assert losses.token_distance(found[:, 0], anchor, none) == losses.attention_distance(found, anchor, none, "kl") == 0


def test_the_distance_of_tokens_by_hand() -> None:
    found, anchor = torch.tensor([[3.0, 4.0], [9.0, 9.0], [0.0, 1.0]]), torch.zeros(3, 2)
    assert losses.token_distance(found, anchor, torch.tensor([False, True, False])).item() == pytest.approx(3)
