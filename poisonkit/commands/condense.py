"""``poisonkit condense``: a small synthetic training set that poison hardly gets into, kept, drawn and evaluated."""

from __future__ import annotations

import argparse
import json
from typing import Any

from poisonkit import config, report
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.defenses.condense import CONDENSE
from poisonkit.engine import Local, Progress, Run, environment
from poisonkit.errors import require
from poisonkit.experiments.condensed import EVALUATION, condensed, table, write
from poisonkit.experiments.lab import Lab
from poisonkit.random import key


def add(commands: Commands) -> None:
    condense = commands.add_parser(
        "condense",
        help="a small synthetic training set that poison hardly gets into",
        description="Condenses the training set, keeps the synthetic one as synthetic.safetensors, which --data "
        "synthetic reads, draws it, trains new networks on it, on its bytes and on as many random rows, and tests them "
        "on the real test set. Options follow their names: --condense.images 10 --recipe.epochs 300",
    )
    opt.add_data(condense)
    condense.add_argument("--method", default="rdm_dc", choices=list(CONDENSE), help="(default: %(default)s)")
    condense.add_argument("--networks", type=int, default=5, help="trained on each set (default: %(default)s)")
    condense.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    opt.add_running(condense, None, "runs/condense-DATA-METHOD")
    condense.set_defaults(command=_condense)


def _condense(arguments: argparse.Namespace, options: list[str]) -> None:
    parts: dict[str, Any] = {"condense": CONDENSE[arguments.method](), "recipe": EVALUATION}
    parts = opt.apply(parts, options)
    require(arguments.networks >= 1, "--networks", "1 or more", arguments.networks)
    opt.check_limit(arguments.limit)
    root, method, recipe = key(arguments.seed), parts["condense"], parts["recipe"]
    plan = {name: config.to_dict(part) for name, part in parts.items()}
    plan |= {"study": "condense", "data": arguments.data, "limit": arguments.limit, "seed": arguments.seed}
    if arguments.dry_run:
        print(json.dumps(plan, indent=2))
        return
    device = opt.device_of(arguments)
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    manifest = {"plan": plan, "data": opt.described(train, test), "environment": environment(device)}
    out = arguments.out or f"runs/condense-{arguments.data}-{arguments.method}"
    run = Run(out, manifest, overwrite=arguments.overwrite)
    lab = Lab(run, train, test.to(device), recipe, root, Local(), Progress())
    found = condensed(lab, method, arguments.networks)
    title = f"poisonkit: {arguments.data} condensed by {arguments.method}"
    subtitle = f"{len(train):,} training images in {len(found.data)}; measured on {len(test):,} test images"
    write(run, found, method, title=title, subtitle=subtitle, command=arguments.shown)
    print(report.text_table(*table(found)))
    print(f"\n{run.directory / 'report.html'}")
