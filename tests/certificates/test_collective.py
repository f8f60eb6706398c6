"""The collective certificate against an attacker who changes as many predictions as can be."""

from __future__ import annotations

import sys

import pytest
import torch
from adversary import attacks, bucket_models, changed, plurality
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import certificates
from poisonkit.errors import ArgumentError, MissingError

pytest.importorskip("scipy.optimize", reason="scipy is not installed")

# three inputs whose votes each have one model against: no two models decide the same inputs
VOTES = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0]]).T


def test_by_hand() -> None:
    assert certificates.dpa(VOTES, 2)[1].tolist() == [0, 0, 0]
    assert [certificates.collective(VOTES, 2, r) for r in range(4)] == [0, 2, 3, 3]


def test_only_what_is_counted_counts() -> None:
    counted = torch.tensor([True, False, False])
    assert [certificates.collective(VOTES, 2, r, counted=counted) for r in range(3)] == [0, 1, 1]
    assert certificates.collective(VOTES, 2, 1, counted=torch.zeros(3, dtype=torch.bool)) == 0


def test_one_input_a_chunk_is_the_pointwise_certificate() -> None:
    assert certificates.collective(VOTES, 2, 1, chunk=1) == 3


def test_chunks_and_time_only_loosen_the_bound() -> None:
    generator = torch.Generator().manual_seed(0)
    votes = torch.randint(0, 3, (20, 60), generator=generator)
    votes[:6] = torch.arange(60) % 3
    exact = certificates.collective(votes, 3, 3)
    alone = int((certificates.dpa(votes, 3)[1] < 3).sum())
    assert exact <= certificates.collective(votes, 3, 3, chunk=5) <= alone
    assert exact <= certificates.collective(votes, 3, 3, seconds=1e-3) <= alone


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_exact_for_any_cells_and_class_order(data: st.DataObject) -> None:
    num_classes, inputs = data.draw(st.integers(2, 3)), data.draw(st.integers(1, 4))
    groups, shifts = data.draw(st.sampled_from([(1, [0]), (2, [0]), (1, [0, 1]), (1, [3, 1])]))
    ballots = [
        tuple(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=4, max_size=4))) for _ in range(inputs)
    ]
    order = data.draw(st.permutations(range(num_classes)))
    hits = data.draw(st.integers(1, 2))
    most = max(
        sum(changed(votes, reached, range(num_classes), plurality(order)) for votes in ballots)
        for reached in attacks(bucket_models(4, shifts, groups), hits)
    )
    votes = torch.tensor(ballots).T
    assert certificates.collective(votes, num_classes, hits, shifts=shifts, groups=groups, order=order) == most


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingError, match=r"scipy must be installed, got no module; pip install"):
        certificates.collective(VOTES, 2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hits": -1}, "hits must be 0 or more"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"seconds": 0}, "seconds must be above 0"),
        ({"counted": torch.ones(2, dtype=torch.bool)}, r"counted must be of shape \[3\]"),
        ({"counted": torch.ones(3)}, "counted must be bool"),
    ],
)
def test_rejects(changes: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        certificates.collective(VOTES, 2, **{"hits": 1, **changes})
