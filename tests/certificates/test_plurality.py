"""DPA, Finite Aggregation and hash bagging: hand-worked cases, recorded ones, and an exhaustive adversary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from adversary import bucket_models, exhaustive, plurality
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import certificates, ops
from poisonkit.errors import ArgumentError

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "certificates.json").read_text())


def from_counts(counts: list[int]) -> torch.Tensor:
    return torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])[:, None]


def items(result: tuple[torch.Tensor, ...]) -> tuple[int, ...]:
    return tuple(tensor.item() for tensor in result)


@pytest.mark.parametrize("case", CASES["dpa"], ids=lambda c: f"{c['C']}-{c['votes']}")
def test_dpa_cases(case: dict) -> None:
    result = certificates.dpa(torch.tensor(case["votes"])[:, None], case["C"])
    assert items(result) == (case["pred"], case["cert"])
    if case["exact"] is not None:
        assert result[1].item() == case["exact"]


@pytest.mark.parametrize(
    ("counts", "prediction", "radius"),
    [
        ([5, 3, 2], 0, 1),
        ([3, 5, 2], 1, 0),
        ([4, 4, 2], 0, 0),
        ([2, 4, 4], 1, 0),
        ([16, 0], 0, 8),
        ([0, 16], 1, 7),
        ([6, 7, 7, 0], 1, 0),
        ([7, 9, 8], 1, 0),
        ([1, 10, 5], 1, 2),
        # equation (1) in float64 gives one less on these
        ([2, 3], 1, 0),
        ([7, 3], 0, 2),
        ([6, 4], 0, 1),
        ([4, 7], 1, 1),
        ([12, 2], 0, 5),
    ],
)
def test_dpa_by_hand(counts: list[int], prediction: int, radius: int) -> None:
    assert items(certificates.dpa(from_counts(counts), len(counts))) == (prediction, radius)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_dpa_is_exact_for_any_class_order(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 3))
    votes = tuple(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=5)))
    order = data.draw(st.permutations(range(num_classes)))
    result = certificates.dpa(torch.tensor(votes)[:, None], num_classes, torch.tensor(order))
    cells = bucket_models(len(votes), [0])
    assert items(result) == (plurality(order)(votes), exhaustive(votes, cells, range(num_classes), plurality(order)))


@given(st.lists(st.integers(0, 60), min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_dpa_is_the_closed_form(counts: list[int], random: object) -> None:
    counts[0] += 1
    order = list(range(len(counts)))
    random.shuffle(order)
    best = max(order, key=lambda c: (counts[c], -order.index(c)))
    rival = max(counts[c] + (order.index(c) < order.index(best)) for c in order if c != best)
    assert items(certificates.dpa(from_counts(counts), len(counts), order)) == (best, (counts[best] - rival) // 2)


@pytest.mark.parametrize("case", CASES["fa"], ids=lambda c: f"{c['shifts']}-{c['votes']}")
def test_finite_aggregation_cases(case: dict) -> None:
    votes = torch.tensor(case["votes"])[:, None]
    result = certificates.finite_aggregation(votes, case["C"], shifts=case["shifts"])
    assert items(result) == (case["pred"], case["cert"])
    if case["exact"] is not None:
        assert result[1].item() <= case["exact"]


@pytest.mark.parametrize(
    ("votes", "classes", "shifts", "expected", "disjoint"),
    [
        ([0, 0, 0, 1], 2, [0, 1], (0, 0), 1),
        ([0, 0, 0, 0, 0, 1], 2, [0, 2], (0, 1), 2),
        ([1, 1, 1, 1, 1, 0], 2, [0, 2], (1, 0), 1),
        ([0, 0, 1, 0, 0, 0, 3, 2, 0], 4, [7, 4, 1], (0, 1), 2),
        ([0] * 15, 3, [0, 1, 2], (0, 2), 7),
        ([2] * 15, 3, [0, 1, 2], (2, 2), 7),
        ([0] * 9 + [1] * 3, 2, [0, 5, 7], (0, 1), 3),
    ],
)
def test_finite_aggregation_by_hand(votes, classes, shifts, expected, disjoint) -> None:
    ballot = torch.tensor(votes)[:, None]
    assert items(certificates.finite_aggregation(ballot, classes, shifts)) == expected
    assert certificates.dpa(ballot, classes)[1].item() == disjoint


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_finite_aggregation_is_sound_for_any_class_order(data: st.DataObject) -> None:
    num_classes, n = data.draw(st.integers(2, 3)), data.draw(st.integers(2, 5))
    votes = tuple(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=n, max_size=n)))
    shifts = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True))
    order = data.draw(st.permutations(range(num_classes)))
    prediction, radius = certificates.finite_aggregation(torch.tensor(votes)[:, None], num_classes, shifts, order)
    exact = exhaustive(votes, bucket_models(n, shifts), range(num_classes), plurality(order))
    assert prediction.item() == plurality(order)(votes)
    assert radius.item() <= exact
    if len(shifts) == 1:
        assert radius.item() == exact


def test_finite_aggregation_is_nearly_always_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    votes = (torch.rand(8, 40, generator=generator) < 0.15).long()
    _, radius = certificates.finite_aggregation(votes, 2, [0, 2, 5])
    cells = bucket_models(8, [0, 2, 5])
    exact = [exhaustive(tuple(column), cells, range(2), plurality([0, 1])) for column in votes.T.tolist()]
    equal = sum(a == b for a, b in zip(radius.tolist(), exact, strict=True))
    assert equal >= 38
    assert max(exact) >= 1


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_hash_bagging_is_exact_for_any_class_order(data: st.DataObject) -> None:
    num_classes, groups = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 3))
    k = data.draw(st.integers(1, 2 if groups == 3 else 3))
    votes = tuple(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=groups * k, max_size=groups * k)))
    order = data.draw(st.permutations(range(num_classes)))
    result = certificates.hash_bagging(torch.tensor(votes)[:, None], num_classes, groups, order)
    exact = exhaustive(votes, bucket_models(groups * k, [0], groups), range(num_classes), plurality(order))
    assert items(result) == (plurality(order)(votes), exact)


def test_hash_bagging_by_hand() -> None:
    # gap 9 of twelve votes to three; one row takes at most two from every group of five
    votes = torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1])[:, None]
    assert items(certificates.hash_bagging(votes, 2, groups=3)) == (0, 1)
    assert items(certificates.dpa(votes, 2)) == (0, 4)
    # all winners in one group: a row finds only one of them
    votes = torch.tensor([0, 0, 0, 0, 1, 2])[:, None]
    assert items(certificates.hash_bagging(votes, 3, groups=2)) == (0, 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_small_integers_and_strides_change_nothing(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 200, (24, 601), generator=generator)
    votes[:16] = torch.randint(0, 200, (601,), generator=generator)
    order = torch.randperm(200, generator=generator)
    wanted = certificates.finite_aggregation(votes, 200, [0, 3, 10], order)
    for same in (votes.to(dtype), votes.to(dtype).T.contiguous().T):
        got = certificates.finite_aggregation(same, 200, [0, 3, 10], order)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_one_thread_and_two_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 50, (40, 3000), generator=generator)
    votes[::2] = votes[0]
    one = certificates.finite_aggregation(votes, 50, [0, 7])
    torch.set_num_threads(2)
    two = certificates.finite_aggregation(votes, 50, [0, 7])
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_no_inputs() -> None:
    for result in (
        certificates.dpa(torch.zeros(3, 0, dtype=torch.int64), 4),
        certificates.hash_bagging(torch.zeros(4, 0, dtype=torch.uint8), 4, 2),
    ):
        assert [tensor.shape for tensor in result] == [(0,), (0,)]


def test_without_the_core_the_result_is_the_same() -> None:
    votes = torch.randint(0, 5, (20, 50), generator=torch.Generator().manual_seed(0))
    native = certificates.finite_aggregation(votes, 5, [0, 3])
    with ops.isa("reference"):
        reference = certificates.finite_aggregation(votes, 5, [0, 3])
    assert all(torch.equal(a, b) for a, b in zip(native, reference, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certificates.dpa(torch.tensor([[3]]), 3), r"votes must be classes in \[0, 3\), got 3\.\.3"),
        (lambda: certificates.dpa(torch.tensor([[-1]]), 3), r"got -1\.\.-1"),
        (lambda: certificates.dpa(torch.tensor([0]), 3), r"votes must be of shape \[k, M\], got \[1\]"),
        (lambda: certificates.dpa(torch.tensor([[0]]), 1), "num_classes must be at least 2, got 1"),
        (lambda: certificates.dpa(torch.tensor([[0]]), 2, torch.tensor([0, 0])), r"permutation of 0\.\.1"),
        (lambda: certificates.dpa(torch.tensor([[0.0]]), 2), "uint8, uint16 or int64, got torch.float32"),
        (lambda: certificates.finite_aggregation(torch.zeros(4, 1).long(), 2, [0, 4]), r"shifts must be distinct"),
        (lambda: certificates.finite_aggregation(torch.zeros(4, 1).long(), 2, [1, 1]), r"got \[1, 1\]"),
        (lambda: certificates.hash_bagging(torch.zeros(4, 1).long(), 2, 3), "groups must be a divisor of the 4 models"),
    ],
)
def test_rejects(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]
