"""``poisonkit compare``: finished runs in one table, the seeds of one configuration as a mean with its interval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from poisonkit import report
from poisonkit.commands.parsing import Commands, no_options
from poisonkit.experiments.runs import Line, data_table, lines, read, scatter, table
from poisonkit.train.checkpoints import write_atomic


def add(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="finished runs side by side",
        description="A table for each data set. Runs that differ in the seed alone are one line: the mean, and "
        "the half width of its 95 %% interval by Student's t.",
    )
    compare.add_argument("run", nargs="+", metavar="RUN", help="directory of a finished run")
    compare.add_argument(
        "--out", default="runs/compare", help="folder of the page and the tables (default: %(default)s)"
    )
    compare.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    groups = lines([read(Path(run)) for run in arguments.run])
    names = _names(groups)
    for name, some in zip(names, groups, strict=True):
        print(f"{name}\n{report.text_table(*table(some))}\n")
    folder = Path(arguments.out)
    folder.mkdir(parents=True, exist_ok=True)
    headers, cells = ["data"], []
    for name, some in zip(names, groups, strict=True):
        columns, rows = data_table(some)
        headers += [column for column in columns if column not in headers]
        cells += [{"data": name, **dict(zip(columns, row, strict=True))} for row in rows]
    write_atomic(folder / "compare.json", (json.dumps(cells, indent=2) + "\n").encode())
    flat = [[cell.get(header) for header in headers] for cell in cells]
    write_atomic(folder / "compare.csv", report.csv_text(headers, flat).encode())
    write_atomic(folder / "compare.html", _page(names, groups, arguments.shown).encode())
    print(folder / "compare.html")


def _names(groups: Sequence[Sequence[Line]]) -> list[str]:
    """What each data set is called; numbered where one name stands for several."""
    names = [str(some[0].plan["data"]) for some in groups]
    return [f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _page(names: Sequence[str], groups: Sequence[Sequence[Line]], command: str) -> str:
    sections = []
    for name, some in zip(names, groups, strict=True):
        caption = "Means over seeds, with the half width of their 95 % intervals; one seed has none"
        figures = [report.figure(chart, "Below and to the right is better") for chart in scatter(some, name)]
        sections.append(report.Section(name, [report.html_table(*table(some), caption), *figures]))
    seeds = sum(len(line.rows) for some in groups for line in some)
    subtitle = f"{seeds} measurements of {sum(map(len, groups))} classifiers"
    return report.page(
        "poisonkit: runs side by side", subtitle, [*sections, report.Section("", [report.code(command)])]
    )
