"""Schedules against torch's own, step for step."""

from __future__ import annotations

import pytest
import torch

from poisonkit.errors import ArgumentError
from poisonkit.train import Cosine, OneCycle, Step


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 10, 113, 1000])
def test_one_cycle_is_torchs(anneal: str, total: int) -> None:
    sgd = optimizer()
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        sgd,
        max_lr=1.0,
        total_steps=total,
        pct_start=0.3,
        div_factor=20,
        final_div_factor=100,
        anneal_strategy={"cosine": "cos", "linear": "linear"}[anneal],
    )
    ours = OneCycle(anneal=anneal, momenta=(0.85, 0.95))
    for step in range(total):
        group = sgd.param_groups[0]
        assert ours.lr(step, total) == pytest.approx(group["lr"], rel=1e-12)
        assert ours.momentum(step, total) == pytest.approx(group["momentum"], rel=1e-12)
        sgd.step()
        if step < total - 1:
            torchs.step()


def test_one_cycle_at_its_corners() -> None:
    ours = OneCycle()
    assert [ours.lr(step, 1000) for step in (0, 299, 999)] == pytest.approx([0.05, 1.0, 0.0005])
    assert ours.momentum(0, 10) is None
    assert OneCycle(warmup=0.1).lr(0, 10) == 1.0  # where torch divides by zero
    assert OneCycle(warmup=1.0).lr(9, 10) == 1.0
    assert OneCycle(warmup=0.0).lr(9, 10) == pytest.approx(0.0005)


def test_step() -> None:
    ours = Step(0.1, (0.07, 0.5), 0.1)
    assert [ours.lr(step, 100) for step in (0, 6, 7, 49, 50, 99)] == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert ours.momentum(0, 100) is None


def test_cosine_is_torchs() -> None:
    sgd = optimizer()
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=50, eta_min=0.01)
    for step in range(50):
        assert Cosine(1.0, 0.01).lr(step, 50) == pytest.approx(sgd.param_groups[0]["lr"], rel=1e-9)
        sgd.step()
        torchs.step()


def test_cosine_climbs_first() -> None:
    ours = Cosine(1.0, warmup=0.3)
    assert [ours.lr(step, 10) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert ours.lr(9, 10) > 0
    assert ours.momentum(0, 10) is None


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (OneCycle, {"start": 2.0}),
        (OneCycle, {"end": -1.0}),
        (OneCycle, {"warmup": 1.5}),
        (OneCycle, {"anneal": "cos"}),
        (OneCycle, {"momenta": (0.95, 0.85)}),
        (OneCycle, {"peak": float("nan")}),
        (Step, {"rate": -0.1}),
        (Step, {"milestones": (50,)}),
        (Step, {"factor": -1.0}),
        (Cosine, {"rate": -0.1}),
        (Cosine, {"end": 1.0}),
        (Cosine, {"warmup": 1.0}),
    ],
)
def test_rejects(kind: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="must be"):
        kind(**wrong)
