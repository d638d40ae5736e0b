"""Token search against autograd, against a plain rendering of the algorithm, and against what it promises."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.provenance import toys
from unforge.provenance import search
from unforge.provenance.config import Search

SHORT = Search(iterations=20)


def own(toy: toys.ScaledToy, count: int, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Features made of random tokens, and the tokens."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(len(toy.codebook), (count, sum(s * s for s in toy.scales)), generator=generator)
    with torch.no_grad():
        return toy.lookup(tokens), tokens


def error(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left - right).square().flatten(1).mean(1)


def plain(toy: toys.ScaledToy, features: torch.Tensor, tokens: torch.Tensor, settings: Search) -> torch.Tensor:
    """Algorithm 3 for one image, as it reads: a logit for every code, softmax, autograd, torch's Adam."""
    sides = [side * side for side in toy.scales]
    for free in settings.rounds(len(sides)):
        logits = []
        for part in tokens.split(sides, dim=1):
            start = torch.zeros(part.shape[1], len(toy.codebook))
            start[torch.arange(part.shape[1]), part[0]] = settings.start
            logits.append(start.requires_grad_(True))
        optimise = torch.optim.Adam(logits[:free], lr=settings.lr)
        for step in range(settings.iterations):
            first, last = settings.temperature
            temperature = first * (last / first) ** (step / (settings.iterations - 1))
            total = torch.zeros_like(features)
            for scale, side in enumerate(toy.scales):
                if scale < free:
                    values = torch.softmax(logits[scale] / temperature, dim=1) @ toy.codebook
                else:
                    values = toy.codebook[tokens.split(sides, dim=1)[scale][0]]
                total = total + toy.enlarged(scale, values.T.reshape(1, -1, side, side))
            optimise.zero_grad()
            (0.5 * torch.nn.functional.mse_loss(total, features)).backward()
            optimise.step()
        tokens = torch.cat([values.argmax(1) for values in logits])[None]
    return tokens


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_algorithm(seed: int) -> None:
    toy = toys.ScaledToy(seed).requires_grad_(False)
    features, _ = own(toy, 3, seed)
    greedy = toy.quantize(features).tokens
    found = search.search(toy, features, greedy, SHORT)
    for i in range(3):
        assert torch.equal(found.tokens[i], plain(toy, features[i : i + 1], greedy[i : i + 1], SHORT)[0])
    torch.testing.assert_close(found.features, toy.lookup(found.tokens))
    assert found.searched.all()


@pytest.mark.parametrize("free", [1, 2, 3])
def test_the_gradient_is_autograds(free: int) -> None:
    toy = toys.ScaledToy(2).requires_grad_(False).double()
    count = sum(s * s for s in toy.scales[:free])
    logits = torch.randn(2, count, 12, dtype=torch.float64, requires_grad=True)
    features, fixed = torch.randn(2, 6, 4, 4, dtype=torch.float64), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    total = fixed
    for scale, part in enumerate(logits.split([s * s for s in toy.scales[:free]], dim=1)):
        side = toy.scales[scale]
        values = torch.softmax(part / 0.7, dim=2) @ toy.codebook
        total = total + toy.enlarged(scale, values.transpose(1, 2).reshape(2, -1, side, side))
    (0.5 * error(total, features).sum()).backward()
    scratch = torch.empty_like(logits)
    ours = search.gradient(toy, toy.codebook, logits.detach(), fixed, features, 0.7, scratch)
    torch.testing.assert_close(ours, logits.grad)


def test_rounds_are_the_papers() -> None:
    assert Search().rounds(10) == (10, 9, 8, 7, 6, 5)
    assert Search().iterations * len(Search().rounds(10)) == 1200
    assert Search().rounds(4) == (4, 3, 2)
    assert Search(freeze=()).rounds(10) == (10,)
    with pytest.raises(ValueError, match=r"freeze \[10\].*1 to 9"):
        Search(freeze=(10, 9)).rounds(10)


