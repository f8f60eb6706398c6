"""Certificates against hand-worked cases, an exhaustive adversary, and a second, slow definition."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poisonkit import certificates
from poisonkit.errors import ArgumentError

CASES = json.loads((Path(__file__).parent / "vectors" / "certificates.json").read_text())


def from_counts(counts: list[int]) -> torch.Tensor:
    return torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])[:, None]


def plurality(votes: tuple[int, ...], num_classes: int, order: list[int]) -> int:
    return max(order, key=lambda c: (votes.count(c), -order.index(c)))


def exhaustive(votes: tuple[int, ...], num_classes: int, order: list[int]) -> int:
    """The largest number of freely chosen votes that never changes the plurality."""
    winner, k = plurality(votes, num_classes, order), len(votes)
    for hits in range(1, k + 1):
        for models in itertools.combinations(range(k), hits):
            for new in itertools.product(range(num_classes), repeat=hits):
                changed = list(votes)
                for model, vote in zip(models, new, strict=True):
                    changed[model] = vote
                if plurality(tuple(changed), num_classes, order) != winner:
                    return hits - 1
    raise AssertionError("an adversary with every vote always wins")


@pytest.mark.parametrize("case", CASES["dpa"], ids=lambda c: f"{c['C']}-{c['votes']}")
def test_dpa_cases(case: dict) -> None:
    prediction, radius = certificates.dpa(torch.tensor(case["votes"])[:, None], case["C"])
    assert (prediction.item(), radius.item()) == (case["pred"], case["cert"])
    if case["exact"] is not None:
        assert radius.item() == case["exact"]


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
    got = certificates.dpa(from_counts(counts), len(counts))
    assert (got[0].item(), got[1].item()) == (prediction, radius)


@given(st.data())
def test_dpa_is_exact_for_any_class_order(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 3))
    votes = tuple(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=5)))
    order = data.draw(st.permutations(range(num_classes)))
    prediction, radius = certificates.dpa(torch.tensor(votes)[:, None], num_classes, torch.tensor(order))
    assert prediction.item() == plurality(votes, num_classes, order)
    assert radius.item() == exhaustive(votes, num_classes, order)


@pytest.mark.parametrize("case", CASES["topn"], ids=lambda c: f"{c['label']}-{c['sets']}")
def test_top_n_cases(case: dict) -> None:
    top = torch.tensor(case["sets"])[:, None]
    radius = certificates.top_n(top, case["C"], torch.tensor([case["label"]])).item()
    assert radius == case["cert_count_only"]
    assert radius <= case["exact"]
    assert certificates.guess_set(top, case["C"])[0].tolist() == case["topn"]


@pytest.mark.parametrize(
    ("top", "guesses", "radii"),
    [
        (["01", "01", "02", "03", "12"], [0, 1], [1, 0, -1, -1]),
        (["23", "23", "13", "12"], [3, 2], [-1, -1, 0, 0]),
    ],
)
def test_top_n_by_hand(top: list[str], guesses: list[int], radii: list[int]) -> None:
    ids = torch.tensor([[int(c) for c in model] for model in top])[:, None]
    assert sorted(certificates.guess_set(ids, 4)[0].tolist()) == sorted(guesses)
    for label, radius in enumerate(radii):
        assert certificates.top_n(ids, 4, torch.tensor([label])).item() == radius


@given(st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=9), st.permutations(range(7)))
def test_top_one_is_dpa(votes: list[list[int]], order: list[int]) -> None:
    ballot, classes = torch.tensor(votes), torch.tensor(order)
    prediction, radius = certificates.dpa(ballot, 7, classes)
    assert torch.equal(certificates.guess_set(ballot[:, :, None], 7, classes)[:, 0], prediction)
    assert torch.equal(certificates.top_n(ballot[:, :, None], 7, prediction, classes), radius)
    others = (prediction + 1) % 7
    assert (certificates.top_n(ballot[:, :, None], 7, others, classes) == -1).all()


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 10, (7, 100), generator=generator)
    whole = certificates.dpa(votes.to(torch.uint8), 10)
    monkeypatch.setattr(certificates, "_CHUNK", 130)
    assert all(torch.equal(a, b) for a, b in zip(certificates.dpa(votes, 10), whole, strict=True))


def test_no_inputs() -> None:
    prediction, radius = certificates.dpa(torch.zeros(3, 0, dtype=torch.int64), 4)
    assert prediction.shape == radius.shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certificates.dpa(torch.tensor([[3]]), 3), r"votes must be classes in \[0, 3\), got 3\.\.3"),
        (lambda: certificates.dpa(torch.tensor([[-1]]), 3), r"got -1\.\.-1"),
        (lambda: certificates.dpa(torch.tensor([0]), 3), r"votes must be of shape \[k, M\], got \[1\]"),
        (lambda: certificates.dpa(torch.tensor([[0]]), 1), "num_classes must be at least 2, got 1"),
        (lambda: certificates.dpa(torch.tensor([[0]]), 2, torch.tensor([0, 0])), r"permutation of 0\.\.1"),
        (lambda: certificates.top_n(torch.tensor([[[0, 0]]]), 4, torch.tensor([0])), "distinct classes"),
        (lambda: certificates.top_n(torch.tensor([[[0, 1]]]), 2, torch.tensor([0])), "below the number of classes"),
        (
            lambda: certificates.top_n(torch.tensor([[[0, 1]]]), 4, torch.tensor([0, 1])),
            r"label must be of shape \[1\]",
        ),
    ],
)
def test_rejects(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]
