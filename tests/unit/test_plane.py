"""The plane against scikit-learn, its gradient against differences, its widths against the entropy asked for."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from unforge import plane


def clusters(n: int = 20, apart: float = 12.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    which = np.repeat([0, 1, 2], n)
    return rng.normal(size=(3 * n, 8)) + apart * np.eye(3, 8)[which], which


def test_rows_have_the_perplexity_asked_for() -> None:
    points, _ = clusters()
    joint = plane.affinities(points, 15.0)
    assert joint.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(joint, joint.T)
    distance = np.square(points[:, None] - points[None]).sum(-1)
    # of one point alone, by the definition: 2 ** H of its row is the perplexity for the width that was found
    scaled = distance / (distance.sum() / (60 * 59))
    np.fill_diagonal(scaled, np.inf)
    widths = np.exp(np.linspace(-20, 20, 40001))
    for i in (0, 31):
        rows = np.exp(-np.outer(widths, scaled[i] - scaled[i].min()))
        rows /= rows.sum(1, keepdims=True)
        entropy = -np.sum(np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0), axis=1)
        best = rows[np.abs(entropy - np.log(15.0)).argmin()]
        own = plane._given(
            scaled - scaled.min(1, keepdims=True), np.log(widths[[np.abs(entropy - np.log(15.0)).argmin()] * 60])
        )
        np.testing.assert_allclose(own[i], best, atol=1e-12)
        assert (joint[i] * 2 * 60 >= best - 1e-3).all()


def test_gradient_is_that_of_the_divergence() -> None:
    points, _ = clusters(5)
    joint = plane.affinities(points, 4.0)
    places = np.random.default_rng(1).normal(size=(15, 2))
    found = plane.gradient(places, joint)
    for at in ((0, 0), (7, 1), (14, 0)):
        moved = places.copy()
        moved[at] += 1e-6
        slope = (plane.divergence(moved, joint) - plane.divergence(places, joint)) / 1e-6
        assert found[at] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_as_good_a_picture_as_scikit_learns() -> None:
    points, which = clusters(20, 3.0)
    theirs = TSNE(perplexity=15, method="exact", init="pca", random_state=0, max_iter=1000)
    theirs.fit(points)
    joint = plane.affinities(points, 15.0)
    # the places are scaled to one standard deviation; the divergence is taken at the scale that suits them best
    ours = plane.tsne(points, 15.0)
    best = min(plane.divergence(ours * scale, joint) for scale in np.linspace(1, 60, 400))
    assert best <= 1.1 * theirs.kl_divergence_
    assert ours.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)
    assert ours.std() == pytest.approx(1.0)
    assert len(which) == len(ours)


def test_clusters_stay_apart_and_nothing_is_random() -> None:
    points, which = clusters()
    ours = plane.tsne(points)
    distance = np.square(ours[:, None] - ours[None]).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert (which[distance.argmin(1)] == which).all()
    np.testing.assert_array_equal(ours, plane.tsne(points.copy()))


def test_principal_components_are_scikit_learns() -> None:
    points, _ = clusters(6)
    np.testing.assert_allclose(np.abs(plane.principal(points, 2)), np.abs(PCA(2).fit_transform(points)), atol=1e-9)
    assert plane.principal(np.arange(5.0)[:, None], 2)[:, 1].tolist() == [0.0] * 5


def test_equal_points_and_few_points() -> None:
    assert np.isfinite(plane.tsne(np.ones((6, 3)))).all()
    assert plane.tsne(np.arange(8.0).reshape(4, 2)).shape == (4, 2)
    with pytest.raises(ValueError, match=r"\(3, 2\).*at least 4"):
        plane.tsne(np.zeros((3, 2)))
