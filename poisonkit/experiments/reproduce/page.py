"""Results as one page and as markdown: our number and the paper's in a cell, and what has not been run said so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poisonkit import report
from poisonkit.experiments.reproduce.registry import SCALES, Reproduction
from poisonkit.experiments.reproduce.results import Result

Results = Mapping[tuple[str, str], Result]
Grid = tuple[str, list[str], list[list[object]]]
NOT_RUN = "Not run yet."


def show(kind: str, value: float | None) -> str:
    """A number as a cell."""
    if value is None:
        return "–"
    if kind == "share":
        return report.percent(value, 2)
    if kind in ("ratio", "number"):
        return f"{value:.2f}" + ("×" if kind == "ratio" else "")
    for unit, seconds, least in (("h", 3600, 3600), ("min", 60, 120)):
        if value >= least:
            return f"{value / seconds:.1f} {unit}"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def grids(rows: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """Title, headers and cells: of each part the columns that both have, those that only we have, and the paper's."""
    found: list[Grid] = []
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        whose: dict[str, set[str]] = {}
        for row in mine:
            whose.setdefault(row["column"], set()).update(who for who in ("ours", "paper") if row[who] is not None)
        for who, note in (({"ours", "paper"}, ""), ({"ours"}, ", here"), ({"paper"}, ", the paper's, not run here")):
            columns = [column for column, have in whose.items() if have == who]
            if columns:
                found.append(_grid(f"{part}{note}", [row for row in mine if row["column"] in columns], columns, who))
    return found


def _grid(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], who: set[str]) -> Grid:
    cells = {(row["row"], row["column"]): row for row in rows}
    order = ("ours", "paper")
    headers = [
        "",
        *(
            f"{column}{', paper' if len(who) > 1 and side == 'paper' else ''}"
            for column in columns
            for side in order
            if side in who
        ),
    ]
    names = list(dict.fromkeys(row["row"] for row in rows))
    body: list[list[object]] = []
    for name in names:
        line: list[object] = [name]
        for column in columns:
            cell = cells.get((name, column))
            line += [show(cell["kind"], cell[side]) if cell else "–" for side in order if side in who]
        body.append(line)
    return title, headers, body


def markdown(entries: Mapping[str, Reproduction], results: Results) -> str:
    """All of it for docs/results.md."""
    lines = [
        "# Results beside the papers'",
        "",
        "Written by `poisonkit reproduce` from JSON rows; every cell is measured by the command shown or printed",
        "in the paper. A column named `paper` is the paper's; columns that only one side has stand in a table of",
        "their own. The smoke scale shows that everything runs, on the digits that come with the package, enlarged to",
        "3×32×32 (`digits-32`): it is another task than the paper's, so only the signs of effects can be compared.",
        "Times are by the clock on the wall, on a machine whose load is stated: at smoke scale they are mostly noise.",
        "",
    ]
    for name, entry in entries.items():
        lines += [f"## {name}", "", f"{entry.summary[0].upper()}{entry.summary[1:]} ({entry.source}).", ""]
        for scale in SCALES:
            result = results.get((name, scale))
            if not result:
                lines += [f"**{scale}**: {NOT_RUN} `poisonkit reproduce {name} --scale {scale}`", ""]
                continue
            lines += [f"**{scale}**: {_about(result)}", "", f"`{result.about['command']}`", ""]
            for title, headers, body in grids(result.rows):
                lines += [f"{title}:", "", *_table(headers, body), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(headers: Sequence[str], body: Sequence[Sequence[object]]) -> list[str]:
    rows = [headers, ["---"] + ["---:"] * (len(headers) - 1), *body]
    return ["| " + " | ".join(map(str, row)) + " |" for row in rows]


def _about(result: Result) -> str:
    about = result.about
    seeds = ", ".join(map(str, about["seeds"]))
    return (
        f"{about['data']}, {about['training_images']:,} training and {about['test_images']:,} test images; "
        f"seed {seeds}; "
        f"{about['machine']}; {about['date']}, {about['commit']}."
    )


def html(entries: Mapping[str, Reproduction], results: Results) -> str:
    """All of it as one page."""
    run = len(results)
    sections = [
        report.Section(
            "",
            [
                report.html_table(
                    ["table or figure", "what", *SCALES],
                    [
                        [name, entry.summary, *("run" if (name, scale) in results else "not run" for scale in SCALES)]
                        for name, entry in entries.items()
                    ],
                    "Which reproductions have been run, at which scale",
                )
            ],
        )
    ]
    for (name, scale), result in results.items():
        entry = entries[name]
        blocks: list[str] = [f"{entry.summary[0].upper()}{entry.summary[1:]}. {_about(result)}"]
        if entry.figure:
            blocks += [report.figure(chart, title) for title, chart in _charts(result, *entry.figure)]
        blocks += [report.html_table(headers, body, title) for title, headers, body in grids(result.rows)]
        blocks.append(report.code(result.about["command"]))
        sections.append(report.Section(f"{name}, {scale}", blocks))
    missing = [f"{name} at {scale}" for name in entries for scale in SCALES if (name, scale) not in results]
    if missing:
        sections.append(report.Section("Not run yet", [", ".join(missing) + "."]))
    subtitle = f"{run} of {len(entries) * len(SCALES)} reproductions, each number beside the paper's"
    return report.page("poisonkit: results beside the papers'", subtitle, sections)


def _charts(result: Result, x_label: str, y_label: str) -> list[tuple[str, report.Html]]:
    """The parts whose rows are numbers, each column against them, both axes logarithmic."""
    charts = []
    for part in dict.fromkeys(row["part"] for row in result.rows):
        rows = [row for row in result.rows if row["part"] == part and row["ours"] is not None]
        if not rows or not all(row["row"].isdecimal() for row in rows):
            continue
        rows = [row for row in rows if row["ours"] > 0]  # zeros have no place on such an axis
        series = [
            report.Series(
                column,
                [float(row["row"]) for row in rows if row["column"] == column],
                [row["ours"] for row in rows if row["column"] == column],
            )
            for column in dict.fromkeys(row["column"] for row in rows)
        ]
        chart = report.line_chart(
            series, title=part, x_label=x_label, y_label=y_label, percent=False, log_x=True, log_y=True
        )
        charts.append((f"{part}, both axes logarithmic", chart))
    return charts
