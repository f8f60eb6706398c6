"""The scatter: where points and their intervals lie on the page, worked out by hand."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from poisonkit.errors import ArgumentError
from poisonkit.report import Spot, scatter_chart

LABELS = {"x_label": "clean accuracy", "y_label": "attack success"}


def test_points_lie_where_their_fractions_are() -> None:
    spots = [Spot("none", 0.0, 0.0), Spot("all", 1.0, 1.0), Spot("a <half>", 0.5, 0.25, 0.1, 0.5)]
    chart = scatter_chart({"undefended": spots, "dpa": [Spot("b", 0.2, 0.4)]}, title="digits", **LABELS)
    ET.fromstring(chart)  # well formed
    at = [
        tuple(map(float, pair))
        for pair in re.findall(r'class="point" transform="translate\(([\d.]+),([\d.]+)\)"', chart)
    ]
    (left, bottom), (right, top), (x, y), _ = at
    assert bottom - top == 300
    assert (x, y) == (pytest.approx((left + right) / 2, abs=0.06), pytest.approx(bottom - 75, abs=0.06))
    reach = re.findall(r"stroke-width:1\" d=\"M([\d.]+) ([\d.]+)H([\d.]+)M([\d.]+) ([\d.]+)V([\d.]+)\"", chart)
    from_x, _, to_x, _, from_y, to_y = map(float, reach[2])
    assert to_x - from_x == pytest.approx(0.2 * (right - left), abs=0.11)
    assert (from_y, to_y) == (bottom, pytest.approx(bottom - 225, abs=0.06))  # 0.25 - 0.5 is drawn to the edge
    assert "a &lt;half&gt;: clean accuracy 50.0 %, attack success 25.0 %" in chart
    assert chart.count(">dpa</text>") == 1  # the legend


def test_what_no_chart_shows_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"spot must be of two fractions in \[0, 1\], got a"):
        scatter_chart({"dpa": [Spot("a", 1.1, 0.5)]}, title="t", **LABELS)
    with pytest.raises(ArgumentError, match="spot must be finite numbers, got a"):
        Spot("a", float("nan"), 0.5)
    with pytest.raises(ArgumentError, match="series must be 1 to 12, got 13"):
        scatter_chart({str(i): [Spot("a", 0.5, 0.5)] for i in range(13)}, title="t", **LABELS)
