"""Charts as inline SVG: they carry their own style, follow light and dark mode, and need no script.

Six colours told apart by colour-blind readers (after Okabe and Ito, Color Universal Design, 2008; a step
darker or lighter where the page needs the contrast) go with four marker shapes, so twelve series stay distinct,
and four of them without any colour.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from poisonkit.errors import require
from poisonkit.report import tables
from poisonkit.report.markup import Html, escape

WIDTH = 480  # half a page: text keeps its size beside a second chart, and stays legible on a phone
_RIGHT = 14  # half of the last number under the axis
_LETTER = 8  # width to allow for a letter at 13 pixels, whatever the system font: SVG text cannot measure itself
_BAR = 15
_DENSE = 24  # more points than this and their markers hide the line; they then show under the pointer only
_MARKERS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
    "M-3.6 -3.6h7.2v7.2h-7.2Z",
    "M0 -5.2L5.2 0L0 5.2L-5.2 0Z",
    "M0 -4.8L4.8 3.6H-4.8Z",
)
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5568f", "#b87a00", "#6b7280")
_DARK = ("#56b4e9", "#ff8f4f", "#35c99b", "#e59ac7", "#f0c24b", "#a7aeb9")


def _style() -> str:
    def variables(ink: str, muted: str, grid: str, paper: str, colours: Sequence[str]) -> str:
        named = "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))
        return f".chart{{--ink:{ink};--muted:{muted};--grid:{grid};--paper:{paper};{named}}}"

    return (
        variables("#1c2026", "#5d6673", "#e4e7eb", "#fff", _LIGHT)
        + "@media screen and (prefers-color-scheme:dark){"
        + variables("#e8eaed", "#9aa4b2", "#2c323b", "#15181d", _DARK)
        + "}.chart text{font:13px system-ui,sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums}"
        ".chart .title{font-weight:600;font-size:15px}.chart .muted{fill:var(--muted)}"
        ".chart .grid{stroke:var(--grid)}.chart .axis{stroke:var(--muted)}"
        ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round}"
        ".chart .point{stroke:var(--paper);stroke-width:1.5;paint-order:stroke}"
        ".chart .dense{opacity:0}.chart .dense:hover{opacity:1}"
    )


@dataclass(frozen=True)
class Series:
    """One line of a chart: ``y[i]`` at ``x[i]``, drawn in the order given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        require(
            len(self.x) == len(self.y) > 0, "series", "one y for each x, and not empty", f"{len(self.x)}, {len(self.y)}"
        )
        require(all(map(math.isfinite, (*self.x, *self.y))), "series", "finite numbers", self.label)


