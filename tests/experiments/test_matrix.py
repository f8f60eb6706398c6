"""All attacks against all defenses: numbers where a pair has a meaning, reasons where it has none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from poisonkit.__main__ import main
from poisonkit.commands.matrix import DEFENSES
from poisonkit.defenses import FAMILIES
from poisonkit.errors import require
from poisonkit.experiments import Row
from poisonkit.experiments.matrix import ACCURACY, SUCCESS, Cell, grid, leaderboard, reasons


@dataclass(frozen=True)
class Refuse:
    """Has no meaning for any network."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, model: Any, clean: Any, *, key: Any, journal: Any) -> Any:
        require(False, "model", "a transformer", "none")


def row(accuracy: float, success: float | None) -> Row:
    return Row("", accuracy, success, None, {1: accuracy}, None, 2.0)


CELLS = [
    Cell("a", "undefended", row(0.9, 0.8)),
    Cell("a", "one", row(0.8, 0.1)),
    Cell("a", "two", None, "needs a transformer"),
    Cell("b", "undefended", row(0.9, 0.6)),
    Cell("b", "one", row(0.9, 0.2)),
    Cell("b", "two", row(0.7, 0.1)),
    Cell("none", "undefended", row(0.9, None)),
    Cell("none", "one", row(0.7, None)),
    Cell("none", "two", row(0.9, None)),
]


def test_tables_of_made_cells() -> None:
    headers, rows = grid(CELLS, SUCCESS)
    assert headers == ["defense", "a", "b", "none"]
    assert rows == [
        ["undefended", "80.0 %", "60.0 %", "–"],
        ["one", "10.0 %", "20.0 %", "–"],
        ["two", "n/a", "10.0 %", "–"],
    ]
    assert grid(CELLS, ACCURACY)[1][2] == ["two", "n/a", "70.0 %", "90.0 %"]
    # two leaves less than one does, over the one attack it was measured against
    assert leaderboard(CELLS)[1] == [
        ["two", "10.0 %", "60.0 %", "-10.0", "2.0 s", 1],
        ["one", "15.0 %", "70.0 %", "-10.0", "2.0 s", 2],
        ["undefended", "70.0 %", "70.0 %", "+0.0", "2.0 s", 2],
    ]
    assert reasons(CELLS)[1] == [["a", "two", "needs a transformer"]]


def test_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(FAMILIES["repair"], "refuse", Refuse)
    monkeypatch.setitem(DEFENSES, "refuse", Refuse)
    command = ["matrix", "--data", "digits", "--limit", "120", "--attack", "badnets_white", "none"]
    command += ["--defense", "dpa", "random_subset", "refuse", "--clean", "2", "--recipe.model.width", "4"]
    command += ["--recipe.epochs", "1", "--out", str(tmp_path), "--threads", "1"]
    assert main(command) == 0
    first = capsys.readouterr().out
    cells = [(c["attack"], c["defense"], c["reason"]) for c in json.loads((tmp_path / "matrix.json").read_text())]
    assert [cell[:2] for cell in cells] == [
        (attack, defense)
        for attack in ("badnets_white", "none")
        for defense in ("undefended", "dpa", "random_subset", "refuse")
    ]
    assert {cell[2] for cell in cells if cell[1] == "refuse"} == {"model must be a transformer, got none"}
    page = (tmp_path / "matrix.html").read_text()
    assert "n/a" in page
    networks = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert main(command) == 0  # nothing is trained again
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == networks
    # what another call adds stands beside what is there, and a pair that nobody asked for says so
    assert main([*command[:5], "--attack", "none", "--defense", "lowest_confidence", *command[12:]]) == 0
    order = ["lowest_confidence", "random_subset", "refuse"]  # as the listing has them
    both = [(c["attack"], c["defense"]) for c in json.loads((tmp_path / "matrix.json").read_text())]
    assert both == [*[cell[:2] for cell in cells[:-2]], *(("none", name) for name in order)]
    [line] = [line for line in (tmp_path / "clean_accuracy.csv").read_text().splitlines() if "lowest" in line]
    assert line.split(",")[1] == "not run"
    # with another recipe it is another matrix
    other = [*command, "--recipe.epochs", "2", "--attack", "badnets_white", "--defense", "refuse", "--overwrite"]
    assert main(other) == 0
    attacks = {cell["attack"] for cell in json.loads((tmp_path / "matrix.json").read_text())}
    assert attacks == {"badnets_white"}
    (tmp_path / "badnets_white" / "cells.json").write_text('[{"attack": 3}]')
    assert main(other[:-1]) == 2
    assert "cells.json must be written by poisonkit" in capsys.readouterr().err
