"""Configurations go to JSON and back, and take options by dotted path."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

import pytest

from poisonkit import config
from poisonkit.attacks import ATTACKS
from poisonkit.defenses import DEFENSES
from poisonkit.errors import ArgumentError


@dataclass(frozen=True)
class Inner:
    peak: float = 1.0
    on: bool = False


@dataclass(frozen=True)
class Other:
    steps: tuple[float, ...] = (0.5, 0.75)


@dataclass(frozen=True)
class Outer:
    schedule: Inner | Other = field(default_factory=Inner)
    mode: Literal["paper", "released"] = "paper"
    count: int = 3
    pair: tuple[float, float] | None = None


@pytest.mark.parametrize("value", [Outer(), Outer(Other((0.1,)), "released", 4, (1.0, 2.0))])
def test_round_trip(value: Outer) -> None:
    assert config.from_dict(Outer, json.loads(json.dumps(config.to_dict(value)))) == value


@pytest.mark.parametrize("kind", [*ATTACKS.values(), *DEFENSES.values()], ids=lambda kind: kind.__name__)
def test_every_method_round_trips(kind: type) -> None:
    assert config.from_dict(kind, json.loads(json.dumps(config.to_dict(kind())))) == kind()


def test_options() -> None:
    value = Outer()
    for path, text in [
        ("schedule", "other"),
        ("schedule.steps", "0.25,0.5"),
        ("mode", "released"),
        ("count", "7"),
        ("pair", "1,2.5"),
    ]:
        value = config.with_option(value, path, text, "outer")
    assert value == Outer(Other((0.25, 0.5)), "released", 7, (1.0, 2.5))
    assert config.with_option(value, "pair", "none", "outer").pair is None
    assert config.with_option(Outer(), "schedule.on", "yes", "outer").schedule == Inner(on=True)
    assert dict(config.leaves(Outer(), "o")) == {
        "o.schedule": "Inner",
        "o.schedule.peak": 1.0,
        "o.schedule.on": False,
        "o.mode": "paper",
        "o.count": 3,
        "o.pair": None,
    }


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("count", "3.5", "--outer.count must be a whole number, got '3.5'"),
        ("mode", "fast", "--outer.mode must be paper, released, got 'fast'"),
        ("speed", "1", "an option below --outer must be one of --outer.count, .*, got --outer.speed"),
        ("count.x", "1", "--outer.count must be set as a whole"),
        ("schedule.on", "maybe", "--outer.schedule.on must be true or false, got 'maybe'"),
        ("pair", "1,2,3", "--outer.pair must be numbers separated by commas or none"),
        ("schedule", "third", "--outer.schedule must be Inner or Other, got 'third'"),
    ],
)
def test_bad_options(path: str, text: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        config.with_option(Outer(), path, text, "outer")


@pytest.mark.parametrize(
    "values",
    [
        {"class": "Outer", "count": True},
        {"class": "Outer", "count": "3"},
        {"class": "Outer", "extra": 1},
        {"class": "Elsewhere"},
        {"class": "Outer", "mode": "fast"},
        {"class": "Outer", "schedule": {"class": "os.system"}},
    ],
)
def test_bad_json(values: dict) -> None:
    with pytest.raises(ArgumentError, match="must be"):
        config.from_dict(Outer, values)
