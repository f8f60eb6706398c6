"""How a comparison is shown: a table for the terminal, CSV and JSON, figures, and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from poisonkit import report
from poisonkit.engine import Run
from poisonkit.experiments.comparison import Comparison
from poisonkit.experiments.findings import Finding
from poisonkit.experiments.measures import Row

RADII = (0, 1, 2, 3, 5)


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Headers and cells: accuracy, attack, certified accuracy at 0, 1, 2, 3, 5 rows, training time."""
    attacked = any(row.attack_success_rate is not None for row in rows)
    radii = [r for r in RADII if any(r < len(_curve(row)) for row in rows)]
    headers = ["classifier", "clean accuracy"]
    headers += ["attack success", "poison accuracy"] if attacked else []
    headers += [f"r={r}" for r in radii] + ["train"]
    cells = []
    for row in rows:
        cell: list[object] = [row.name, report.percent(row.clean_accuracy)]
        cell += [_percent(row.attack_success_rate), _percent(row.poison_accuracy)] if attacked else []
        cell += [_percent(at(_curve(row), r)) for r in radii]
        cells.append([*cell, f"{row.seconds:.1f} s"])
    return headers, cells


def legend(budget: str) -> str:
    """What a table's radii say."""
    return f"r=n: certified accuracy, right whatever an attacker does with n {budget}"


def data_table(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """Every number of a comparison, as fractions and seconds, for a spreadsheet."""
    guesses, curves = list(rows[0].guesses), [curve for row in rows for curve in (row.certified or {}).values()]
    reach = max(map(len, curves), default=0)
    headers = [
        "classifier",
        "clean_accuracy",
        "attack_success_rate",
        "poison_accuracy",
        "chance_level",
        "attack_success_rate_including_target",
        "train_seconds",
    ]
    headers += [f"acc@{n}" for n in guesses] + [f"certified acc@{n} r={r}" for n in guesses for r in range(reach)]
    cells: list[list[object]] = []
    for row in rows:
        certified = [at(row.certified[n], r) if row.certified else None for n in guesses for r in range(reach)]
        first = [
            row.name,
            row.clean_accuracy,
            row.attack_success_rate,
            row.poison_accuracy,
            row.chance_level,
            row.attack_success_rate_including_target,
            row.seconds,
        ]
        cells.append([*first, *map(row.guesses.get, guesses), *certified])
    return headers, cells


def _curve(row: Row) -> tuple[float, ...]:
    """Certified accuracy of the first guess by radius; empty for a single model."""
    return row.certified[1] if row.certified else ()


def at(curve: Sequence[float], radius: int) -> float | None:
    """A certified accuracy; 0 beyond the end of its curve, None where there is no curve."""
    return (curve[radius] if radius < len(curve) else 0.0) if curve else None


def guess_table(rows: Sequence[Row]) -> tuple[list[str], list[list[object]]]:
    """acc@n, as in Tables 4 and 5 of arXiv 2306.16415."""
    guesses = list(rows[0].guesses)
    return ["classifier", *(f"acc@{n}" for n in guesses)], [
        [row.name, *(_percent(row.guesses.get(n)) for n in guesses)] for row in rows
    ]


def write(run: Run, comparison: Comparison, *, title: str, subtitle: str, command: str) -> None:
    """Write results.json, results.csv, figures/ and report.html into the run."""
    rows = comparison.rows
    run.write("results.json", json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    run.write("results.csv", report.csv_text(*data_table(rows)))
    figures = []
    if len(comparison.before):
        picture = report.png(report.picture_grid([comparison.before, comparison.after]))
        run.write("figures/poisoned.png", picture)
        caption = "Changed training rows: above as they were, below as the attacker left them"
        figures.append(report.figure(picture, caption))
    last = rows[-1]
    charts = []
    if comparison.budget and last.certified and len(_curve(last)) > 1:
        curve = report.line_chart(
            [
                report.Series(f"{last.name}, best {n}" if n > 1 else last.name, range(len(values)), values)
                for n, values in last.certified.items()
                if n <= 5
            ],
            title="Certified accuracy against budget",
            x_label=comparison.budget,
            y_label="certified accuracy",
            step=True,
        )
        run.write("figures/certified.svg", curve)
        charts.append(
            report.figure(curve, "Test images whose label is among the guesses whatever the attacker puts there")
        )
    measures = {"clean accuracy": [row.clean_accuracy for row in rows]}
    if last.attack_success_rate is not None:
        measures["attack success"] = [row.attack_success_rate or 0.0 for row in rows]
    bars = report.bar_chart([row.name for row in rows], measures, title="Accuracy and attack", y_label="test images")
    run.write("figures/accuracy.svg", bars)
    charts.append(report.figure(bars, "On the test images; attack success leaves out those of the target class"))
    sections = [
        report.Section(
            "",
            [
                report.cards(_headlines(comparison)),
                report.html_table(
                    *table(rows), "Accuracies" + (f"; {legend(comparison.budget)}" if comparison.budget else "")
                ),
            ],
        ),
        *(
            [report.Section("What it found", [_finding(each) for each in comparison.findings])]
            if comparison.findings
            else []
        ),
        report.Section("Figures", charts),
        *([report.Section("The attack", figures)] if figures else []),
        report.Section("Guesses", [report.html_table(*guess_table(rows), "Share of labels among n guesses")]),
        report.Section("What the columns say", _glossary(comparison)),
        report.Section(
            "Run it again",
            [report.code(command), report.details("Manifest", json.dumps(run.manifest, indent=2))],
        ),
    ]
    run.write("report.html", report.page(title, subtitle, sections))
    run.finish()


def _finding(found: Finding) -> str:
    return report.html_table(found.headers, found.rows, found.title)


def _glossary(comparison: Comparison) -> list[str]:
    says = [
        "Attack success: triggered test images of other classes that are classified as the attacker's target; or "
        "victims of a targeted attack that are classified as it wants.",
        "Poison accuracy: triggered test images of other classes that still get their own label.",
        "acc@n: the label is among the n most-voted classes when every base model votes for its n best.",
    ]
    if (split := comparison.split) is None:
        return says
    return [
        *says,
        f"Certified accuracy at r=n: test images classified right, with a proof that n {comparison.budget}, whatever "
        "they hold, change nothing. The training set as given here, poison included, is where the proof starts from.",
        "One base model: the mean over the ensemble's base models, each trained on its own part of the data.",
        f"Base models: {len(split.sizes)}, of {min(split.sizes)} to {max(split.sizes)} rows. Hash collisions between "
        f"different rows: {split.collisions}. Rows equal to an earlier one: {split.duplicates}.",
    ]


def _headlines(comparison: Comparison) -> list[report.Headline]:
    rows = comparison.rows
    first, last = rows[0], rows[-1]
    found = []
    if first.attack_success_rate is not None and last.attack_success_rate is not None:
        change = f"{_percent(first.attack_success_rate)} → {_percent(last.attack_success_rate)}"
        found.append(report.Headline(change, "attack success", f"{first.name} → {last.name}"))
    change = f"{_percent(first.clean_accuracy)} → {_percent(last.clean_accuracy)}"
    found.append(report.Headline(change, "clean accuracy", f"{first.name} → {last.name}"))
    if len(_curve(last)) > 1:
        label = f"certified at 1: {comparison.budget}"
        found.append(report.Headline(_percent(_curve(last)[1]), label, last.name))
    return found


def _percent(value: float | None) -> str:
    return "–" if value is None else report.percent(value)
