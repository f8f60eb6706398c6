"""A published table or figure, and what became of it here: the paper's numbers and ours are rows of one shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from poisonkit.experiments.lab import Lab
from poisonkit.train import Recipe

#: The sizes at which ``poisonkit reproduce`` runs: minutes on the digits, hours, and the paper itself
SCALES = ("smoke", "small", "paper")

# row -> column -> number; NaN is never stored, what there is not is left out
Numbers = Mapping[str, Mapping[str, float]]
Kind = Literal["share", "seconds", "ratio", "number"]


class Setting(Protocol):
    """What a scale decides: the data set, unless another is asked for, and the recipe of its largest network."""

    @property
    def data(self) -> str: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Part:
    """One table of a reproduction.

    title    what it shows
    kinds    column -> what its numbers are: shares in [0, 1], seconds, ratios, or plain numbers
    """

    title: str
    kinds: Mapping[str, Kind]
    numbers: Numbers

    def cells(self) -> Iterator[tuple[str, str, float]]:
        """(row, column, number), each that there is."""
        for row, columns in self.numbers.items():
            yield from ((row, column, number) for column, number in columns.items())


@dataclass(frozen=True)
class Training:
    """Networks that a reproduction trains: ``count`` of them with ``recipe``, each on ``rows`` rows."""

    count: int
    rows: float
    recipe: Recipe


@dataclass(frozen=True)
class Reproduction:
    """A table or figure of a paper.

    paper    its parts as published; empty where a figure prints no numbers
    scales   the setting of each scale it can be run at
    run      what it takes to measure the same: parts of the same titles, where they are the same thing
    plan     what ``run`` trains, of so many rows
    figure   draw each part as a chart with these axes: a column over the numbers that the names of the rows are
    """

    summary: str
    source: str
    paper: Sequence[Part]
    scales: Mapping[str, Setting]
    run: Callable[[Lab, Any], Sequence[Part]]
    plan: Callable[[Any, int], Sequence[Training]]
    figure: tuple[str, str] | None = None


def table(text: str, columns: Sequence[str], scale: float = 1.0) -> dict[str, dict[str, float]]:
    """Numbers written as in print: a line is a name, a bar, and the numbers of its columns; ``–`` is none."""
    found = {}
    for line in text.strip().splitlines():
        name, _, rest = line.partition("|")
        values = rest.split()
        assert len(values) == len(columns), line
        found[name.strip()] = {
            column: float(value) * scale for column, value in zip(columns, values, strict=True) if value != "–"
        }
    return found


def relative(numbers: Numbers, base: str) -> dict[str, dict[str, float]]:
    """Every number divided by that of the row ``base`` in its column."""
    return {
        row: {column: number / numbers[base][column] for column, number in columns.items() if numbers[base][column]}
        for row, columns in numbers.items()
    }


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The exponent p of the y = c·x^p that fits best, by least squares of the logarithms."""
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mu, mv = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mu) * (b - mv) for a, b in zip(u, v, strict=True)) / sum((a - mu) ** 2 for a in u)
