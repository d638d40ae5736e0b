from __future__ import annotations

import hashlib

import numpy as np
from scipy import stats

from unforge import seeds


def test_the_seed_of_an_item_is_the_hash_of_what_it_is() -> None:
    expected = int.from_bytes(hashlib.sha256(b"3\x1fkey\x1fcrop").digest()[:8], "big")
    assert seeds.integer(3, "key", "crop") == expected
    assert seeds.fraction(3, "key", "crop") == expected / 2**64
    others = [(4, "key", "crop"), (3, "yek", "crop"), (3, "key", "noise"), (31, "fkey", "crop")]
    assert len({expected, *(seeds.integer(*other) for other in others)}) == 5


def test_generators_do_not_depend_on_each_other() -> None:
    first = seeds.generator(0, "a", "x").random(4)
    seeds.generator(0, "b", "x").random(100)
    np.testing.assert_array_equal(seeds.generator(0, "a", "x").random(4), first)
    # numpy keeps PCG64's stream between versions: these numbers are part of every stand-in
    np.testing.assert_array_equal(first, np.random.Generator(np.random.PCG64(seeds.integer(0, "a", "x"))).random(4))


def test_fractions_are_uniform() -> None:
    values = [seeds.fraction(0, f"image{i}", "split") for i in range(4000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert stats.kstest(values, "uniform").pvalue > 0.001
