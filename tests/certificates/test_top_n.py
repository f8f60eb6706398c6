"""Top-n votes: recorded and hand-worked cases, an exhaustive adversary, and n = 1."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from adversary import bucket_models, exhaustive, most_named
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import certificates
from poisonkit.certificates import classes
from poisonkit.errors import ArgumentError

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "certificates.json").read_text())["topn"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['label']}-{c['sets']}")
def test_cases(case: dict) -> None:
    top = torch.tensor(case["sets"])[:, None]
    radius = certificates.top_n(top, case["C"], torch.tensor([case["label"]])).item()
    assert radius == case["cert_count_only"] == case["cert_per_rival"]
    assert radius <= case["exact"]
    assert certificates.guess_set(top, case["C"])[0].tolist() == case["topn"]


@pytest.mark.parametrize(
    ("top", "guesses", "radii"),
    [
        (["01", "01", "02", "03", "12"], [0, 1], [1, 0, -1, -1]),
        (["23", "23", "13", "12"], [3, 2], [-1, -1, 0, 0]),
    ],
)
def test_by_hand(top: list[str], guesses: list[int], radii: list[int]) -> None:
    ids = torch.tensor([[int(c) for c in model] for model in top])[:, None]
    assert sorted(certificates.guess_set(ids, 4)[0].tolist()) == sorted(guesses)
    for label, radius in enumerate(radii):
        assert certificates.top_n(ids, 4, torch.tensor([label])).item() == radius


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_sound_for_any_cells_and_class_order(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 2))
    num_classes = data.draw(st.integers(n + 1, 4))
    groups, shifts = data.draw(st.sampled_from([(1, [0]), (2, [0]), (1, [0, 1]), (1, [3, 1]), (2, [1, 0])]))
    models = 4
    sets = list(itertools.combinations(range(num_classes), n))
    ballots = tuple(data.draw(st.lists(st.sampled_from(sets), min_size=models, max_size=models)))
    order = data.draw(st.permutations(range(num_classes)))
    label = data.draw(st.integers(0, num_classes - 1))
    decide = most_named(order, n, label)
    radius = certificates.top_n(
        torch.tensor(ballots)[:, None], num_classes, torch.tensor([label]), order, shifts=shifts, groups=groups
    ).item()
    assert (radius >= 0) == decide(ballots)
    if radius >= 0:
        assert min(radius, 2) <= exhaustive(ballots, bucket_models(models, shifts, groups), sets, decide, cap=2)


@given(st.lists(st.lists(st.integers(0, 6), min_size=9, max_size=9), min_size=1, max_size=9), st.permutations(range(7)))
def test_top_one_is_dpa(votes: list[list[int]], order: list[int]) -> None:
    ballot, ordered = torch.tensor(votes), torch.tensor(order)
    prediction, radius = certificates.dpa(ballot, 7, ordered)
    assert torch.equal(certificates.guess_set(ballot[:, :, None], 7, ordered)[:, 0], prediction)
    assert torch.equal(certificates.top_n(ballot[:, :, None], 7, prediction, ordered), radius)
    others = (prediction + 1) % 7
    assert (certificates.top_n(ballot[:, :, None], 7, others, ordered) == -1).all()


def test_for_disjoint_partitions_the_counts_suffice() -> None:
    generator = torch.Generator().manual_seed(0)
    top = (torch.rand(12, 300, 20, generator=generator) * torch.linspace(1, 0.2, 20)).topk(5).indices
    label = torch.randint(0, 8, (300,), generator=generator)
    count = torch.zeros(300, 20, dtype=torch.int64)
    for model in top:
        count.scatter_add_(1, model, torch.ones_like(model))
    rival = count + (torch.arange(20) < label[:, None])
    rival.scatter_(1, label[:, None], -1)
    gap = count.gather(1, label[:, None])[:, 0] - rival.topk(5).values[:, -1]
    assert torch.equal(certificates.top_n(top.to(torch.uint8), 20, label), (gap // 2).clamp(min=-1))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    top = torch.randint(0, 10, (7, 100, 1), generator=torch.Generator().manual_seed(0))
    whole = certificates.guess_set(top, 10)
    monkeypatch.setattr(classes, "_CHUNK", 130)
    assert torch.equal(certificates.guess_set(top.to(torch.uint16), 10), whole)


def test_no_inputs() -> None:
    none = torch.zeros(3, 0, 2, dtype=torch.int64)
    assert certificates.guess_set(none, 4).shape == (0, 2)
    assert certificates.top_n(none, 4, torch.zeros(0, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certificates.top_n(torch.tensor([[[0, 0]]]), 4, torch.tensor([0])), "distinct classes"),
        (lambda: certificates.top_n(torch.tensor([[[0, 1]]]), 2, torch.tensor([0])), "below the number of classes"),
        (
            lambda: certificates.top_n(torch.tensor([[[0, 1]]]), 4, torch.tensor([0, 1])),
            r"label must be of shape \[1\]",
        ),
        (lambda: certificates.guess_set(torch.tensor([[[0, 7]]]), 4), r"classes in \[0, 4\), got 0\.\.7"),
    ],
)
def test_rejects(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]
