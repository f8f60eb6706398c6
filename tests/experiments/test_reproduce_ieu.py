"""The tables of Interleaved Ensemble Unlearning, run at a size at which they say nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from poisonkit.attacks import ATTACKS, Smooth
from poisonkit.attacks.crafting import SURROGATE
from poisonkit.data import load
from poisonkit.defenses.training.interleaved import UnlearningRate
from poisonkit.engine import Local, Progress, Run
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import ieu
from poisonkit.experiments.reproduce import ieu_paper as paper
from poisonkit.experiments.reproduce.sizes import size
from poisonkit.models import ResNet, ViT
from poisonkit.random import key
from poisonkit.train import Recipe

TINY = ViT(3, 8, 2, patch=4)


def shrunk(recipe: Recipe) -> Recipe:
    return replace(recipe, model=TINY, epochs=1, batch_size=16)


def setting() -> ieu.Setting:
    smoke = ieu.SCALES["smoke"]
    return replace(
        smoke,
        recipe=shrunk(smoke.recipe),
        pretraining=shrunk(smoke.pretraining),
        ieu=replace(smoke.ieu, threshold=0.2, poisoned=shrunk(smoke.ieu.poisoned)),
        abl=replace(smoke.abl, isolation_epochs=1),
        attacks=("badnets_white",),
        asked=20,
        limit=60,
    )


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    train, test = (part.take(torch.arange(60)) for part in load("digits"))
    return Lab(Run(tmp_path / "run", {}), train, test, setting().recipe, key(0), Local(), Progress())


def test_table1(lab: Lab) -> None:
    [part] = ieu.table1(lab, setting())
    defenses = [paper.NONE, paper.ABL_, paper.IBAU_, paper.ATTN, paper.IEU_]
    assert list(part.numbers) == [paper.row(a, d) for a in ("badnets_white", paper.AVERAGE) for d in defenses]
    assert part.title == paper.TABLE1[0].title
    for row, columns in part.numbers.items():
        gated = any(row.endswith(name) for name in (paper.ABL_, paper.IEU_))
        assert list(columns) == [*paper.MEASURES, *(paper.GATE if gated else ())]
        assert all(0 <= number <= 1 for number in columns.values())
    [again] = ieu.table1(lab, setting())
    assert again == part


def test_ablations_share_what_they_can(lab: Lab) -> None:
    [thresholds] = ieu.IEU_PAPER["ieu/table2"].run(lab, setting())
    alarms = [columns[paper.ALARMS] for columns in thresholds.numbers.values()]
    assert alarms == sorted(alarms, reverse=True)
    gates = list(lab.run.directory.rglob("seen.safetensors"))
    assert len(gates) == 1, "one poisoned module for all thresholds"
    [depths] = ieu.IEU_PAPER["ieu/table3"].run(lab, setting())
    assert list(depths.numbers) == ["1 blocks", "2 blocks", "3 blocks"]
    assert len(list(lab.run.directory.rglob("seen.safetensors"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ieu/table4", "ieu/table5", "ieu/table6", "ieu/table7"])
def test_other_tables(lab: Lab, name: str) -> None:
    [part] = ieu.IEU_PAPER[name].run(lab, setting())
    assert all(math.isfinite(number) for columns in part.numbers.values() for number in columns.values())


def test_a_training_that_diverges_is_a_row(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlearning at 10³⁰ times the learning rate leaves no number; the other rows are measured."""
    surrogate = replace(SURROGATE, model=ResNet(8, 2, stem="small"), epochs=1)
    monkeypatch.setitem(ATTACKS, "smooth", partial(Smooth, steps=2, surrogate=surrogate))
    rates = {f"{value:g} times": UnlearningRate("constant", constant=value) for value in (1.0, 1e30)}
    variants = lambda defense: {row: replace(defense, rate=rate) for row, rate in rates.items()}  # noqa: E731
    monkeypatch.setattr(ieu, "unlearning_rates", variants)
    [part] = ieu.stability(lab, setting())
    assert list(part.numbers) == [paper.NONE, "1 times", "1e+30 times"]
    assert part.numbers["1e+30 times"] == {paper.DIVERGED: 1}
    for row in (paper.NONE, "1 times"):
        assert part.numbers[row][paper.DIVERGED] == 0
        assert set(paper.MEASURES) <= set(part.numbers[row])
    # it stands beside the other tables in their run
    assert {path.name for path in lab.run.directory.iterdir()} >= {"vgg11", "crafting"}
    assert ieu.stability(lab, setting()) == [part]
    plan = ieu.IEU_PAPER["ieu/table7"].plan(setting(), 100)
    assert [each.count for each in plan] == [1, 1, 3]


def test_what_was_pretrained_on_is_left_out_and_said() -> None:
    assert all("pretrained on a clean share" in entry.summary for entry in ieu.IEU_PAPER.values())


def test_the_papers_averages_and_sizes() -> None:
    rows = paper.TABLE1[0].numbers
    assert rows["average, IEU"] == {paper.ACC: pytest.approx(0.9723), paper.ASR_ALL: pytest.approx(0.0017)}
    assert rows["average, I-BAU"] == {paper.ASR_ALL: pytest.approx(0.3163)}
    full = ieu.SCALES["paper"]
    found = size(ieu.IEU_PAPER["ieu/table1"].plan(full, 50_000), (3, 32, 32), 10, 50_000)
    # of ViT-S in batches of 256 images, the largest: some 12 blocks of 15 numbers a token and width
    tokens = 12 * 197 * 15 * 384
    assert found.gpu_bytes == pytest.approx(4 * 256 * tokens + 50_000 * 3072, rel=0.2)
    assert found.networks == 1 + 4 * len(paper.ATTACKS)
    # a forward pass of ViT-S/16 at 224 pixels is 4.6 G multiply-adds, its attention's products included
    a_step = 3 * 4.25e9 * 25_000
    assert found.multiply_adds == pytest.approx(a_step * (100 + 3 * 10 * 11 + 10 * 11 / 12), rel=0.05)
