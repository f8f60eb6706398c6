"""The table of undefended attack success: which rate, when an attack counts as shown, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poisonkit import config
from poisonkit.__main__ import main
from poisonkit.attacks import ATTACKS
from poisonkit.experiments.backdoors import BUDGETS, reached, table
from poisonkit.experiments.runs import Line

SMALL = ["--data", "digits", "--limit", "120", "--recipe.epochs", "1", "--recipe.model.width", "4", "--threads", "1"]


def line(accuracy: float, success: float, seeds: int = 3, attack: str = "blended") -> Line:
    row: dict[str, Any] = {"clean_accuracy": accuracy, "attack_success_rate": success, "chance_level": 0.04}
    return Line("undefended", {"attack": config.to_dict(ATTACKS[attack]())}, dict.fromkeys(range(seeds), row))


def test_every_trigger_has_a_rate() -> None:
    with_trigger = {name for name, kind in ATTACKS.items() if hasattr(kind, "trigger")}
    assert with_trigger <= set(BUDGETS) <= set(ATTACKS)


@pytest.mark.parametrize(
    ("accuracy", "success", "seeds", "clean", "expected"),
    [
        (0.65, 0.80, 3, False, True),
        (0.649, 0.99, 3, False, False),
        (0.70, 0.799, 3, False, False),
        (0.70, 0.50, 3, True, True),
        (0.70, 0.50, 3, False, False),
        (0.70, 0.99, 2, False, False),
    ],
)
def test_what_counts_as_shown(accuracy: float, success: float, seeds: int, clean: bool, expected: bool) -> None:
    assert reached(line(accuracy, success, seeds), clean=clean) is expected


def test_the_table_hides_nothing() -> None:
    lines = [line(0.7, 0.9), line(0.7, 0.6, attack="sig"), line(0.7, 0.6, attack="wanet")]
    headers, cells = table(lines)
    assert [cell[0] for cell in cells] == list(BUDGETS)
    rows = {cell[0]: dict(zip(headers, cell, strict=True)) for cell in cells}
    assert {name: rows[name][""] for name in ("blended", "sig", "wanet", "batt")} == {
        "blended": "shown",
        "sig": "shown",  # clean label, from a half on
        "wanet": "not reached",
        "batt": "not run",
    }
    assert (rows["sig"]["label"], rows["sig"]["rate"]) == ("clean", "100% of the target class")
    assert (rows["batt"]["label"], rows["batt"]["rate"], rows["batt"]["seeds"]) == ("dirty", "10% of the rows", 0)
    assert rows["blended"]["chance level"] == "4.0 %"


def test_backdoors_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["backdoors", *SMALL, "--attack", "badnets_white", "sig", "--out", str(out)]
    assert main([*command, "--seed", "0"]) == 0
    assert capsys.readouterr().out.count("not run") == len(BUDGETS) - 2
    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    assert len(before) == 2
    assert main([*command, "--seed", "0", "1"]) == 0
    assert len(list(out.rglob("model.safetensors"))) == 4
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    plan = json.loads((out / "sig-1" / "manifest.json").read_text())["plan"]
    assert (plan["rate"], plan["per_class"], plan["seed"]) == (1.0, True, 1)
    [row] = json.loads((out / "sig-1" / "results.json").read_text())
    assert 0 <= row["chance_level"] <= 1
    assert (out / "backdoors.csv").read_text().count("not reached") == 2
    # the same network as the undefended one of a run
    capsys.readouterr()
    run = ["run", *SMALL, "--attack", "sig", "--rate", "1.0", "--per-class", "--seed", "1", "--defense.partitions", "1"]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0
    first = json.loads((tmp_path / "run" / "results.json").read_text())[0]
    assert {name: first[name] for name in row if name != "seconds"} == {
        name: row[name] for name in row if name != "seconds"
    }


def test_an_attack_named_alone_has_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["backdoors", *SMALL, "--seed", "0", "--out", str(tmp_path / "out"), "--attack.alpha", "0.4"]
    assert main([*command, "--attack", "blended_patch"]) == 0
    out = capsys.readouterr().out
    assert "blended_patch alpha=0.4" in out
    assert out.count("not run") == len(BUDGETS) - 1
    assert main([*command, "--attack", "blended_patch", "sig"]) == 2
    assert "got --attack.alpha" in capsys.readouterr().err
