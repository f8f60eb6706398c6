"""Every attack against every defense: a run directory an attack, in which each defense takes up the same network.

Where a pair has no meaning, the error that says so is its cell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from poisonkit import report
from poisonkit.attacks import ATTACKS
from poisonkit.data.files import written_by
from poisonkit.defenses import DEFENSES, FAMILIES
from poisonkit.defenses.certified import Aggregation
from poisonkit.engine.run import Run, read_manifest
from poisonkit.errors import PoisonkitError, RunError
from poisonkit.experiments.comparison import arrange, baseline, compare, poisoned, prepare, stacking, undefended
from poisonkit.experiments.families import WITH_CLEAN, defend, family, set_aside
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import Row
from poisonkit.types import Attack, Budget, ImageDataset, Poison

UNDEFENDED, NONE = "undefended", "none"
CELLS = "cells.json"
# Smoke scale: what would take hours on a processor at its defaults
SMALL: Mapping[str, Any] = MappingProxyType(
    {name: kind(images=10, iterations=100, batch_size=64) for name, kind in FAMILIES["condense"].items()}
)


@dataclass(frozen=True)
class Cell:
    """What became of one pair.

    row     of the defended network; None where there is none
    reason  why there is none
    """

    attack: str
    defense: str
    row: Row | None
    reason: str = ""

    def json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Cell:
        """The cell that :meth:`json` wrote."""
        row = values["row"]
        if row:
            counted = {
                part: {int(n): each for n, each in (row[part] or {}).items()} for part in ("guesses", "certified")
            }
            row = Row(**{**row, **counted, "certified": counted["certified"] or None})
        return cls(**{**values, "row": row})


def keep(run: Run, cells: Sequence[Cell]) -> None:
    """Leave ``cells`` in the run of their attack, with those of other defenses that are there."""
    found = {cell.defense: cell for cell in [*kept(run.directory), *cells]}
    order = [name for name in (UNDEFENDED, *DEFENSES) if name in found]
    run.write(CELLS, json.dumps([found[name].json() for name in order], indent=2) + "\n")


def kept(directory: Path) -> list[Cell]:
    """What :func:`keep` left."""
    path = directory / CELLS
    if not path.exists():
        return []
    with written_by("poisonkit", path, "remove it, and run it anew", RunError):
        return [Cell.of(values) for values in json.loads(path.read_text())]


def finished(folder: Path, manifest: Mapping[str, Any]) -> list[Cell]:
    """The cells of all runs below ``folder`` that differ from the one of ``manifest`` in the attack alone."""

    def shared(of: Mapping[str, Any]) -> Any:
        plan = {name: value for name, value in of["plan"].items() if name not in ("attack", "budget")}
        return json.loads(json.dumps([plan, of["data"]]))

    places = [folder / name for name in (*ATTACKS, NONE) if (folder / name / CELLS).exists()]
    same = [place for place in places if shared(read_manifest(place)) == shared(manifest)]
    return [cell for place in same for cell in kept(place)]


def column(
    lab: Lab, name: str, attack: Attack | None, budget: Budget, defenses: Mapping[str, Any], clean: int
) -> list[Cell]:
    """``attack`` against nothing and against all of ``defenses``; ``lab.test`` is the whole test set.

    ``clean`` images of each class are set aside for those that take some, and nothing is measured on them.
    """
    aside, rest = set_aside(lab.test, clean, lab.key.child("clean"))
    lab = Lab(lab.run, lab.train, rest, lab.recipe, lab.key, lab.engine, lab.progress)
    try:
        poison = prepare(lab.train, rest, attack=attack, budget=budget, defense=None, key=lab.key)
        unit = undefended(poisoned(lab.run, lab.train, poison, lab.progress), lab.recipe, lab.key)
        lab.engine(lab.run, [unit], lab.progress)
        cells = [Cell(name, UNDEFENDED, baseline(lab.run, rest, unit, poison))]
    except PoisonkitError as error:
        return [Cell(name, defense, None, str(error)) for defense in (UNDEFENDED, *defenses)]
    for label, defense in defenses.items():
        lab.progress.line(f"{name} against {label}")
        try:
            cells.append(Cell(name, label, _defended(lab, label, defense, poison, aside)))
        except PoisonkitError as error:
            cells.append(Cell(name, label, None, str(error)))
    lab.run.finish()
    return cells


def _defended(lab: Lab, name: str, defense: Any, poison: Poison | None, clean: ImageDataset) -> Row:
    if not isinstance(defense, Aggregation):
        given = clean if family(defense) in WITH_CLEAN else None
        return defend(lab, name, defense, poison, given).rows[-1]
    defense.check(lab.train.num_classes)
    kind = lab.test.device.type
    size, _ = stacking(lab.train, defense=defense, recipe=lab.recipe, key=lab.key, device=kind, size=None)
    work = arrange(
        lab.run,
        lab.train,
        poison=poison,
        defense=defense,
        name=name,
        recipe=lab.recipe,
        key=lab.key,
        stack=size,
        progress=lab.progress,
    )
    lab.engine(lab.run, work.units, lab.progress)
    return compare(lab.run, lab.train, lab.test, work, poison=poison, defense=defense, name=name).rows[-1]


Pick = Callable[[Row], float | None]
SUCCESS: Pick = lambda row: row.attack_success_rate  # noqa: E731
ACCURACY: Pick = lambda row: row.clean_accuracy  # noqa: E731


def grid(cells: Sequence[Cell], pick: Pick) -> tuple[list[str], list[list[object]]]:
    """Headers and cells of a table with a row for each defense and a column for each attack."""
    attacks, defenses = (list(dict.fromkeys(getattr(c, part) for c in cells)) for part in ("attack", "defense"))
    found = {(cell.attack, cell.defense): cell.row for cell in cells}

    def shown(attack: str, defense: str) -> str:
        if (attack, defense) not in found:
            return "not run"
        row = found[attack, defense]
        value = None if row is None else pick(row)
        return ("n/a" if row is None else "–") if value is None else report.percent(value)

    return ["defense", *attacks], [[defense, *(shown(attack, defense) for attack in attacks)] for defense in defenses]


def leaderboard(cells: Sequence[Cell]) -> tuple[list[str], list[list[object]]]:
    """Defenses by how much attack success they leave, over the attacks that each was measured against.

    A defense may owe its place to the pairs that it left out: the last column counts those that were measured.
    """
    undefended = {cell.attack: cell.row for cell in cells if cell.defense == UNDEFENDED and cell.row}
    lines: list[tuple[float, list[object]]] = []
    for defense in dict.fromkeys(cell.defense for cell in cells):
        rows = [
            (undefended[c.attack], c.row) for c in cells if c.defense == defense and c.row and c.attack in undefended
        ]
        attacked = [(a.attack_success_rate, b.attack_success_rate) for a, b in rows]
        pairs = [(a, b) for a, b in attacked if a is not None and b is not None]
        if not pairs:
            continue
        left = sum(b for _, b in pairs) / len(pairs)
        before = sum(a for a, _ in pairs) / len(pairs)
        change = sum(b.clean_accuracy - a.clean_accuracy for a, b in rows) / len(rows)
        seconds = sum(b.seconds for _, b in rows) / len(rows)
        cells_of = [
            report.percent(left),
            report.percent(before),
            f"{100 * change:+.1f}",
            f"{seconds:.1f} s",
            len(pairs),
        ]
        lines.append((left, [defense, *cells_of]))
    headers = ["defense", "attack success", "without it", "accuracy, points", "time", "attacks"]
    return headers, [line for _, line in sorted(lines, key=lambda line: line[0])]


def reasons(cells: Sequence[Cell]) -> tuple[list[str], list[list[object]]]:
    """Why there is no number: headers and cells."""
    return ["attack", "defense", "why not"], [[c.attack, c.defense, c.reason] for c in cells if c.row is None]