def test_later_rounds_leave_fine_scales_alone() -> None:
    toy = toys.ScaledToy(1).requires_grad_(False)
    features, _ = own(toy, 40)
    greedy = toy.quantize(features).tokens
    first = search.search(toy, features, greedy, Search(iterations=8, freeze=())).tokens
    second = search.search(toy, features, greedy, Search(iterations=8, freeze=(2,))).tokens
    assert torch.equal(first[:, 5:], second[:, 5:])
    assert not torch.equal(first[:, :5], second[:, :5])


def test_it_repairs_what_greedy_quantization_gets_wrong() -> None:
    """Features of the tokenizer's own tokens: greedy does not find them, the search comes nearer to most."""
    toy = toys.ScaledToy(3).requires_grad_(False)
    features, _ = own(toy, 24)
    greedy = toy.quantize(features)
    found = search.search(toy, features, greedy.tokens, Search(iterations=150))
    before, after = error(greedy.features, features), error(found.features, features)
    assert (before > 1e-3).all()
    assert (after < before).double().mean() > 0.8
    assert after.median() < 0.6 * before.median()


def test_faithful_may_be_worse_than_greedy_and_unfaithful_never_is() -> None:
    """Too few steps at a high temperature: the published search ends on codes that are worse than where it began."""
    toy = toys.ScaledToy(4, codes=64).requires_grad_(False)
    features, _ = own(toy, 16)
    greedy = toy.quantize(features)
    hasty = Search(iterations=4)
    faithful = search.search(toy, features, greedy.tokens, hasty)
    better = search.search(toy, features, greedy.tokens, replace(hasty, faithful=False))
    before, published = error(greedy.features, features), error(faithful.features, features)
    ours = error(better.features, features)
    assert (published > before).any()
    assert torch.equal(ours, torch.minimum(before, published))
    assert torch.equal(better.searched, published < before)
    kept = ~better.searched
    assert torch.equal(better.tokens[kept], greedy.tokens[kept])
    assert torch.equal(better.tokens[~kept], faithful.tokens[~kept])


def test_batches_do_not_change_results() -> None:
    toy = toys.ScaledToy(1).requires_grad_(False)
    features, _ = own(toy, 7)
    greedy = toy.quantize(features).tokens
    whole = search.search(toy, features, greedy, SHORT)
    bytes_of_one = 4 * search.COPIES * 21 * 12
    small = replace(SHORT, memory=3 * bytes_of_one)
    assert search.batch_size(toy, small.memory) == 3
    assert search.batch_size(toy, 1) == 1
    assert torch.equal(search.search(toy, features, greedy, small).tokens, whole.tokens)
    assert torch.equal(search.search(toy, features[4:5], greedy[4:5], SHORT).tokens[0], whole.tokens[4])
    assert search.search(toy, features[:0], greedy[:0], SHORT).tokens.shape == (0, 21)


def test_wrong_tokens_are_refused() -> None:
    toy = toys.ScaledToy()
    features, tokens = own(toy, 2)
    with pytest.raises(ValueError, match=r"\(2,21\)"):
        search.search(toy, features, tokens[:, :20], SHORT)


MEASURE = """
import resource, torch
from tests.unit.provenance import toys
from unforge.provenance import search
from unforge.provenance.config import Search
torch.set_num_threads(1)
toy = toys.ScaledToy(scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), codes=4096, width=32).requires_grad_(False)
settings = Search(iterations=2, freeze=())
count = search.batch_size(toy, settings.memory)
features, tokens = torch.randn(count, 32, 16, 16), torch.randint(4096, (count, 680))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
search.search(toy, features, tokens, settings)
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_batch_at_vars_size_stays_within_its_memory() -> None:
    """680 tokens of 4,096 codes, as many images as the default allows, in a process of its own."""
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", MEASURE]
    environment = {"PYTHONPATH": f"{root}:{root / 'src'}", "PATH": ""}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    count, taken = (int(value) for value in done.stdout.split())
    assert count >= 8
    assert taken < 0.8 * 2**30
