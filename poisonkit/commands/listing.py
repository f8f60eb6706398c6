"""``poisonkit list`` and ``poisonkit info``: what there is, and what it runs on."""

from __future__ import annotations

import argparse
from typing import Any

from poisonkit import ops, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands.parsing import Commands, no_options
from poisonkit.data import DATASETS
from poisonkit.defenses import DEFENSES
from poisonkit.engine import environment
from poisonkit.experiments import EXPERIMENTS
from poisonkit.models import MODELS


def add(commands: Commands) -> None:
    listing = commands.add_parser("list", help="every attack, defense, data set, model and experiment, with its source")
    listing.set_defaults(command=_list)
    info = commands.add_parser("info", help="what this installation was built with and what this machine offers")
    info.set_defaults(command=_info)


def _list(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    _print_list("attacks", [(name, _summary(kind), kind.source) for name, kind in ATTACKS.items()])
    _print_list("defenses", [(name, _summary(kind), kind.source) for name, kind in DEFENSES.items()])
    _print_list("data sets", [(name, entry.summary, entry.source) for name, entry in DATASETS.items()])
    _print_list("models", [(name, str(entry), "") for name, entry in MODELS.items()])
    _print_list("experiments", [(name, entry.summary, entry.source) for name, entry in EXPERIMENTS.items()])


def _print_list(title: str, rows: list[tuple[str, str, str]]) -> None:
    print(f"{title}\n{report.text_table(['name', 'what', 'source'], rows)}\n")


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _info(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    facts: dict[str, Any] = {**environment(), **ops.build_info()}
    rows = [
        (f"{name} {part}", fact)
        for name, value in facts.items()
        for part, fact in (value.items() if isinstance(value, dict) else [("", value)])
    ]
    print(report.text_table(["what", "value"], [[name.strip(), _plain(fact)] for name, fact in rows]))


def _plain(fact: Any) -> str:
    return ", ".join(map(str, fact)) or "none" if isinstance(fact, list | tuple) else str(fact)
