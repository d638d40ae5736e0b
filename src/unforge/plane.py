"""Points of many dimensions in a plane: exact t-SNE in numpy, started from the principal components.

Nothing is drawn at random: equal points give equal places. Source: van der Maaten and Hinton, JMLR 9 (2008), with the
start, learning rate and exaggeration of scikit-learn's implementation (PCA, n / 48 but at least 50, 12 for a quarter).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PERPLEXITY = 30.0
STEPS = 1000
EXAGGERATION = 12.0
_SEARCH = 64
"""Halvings of the interval of each point's width."""


def tsne(points: Array, perplexity: float = PERPLEXITY, steps: int = STEPS) -> Array:
    """`(n, 2)` places of `(n, D)` points, each axis with mean 0, scaled to standard deviation 1 of all coordinates.

    The perplexity is at most (n - 1) / 3. Memory grows with the square of n. ValueError for fewer than 4 points.
    """
    if points.ndim != 2 or len(points) < 4:
        raise ValueError(f"points of shape {points.shape}: (n, D) with n of at least 4 is expected")
    joint = affinities(points, min(perplexity, (len(points) - 1) / 3))
    places = principal(points, 2)
    places *= 1e-4 / max(float(places[:, 0].std()), 1e-300)
    rate = max(len(points) / EXAGGERATION / 4, 50.0)
    step, gains = np.zeros_like(places), np.ones_like(places)
    for at in range(steps):
        early = at < steps // 4
        slope = gradient(places, joint * (EXAGGERATION if early else 1.0))
        gains = np.maximum(np.where(np.sign(slope) == np.sign(step), gains * 0.8, gains + 0.2), 0.01)
        step = (0.5 if early else 0.8) * step - rate * gains * slope
        places = places + step
        places -= places.mean(axis=0)
    return np.asarray(places / max(float(places.std()), 1e-300), dtype=np.float64)


def principal(points: Array, count: int) -> Array:
    """`(n, count)` first principal components; the largest part of each axis is positive. Missing axes are 0."""
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:count]
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return np.pad(centred @ axes.T, ((0, 0), (0, count - len(axes))))


def affinities(points: Array, perplexity: float) -> Array:
    """`(n, n)` joint probabilities, symmetric, sum 1: Gaussians whose entropy is the logarithm of the perplexity."""
    squared = np.square(points).sum(1)
    distance = np.maximum(squared[:, None] - 2 * points @ points.T + squared[None], 0.0)
    scale = float(distance.sum()) / max(1, distance.size - len(points)) or 1.0
    distance = distance / scale
    np.fill_diagonal(distance, np.inf)
    distance -= distance.min(axis=1, keepdims=True)
    low, high = np.full(len(points), -30.0), np.full(len(points), 30.0)
    for _ in range(_SEARCH):
        middle = (low + high) / 2
        wide = _entropy(distance, middle) > np.log(perplexity)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    given = _given(distance, (low + high) / 2)
    return np.asarray((given + given.T) / (2 * len(points)), dtype=np.float64)


def gradient(places: Array, joint: Array) -> Array:
    """`(n, 2)` gradient of `divergence` (times the sum of `joint` where that is not 1)."""
    weights = _weights(places)
    pull = (joint - weights / weights.sum()) * weights
    return np.asarray(4 * (pull.sum(1)[:, None] * places - pull @ places), dtype=np.float64)


def divergence(places: Array, joint: Array) -> float:
    """Kullback-Leibler divergence of the plane's affinities from `joint`, nats."""
    weights = _weights(places)
    shares = weights / weights.sum()
    there = joint > 0
    return float(np.sum(joint[there] * np.log(joint[there] / np.maximum(shares[there], 1e-300))))


def _weights(places: Array) -> Array:
    squared = np.square(places).sum(1)
    weights = 1 / (1 + np.maximum(squared[:, None] - 2 * places @ places.T + squared[None], 0.0))
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights, dtype=np.float64)


def _given(distance: Array, log_width: Array) -> Array:
    weights = np.exp(-distance * np.exp(log_width)[:, None])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def _entropy(distance: Array, log_width: Array) -> Array:
    shares = _given(distance, log_width)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.asarray(-np.sum(shares * logs, axis=1), dtype=np.float64)
