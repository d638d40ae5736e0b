"""The splatting loss against cross-entropy, numbers worked by hand, scikit-learn and Eq. 7."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors

from unforge.masks import splatting


def unit(rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def logits_of(rows: int, codes: int, seed: int = 5) -> torch.Tensor:
    return 3 * torch.randn(rows, codes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["topk", "centroid"])
def test_with_one_code_it_is_cross_entropy_bit_for_bit(kind: splatting.Kind) -> None:
    near = splatting.neighbourhoods(unit(32, 6), 1, kind=kind)
    assert torch.equal(near.indices[:, 0], torch.arange(32))
    assert torch.equal(near.weights, torch.ones(32, 1))
    target = torch.randint(0, 32, (50,), generator=torch.Generator().manual_seed(1))
    ours, plain = (logits_of(50, 32).requires_grad_() for _ in range(2))
    value, wanted = splatting.loss(ours, target, near), F.cross_entropy(plain, target)
    assert value.item() == wanted.item()
    value.backward()
    wanted.backward()
    assert torch.equal(ours.grad, plain.grad)


@pytest.mark.parametrize("centroid", [False, True])
def test_the_query_form_with_one_code_is_cross_entropy_of_the_nearest(centroid: bool) -> None:
    codes, z = unit(32, 6), unit(50, 6, 2).requires_grad_()
    centres = splatting.clusters(codes, 1) if centroid else None
    ours, plain = (logits_of(50, 32).requires_grad_() for _ in range(2))
    value = splatting.query_loss(z, codes, ours, 1, centres=centres)
    wanted = F.cross_entropy(plain, torch.cdist(z.detach(), codes).argmin(1))
    assert value.item() == wanted.item()
    value.backward()
    wanted.backward()
    assert torch.equal(ours.grad, plain.grad)
    assert z.grad is None  # one weight is 1, wherever z is


def test_weights_and_loss_by_hand() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    near = splatting.neighbourhoods(codes, 2, temperature=0.5)
    assert near.indices.tolist() == [[0, 1], [1, 2], [2, 1], [3, 2]]
    scale = 1 / (math.sqrt(2) * 0.5)
    own, other = math.exp(scale), math.exp(0.6 * scale)
    assert near.weights[0].tolist() == pytest.approx([own / (own + other), other / (own + other)])
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    wanted = -(own * math.log(0.1) + other * math.log(0.2)) / (own + other)
    assert splatting.loss(logits, torch.tensor([0]), near).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["topk", "centroid"])
def test_it_is_cross_entropy_with_soft_labels(kind: splatting.Kind) -> None:
    near = splatting.neighbourhoods(unit(40, 6), 7, temperature=0.1, kind=kind)
    torch.testing.assert_close(near.weights.sum(1), torch.ones(40))
    soft = torch.zeros(40, 40).scatter_add_(1, near.indices, near.weights)
    target = torch.arange(40).repeat(2)
    logits = logits_of(80, 40)
    torch.testing.assert_close(splatting.loss(logits, target, near), F.cross_entropy(logits, soft[target]))


def test_neighbours_are_those_of_scikit_learn() -> None:
    codes = unit(60, 8)
    near = splatting.neighbourhoods(codes, 5)
    found = NearestNeighbors(n_neighbors=5).fit(codes.numpy()).kneighbors(codes.numpy(), return_distance=False)
    assert near.indices.tolist() == found.tolist()
    assert (near.weights.diff(dim=1) <= 0).all()
    colder = splatting.neighbourhoods(codes, 5, temperature=0.005)
    assert (colder.weights[:, 0] > near.weights[:, 0]).all()


def test_two_equal_codes_still_come_first_in_their_own_neighbourhood() -> None:
    codes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    near = splatting.neighbourhoods(codes, 2)
    assert near.indices.tolist()[:2] == [[0, 1], [1, 0]]
    assert near.weights[:2].flatten().tolist() == pytest.approx([0.5] * 4)


def test_a_centroid_neighbourhood_stays_in_its_cluster() -> None:
    """Three bunches of 4, 4 and 2 codes: with k = 4 there are three clusters."""
    angles = torch.tensor([0.0, 0.02, 0.05, 0.09, 2.0, 2.02, 2.05, 2.09, 4.0, 4.03])
    codes = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels, centres = splatting.clusters(codes, 4, seed=3)
    assert len({int(label) for label in labels}) == 3
    assert [len({int(label) for label in labels[part]}) for part in (slice(4), slice(4, 8), slice(8, 10))] == [1, 1, 1]
    torch.testing.assert_close(centres[labels[0]], codes[:4].mean(0))
    near = splatting.neighbourhoods(codes, 4, temperature=0.5, kind="centroid", seed=3)
    assert [sorted(row) for row in near.indices[:4].tolist()] == [[0, 1, 2, 3]] * 4
    assert near.weights[8, 2:].tolist() == [0.0, 0.0]  # two members only
    assert near.indices[8, :2].tolist() == [8, 9]
    again = splatting.neighbourhoods(codes, 4, temperature=0.5, kind="centroid", seed=3)
    assert torch.equal(near.indices, again.indices)


def test_clusters_are_a_fixed_point_of_k_means() -> None:
    codes = unit(128, 12)
    labels, centres = splatting.clusters(codes, 10)
    assert len(centres) <= 13
    assert torch.equal(torch.cdist(codes, centres).argmin(1), labels)
    for m in range(len(centres)):
        torch.testing.assert_close(centres[m], codes[labels == m].mean(0))


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("centroid", [False, True])
def test_the_gradient_is_that_of_equation_7(temperature: float, centroid: bool) -> None:
    """sum_i w_i dL_i/dz + 1/sqrt(d) sum_i w_i L_i (e_i - mu), the second part over the temperature."""
    d, codes = 6, unit(20, 6).double()
    z = (0.7 * unit(1, d, 3)).double().requires_grad_()
    head = torch.randn(d, 20, generator=torch.Generator().manual_seed(4)).double()
    centres = splatting.clusters(codes, 5) if centroid else None
    logits = torch.tanh(z @ head) * 4
    splatting.query_loss(z, codes, logits, 5, temperature, centres).backward()

    if centres is None:
        members = (z.detach() @ codes.T)[0].argsort(descending=True)[:5]
    else:
        labels, middles = centres
        own = (z.detach() - middles).norm(dim=1).argmin()
        inside = (labels == own).nonzero()[:, 0]
        members = inside[(codes[inside] @ z.detach()[0]).argsort(descending=True)][:5]
    point = z.detach().clone().requires_grad_()
    each = -torch.log_softmax(torch.tanh(point @ head) * 4, dim=1)[0, members]
    slopes = torch.stack([torch.autograd.grad(value, point, retain_graph=True)[0][0] for value in each])
    e = codes[members]
    similarity = torch.exp(e @ z.detach()[0] / (math.sqrt(d) * temperature))
    w = similarity / similarity.sum()
    mu = (w[:, None] * e).sum(0)
    second = (w[:, None] * each.detach()[:, None] * (e - mu)).sum(0) / (math.sqrt(d) * temperature)
    torch.testing.assert_close(z.grad[0], (w[:, None] * slopes).sum(0) + second)
    assert second.norm() > 1e-3


def test_where_the_target_is_z_both_forms_agree() -> None:
    codes, logits = unit(20, 6), logits_of(20, 20)
    near = splatting.neighbourhoods(codes, 4, temperature=0.2)
    literal = splatting.query_loss(codes, codes, logits, 4, 0.2)
    torch.testing.assert_close(splatting.loss(logits, torch.arange(20), near), literal)


def test_what_is_refused_says_what_is_accepted() -> None:
    codes = unit(8, 3)
    for arguments in ({"k": 0}, {"k": 9}, {"k": 2, "temperature": 0.0}):
        with pytest.raises(ValueError, match="1 <= k <= K"):
            splatting.neighbourhoods(codes, **arguments)
    with pytest.raises(ValueError, match="topk and centroid"):
        splatting.neighbourhoods(codes, 2, kind="cluster")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 <= k <= K"):
        splatting.query_loss(codes, codes, logits_of(8, 8), 9)
