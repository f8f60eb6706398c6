"""``poisonkit run``: poison a data set, train with and without a defense, measure, report."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import arrays
from poisonkit.commands.parsing import Commands, device_named, pairs
from poisonkit.data import DATASETS, load
from poisonkit.defenses import DEFENSES
from poisonkit.defenses.certified import Aggregation
from poisonkit.engine import ENGINES, Engine, Local, Progress, Ray, Run, environment, units
from poisonkit.engine.crafting import FOLDER, Ready
from poisonkit.errors import require
from poisonkit.experiments import RECIPES, arrange, compare, page, prepare, stacking
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
    run.add_argument("--per-class", action="store_true", help="the rate is of the target class, not of all rows")
    run.add_argument("--defense", default="dpa", choices=list(DEFENSES), help="(default: %(default)s)")
    run.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    run.add_argument("--limit", type=int, metavar="N", help="use N training and N test rows only, spread evenly")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    run.add_argument("--threads", type=int, help="CPU threads (default: torch's); recorded, since results depend on it")
    run.add_argument(
        "--stack", default="auto", metavar="auto|N", help="base models to train together; recorded (default: auto)"
    )
    run.add_argument(
        "--engine", default="local", choices=list(ENGINES), help="where networks are trained (default: %(default)s)"
    )
    run.add_argument("--only", metavar="UNITS", help="train these and stop: 0-3,7,undefended counts stacks of models")
    run.add_argument(
        "--print-job", choices=arrays.KINDS, help="print a job array that trains each unit on its own, and stop"
    )
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
    per_class: bool = False

    @property
    def budget(self) -> Budget:
        return Budget(self.rate, per_class=self.per_class)

    def manifest(self) -> dict[str, Any]:
        return {field.name: config.to_dict(getattr(self, field.name)) for field in fields(self)}


def _run(arguments: argparse.Namespace, options: list[str]) -> None:
    parts: dict[str, Any] = {
        "attack": ATTACKS[arguments.attack]() if arguments.attack != "none" else None,
        "defense": DEFENSES[arguments.defense](),
        "recipe": RECIPES.get(arguments.data, Recipe()),
        arguments.engine: ENGINES[arguments.engine](),
    }
    for option, text in pairs(options):
        part, _, path = option.removeprefix("--").partition(".")
        require(
            part in parts and parts[part] is not None and path != "",
            "an option",
            f"one of `poisonkit run --help` or below --{', --'.join(parts)}",
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
    engine: Engine = parts[arguments.engine]
    device = _checked(arguments, engine)
    key(arguments.seed)  # refuses a seed out of range
    plan = Plan(
        arguments.data,
        arguments.limit,
        parts["attack"],
        arguments.rate,
        parts["defense"],
        parts["recipe"],
        arguments.seed,
        arguments.per_class,
    )
    if arguments.dry_run:
        print(json.dumps(plan.manifest(), indent=2))
        return
    arguments.out = arguments.out or f"runs/{arguments.data}-{arguments.attack}-{arguments.defense}"
    if device.type == "cuda" and not arguments.print_job:
        found = torch.cuda.device_count()
        require((device.index or 0) < found, "--device", f"one of {found} CUDA devices", device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic training needs it, and needs it now
    train, test = load(arguments.data, arguments.root)
    if arguments.limit:
        train, test = (spread(part, arguments.limit) for part in (train, test))
    if not arguments.print_job:
        test = test.to(device)
        train = train.to(device) if isinstance(engine, Local) else train  # workers have devices of their own
    execute(plan, train, test, arguments.defense, engine, arguments)


def _checked(arguments: argparse.Namespace, engine: Engine) -> torch.device:
    """The device; raises ArgumentError where arguments are out of range or do not go together."""
    require(0 <= arguments.rate <= 1, "--rate", "a fraction in [0, 1]", arguments.rate)
    require(arguments.limit is None or arguments.limit >= 1, "--limit", "at least 1 row", arguments.limit)
    threads, device = arguments.threads, device_named(arguments.device)
    if arguments.print_job:
        same = "since all elements must have the same"
        require(threads is not None and threads >= 1, "--threads", "1 or more with --print-job", threads, same)
        apart = not (arguments.only or arguments.overwrite) and isinstance(engine, Local)
        require(apart, "--print-job", "without --only, --overwrite and --engine ray", "both")
    else:
        cores = os.cpu_count() or 1
        require(threads is None or 1 <= threads <= cores, "--threads", f"from 1 to this machine's {cores}", threads)
    fresh = "or each element of an array would start the run afresh"
    require(not (arguments.only and arguments.overwrite), "--only", "without --overwrite", "both", fresh)
    if isinstance(engine, Ray):
        agree = (engine.gpus > 0) == (device.type == "cuda")
        require(agree, "--ray.gpus", "above 0 with --device cuda, and only then", f"{engine.gpus:g} on {device}")
    stack = arguments.stack
    require(stack == "auto" or (stack.isdecimal() and int(stack) >= 1), "--stack", "auto, or 1 or more", stack)
    return device


def execute(
    plan: Plan, train: ImageDataset, test: ImageDataset, name: str, engine: Engine, arguments: argparse.Namespace
) -> None:
    """Run ``plan`` in its directory, write its page there, and print its table; or only a part of that, as asked."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    root, defense, recipe, kind = key(plan.seed), plan.defense, plan.recipe, torch.device(arguments.device).type
    attack = Ready(plan.attack, Path(FOLDER), Progress()) if plan.attack else None
    # before the run directory is touched: what cannot be done must leave nothing behind
    poison = prepare(train, test, attack=attack, budget=plan.budget, defense=defense, key=root)
    wanted = None if arguments.stack == "auto" else int(arguments.stack)
    stack, stacks = stacking(train, defense=defense, recipe=recipe, key=root, device=kind, size=wanted)
    if arguments.print_job:
        print(arrays.script(arguments.print_job, arguments.shown, stacks, arguments.threads, kind == "cuda"), end="")
        return
    chosen = arrays.places(arguments.only, stacks) if arguments.only else range(1 + stacks)
    data = {"shape": train.shape, "classes": train.classes, "train": train.digest(), "test": test.digest()}
    manifest = {"plan": plan.manifest(), "data": data, "stack": stack, "environment": environment(test.device)}
    run = Run(arguments.out, manifest, overwrite=arguments.overwrite)
    progress = Progress()
    work = arrange(
        run,
        train,
        poison=poison,
        defense=defense,
        name=name,
        recipe=recipe,
        key=root,
        stack=stack,
        progress=progress,
    )
    engine(run, [work.units[place] for place in chosen], progress)
    if arguments.only:
        missing = arrays.named(place for place, unit in enumerate(work.units) if not units.done(run, unit))
        left = f"--only {missing} is left to train" if missing else "all is trained; without --only it is measured"
        print(f"{run.directory}: --only {arrays.named(chosen)} is trained; {left}")
        return
    progress.line(f"{len(work.units)} units trained")
    with run.lock("report", tell=lambda holder: progress.line(f"the report is with {holder}; waiting for it")):
        comparison = compare(run, train, test, work, poison=poison, defense=defense, name=name)
        whole = "of the target class of" if plan.per_class else "of"
        attacked = f"{plan.attack} on {plan.rate:.2%} {whole}" if plan.attack else "no attack on"
        subtitle = f"{attacked} {len(train):,} training images of {plan.data}; measured on {len(test):,} test images"
        title = f"poisonkit: {name} on {plan.data}"
        page.write(run, comparison, title=title, subtitle=subtitle, command=arguments.shown)
    print(report.text_table(*page.table(comparison.rows)))
    print(f"r=n: certified accuracy, right whatever an attacker does with n {comparison.budget}")
    print(f"\n{run.directory / 'report.html'}")


def spread(data: ImageDataset, rows: int) -> ImageDataset:
    """``rows`` rows spread evenly, since many data sets are sorted by class."""
    rows = min(rows, len(data))
    return data.take(torch.arange(rows) * len(data) // rows)
