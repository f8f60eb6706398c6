"""``poisonkit matrix``: all attacks against all defenses, and who leads."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.defenses import DEFENSES
from poisonkit.engine import Local, Progress, Run, environment
from poisonkit.errors import require
from poisonkit.experiments import RECIPES
from poisonkit.experiments.backdoors import BUDGETS
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.matrix import (
    ACCURACY,
    NONE,
    SMALL,
    SUCCESS,
    Cell,
    column,
    finished,
    grid,
    keep,
    leaderboard,
    reasons,
)
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.train.checkpoints import write_atomic
from poisonkit.types import Budget


def add(commands: Commands) -> None:
    matrix = commands.add_parser(
        "matrix",
        help="all attacks against all defenses, and who leads",
        description="A run for each attack below --out, in which every defense starts from the same network; started "
        "again, only what is missing is done, and the page has all that is there. Options of the recipe follow: "
        "--recipe.epochs 12",
    )
    opt.add_data(matrix)
    every = [*ATTACKS, NONE]
    matrix.add_argument("--attack", choices=every, nargs="+", default=every, help="(default: all, and none)")
    matrix.add_argument("--defense", choices=list(DEFENSES), nargs="+", default=list(DEFENSES), help="(default: all)")
    matrix.add_argument("--clean", type=int, default=10, metavar="N", help="as for run (default: %(default)s)")
    matrix.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    opt.add_running(matrix, "runs/matrix")
    matrix.set_defaults(command=_matrix)


def _matrix(arguments: argparse.Namespace, options: list[str]) -> None:
    recipe: Recipe = opt.apply({"recipe": RECIPES.get(arguments.data, Recipe())}, options)["recipe"]
    root = key(arguments.seed)
    plans = {name: _plan(arguments, recipe, name) for name in arguments.attack}
    if arguments.dry_run:
        print(json.dumps(plans, indent=2))
        return
    device, folder, progress = opt.device_of(arguments), Path(arguments.out), Progress()
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    require(not folder.exists() or folder.is_dir(), "--out", "a folder", folder)
    for name, plan in plans.items():
        manifest = {"plan": plan, "data": opt.described(train, test), "environment": environment(device)}
        run = Run(folder / name, manifest, overwrite=arguments.overwrite)
        lab = Lab(run, train, test.to(device), recipe, root, Local(), progress)
        attack = opt.ready(ATTACKS[name]()) if name != NONE else None
        defenses = {each: SMALL.get(each) or DEFENSES[each]() for each in arguments.defense}
        with lab.alone():
            keep(run, column(lab, name, attack, _budget(name), defenses, arguments.clean))
        # as it stands, since the next may take long, and other processes may have made some of it
        cells = finished(folder, manifest)
        _write(folder, arguments, cells)
    print(report.text_table(*leaderboard(cells)))
    print(f"\n{folder / 'matrix.html'}")


def _budget(name: str) -> Budget:
    return BUDGETS.get(name, Budget(0.01))


def _plan(arguments: argparse.Namespace, recipe: Recipe, name: str) -> dict[str, Any]:
    return {
        "study": "matrix",
        "data": arguments.data,
        "limit": arguments.limit,
        "attack": config.to_dict(ATTACKS[name]()) if name != NONE else None,
        "budget": config.to_dict(_budget(name)),
        "clean": arguments.clean,
        "recipe": config.to_dict(recipe),
        "seed": arguments.seed,
    }


def _write(folder: Path, arguments: argparse.Namespace, cells: list[Cell]) -> None:
    """The tables of ``cells`` as JSON and CSV, and a page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "matrix.json", (json.dumps([cell.json() for cell in cells], indent=2) + "\n").encode())
    success, accuracy = grid(cells, SUCCESS), grid(cells, ACCURACY)
    write_atomic(folder / "attack_success.csv", report.csv_text(*success).encode())
    write_atomic(folder / "clean_accuracy.csv", report.csv_text(*accuracy).encode())
    about = (
        "Attack success left, without the defense, and what it costs: means over the attacks it was measured against"
    )
    sections = [
        report.Section("", [report.html_table(*leaderboard(cells), about)]),
        report.Section(
            "Attack success", [report.html_table(*success, "On test images of other classes, or on victims")]
        ),
        report.Section("Clean accuracy", [report.html_table(*accuracy, "On the test images")]),
    ]
    if any(cell.row is None for cell in cells):
        sections.append(report.Section("n/a", [report.html_table(*reasons(cells), "Pairs without a number")]))
    sections.append(report.Section("Run it again", [report.code(arguments.shown)]))
    title = f"poisonkit: attacks and defenses on {arguments.data}"
    subtitle = f"Seed {arguments.seed}; attacks at their papers' rates, defenses at their defaults, condensation short"
    write_atomic(folder / "matrix.html", report.page(title, subtitle, sections).encode())
