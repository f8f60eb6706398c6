"""Studies around DPA: the ratio on hand-made curves, sizes at a constant rate, one training for two certificates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from poisonkit.__main__ import main
from poisonkit.attacks import BadNetsWhite
from poisonkit.data import load
from poisonkit.defenses import DPA, FiniteAggregation, RunOffElection
from poisonkit.engine import Local, Progress, Run, environment
from poisonkit.experiments import Row
from poisonkit.experiments.dpa.advise import Advice, Point, advise
from poisonkit.experiments.dpa.family import family
from poisonkit.experiments.dpa.scan import scan
from poisonkit.experiments.lab import Lab
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import Budget

TINY = Recipe(model=ResNet(8, 4, stem="small"), epochs=1, batch_size=16, augment=None)
SMALL = ["--data", "digits", "--limit", "120", "--recipe.model.width", "4", "--recipe.epochs", "1", "--threads", "1"]


def curve(*accuracies: float, total: int = 1600) -> list[Point]:
    """Base models of 1600, 800, 400, ... rows of these accuracies."""
    points = []
    for i, accuracy in enumerate(accuracies):
        row = Row("", accuracy, None, None, {1: accuracy, 3: 1.0}, None, 0.0)
        points.append(Point(2**i, total / 2**i, (row,), row))
    return points


@pytest.mark.parametrize(
    ("accuracies", "target", "expected"),
    [
        ((0.9, 0.8, 0.6), 0.8, Advice(0.8, 800, 2, 2, False)),  # just met by 1/2 of the data
        ((0.9, 0.8, 0.6), 0.7, Advice(0.7, 800 / 2**0.5, 2 * 2**0.5, 2, False)),  # half-way between 400 and 800 rows
        ((0.9, 0.8, 0.6), 0.5, Advice(0.5, 400, 4, 4, True)),  # no part tried was too small
        ((0.9, 0.8, 0.6), 0.95, Advice(0.95, None, None, 1, False)),  # not even by all the data
        (
            (0.9, 0.5, 0.8),
            0.7,
            Advice(0.7, 800 * 2**0.5, 2**0.5, 1, False),
        ),  # what holds by luck further down is not used
    ],
)
def test_the_ratio_of_a_curve(accuracies: tuple[float, ...], target: float, expected: Advice) -> None:
    found = advise(curve(*accuracies), 1600, target)
    assert (found.target, found.partitions, found.bound) == (expected.target, expected.partitions, expected.bound)
    assert found.complexity == pytest.approx(expected.complexity)
    assert found.ratio == pytest.approx(expected.ratio)


def test_the_ratio_of_easier_guesses() -> None:
    assert advise(curve(0.9, 0.5), 1600, 0.9, guesses=3) == Advice(0.9, 800, 2, 2, True)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    train, test = (part.take(torch.arange(120)) for part in load("digits"))
    run = Run(tmp_path / "run", {"environment": environment()})
    return Lab(run, train, test, TINY, key(3), Local(), Progress())


def test_one_training_serves_two_certificates(lab: Lab) -> None:
    """The rows are those of each defense trained on its own, and of nothing else."""
    defense = RunOffElection(partitions=3, spread=2)
    poison = BadNetsWhite(size=2)(lab.train, Budget(0.05), key=lab.key.child("attack"))
    found = family(lab, defense, poison)
    assert [len(split.sizes) for split in found.splits] == [3, 6]
    alone = [
        DPA(partitions=3),
        RunOffElection(partitions=3),
        FiniteAggregation(partitions=3, spread=2),
        defense,
    ]
    dirty = poison.apply(lab.train)
    for row, each in zip(found.rows, alone, strict=True):
        ensemble = each(dirty, TINY, key=lab.key.child("defense"))
        certificate = ensemble.certify(lab.test.images)
        assert row.certified is not None
        for radius, share in enumerate(row.certified[1]):
            assert share == certificate.certified_accuracy(lab.test.labels, radius), (row.name, radius)
        assert row.certified[1][-1] == 0
        within = ensemble.certify_top(lab.test.images, lab.test.labels, 3)
        assert row.certified[3] == tuple(float((within >= r).double().mean()) for r in range(len(row.certified[3])))


def test_a_scan_keeps_the_rate(lab: Lab) -> None:
    sizes = scan(lab, BadNetsWhite(size=2), 0.05, [1, 3], 2)
    assert [(size.parts, size.rows, size.poisoned, len(size.seeds)) for size in sizes] == [
        (1, 120, 6, 2),
        (3, 40, 2, 2),
    ]
    assert all(row.attack_success_rate is not None and row.certified is None for size in sizes for row in size.seeds)


@pytest.mark.parametrize("study", ["family", "advise", "scan"])
def test_studies_of_the_command_line(study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each prints a table, leaves a page that asks the network for nothing, and when repeated trains nothing."""
    options = {
        "family": ["--defense.partitions", "2", "--defense.spread", "2", "--rate", "0.05"],
        "advise": ["--partitions", "1,2,4", "--models", "2", "--target", "0.05"],
        "scan": ["--parts", "1,2", "--seeds", "2", "--attack.size", "2", "--rate", "0.05"],
    }[study]
    out = tmp_path / "run"
    arguments = ["dpa", study, *SMALL, *options, "--out", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    models = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    expected = {"family": 2 + 4, "advise": 1 + 2 + 2, "scan": 4}
    assert len(models) == expected[study]
    named = {
        "family": r"^FA \+ ROE +\d",
        "advise": r"Suggested number of partitions: 4; try",
        "scan": r"^all data +120 +6 ",
    }
    assert re.search(named[study], shown, re.MULTILINE), shown
    page = (out / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert list((out / "figures").iterdir())
    json.loads((out / "results.json").read_text())
    assert main(arguments) == 0
    assert capsys.readouterr().out == shown
    assert models == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["advise", "--partitions", "2,4"], "--partitions must be with 1"),
        (
            ["advise", "--partitions", "0,1"],
            "argument --partitions: must be numbers of 1 or more, such as 1,2,4, got 0,1",
        ),
        (["advise", "--partitions", "many"], "argument --partitions: must be .*, got many"),
        (["advise", "--target", "0.5", "--share", "0.5"], "not allowed with argument"),
        (["advise", "--target", "80"], r"--target must be a fraction in \(0, 1\], got 80.0"),
        (["advise", "--guesses", "7"], "--guesses must be one of 1, 3, 5, got 7"),
        (
            ["advise", "--attack.size", "3"],
            "an option must be of --help or below --recipe, --defense, got --attack.size",
        ),
        (["scan", "--rate", "2"], r"--rate must be a fraction in \[0, 1\]"),
        (["scan", "--parts", "1,500"], "--parts must be at most 120, one row each, got"),
        (["scan", "--attack.target", "10"], r"target must be a class in \[0, 10\)"),
        (["family", "--defense.order", "0,1"], "order"),
        (["family", "--defense.spread", "0"], "spread must be at least 1"),
    ],
    ids=" ".join,
)
def test_what_a_study_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, *rest = arguments
    assert main(["dpa", study, *SMALL, "--out", str(tmp_path / "run"), *rest]) == 2
    assert re.match(f"poisonkit: .*{message}", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["dpa", "scan", *SMALL, "--dry-run", "--out", str(tmp_path / "run")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["study"], plan["rate"], plan["parts"], plan["recipe"]["epochs"]) == ("scan", 0.01, [1, 2, 4, 8, 16], 1)
    assert not (tmp_path / "run").exists()