@dataclass(frozen=True)
class _Axis:
    """A map from [low, high] to pixels [start, stop], linear or, with ``log``, logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        scale = math.log if self.log else float
        share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return self.start + share * (self.stop - self.start)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    percent: bool = True,
    step: bool = False,
    log_x: bool = False,
    log_y: bool = False,
) -> Html:
    """Lines over a shared x axis, as SVG.

    percent  y is a fraction, shown as a percentage on an axis that starts at 0
    step     y keeps its value until the next x, as an accuracy certified at whole numbers of rows does
    log_x    the x axis is logarithmic; so is, with ``log_y``, the y axis, which then starts above 0
    """
    _check_count([each.label for each in series])
    xs = [x for each in series for x in each.x]
    ys = [y for each in series for y in each.y]
    require(not log_x or min(xs) > 0, "x", "above 0 on a logarithmic axis", min(xs))
    require(not log_y or min(ys) > 0, "y", "above 0 on a logarithmic axis", min(ys))
    whole = all(float(x).is_integer() for x in xs)
    show, name_tick = _formats(percent)
    head, top = _header(title, y_label, [each.label for each in series], _line_key)
    bottom = top + 210
    spare = (0.5 * min(xs) if log_x else 0.5) if min(xs) == max(xs) else 0.0  # a single x stands in the middle
    y_ticks = _decades_out(min(ys), max(ys)) if log_y else _round_out(min(0, *ys) if percent else min(ys), max(ys), 6)
    left = 10 + _LETTER * max(len(name_tick(tick)) for tick in y_ticks)
    right = WIDTH - _RIGHT
    x_axis = _Axis(min(xs) - spare, max(xs) + spare, left, right, log_x)
    y_axis = _Axis(y_ticks[0], y_ticks[-1], bottom, top, log_y)
    parts = [head]
    for tick in y_ticks:
        y = y_axis(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(left - 8, y + 4, name_tick(tick), "muted", "end"))
    for tick in _inside(x_axis, whole):
        x = x_axis(tick)
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        parts.append(_text(x, bottom + 20, _number(tick), "muted", "middle"))
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    parts.append(_text((left + right) / 2, bottom + 42, x_label, "muted", "middle"))
    for i, each in enumerate(series):
        at = [(x_axis(x), y_axis(y)) for x, y in zip(each.x, each.y, strict=True)]
        parts.append(f'<path class="line" style="stroke:{_colour(i)}" d="{_trace(at, step)}"/>')
    # markers after every line, so that no line hides one
    for i, each in enumerate(series):
        dense = " dense" if len(each.x) > _DENSE else ""
        for x, y in zip(each.x, each.y, strict=True):
            hover = f"{each.label}: {show(y)} at {_number(x)} ({x_label})"
            parts.append(_marker(i, x_axis(x), y_axis(y), f"point{dense}", hover))
    return _svg(title, bottom + 52, parts)


@dataclass(frozen=True)
class Spot:
    """A point of a scatter; ``dx`` and ``dy`` reach from it to either end of its interval, 0 for none."""

    label: str
    x: float
    y: float
    dx: float = 0.0
    dy: float = 0.0

    def __post_init__(self) -> None:
        require(all(map(math.isfinite, (self.x, self.y, self.dx, self.dy))), "spot", "finite numbers", self.label)


def scatter_chart(groups: Mapping[str, Sequence[Spot]], *, title: str, x_label: str, y_label: str) -> Html:
    """One fraction against another, from 0 to 1 each, as SVG; a group has a colour and a shape.

    An interval that goes beyond 0 or 1 is drawn to the edge.
    """
    _check_count(list(groups))
    for spot in (spot for spots in groups.values() for spot in spots):
        require(0 <= spot.x <= 1 and 0 <= spot.y <= 1, "spot", "of two fractions in [0, 1]", spot.label)
    _, name_tick = _formats(percent=True)
    head, top = _header(title, y_label, list(groups), _spot_key)
    left, right, bottom = 10 + _LETTER * len(name_tick(1)), WIDTH - _RIGHT - 2 * _LETTER, top + 300
    x_axis, y_axis = _Axis(0, 1, left, right), _Axis(0, 1, bottom, top)
    parts = [head]
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        x, y = x_axis(tick), y_axis(tick)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}M{x:.1f} {top}V{bottom}"/>')
        parts.append(_text(left - 8, y + 4, name_tick(tick), "muted", "end"))
        parts.append(_text(x, bottom + 20, name_tick(tick), "muted", "middle"))
    parts.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
    parts.append(_text((left + right) / 2, bottom + 42, x_label, "muted", "middle"))
    spots = [(i, spot) for i, group in enumerate(groups.values()) for spot in group]
    for i, spot in spots:
        across = [x_axis(min(1.0, max(0.0, spot.x + sign * spot.dx))) for sign in (-1, 1)]
        along = [y_axis(min(1.0, max(0.0, spot.y + sign * spot.dy))) for sign in (-1, 1)]
        x, y = x_axis(spot.x), y_axis(spot.y)
        reach = f"M{across[0]:.1f} {y:.1f}H{across[1]:.1f}M{x:.1f} {along[0]:.1f}V{along[1]:.1f}"
        parts.append(f'<path class="line" style="stroke:{_colour(i)};stroke-width:1" d="{reach}"/>')
    # markers after every interval, so that no interval hides one
    for i, spot in spots:
        hover = f"{spot.label}: {x_label} {tables.percent(spot.x)}, {y_label} {tables.percent(spot.y)}"
        parts.append(_marker(i, x_axis(spot.x), y_axis(spot.y), "point", hover))
    return _svg(title, bottom + 52, parts)


def bar_chart(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    y_label: str,
    percent: bool = True,
) -> Html:
    """Bars side by side in named groups, as SVG; ``series[label][i]`` is the bar of ``groups[i]``.

    The bars lie down, so that names stay readable however many and long they are.
    """
    _check_count(list(series))
    for label, values in series.items():
        require(len(values) == len(groups) > 0, "series", f"one value for each of {len(groups)} groups", label)
        require(all(0 <= value < math.inf for value in values), "series", "finite and 0 or more", label)
    show, name_tick = _formats(percent)
    head, top = _header(title, y_label, list(series), _bar_key)
    names = [textwrap.wrap(group, 22) or [""] for group in groups]
    left = 12 + _LETTER * max(len(line) for name in names for line in name)
    most = max(value for values in series.values() for value in values)
    number = _LETTER * len(show(most))  # the widest, for which the longest bar leaves room
    right = WIDTH - number - 10
    ticks = _round_out(0, most, max(1, (right - left) // number))
    axis = _Axis(0, ticks[-1], left, right)
    bars: list[str] = []
    y = top + 8
    for i, name in enumerate(names):
        height = max((_BAR + 2) * len(series) - 2, 16 * len(name))
        first = y + height / 2 - 8 * len(name) + 12
        bars += [_text(left - 10, first + 16 * k, line, "", "end") for k, line in enumerate(name)]
        for j, (label, values) in enumerate(series.items()):
            edge = y + (_BAR + 2) * j + (height - (_BAR + 2) * len(series) + 2) / 2
            length = axis(values[i]) - left
            bars.append(
                f'<rect class="bar" x="{left}" y="{edge:.1f}" width="{length:.1f}" height="{_BAR}" rx="1.5" '
                f'style="fill:{_colour(j)}"><title>{escape(f"{groups[i]}, {label}: {show(values[i])}")}</title></rect>'
            )
            bars.append(_text(left + length + 6, edge + 12, show(values[i]), "", "start"))
        y += height + 14
    grid = [f'<path class="grid" d="M{axis(tick):.1f} {top}V{y - 4}"/>' for tick in ticks[1:]]
    labels = [_text(axis(tick), y + 12, name_tick(tick), "muted", "middle") for tick in ticks]
    base = f'<path class="axis" d="M{left} {top}V{y - 4}"/>'
    return _svg(title, y + 20, [head, *grid, *bars, base, *labels])


def _check_count(labels: Sequence[str]) -> None:
    most = math.lcm(len(_LIGHT), len(_MARKERS))
    require(1 <= len(labels) <= most, "series", f"1 to {most}", len(labels), "draw more in several charts")


def _formats(percent: bool) -> tuple[Callable[[float], str], Callable[[float], str]]:
    """How values and ticks are written: values as in the tables, ticks no longer than they need to be."""
    return (tables.percent, lambda tick: f"{100 * tick:,.4g} %") if percent else (_number, _number)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def _step(low: float, high: float, pieces: int) -> float:
    """The least of 1, 2, 5 times a power of ten that cuts [low, high] into ``pieces`` or fewer."""
    rough = (high - low) / pieces
    power = 10.0 ** math.floor(math.log10(rough))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))


def _inside(axis: _Axis, whole: bool) -> list[float]:
    """Round numbers on an axis, no more than there is room to write, at whole numbers only if ``whole``."""
    room = _LETTER * (1 + max(len(_number(axis.low)), len(_number(axis.high))))
    pieces = min(10, int((axis.stop - axis.start) // room))
    if axis.log:
        ticks = [tick for tick in _decades_out(axis.low, axis.high) if axis.low <= tick <= axis.high]
        apart = [axis(after) - axis(before) for before, after in pairwise(ticks)]
        return ticks if min(apart, default=room) >= room else ticks[:: -(-len(ticks) // pieces)]
    step = max(_step(axis.low, axis.high, pieces), 1.0 if whole else 0.0)
    return [k * step for k in range(math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9) + 1)]


def _round_out(low: float, high: float, pieces: int) -> list[float]:
    """Round numbers from at or below ``low`` to at or above ``high``, in about ``pieces`` steps."""
    high = high if high > low else low + 1
    step = _step(low, high, pieces)
    return [k * step for k in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _decades_out(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from the last at or below ``low`` to the first at or above ``high``."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [times * 10.0**power for power in powers for times in (1, 2, 5)]
    first = max(i for i, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = min(i for i, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    return marks[first : max(last, first + 1) + 1]


def _colour(i: int) -> str:
    return f"var(--c{i % len(_LIGHT)})"


def _trace(at: Sequence[tuple[float, float]], step: bool) -> str:
    (x, y), *rest = at
    return f"M{x:.1f} {y:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" if step else f"L{x:.1f} {y:.1f}" for x, y in rest)


def _marker(i: int, x: float, y: float, kind: str, hover: str) -> str:
    shape = _MARKERS[i % len(_MARKERS)]
    return (
        f'<path class="{kind}" transform="translate({x:.1f},{y:.1f})" d="{shape}" style="fill:{_colour(i)}">'
        f"<title>{escape(hover)}</title></path>"
    )


def _line_key(i: int, x: float, y: float) -> str:
    return (
        f'<path class="line" style="stroke:{_colour(i)}" d="M{x} {y}h20"/>'
        f'<path transform="translate({x + 10},{y})" d="{_MARKERS[i % len(_MARKERS)]}" style="fill:{_colour(i)}"/>'
    )


def _bar_key(i: int, x: float, y: float) -> str:
    return f'<rect x="{x + 4}" y="{y - 6}" width="12" height="12" rx="1.5" style="fill:{_colour(i)}"/>'


def _spot_key(i: int, x: float, y: float) -> str:
    return f'<path transform="translate({x + 10},{y})" d="{_MARKERS[i % len(_MARKERS)]}" style="fill:{_colour(i)}"/>'


def _header(
    title: str, subtitle: str, labels: Sequence[str], key: Callable[[int, float, float], str]
) -> tuple[str, int]:
    """Title, what is measured, and a legend where there are several series; and the height they take."""
    parts: list[str] = []
    y = 0
    for line in textwrap.wrap(title, WIDTH // (_LETTER + 1)):
        y += 19
        parts.append(_text(0, y - 3, line, "title", "start"))
    for line in textwrap.wrap(subtitle, WIDTH // _LETTER):
        y += 18
        parts.append(_text(0, y - 2, line, "muted", "start"))
    if len(labels) > 1:
        x, y = 0, y + 20
        for i, label in enumerate(labels):
            width = 26 + _LETTER * len(label) + 16
            if x and x + width > WIDTH + 16:
                x, y = 0, y + 20
            parts += [key(i, x, y - 2), _text(x + 26, y + 2, label, "", "start")]
            x += width
    return "\n".join(parts), y + 24


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: float, parts: Sequence[str]) -> Html:
    body = "\n".join(parts)
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" viewBox="0 0 {WIDTH} {height:.0f}">\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n{body}\n</svg>"
    )
