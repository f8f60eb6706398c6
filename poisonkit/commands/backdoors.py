"""``poisonkit backdoors``: every backdoor against an undefended network, at the rate of its paper."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.engine import Local, Progress, Run, environment
from poisonkit.errors import require
from poisonkit.experiments import RECIPES, prepare
from poisonkit.experiments.backdoors import BUDGETS, SEEDS, table, trial
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.runs import lines, read
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.train.checkpoints import write_atomic
from poisonkit.types import Attack, Budget, ImageDataset


def add(commands: Commands) -> None:
    backdoors = commands.add_parser(
        "backdoors",
        help="every backdoor against an undefended network, at its paper's rate",
        description="A run for each attack and seed below --out, and the table of all that are finished there: started "
        "again, only what is missing is trained. Options of the recipe follow, and those of an attack that is named "
        "alone: --recipe.epochs 12 --attack.alpha 0.4",
    )
    opt.add_data(backdoors)
    backdoors.add_argument("--attack", choices=list(BUDGETS), nargs="+", default=list(BUDGETS), help="(default: all)")
    backdoors.add_argument("--seed", type=int, nargs="+", default=list(range(SEEDS)), help="(default: 0 1 2)")
    opt.add_running(backdoors, "runs/backdoors")
    backdoors.set_defaults(command=_backdoors)


def _backdoors(arguments: argparse.Namespace, options: list[str]) -> None:
    attacks = {name: ATTACKS[name]() for name in arguments.attack}
    alone = {"attack": attacks[arguments.attack[0]]} if len(arguments.attack) == 1 else {}
    parts = opt.apply({"recipe": RECIPES.get(arguments.data, Recipe()), **alone}, options)
    recipe: Recipe = parts["recipe"]
    if alone:
        attacks[arguments.attack[0]] = parts["attack"]
    for seed in arguments.seed:
        key(seed)  # refuses a seed out of range
    plans = [
        (name, attack, _plan(arguments, recipe, seed, name, attack))
        for seed in arguments.seed
        for name, attack in attacks.items()
    ]
    if arguments.dry_run:
        print(json.dumps([plan for *_, plan in plans], indent=2))
        return
    device = opt.device_of(arguments)
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    test, folder, progress = test.to(device), Path(arguments.out), Progress()
    require(not folder.exists() or folder.is_dir(), "--out", "a folder", folder)
    for name, attack, plan in plans:
        _one(
            folder / f"{name}-{plan['seed']}",
            plan,
            attack,
            BUDGETS[name],
            train,
            test,
            recipe,
            arguments.overwrite,
            progress,
        )
        # as it stands, since the next may take long
        headers, cells = _write(folder, arguments.data)
    print(f"{report.text_table(headers, cells)}\n\n{folder / 'backdoors.html'}")


def _plan(arguments: argparse.Namespace, recipe: Recipe, seed: int, name: str, attack: Attack) -> dict[str, Any]:
    """What a run is a function of, as `poisonkit run` says it."""
    budget = BUDGETS[name]
    return {
        "data": arguments.data,
        "limit": arguments.limit,
        "attack": config.to_dict(attack),
        "rate": budget.rate,
        "defense": None,
        "recipe": config.to_dict(recipe),
        "seed": seed,
        "per_class": budget.per_class,
    }


def _one(
    directory: Path,
    plan: dict[str, Any],
    attack: Attack,
    budget: Budget,
    train: ImageDataset,
    test: ImageDataset,
    recipe: Recipe,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Train and measure, unless that is done."""
    manifest = {"plan": plan, "data": opt.described(train, test), "environment": environment(test.device)}
    run, root = Run(directory, manifest, overwrite=overwrite), key(plan["seed"])
    lab = Lab(run, train, test, recipe, root, Local(), progress)
    with lab.alone():
        if (directory / "results.json").exists():
            return
        progress.line(f"{directory}")
        poison = prepare(train, test, attack=opt.ready(attack), budget=budget, defense=None, key=root)
        if poison:
            trial(lab, poison)


def _write(folder: Path, data: str) -> tuple[list[str], list[list[object]]]:
    """The table of all finished runs below ``folder``, written there as CSV and as a page."""
    groups = lines([read(path.parent) for path in sorted(folder.glob("*/results.json"))])
    require(len(groups) == 1, "--out", "a folder with runs on this data set alone", folder, "choose another")
    headers, cells = table(groups[0])
    title, about = f"poisonkit: backdoors on {data}", "Undefended networks: means over seeds, with their 95 % intervals"
    page = report.page(title, about, [report.Section("", [report.html_table(headers, cells, about)])])
    write_atomic(folder / "backdoors.csv", report.csv_text(headers, cells).encode())
    write_atomic(folder / "backdoors.html", page.encode())
    return headers, cells
