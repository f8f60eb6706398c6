"""Finished runs side by side: which of them are one line, how sure a line is, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from poisonkit import config
from poisonkit.__main__ import main
from poisonkit.attacks import ATTACKS
from poisonkit.defenses import DEFENSES
from poisonkit.engine.run import FORMAT
from poisonkit.errors import RunError
from poisonkit.experiments.runs import lines, read, shown
from poisonkit.metrics import Interval


def finished(
    directory: Path,
    rates: dict[str, tuple[float, float | None]],
    *,
    seed: int = 0,
    attack: str = "sig",
    defense: str | None = "dpa",
    data: str = "a",
    **plan: Any,
) -> Path:
    """A run as `poisonkit run` leaves it: clean accuracy and attack success of each classifier."""
    about = {
        "data": "digits",
        "attack": config.to_dict(ATTACKS[attack]()),
        "rate": 0.1,
        "per_class": False,
        "defense": defense and config.to_dict(DEFENSES[defense]()),
        "recipe": {"class": "Recipe", "epochs": 3},
        "seed": seed,
        **plan,
    }
    rows = [
        {"name": name, "clean_accuracy": clean, "attack_success_rate": success, "poison_accuracy": None}
        for name, (clean, success) in rates.items()
    ]
    directory.mkdir(parents=True)
    manifest = {"format": FORMAT, "plan": about, "data": {"train": data, "test": data}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "results.json").write_text(json.dumps(rows))
    return directory


def test_seeds_of_one_configuration_are_one_line(tmp_path: Path) -> None:
    for seed, clean in enumerate([0.90, 0.94, 0.92]):
        finished(tmp_path / str(seed), {"undefended": (clean, 0.8), "dpa": (clean - 0.1, 0.1)}, seed=seed)
    finished(tmp_path / "other", {"undefended": (0.9, 0.7)}, attack="badnets_white")
    [found] = lines([read(path) for path in sorted(tmp_path.iterdir())])
    assert [(line.attack, line.classifier, sorted(line.rows)) for line in found] == [
        ("sig", "undefended", [0, 1, 2]),
        ("sig", "dpa", [0, 1, 2]),
        ("badnets_white", "undefended", [0]),
    ]
    rate = found[1].rate("clean_accuracy")
    assert rate is not None
    assert (rate.rate, rate.low) == (pytest.approx(0.82), pytest.approx(0.77032, abs=1e-5))
    assert shown(rate) == "82.0 ± 5.0 %"
    assert shown(found[2].rate("clean_accuracy")) == "90.0 %"
    assert found[0].rate("poison_accuracy") is None
    assert shown(None) == "–"
    assert found[0].rate("attack_success_rate") == Interval(*[pytest.approx(0.8)] * 3)


def test_an_undefended_network_is_the_same_one_beside_any_defense(tmp_path: Path) -> None:
    for defense in ("dpa", "bagging"):
        finished(tmp_path / defense, {"undefended": (0.9, 0.8), defense: (0.7, 0.1)}, defense=defense)
    finished(tmp_path / "none", {"undefended": (0.9, 0.8)}, defense=None)
    [found] = lines([read(path) for path in sorted(tmp_path.iterdir())])
    assert [line.classifier for line in found] == ["undefended", "bagging", "dpa"]
    assert [line.defense for line in found] == ["none", "bagging", "dpa"]
    assert len(found[0].rows) == 1


def test_a_seed_counts_once(tmp_path: Path) -> None:
    first = finished(tmp_path / "one", {"dpa": (0.9, 0.8)})
    again = finished(tmp_path / "two", {"dpa": (0.9, 0.8)})
    other = finished(tmp_path / "three", {"dpa": (0.91, 0.8)})
    [[line]] = lines([read(first), read(again)])
    assert len(line.rows) == 1
    with pytest.raises(
        RunError, match=r"runs with seed 0 must be one, where all else is the same, got .*one and .*thr"
    ):
        lines([read(first), read(other)])


def test_what_differs_in_anything_else_is_another_line(tmp_path: Path) -> None:
    runs = [
        finished(tmp_path / "0", {"dpa": (0.9, 0.8)}),
        finished(tmp_path / "1", {"dpa": (0.8, 0.8)}, rate=0.2),
        finished(tmp_path / "2", {"dpa": (0.7, 0.8)}, recipe={"class": "Recipe", "epochs": 4}),
        finished(tmp_path / "3", {"dpa": (0.6, 0.8)}, data="b"),
    ]
    here, there = lines([read(run) for run in runs])
    assert len(here) == 3
    assert len(there) == 1


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", {"dpa": (0.9, 0.8)})
    (run / "results.json").unlink()
    with pytest.raises(RunError, match=r"run must be finished, with its results.json, got .*; run it to its end"):
        read(run)
    study = finished(tmp_path / "study", {"dpa": (0.9, 0.8)})
    manifest = json.loads((study / "manifest.json").read_text())
    del manifest["plan"]["attack"]
    (study / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"run directory must be of `poisonkit run`, `demo` or `backdoors`, got .*study"):
        read(study)
    with pytest.raises(RunError, match="run directory must be"):
        read(tmp_path)


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [
        finished(tmp_path / "runs" / f"{data}{seed}", {"undefended": (0.9, 0.8), "dpa": (0.6 + seed / 10, 0.1)},
                 seed=seed, data=data, epochs=3 + (data == "b"))
        for data in "ab"
        for seed in (0, 1)
    ]  # fmt: skip
    out = tmp_path / "out"
    assert main(["compare", *map(str, runs), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("digits (1)") == printed.count("digits (2)") == 1
    assert "65.0 ± 63.5 %" in printed  # 12.706 · 0.05
    cells = list(csv.DictReader(io.StringIO((out / "compare.csv").read_text())))
    assert [(cell["data"], cell["classifier"], cell["seeds"]) for cell in cells] == [
        (f"digits ({i})", name, "2") for i in (1, 2) for name in ("undefended", "dpa")
    ]
    assert float(cells[1]["clean_accuracy_high"]) == pytest.approx(0.65 + 12.706 * 0.05, abs=1e-4)
    assert json.loads((out / "compare.json").read_text())[1]["attack_success_rate"] == pytest.approx(0.1)
    page = (out / "compare.html").read_text()
    assert page.count("<svg") == 2
    assert "sig, 10 %: clean accuracy 65.0 %, attack success 10.0 %" in page
    assert main(["compare", str(tmp_path), "--out", str(out)]) == 2
    assert "run directory must be" in capsys.readouterr().err
