"""Temporal aggregation: hand-worked cases and an attacker who poisons any stretch of periods."""

from __future__ import annotations

import sys

import pytest
import torch
from adversary import changed, plurality
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import certificates
from poisonkit.errors import ArgumentError


def certify(votes, num_classes: int, span: int, order=None) -> tuple[int, ...]:
    result = certificates.temporal(torch.tensor(votes)[:, None], num_classes, span, order)
    return tuple(tensor.item() for tensor in result)


@pytest.mark.parametrize(
    ("votes", "span", "expected"),
    [
        # ten to nothing: four turned leave six to four, five leave a tie, which class 0 wins
        ([0] * 10, 1, (0, 5, 5)),
        ([1] * 10, 1, (1, 4, 4)),
        # a stretch of periods reaches one model more than it has periods
        ([0] * 10, 2, (0, 5, 4)),
        ([0] * 10, 6, (0, 5, 0)),
        ([0] * 10, 60, (0, 5, 0)),
        # the newest models already vote against: hitting them gains nothing
        ([0] * 7 + [1] * 3, 1, (0, 5, 2)),
        ([1] * 3 + [0] * 7, 1, (0, 2, 2)),
        ([0], 1, (0, 0, 0)),
    ],
)
def test_by_hand(votes: list[int], span: int, expected: tuple[int, ...]) -> None:
    assert certify(votes, 2, span) == expected


def reached(models: int, span: int, periods: set[int]) -> frozenset[int]:
    return frozenset(j for j in range(models) if periods & set(range(j - span + 1, j + 1)))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_exact_for_any_class_order(data: st.DataObject) -> None:
    num_classes, span, models = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    votes = tuple(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=models, max_size=models)))
    order = data.draw(st.permutations(range(num_classes)))
    decide = plurality(order)

    def stands(start: int, stop: int) -> bool:
        return not changed(votes, reached(models, span, set(range(start, stop))), range(num_classes), decide)

    earliness = next(t for t in range(models + 1) if not stands(models - t - 1, models))
    first = -span + 1  # the oldest period that any model was trained on
    duration = next(d for d in range(models + span) if not all(stands(a, a + d + 1) for a in range(first, models - d)))
    assert certify(votes, num_classes, span, order) == (decide(votes), earliness, duration)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    votes = torch.randint(0, 3, (7, 100), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = certificates.temporal(votes, 3, 2)
    monkeypatch.setattr(sys.modules["poisonkit.certificates.temporal"], "_CHUNK", 130)
    assert all(torch.equal(a, b) for a, b in zip(certificates.temporal(votes, 3, 2), whole, strict=True))


def test_rejects() -> None:
    with pytest.raises(ArgumentError, match="span must be at least 1, got 0"):
        certificates.temporal(torch.tensor([[0]]), 2, 0)
