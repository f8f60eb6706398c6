"""Finished runs side by side: those that differ in the seed alone are one line, their mean and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.data.files import written_by
from poisonkit.defenses import DEFENSES
from poisonkit.engine.run import differences, read_manifest
from poisonkit.errors import RunError, require
from poisonkit.metrics import Interval, over_seeds

RATES = ("clean_accuracy", "attack_success_rate", "poison_accuracy", "chance_level")
UNDEFENDED = "undefended"
CLASSIFIERS = 12  # told apart in one chart


@dataclass(frozen=True, eq=False)
class Finished:
    """What a run left: the ``plan`` and the ``data`` of its manifest, and the rows of results.json."""

    directory: Path
    plan: Mapping[str, Any]
    data: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Line:
    """One classifier in runs that differ in the seed alone.

    plan  of all of them, without the seed; without the defense, too, where the classifier is undefended
    rows  what it did, by seed
    """

    classifier: str
    plan: Mapping[str, Any]
    rows: dict[int, Mapping[str, Any]]

    def rate(self, name: str) -> Interval | None:
        """The mean of a rate over the seeds, and its interval, which for a single seed has no width."""
        found = [row[name] for row in self.rows.values() if row.get(name) is not None]
        if len(found) < len(self.rows):
            return None
        return over_seeds(found) if len(found) > 1 else Interval(found[0], found[0], found[0])

    @property
    def attack(self) -> str:
        """The attack and those of its options that are not the default."""
        return named(ATTACKS, self.plan["attack"])

    @property
    def defense(self) -> str:
        """The same of the defense."""
        return named(DEFENSES, self.plan.get("defense"))


def read(directory: Path) -> Finished:
    """A finished run of `poisonkit run`, `demo` or `backdoors`. Raises RunError for anything else."""
    manifest, results = read_manifest(directory), directory / "results.json"
    plan = manifest.get("plan")
    rule, other = "of `poisonkit run`, `demo` or `backdoors`", f"{directory}, of another command"
    ours = isinstance(plan, dict) and {"attack", "seed"} <= plan.keys()
    require(ours, "run directory", rule, other, error=RunError)
    assert isinstance(plan, dict)
    require(results.is_file(), "run", "finished, with its results.json", directory, "run it to its end", RunError)
    with written_by("poisonkit", results, "run it anew", RunError):
        found = Finished(directory, plan, manifest["data"], json.loads(results.read_text()))
        for each in lines([found]):  # all that is shown of it
            data_table(each)
    return found


def lines(runs: Sequence[Finished]) -> list[list[Line]]:
    """A list of lines for each data set, in the order of ``runs``.

    Raises RunError where a seed is there twice with other results, which are no two seeds.
    """
    found: dict[str, dict[str, Line]] = {}
    at: dict[tuple[str, int], Path] = {}
    for run in runs:
        of_data = found.setdefault(json.dumps([run.data["train"], run.data["test"]]), {})
        for row in run.rows:
            # an undefended network is the same one whatever the run goes on to compare it with
            out = {"seed", "defense"} if row["name"] == UNDEFENDED else {"seed"}
            plan = {name: value for name, value in run.plan.items() if name not in out}
            which = json.dumps([row["name"], plan], sort_keys=True)
            line = of_data.setdefault(which, Line(row["name"], plan, {}))
            seed = run.plan["seed"]
            first = at.setdefault((which, seed), run.directory)
            same = seed not in line.rows or all(line.rows[seed].get(name) == row.get(name) for name in RATES)
            where = f"{first} and {run.directory}, which differ"
            require(same, f"runs with seed {seed}", "one, where all else is the same", where, error=RunError)
            line.rows.setdefault(seed, row)
    return [list(each.values()) for each in found.values()]


def named(kinds: Mapping[str, type], values: Mapping[str, Any] | None) -> str:
    """The name of an attack or defense as a manifest has it, and what of it is not the default."""
    if values is None:
        return "none"
    name, kind = {kind.__name__: (name, kind) for name, kind in kinds.items()}[values["class"]]
    changed = differences(config.to_dict(kind()), dict(values))
    return " ".join([name, *(f"{option}={now}" for option, _, now in changed)])


def shown(rate: Interval | None) -> str:
    """A rate as a cell: 91.2 %, or 91.2 ± 3.4 % over seeds."""
    if rate is None:
        return "–"
    half = 100 * (rate.high - rate.low) / 2
    return f"{100 * rate.rate:.1f} ± {half:.1f} %" if half else report.percent(rate.rate)


def table(some: Sequence[Line]) -> tuple[list[str], list[list[object]]]:
    """Headers and cells, of lines on one data set."""
    headers = ["attack", "rate", "defense", "classifier", "seeds", *(name.replace("_", " ") for name in RATES)]
    others = [_other(line, some[0]) for line in some]
    cells: list[list[object]] = [
        [line.attack, _rate(line), line.defense, line.classifier, len(line.rows), *map(shown, map(line.rate, RATES))]
        for line in some
    ]
    if not any(others):
        return headers, cells
    return [*headers, "differs in"], [[*row, other] for row, other in zip(cells, others, strict=True)]


def data_table(some: Sequence[Line]) -> tuple[list[str], list[list[object]]]:
    """Every number, as fractions: the mean of each rate and the ends of its interval."""
    headers, cells = table(some)
    texts = [i for i, header in enumerate(headers) if header.replace(" ", "_") not in RATES]
    numbers = [f"{name}{end}" for name in RATES for end in ("", "_low", "_high")]
    rows = []
    for line, row in zip(some, cells, strict=True):
        found = [line.rate(name) for name in RATES]
        ends = [end for each in found for end in ((each.rate, each.low, each.high) if each else (None,) * 3)]
        rows.append([*(row[i] for i in texts), *ends])
    return [*(headers[i].replace(" ", "_") for i in texts), *numbers], rows


def scatter(some: Sequence[Line], title: str) -> list[report.Html]:
    """Clean accuracy against attack success, a colour for each classifier; nothing where nothing was attacked."""
    groups: dict[str, list[report.Spot]] = {}
    for line in some:
        x, y = line.rate("clean_accuracy"), line.rate("attack_success_rate")
        if x and y:
            spot = report.Spot(f"{line.attack}, {_rate(line)}", x.rate, y.rate, x.high - x.rate, y.high - y.rate)
            groups.setdefault(line.classifier, []).append(spot)
    names = list(groups)
    return [
        report.scatter_chart(
            {name: groups[name] for name in names[start : start + CLASSIFIERS]},
            title=title,
            x_label="clean accuracy",
            y_label="attack success",
        )
        for start in range(0, len(names), CLASSIFIERS)
    ]


def _rate(line: Line) -> str:
    rate = f"{100 * line.plan['rate']:g} %"
    return f"{rate} of the class" if line.plan.get("per_class") else rate


def _other(line: Line, first: Line) -> str:
    """What is not shown of a plan and is not as in the first: the recipe, how many rows, what the defense was given."""
    out = {"attack", "rate", "per_class", "defense"}
    old, new = ({name: value for name, value in each.plan.items() if name not in out} for each in (first, line))
    return ", ".join(f"{option}={now}" for option, _, now in differences(old, new))
