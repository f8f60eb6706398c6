"""``poisonkit run``: poison a data set, train with and without a defense, measure, report."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands.parsing import Commands, device_named, pairs
from poisonkit.data import DATASETS, load
from poisonkit.defenses import DEFENSES
from poisonkit.defenses.certified import Aggregation
from poisonkit.engine import Progress, Run, environment
from poisonkit.errors import require
from poisonkit.experiments import RECIPES, compare, page, prepare
from poisonkit.models import MODELS
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import Attack, Budget, ImageDataset


def add(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="poison a data set, train with and without a defense, measure, report",
        description="Options of the chosen parts follow their names: --attack.size 3 --defense.partitions 50 "
        "--recipe.epochs 10 --recipe.model.width 32; --options lists them with their values.",
    )
    run.add_argument(
        "--data", required=True, choices=sorted(DATASETS), help="data set; `poisonkit list` describes them"
    )
    run.add_argument("--root", help="folder that holds it")
    run.add_argument("--attack", default="centre_patch", choices=[*ATTACKS, "none"], help="(default: %(default)s)")
    run.add_argument("--rate", type=float, default=0.01, help="fraction of rows to poison (default: %(default)s)")
    run.add_argument("--defense", default="dpa", choices=list(DEFENSES), help="(default: %(default)s)")
    run.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    run.add_argument("--limit", type=int, metavar="N", help="use N training and N test rows only, spread evenly")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    run.add_argument("--threads", type=int, help="CPU threads (default: torch's); recorded, since results depend on it")
    run.add_argument("--out", help="run directory (default: runs/DATA-ATTACK-DEFENSE)")
    run.add_argument("--overwrite", action="store_true", help="start afresh instead of taking up an earlier run")
    run.add_argument("--options", action="store_true", help="list the options of the chosen parts, and stop")
    run.add_argument("--dry-run", action="store_true", help="check the arguments, print the configuration, and stop")
    run.set_defaults(command=_run)


@dataclass(frozen=True)
class Plan:
    """Everything a run is a function of, besides the bytes of its data and its environment."""

    data: str
    limit: int | None
    attack: Attack | None
    rate: float
    defense: Aggregation
    recipe: Recipe
    seed: int

    def manifest(self) -> dict[str, Any]:
        return {field.name: config.to_dict(getattr(self, field.name)) for field in fields(self)}


def _run(arguments: argparse.Namespace, options: list[str]) -> None:
    parts: dict[str, Any] = {
        "attack": ATTACKS[arguments.attack]() if arguments.attack != "none" else None,
        "defense": DEFENSES[arguments.defense](),
        "recipe": RECIPES.get(arguments.data, Recipe()),
    }
    for option, text in pairs(options):
        part, _, path = option.removeprefix("--").partition(".")
        require(
            part in parts and parts[part] is not None and path != "",
            "an option",
            "one of `poisonkit run --help` or below --attack, --defense or --recipe",
            option,
            "--options lists them",
        )
        if option == "--recipe.model" and text in MODELS:
            parts[part] = replace(parts[part], model=MODELS[text])
        else:
            parts[part] = config.with_option(parts[part], path, text, part)
    if arguments.options:
        rows = [leaf for part, value in parts.items() if value is not None for leaf in config.leaves(value, part)]
        print(report.text_table(["option", "value"], [[f"--{name}", str(value)] for name, value in rows]))
        return
    require(0 <= arguments.rate <= 1, "--rate", "a fraction in [0, 1]", arguments.rate)
    require(arguments.limit is None or arguments.limit >= 1, "--limit", "at least 1 row", arguments.limit)
    cores = os.cpu_count() or 1
    threads = arguments.threads
    require(threads is None or 1 <= threads <= cores, "--threads", f"from 1 to this machine's {cores}", threads)
    device = device_named(arguments.device)
    key(arguments.seed)  # refuses a seed out of range
    plan = Plan(
        arguments.data,
        arguments.limit,
        parts["attack"],
        arguments.rate,
        parts["defense"],
        parts["recipe"],
        arguments.seed,
    )
    if arguments.dry_run:
        print(json.dumps(plan.manifest(), indent=2))
        return
    if device.type == "cuda":
        found = torch.cuda.device_count()
        require((device.index or 0) < found, "--device", f"one of {found} CUDA devices", device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic training needs it, and needs it now
    train, test = load(arguments.data, arguments.root)
    if arguments.limit:
        train, test = (_spread(part, arguments.limit) for part in (train, test))
    arguments.out = arguments.out or f"runs/{arguments.data}-{arguments.attack}-{arguments.defense}"
    execute(plan, train.to(device), test.to(device), arguments.defense, arguments)


def execute(plan: Plan, train: ImageDataset, test: ImageDataset, name: str, arguments: argparse.Namespace) -> None:
    """Run ``plan`` in its directory, write its page there, and print its table."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    root = key(plan.seed)
    # before the run directory is touched: what cannot be done must leave nothing behind
    poison = prepare(train, test, attack=plan.attack, budget=Budget(plan.rate), defense=plan.defense, key=root)
    data = {"shape": train.shape, "classes": train.classes, "train": train.digest(), "test": test.digest()}
    manifest = {"plan": plan.manifest(), "data": data, "environment": environment(train.device)}
    run = Run(arguments.out, manifest, overwrite=arguments.overwrite)
    comparison = compare(
        run,
        train,
        test,
        poison=poison,
        defense=plan.defense,
        name=name,
        recipe=plan.recipe,
        key=root,
        progress=Progress(),
    )
    attack = f"{plan.attack} on {plan.rate:.2%} of" if plan.attack else "no attack on"
    subtitle = f"{attack} {len(train):,} training images of {plan.data}; measured on {len(test):,} test images"
    page.write(run, comparison, title=f"poisonkit: {name} on {plan.data}", subtitle=subtitle, command=arguments.shown)
    print(report.text_table(*page.table(comparison.rows)))
    print("r=n: certified accuracy, right whatever an attacker does with n inserted or deleted training rows")
    print(f"\n{run.directory / 'report.html'}")


def _spread(data: ImageDataset, rows: int) -> ImageDataset:
    """``rows`` rows spread evenly, since many data sets are sorted by class."""
    rows = min(rows, len(data))
    return data.take(torch.arange(rows) * len(data) // rows)
