"""The chain of masked diffusion against matrices and enumeration, for a tiny alphabet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from unforge.priors.masked_diffusion import Diffusion

CODES, TIMES, MASKED = 3, 5, 0.8


def steps() -> list[np.ndarray]:
    """Transition matrices of each step, (from, to), as the docstring of the module has them: kept 1 - t/T of the
    time up to t, masked 0.8 t/T."""
    found = []
    for t in range(1, TIMES + 1):
        alpha = (1 - t / TIMES) / (1 - (t - 1) / TIMES)
        gamma = 1 - (1 - MASKED * t / TIMES) / (1 - MASKED * (t - 1) / TIMES)
        matrix = np.zeros((CODES + 1, CODES + 1))
        matrix[:CODES, :CODES] = (1 - alpha - gamma) / CODES
        matrix[:CODES, CODES] = gamma
        matrix[np.arange(CODES), np.arange(CODES)] += alpha
        matrix[CODES, CODES] = 1
        found.append(matrix)
    return found


@pytest.fixture
def chain() -> Diffusion:
    return Diffusion(CODES, TIMES, MASKED)


def test_steps_multiply_to_what_holds_until_a_time(chain: Diffusion) -> None:
    whole = np.eye(CODES + 1)
    for t, matrix in enumerate(steps(), start=1):
        assert matrix.min() >= 0
        np.testing.assert_allclose(matrix.sum(1), 1)
        whole = whole @ matrix
        time = torch.tensor([t])
        alpha, beta, gamma = (float(value) for value in chain.until(time))
        np.testing.assert_allclose(whole[0], [alpha + beta, beta, beta, gamma], atol=1e-6)
        noisy = torch.arange(CODES + 1)[None]
        np.testing.assert_allclose(chain.likelihood(noisy, time)[0].numpy().T, whole[:CODES], atol=1e-6)
    np.testing.assert_allclose(whole[:CODES], [[0.2 / 3, 0.2 / 3, 0.2 / 3, 0.8]] * CODES, atol=1e-9)


def test_the_way_back_equals_enumeration(chain: Diffusion) -> None:
    """p(x_{t-1} | x_t) = sum over x_0 of p(x_0) q(x_{t-1}, x_t | x_0) / q(x_t | x_0), by Bayes from matrices."""
    believed = np.array([0.2, 0.5, 0.3])
    matrices = steps()
    for t in range(1, TIMES + 1):
        until = np.linalg.multi_dot([np.eye(CODES + 1)] * 2 + matrices[: t - 1])
        for noisy in range(CODES + 1):
            expected = np.zeros(CODES + 1)
            for start in range(CODES):
                joint = until[start] * matrices[t - 1][:, noisy]
                expected += believed[start] * joint / joint.sum()
            found = chain.backward(
                torch.from_numpy(believed).float()[None, None], torch.tensor([[noisy]]), torch.tensor([t])
            )
            np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=2e-6)


def test_noise_has_the_chains_frequencies(chain: Diffusion) -> None:
    uniform = (torch.arange(20000)[None] + 0.5) / 20000
    for t in range(TIMES + 1):
        noisy = chain.noised(torch.ones(1, 20000, dtype=torch.int64), torch.tensor([t]), uniform)
        alpha, beta, gamma = (float(value) for value in chain.until(torch.tensor([t])))
        shares = torch.bincount(noisy.flatten(), minlength=CODES + 1) / 20000
        np.testing.assert_allclose(shares, [beta, alpha + beta, beta, gamma], atol=2e-4)


def test_the_bound_is_that_of_enumeration(prior: Callable[..., Any]) -> None:
    """One place and a network that says the same everywhere: sum over t of E KL, from matrices, in bits."""
    model = prior("vqdiffusion", times=TIMES, masked=MASKED, width=8)
    own = np.random.default_rng(0).dirichlet(np.ones(model.codes))
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.from_numpy(np.log(own)))
    codes, truth, expected = model.codes, 4, 0.0
    alpha_bar = [1 - t / TIMES for t in range(TIMES + 1)]
    gamma_bar = [MASKED * t / TIMES for t in range(TIMES + 1)]

    def until(t: int) -> np.ndarray:
        matrix = np.full((codes, codes + 1), (1 - alpha_bar[t] - gamma_bar[t]) / codes)
        matrix[:, codes] = gamma_bar[t]
        matrix[np.arange(codes), np.arange(codes)] += alpha_bar[t]
        return matrix

    for t in range(1, TIMES + 1):
        alpha = alpha_bar[t] / alpha_bar[t - 1]
        gamma = 1 - (1 - gamma_bar[t]) / (1 - gamma_bar[t - 1])
        step = np.zeros((codes + 1, codes + 1))
        step[:codes, :codes], step[:codes, codes], step[codes, codes] = (1 - alpha - gamma) / codes, gamma, 1
        step[np.arange(codes), np.arange(codes)] += alpha
        for noisy, chance in enumerate(until(t)[truth]):
            posterior = until(t - 1) * step[:, noisy]
            posterior /= posterior.sum(1, keepdims=True)
            believed = own * until(t)[:, noisy]
            given = (believed / believed.sum()) @ posterior
            wanted = posterior[truth]
            there = wanted > 0
            expected += chance * float((wanted[there] * np.log2(wanted[there] / given[there])).sum())
    tokens = torch.full((4000, 16), truth)
    with torch.no_grad():
        found = float(model.bits(tokens).mean())
    assert found == pytest.approx(expected, rel=0.02)


def test_what_is_accepted() -> None:
    for times, masked in ((0, 0.9), (4, 1.1)):
        with pytest.raises(ValueError, match="give at least 1"):
            Diffusion(CODES, times, masked)
    alone = Diffusion(CODES, 4, 1.0)
    assert int(alone.noised(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([4]), torch.tensor([[0.99]]))) == CODES
