"""``poisonkit backdoors``: every backdoor against an undefended network, at the rate of its paper."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from poisonkit import report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.commands.run import Plan
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
    attacks: dict[str, Attack] = {name: ATTACKS[name]() for name in arguments.attack}
    alone = {"attack": next(iter(attacks.values()))} if len(attacks) == 1 else {}
    parts = opt.apply({"recipe": RECIPES.get(arguments.data, Recipe()), **alone}, options)
    if alone:
        attacks = dict.fromkeys(attacks, parts["attack"])
    for seed in arguments.seed:
        key(seed)  # refuses a seed out of range
    plans = [
        (name, _plan(arguments, parts["recipe"], seed, BUDGETS[name], attack))
        for seed in arguments.seed
        for name, attack in attacks.items()
    ]
    if arguments.dry_run:
        print(json.dumps([plan.manifest() for _, plan in plans], indent=2))
        return
    device = opt.device_of(arguments)
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    test, folder, progress = test.to(device), Path(arguments.out), Progress()
    require(not folder.exists() or folder.is_dir(), "--out", "a folder", folder)
    for name, plan in plans:
        _one(folder / f"{name}-{plan.seed}", plan, train, test, arguments.overwrite, progress)
        # as it stands, since the next may take long
        headers, cells = _write(folder, arguments.data)
    print(f"{report.text_table(headers, cells)}\n\n{folder / 'backdoors.html'}")


def _plan(arguments: argparse.Namespace, recipe: Recipe, seed: int, budget: Budget, attack: Attack) -> Plan:
    data, limit = arguments.data, arguments.limit
    return Plan(data, limit, attack, budget.rate, None, recipe, seed, budget.per_class)


def _one(
    directory: Path, plan: Plan, train: ImageDataset, test: ImageDataset, overwrite: bool, progress: Progress
) -> None:
    """Train and measure, unless that is done."""
    about = {"plan": plan.manifest(), "data": opt.described(train, test), "environment": environment(test.device)}
    run, root = Run(directory, about, overwrite=overwrite), key(plan.seed)
    lab = Lab(run, train, test, plan.recipe, root, Local(), progress)
    with lab.alone():
        if (directory / "results.json").exists():
            return
        progress.line(f"{directory}")
        attack = opt.ready(plan.attack) if plan.attack else None
        poison = prepare(train, test, attack=attack, budget=plan.budget, defense=None, key=root)
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
