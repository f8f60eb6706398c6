"""Keys: pure, splittable, and streams that depend on the position alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisonkit.errors import ArgumentError
from poisonkit.random import key

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def test_splitmix_is_the_published_one() -> None:
    # first outputs of splitmix64 from state 0, as published with the generator
    gamma = 0x9E3779B97F4A7C15
    assert [splitmix(gamma * i & MASK) for i in (1, 2, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_words_are_integer_arithmetic(seed: int, position: int) -> None:
    stream, gamma = key(seed).child("x", 3), 0x9E3779B97F4A7C15
    row = splitmix((position * gamma + stream.integer()) & MASK)
    expected = [splitmix(((row ^ stream.child("words").integer()) + j * gamma) & MASK) for j in (1, 2, 3)]
    words = stream.words(torch.tensor([position]), 3)[0].tolist()
    assert [word & MASK for word in words] == expected


def test_children() -> None:
    assert key(0).child("a", 3) == key(0).child("a").child(3)
    assert key(0).child("a", torch.tensor(3)).integer() == key(0).child("a", 3).integer()  # type: ignore[arg-type]
    family = [key(0), key(1), key(0).child("a"), key(0).child("a", 3), key(0).child("a", "3"), key(0).child("a, 3")]
    assert len({member.integer() for member in family}) == len(family)


def test_words_ignore_the_batch() -> None:
    stream = key(7)
    whole = stream.words(torch.arange(100), 4)
    assert torch.equal(whole[[3, 50]], stream.words(torch.tensor([3, 50]), 4))
    assert torch.equal(whole[:, :2], stream.words(torch.arange(100), 2))


def test_words_are_uniform() -> None:
    bits = key(1).words(torch.arange(20_000), 3)[..., None] >> torch.arange(64) & 1
    # 64 bits of 3 draws at 20,000 positions: six standard deviations of a fair coin
    assert (bits.double().mean(0) - 0.5).abs().max() < 6 * 0.5 / 20_000**0.5


def test_below_and_permutation() -> None:
    draws = key(2).below((9, 2), torch.arange(9_000))
    assert draws[:, 0].unique().tolist() == list(range(9))
    assert abs(draws[:, 1].double().mean() - 0.5) < 0.03
    order = key(3).permutation(1000)
    assert order.sort().values.tolist() == list(range(1000))
    assert order.tolist() != list(range(1000))
    assert key(3).permutation(0).shape == (0,)


def test_ambient_restores_the_global_stream() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with key(0).child("init").ambient():
        first = torch.rand(2)
    assert torch.equal(torch.rand(3), expected)
    with key(0).child("init").ambient():
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(2, generator=key(0).child("init").generator()), first)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_range(seed: int) -> None:
    with pytest.raises(ArgumentError, match=r"seed must be in \[0, 2\^64\)"):
        key(seed)
