"""``poisonkit demo``: the main job on the digits that come with the package."""

from __future__ import annotations

import argparse

from poisonkit.commands.parsing import Commands, no_options
from poisonkit.commands.run import Plan, execute
from poisonkit.data import load
from poisonkit.experiments import EXPERIMENTS


def add(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="the main job on real digits that come with the package, in a minute")
    demo.add_argument("--out", default="runs/demo", help="run directory (default: %(default)s)")
    demo.add_argument("--overwrite", action="store_true", help="start afresh instead of taking up an earlier run")
    demo.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    demo = EXPERIMENTS["demo"]
    plan = Plan(demo.data, None, demo.attack, demo.rate, demo.defense, demo.recipe, 0)
    train, test = load(demo.data)
    arguments.threads = 1  # tiny layers gain nothing from more, and lose a lot on a busy machine
    execute(plan, train, test, "dpa", arguments)
