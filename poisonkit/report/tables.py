"""One table, three ways: for a terminal, for a page, for a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from poisonkit.errors import require
from poisonkit.report.markup import Html, escape

Rows = Sequence[Sequence[object]]

# 97.2 % · -3 · 1,281,167 · 1e-3 · 95.1 ± 0.3 % · 12 s · 2.5×
_NUMBER = re.compile(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?( ?± ?\d[\d.,]*)? ?(%|×|[^\W\d_]{1,3})?")
_MISSING = ("", "-", "–", "—")


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a cell: 0.953 is "95.3 %"."""
    return f"{100 * value:,.{digits}f} %"


def text_table(headers: Sequence[str], rows: Rows) -> str:
    """An aligned table for a terminal: columns of numbers to the right, others to the left; None is empty."""
    cells = _cells(headers, rows)
    right = _numeric(headers, cells)
    lines = [list(headers), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def html_table(headers: Sequence[str], rows: Rows, caption: str) -> Html:
    """The same table for a page; its first column names the rows, and stays in sight when the rest scrolls."""
    cells = _cells(headers, rows)
    sides = [' class="number"' if number else "" for number in _numeric(headers, cells)]
    head = "".join(f'<th scope="col"{side}>{escape(header)}</th>' for header, side in zip(headers, sides, strict=True))
    body = "\n".join(
        "<tr>"
        + f'<th scope="row"{sides[0]}>{escape(first)}</th>'
        + "".join(f"<td{side}>{escape(cell)}</td>" for cell, side in zip(rest, sides[1:], strict=True))
        + "</tr>"
        for first, *rest in cells
    )
    return Html(
        f'<div class="table" tabindex="0"><table>\n<caption><span>{escape(caption)}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def csv_text(headers: Sequence[str], rows: Rows) -> str:
    """The same table as CSV with unix line ends; floats keep every digit, None is empty."""
    _cells(headers, rows)
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([headers, *rows])
    return file.getvalue()


def _cells(headers: Sequence[str], rows: Rows) -> list[list[str]]:
    require(len(headers) > 0, "headers", "one or more", len(headers))
    for row in rows:
        require(len(row) == len(headers), "row", f"as long as the headers ({len(headers)})", len(row))
    return [["" if cell is None else str(cell) for cell in row] for row in rows]


def _numeric(headers: Sequence[str], cells: list[list[str]]) -> list[bool]:
    """Which columns hold numbers, with a unit or without, and nothing else but gaps."""
    columns = ([row[i] for row in cells if row[i] not in _MISSING] for i in range(len(headers)))
    return [bool(column) and all(map(_NUMBER.fullmatch, column)) for column in columns]
