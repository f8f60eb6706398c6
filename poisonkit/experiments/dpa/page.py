"""How the studies of DPA are shown: a table for the terminal, JSON and CSV, charts, and one page each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import mean, stdev

from poisonkit import report
from poisonkit.engine import Run
from poisonkit.experiments import page
from poisonkit.experiments.dpa.advise import Advice, Point
from poisonkit.experiments.dpa.family import Family
from poisonkit.experiments.dpa.scan import Size

Table = tuple[list[str], list[list[object]]]
BUDGET = "rows inserted or deleted (a replaced row is two)"


def write_family(run: Run, family: Family, *, subtitle: str, command: str) -> None:
    """results.json, results.csv, figures/certified.svg and report.html of a family, into the run."""
    rows = family.rows
    chart = report.line_chart(
        [report.Series(row.name, range(len(row.certified[1])), row.certified[1]) for row in rows if row.certified],
        title="Certified accuracy against budget",
        x_label=BUDGET,
        y_label="certified accuracy",
        step=True,
    )
    sizes = [
        f"{label}: {len(split.sizes)} base models of {min(split.sizes)} to {max(split.sizes)} rows"
        for label, split in zip(("DPA", "FA"), family.splits, strict=True)
    ]
    sections = [
        report.Section(
            "", [report.html_table(*page.table(rows), f"Accuracies; r=n: certified accuracy at n {BUDGET}")]
        ),
        report.Section(
            "Figure", [report.figure(chart, "Test images classified right, whatever the attacker does to so many rows")]
        ),
        report.Section(
            "More guesses",
            [report.html_table(*guess_table(family), "Share of labels among n guesses, certified at r rows")],
        ),
        report.Section(
            "What the rows are",
            [
                "DPA and FA (Finite Aggregation) count the favourites of the base models; + ROE holds a run-off "
                "between the two leading classes on the same base models, so that its training time is theirs.",
                "acc@n for n > 1 counts n votes a base model in all four: a run-off decides one class, not n.",
                "; ".join(sizes) + ".",
            ],
        ),
    ]
    run.write("results.csv", report.csv_text(*page.data_table(rows)))
    _write(run, "certified", chart, [asdict(row) for row in rows])
    _finish(run, "DPA, Finite Aggregation and Run-Off Election", subtitle, command, sections)


def guess_table(family: Family, guesses: Sequence[int] = (1, 3, 5, 10), radii: Sequence[int] = (0, 1, 3)) -> Table:
    """acc@n, and certified at some radii, of every row."""
    known = [n for n in guesses if n in family.rows[0].guesses]
    headers = ["classifier", *(f"acc@{n}" + (f", r={r}" if r else "") for n in known for r in radii)]
    curves = [row.certified or {} for row in family.rows]
    return headers, [
        [row.name, *(report.percent(page.at(curve[n], r) or 0.0) for n in known for r in radii)]
        for row, curve in zip(family.rows, curves, strict=True)
    ]


def write_advice(
    run: Run, points: Sequence[Point], advice: Advice, guesses: int, *, subtitle: str, command: str
) -> None:
    """results.json, figures/learning.svg and report.html of a data-to-complexity ratio, into the run."""
    shown = sorted(n for n in points[0].mean.guesses if n <= 5 or n == guesses)
    rows = [point.rows for point in points]
    chart = report.line_chart(
        [
            *(report.Series(f"acc@{n}", rows, [point.mean.guesses[n] for point in points]) for n in shown),
            report.Series(f"target, acc@{guesses}", [rows[0], rows[-1]], [advice.target] * 2),
        ],
        title="Accuracy of a base model against its rows",
        x_label="training rows of the base model",
        y_label="test images, mean over base models",
        log_x=True,
    )
    sections = [
        report.Section("", [report.cards(_advice_cards(advice)), sentence(advice, guesses)]),
        report.Section(
            "Figure", [report.figure(chart, "Each point: base models on 1/k of the rows, k = 1 at the right")]
        ),
        report.Section(
            "Base models", [report.html_table(*learning_table(points), "Means over the base models of each k")]
        ),
        report.Section(
            "How to read it",
            [
                "Sample complexity: rows that one base model needs to reach the target, read off the curve between "
                "the two points around it. Data-to-complexity ratio: all rows divided by that; a DPA of so many "
                "partitions has base models that just reach the target (arXiv 2306.16415, section 4.2).",
                "An ensemble does better than its base models, so the suggestion is on the safe side. It says nothing "
                "of radii: k partitions certify against at most k/2 rows.",
            ],
        ),
    ]
    results = {"advice": asdict(advice), "guesses": guesses, "points": [asdict(point) for point in points]}
    _write(run, "learning", chart, results)
    _finish(run, "How many partitions these data can feed", subtitle, command, sections)


def sentence(advice: Advice, guesses: int) -> str:
    """The advice in words."""
    target = f"acc@{guesses} of {report.percent(advice.target)}"
    if advice.complexity is None or advice.ratio is None:
        return f"No part that was tried reaches {target}, so no number of partitions keeps it: lower the target."
    most, least = ("at most ", "at least ") if advice.bound else ("", "")
    more = "; try smaller parts, to see how far it goes" if advice.bound else ""
    return (
        f"A base model needs {most}{advice.complexity:,.0f} rows for {target}: the data-to-complexity ratio is "
        f"{least}{advice.ratio:.1f}. Suggested number of partitions: {advice.partitions}{more}."
    )


def _advice_cards(advice: Advice) -> list[report.Headline]:
    if advice.complexity is None or advice.ratio is None:
        return [report.Headline("none", "number of partitions that keeps the target", report.percent(advice.target))]
    most, least = ("≤ ", "≥ ") if advice.bound else ("", "")
    return [
        report.Headline(
            f"k = {advice.partitions}", "suggested number of partitions", "the largest that keeps the target"
        ),
        report.Headline(f"{least}{advice.ratio:.1f}", "data-to-complexity ratio", "rows in all / sample complexity"),
        report.Headline(
            f"{most}{advice.complexity:,.0f}", "sample complexity", f"rows for {report.percent(advice.target)}"
        ),
    ]


def learning_table(points: Sequence[Point]) -> Table:
    """k, rows, how many base models, their acc@n and the seconds of one."""
    guesses = list(points[0].mean.guesses)
    headers = ["data", "k", "rows", "base models", *(f"acc@{n}" for n in guesses), "train, each"]
    return headers, [
        [
            point.mean.name,
            point.partitions,
            f"{point.rows:,.0f}",
            len(point.models),
            *(report.percent(point.mean.guesses[n]) for n in guesses),
            f"{point.mean.seconds:.1f} s",
        ]
        for point in points
    ]


def write_scan(run: Run, sizes: Sequence[Size], *, subtitle: str, command: str) -> None:
    """results.json, figures/overfitting.svg and report.html of a scan, into the run."""
    rows = [size.rows for size in sizes]
    rates = [_attacked(size) for size in sizes]
    series = [report.Series("mean", rows, [mean(each) for each in rates])]
    if len(sizes[0].seeds) > 1:
        series += [
            report.Series("highest seed", rows, [max(each) for each in rates]),
            report.Series("lowest seed", rows, [min(each) for each in rates]),
        ]
    chart = report.line_chart(
        series,
        title="Attack success against training-set size",
        x_label="training rows, the same share of them poisoned",
        y_label="triggered test images of other classes called the target",
        log_x=True,
    )
    sections = [
        report.Section("", [report.html_table(*scan_table(sizes), "Undefended networks; mean ± deviation of seeds")]),
        report.Section("Figure", [report.figure(chart, "A rise to the right is poisoning overfitting")]),
        report.Section(
            "How to read it",
            [
                "Poisoning overfitting (Wang and Feizi, arXiv 2306.16415, Definition 5.1): attack success falls with "
                "the size of the training set although the share of poisoned rows stays. A base model of DPA sees such "
                "a smaller set, so where this happens, partitions help against more poison than they certify against.",
                "Clean accuracy falls with the rows as well: a network that learned nothing learned no trigger either.",
            ],
        ),
    ]
    _write(run, "overfitting", chart, [asdict(size) for size in sizes])
    _finish(run, "Poisoning overfitting", subtitle, command, sections)


def scan_table(sizes: Sequence[Size]) -> Table:
    """Rows, poisoned rows, attack success and clean accuracy over the seeds."""
    headers = ["data", "rows", "poisoned", "seeds", "attack success", "clean accuracy"]
    return headers, [
        [
            f"1/{size.parts} of the data" if size.parts > 1 else "all data",
            f"{size.rows:,}",
            f"{size.poisoned:,}",
            len(size.seeds),
            spread(_attacked(size)),
            spread([row.clean_accuracy for row in size.seeds]),
        ]
        for size in sizes
    ]


def _attacked(size: Size) -> list[float]:
    return [row.attack_success_rate for row in size.seeds if row.attack_success_rate is not None]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of fractions, as a cell."""
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f} %" if len(values) > 1 else " %")


def _write(run: Run, figure: str, chart: str, results: object) -> None:
    run.write("results.json", json.dumps(results, indent=2) + "\n")
    run.write(f"figures/{figure}.svg", chart)


def _finish(run: Run, title: str, subtitle: str, command: str, sections: Sequence[report.Section]) -> None:
    manifest = report.details("Manifest", json.dumps(run.manifest, indent=2))
    again = report.Section("Run it again", [report.code(command), manifest])
    run.write("report.html", report.page(f"poisonkit: {title}", subtitle, [*sections, again]))
    run.finish()
