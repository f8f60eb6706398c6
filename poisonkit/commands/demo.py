"""``poisonkit demo``: the main job on the digits that come with the package."""

from __future__ import annotations

import argparse

from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands, no_options
from poisonkit.commands.run import Plan, execute
from poisonkit.engine import Local
from poisonkit.experiments import EXPERIMENTS


def add(commands: Commands) -> None:
    demo = commands.add_parser("demo", help="the main job on real digits that come with the package, in a minute")
    demo.add_argument("--out", default="runs/demo", help="run directory (default: %(default)s)")
    demo.add_argument("--overwrite", action="store_true", help="start afresh instead of taking up an earlier run")
    # tiny layers gain nothing from more threads, and lose a lot on a busy machine
    demo.set_defaults(command=_demo, device="cpu", threads=1, stack="auto", only=None, print_job=None)


def _demo(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    demo = EXPERIMENTS["demo"]
    plan = Plan(demo.data, None, demo.attack, demo.rate, demo.defense, demo.recipe, 0)
    opt.device_of(arguments)
    train, test = opt.loaded(demo.data, None, None)
    execute(plan, train, test, "dpa", Local(), arguments)
