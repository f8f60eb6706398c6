"""Run-Off Election: recorded and hand-worked cases, the closed form of two gaps, and an exhaustive adversary."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from adversary import bucket_models, exhaustive, run_off
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import certificates
from poisonkit.certificates.run_off import _pack
from poisonkit.errors import ArgumentError

CASES = json.loads((Path(__file__).parents[1] / "vectors" / "certificates.json").read_text())


def certify(rankings: list, shifts: list[int] | None = None, order: list[int] | None = None) -> tuple[int, int]:
    prediction, radius = certificates.run_off(torch.tensor(rankings)[:, None], shifts, order)
    return prediction.item(), radius.item()


@pytest.mark.parametrize("case", CASES["roe_dpa"] + CASES["roe_fa"], ids=lambda c: str(c["rankings"]))
def test_cases(case: dict) -> None:
    assert certify(case["rankings"], case.get("shifts")) == (case["pred"], case["cert"])
    cap, exact = next((int(name[-1]), value) for name, value in case.items() if name.startswith("exact_capped"))
    assert min(case["cert"], cap) <= exact


@pytest.mark.parametrize(
    ("rankings", "expected"),
    [
        (["012"] * 5, (0, 2)),
        (["210"] * 5, (2, 2)),
        (["021", "120", "210", "210", "210"], (2, 1)),
        (["021"] * 3 + ["120", "201"], (0, 0)),
        (["021", "120", "120", "201", "201"], (2, 0)),
        (["012"] * 3 + ["102"] * 3 + ["210"], (1, 0)),
        (["012"] * 2 + ["102"] * 2, (0, 0)),
        (["120"] * 4 + ["201"] * 2, (1, 0)),  # the exact radius is 1
    ],
)
def test_by_hand(rankings: list[str], expected: tuple[int, int]) -> None:
    assert certify([[int(c) for c in model] for model in rankings]) == expected


def test_the_election_may_certify_more_or_less_than_the_plurality() -> None:
    for rankings, run_off_radius, plurality_radius in (
        (["021", "120", "210", "210", "210"], 1, 0),
        (["021"] * 3 + ["120", "201"], 0, 1),
    ):
        ids = torch.tensor([[int(c) for c in model] for model in rankings])[:, None]
        assert certificates.run_off(ids)[1].item() == run_off_radius
        assert certificates.dpa(ids[..., 0], 3)[1].item() == plurality_radius


def test_finite_aggregation_by_hand() -> None:
    assert certify([[0, 1, 2]] * 8, [0, 3]) == (0, 2)
    assert certify([[0, 1, 2]] * 8, [5]) == certify([[0, 1, 2]] * 8)


@pytest.mark.parametrize(
    ("i", "j", "hits"),
    [
        *((0, 1, 1), (1, 1, 1), (1, 2, 1), (2, 2, 2), (3, 3, 2), (4, 4, 3), (0, 10, 5), (6, 10, 6), (7, 10, 6)),
        *((10, 10, 7), (2, 9, 5)),
    ],
)
def test_two_gaps_close_as_in_the_closed_form(i: int, j: int, hits: int) -> None:
    # everyone puts class 2 above the others' favourites, so that it can only be lost before the final; ties go to it
    # last, so a gap is one more than the lead
    votes, order = 40, [0, 1, 2]
    rankings = [[2, 0, 1]] * votes + [[0, 2, 1]] * (votes - i) + [[1, 2, 0]] * (votes - j)
    assert certify(rankings, order=order) == (2, max(hits - 1, 0))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_sound_for_any_cells_and_class_order(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 3))
    every = list(itertools.permutations(range(num_classes)))
    n = data.draw(st.integers(1, 4))
    rankings = tuple(data.draw(st.lists(st.sampled_from(every), min_size=n, max_size=n)))
    shifts = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=2, unique=True))
    order = data.draw(st.permutations(range(num_classes)))
    prediction, radius = certify(rankings, shifts, order)
    assert prediction == run_off(order)(rankings)
    assert min(radius, 2) <= exhaustive(rankings, bucket_models(n, shifts), every, run_off(order), cap=2)


def test_disjoint_partitions_are_nearly_always_exact() -> None:
    every = list(itertools.permutations(range(3)))
    generator = torch.Generator().manual_seed(0)
    draws = (torch.rand(5, 40, generator=generator) ** 2 * 6).long()
    rankings = torch.tensor(every)[draws]
    _, radius = certificates.run_off(rankings)
    exact = [
        exhaustive(tuple(map(tuple, election)), bucket_models(5, [0]), every, run_off([0, 1, 2]), cap=2)
        for election in rankings.transpose(0, 1).tolist()
    ]
    assert sum(a == b for a, b in zip(radius.tolist(), exact, strict=True)) >= 38
    assert max(exact) >= 1


@pytest.mark.parametrize("shifts", [None, [0, 4, 5]])
def test_bits_and_rankings_agree_chunk_by_chunk(shifts: list[int] | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(12, 90, 21, generator=generator) * torch.linspace(1, 0.5, 21)
    order = torch.randperm(21, generator=generator)
    whole = certificates.run_off(logits.argsort(dim=-1, descending=True, stable=True).to(torch.uint8), shifts, order)
    for start in range(0, 90, 40):
        part = logits[:, start : start + 40]
        first = part.argmax(-1).to(torch.uint16)
        finalists = certificates.run_off_finalists(first, 21, order)
        above = torch.stack([certificates.run_off_above(model, finalists) for model in part])
        assert torch.equal(above, certificates.run_off_above(part, finalists))
        got = certificates.run_off_votes(first, above, 21, shifts, order)
        assert all(torch.equal(a, b[start : start + 40]) for a, b in zip(got, whole, strict=True))


def test_bits_of_one_model() -> None:
    logits = torch.tensor([[3.0, 1.0, 3.0, 0.0, -1.0, 2.0, 2.0, 2.0, 2.5]])
    above = certificates.run_off_above(logits, torch.tensor([[0, 5]]))
    beaten = [[c for c in range(9) if above[0, f, c // 8] >> (c % 8) & 1] for f in range(2)]
    assert beaten == [[1, 3, 4, 5, 6, 7, 8], [1, 3, 4]]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_equal_logits_are_sound(data: st.DataObject) -> None:
    """A model without a preference counts for the second finalist; poisoned models have any logits they like."""
    weak = [logits for logits in itertools.product(range(2), repeat=3) if 0 in logits]
    n = data.draw(st.integers(1, 5))
    ballots = tuple(data.draw(st.lists(st.sampled_from(weak), min_size=n, max_size=n)))

    def decide(models: tuple) -> int:
        favourites = [model.index(max(model)) for model in models]
        one, two = sorted(range(3), key=lambda c: (-favourites.count(c), c))[:2]
        lead = 2 * sum(model[one] > model[two] for model in models) - n
        return one if lead > 0 or (lead == 0 and one < two) else two

    logits = torch.tensor(ballots)[:, None]
    first = torch.tensor([[model.index(max(model))] for model in ballots])
    finalists = certificates.run_off_finalists(first, 3)
    prediction, radius = certificates.run_off_votes(first, certificates.run_off_above(logits, finalists), 3)
    assert prediction.item() == decide(ballots)
    # every preference of one class over another, and of none, can be had with logits from 0 to 2
    strong = list(itertools.product(range(3), repeat=3))
    assert min(radius.item(), 1) <= exhaustive(ballots, bucket_models(n, [0]), strong, decide, cap=1)


def test_no_inputs() -> None:
    result = certificates.run_off(torch.zeros(3, 0, 4, dtype=torch.uint8))
    assert [tensor.shape for tensor in result] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certificates.run_off(torch.tensor([[[0, 0]]])), r"rankings must be permutations of 0\.\.1"),
        (lambda: certificates.run_off(torch.tensor([[0, 1]])), r"rankings must be of shape \[n, M, K\]"),
        (lambda: certificates.run_off(torch.tensor([[[0, 1]]]), [1]), r"shifts must be distinct and in \[0, 1\)"),
        (lambda: certificates.run_off(torch.tensor([[[0, 1]]]), []), "shifts must be distinct"),
        (lambda: certificates.run_off_votes(torch.tensor([[0]]), torch.zeros(1, 1, 2).byte(), 2), "above must be of"),
    ],
)
def test_rejects(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("classes", [1, 7, 8, 9, 1000])
def test_packing_is_the_same_on_every_device(classes: int) -> None:
    bits = torch.rand(3, 2, classes, generator=torch.Generator().manual_seed(classes)) < 0.5
    expected = np.packbits(bits.numpy(), axis=-1, bitorder="little")
    assert np.array_equal(_pack(bits).numpy(), expected)
