"""``poisonkit run``: poison a data set, train with and without a defense, measure, report."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, fields
from typing import Any

import torch

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import arrays
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands, device_named
from poisonkit.defenses import DEFENSES
from poisonkit.defenses.certified import Aggregation
from poisonkit.engine import ENGINES, Engine, Local, Progress, Ray, Run, environment, units
from poisonkit.errors import require
from poisonkit.experiments import (
    RECIPES,
    WITH_CLEAN,
    Comparison,
    arrange,
    check,
    compare,
    defend,
    family,
    page,
    prepare,
    set_aside,
    stacking,
)
from poisonkit.experiments.lab import Lab
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import Attack, Budget, ImageDataset, Poison


def add(commands: Commands) -> None:
    run = commands.add_parser(
        "run",
        help="poison a data set, train with and without a defense, measure, report",
        description="Options of the chosen parts follow their names: --attack.size 3 --defense.partitions 50 "
        "--recipe.epochs 10 --recipe.model.width 32; --options lists them with their values.",
    )
    opt.add_data(run)
    run.add_argument("--attack", default="centre_patch", choices=[*ATTACKS, "none"], help="(default: %(default)s)")
    run.add_argument("--rate", type=float, default=0.01, help="fraction of rows to poison (default: %(default)s)")
    run.add_argument("--per-class", action="store_true", help="the rate is of the target class, not of all rows")
    run.add_argument("--defense", default="dpa", choices=list(DEFENSES), help="(default: %(default)s)")
    run.add_argument(
        "--clean",
        type=int,
        default=10,
        metavar="N",
        help="test images of each class that a repair, a detector or a guard is given, and that are then left out of "
        "the measures (default: %(default)s)",
    )
    run.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
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
    opt.add_running(run, None, "runs/DATA-ATTACK-DEFENSE")
    run.add_argument("--options", action="store_true", help="list the options of the chosen parts, and stop")
    run.set_defaults(command=_run)


@dataclass(frozen=True)
class Plan:
    """Everything a run is a function of, besides the bytes of its data and its environment.

    clean  test images of each class that are given to the defense; None for those that take none
    """

    data: str
    limit: int | None
    attack: Attack | None
    rate: float
    defense: Any
    recipe: Recipe
    seed: int
    per_class: bool = False
    clean: int | None = None

    @property
    def budget(self) -> Budget:
        return Budget(self.rate, per_class=self.per_class)

    def manifest(self) -> dict[str, Any]:
        return {field.name: config.to_dict(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Plan:
        """The plan that :meth:`manifest` wrote."""
        attacks, defenses = ({kind.__name__: kind for kind in kinds.values()} for kinds in (ATTACKS, DEFENSES))
        attack, defense = values["attack"], values["defense"]
        parts = {
            "attack": attack and config.from_dict(attacks[attack["class"]], attack),
            "defense": config.from_dict(defenses[defense["class"]], defense),
            "recipe": config.from_dict(Recipe, values["recipe"]),
        }
        return cls(**{**values, **parts})


def _run(arguments: argparse.Namespace, options: list[str]) -> None:
    parts: dict[str, Any] = {
        "attack": ATTACKS[arguments.attack]() if arguments.attack != "none" else None,
        "defense": DEFENSES[arguments.defense](),
        "recipe": RECIPES.get(arguments.data, Recipe()),
        arguments.engine: ENGINES[arguments.engine](),
    }
    parts = opt.apply(parts, options, "one of `poisonkit run --help`", "--options lists them")
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
        arguments.clean if family(parts["defense"]) in WITH_CLEAN else None,
    )
    if arguments.dry_run:
        print(json.dumps(plan.manifest(), indent=2))
        return
    arguments.out = arguments.out or f"runs/{arguments.data}-{arguments.attack}-{arguments.defense}"
    if arguments.print_job:
        torch.set_num_threads(arguments.threads)  # whatever this machine has, since other machines train
    else:
        opt.device_of(arguments)
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    if not arguments.print_job:
        test = test.to(device)
        train = train.to(device) if isinstance(engine, Local) else train  # workers have devices of their own
    execute(plan, train, test, arguments.defense, engine, arguments)


def _checked(arguments: argparse.Namespace, engine: Engine) -> torch.device:
    """The device; raises ArgumentError where arguments are out of range or do not go together."""
    require(0 <= arguments.rate <= 1, "--rate", "a fraction in [0, 1]", arguments.rate)
    opt.check_limit(arguments.limit)
    if arguments.print_job:
        threads, device = arguments.threads, device_named(arguments.device)
        same = "since all elements must have the same"
        require(threads is not None and threads >= 1, "--threads", "1 or more with --print-job", threads, same)
        apart = not (arguments.only or arguments.overwrite) and isinstance(engine, Local)
        require(apart, "--print-job", "without --only, --overwrite and --engine ray", "both")
    else:
        device = opt.device_asked(arguments)
    fresh = "or each element of an array would start the run afresh"
    require(not (arguments.only and arguments.overwrite), "--only", "without --overwrite", "both", fresh)
    if isinstance(engine, Ray):
        agree = (engine.gpus > 0) == (device.type == "cuda")
        require(agree, "--ray.gpus", "above 0 with --device cuda, and only then", f"{engine.gpus:g} on {device}")
    stack = arguments.stack
    require(stack == "auto" or (stack.isdecimal() and int(stack) >= 1), "--stack", "auto, or 1 or more", stack)
    if not issubclass(DEFENSES[arguments.defense], Aggregation):
        alone = not (arguments.print_job or arguments.only) and stack == "auto" and isinstance(engine, Local)
        rule = f"without --only, --print-job, --stack and --engine ray, since {arguments.defense} has no parts"
        require(alone, "the run", rule, "one of them")
    return device


def execute(
    plan: Plan, train: ImageDataset, test: ImageDataset, name: str, engine: Engine, arguments: argparse.Namespace
) -> None:
    """Run ``plan`` in its directory, write its page there, and print its table; or only a part of that, as asked."""
    root, attack = key(plan.seed), opt.ready(plan.attack) if plan.attack else None
    about: dict[str, Any] = {"plan": plan.manifest(), "data": opt.described(train, test)}
    clean = None
    if plan.clean is not None:
        clean, test = set_aside(test, plan.clean, root.child("clean"))
    # before the run directory is touched: what cannot be done must leave nothing behind
    poison = prepare(train, test, attack=attack, budget=plan.budget, defense=plan.defense, key=root)
    if isinstance(plan.defense, Aggregation):
        _certified(plan, train, test, poison, about, name, engine, arguments)
        return
    check(plan.defense, plan.recipe, train)
    run = Run(arguments.out, {**about, "environment": environment(test.device)}, overwrite=arguments.overwrite)
    lab = Lab(run, train, test, plan.recipe, root, engine, Progress())
    with lab.alone():
        _show(run, plan, name, train, test, defend(lab, name, plan.defense, poison, clean), arguments)


def _certified(
    plan: Plan,
    train: ImageDataset,
    test: ImageDataset,
    poison: Poison | None,
    about: dict[str, Any],
    name: str,
    engine: Engine,
    arguments: argparse.Namespace,
) -> None:
    """A run in units that can be trained anywhere."""
    root, defense, recipe, kind = key(plan.seed), plan.defense, plan.recipe, torch.device(arguments.device).type
    wanted = None if arguments.stack == "auto" else int(arguments.stack)
    stack, stacks = stacking(train, defense=defense, recipe=recipe, key=root, device=kind, size=wanted)
    if arguments.print_job:
        print(arrays.script(arguments.print_job, arguments.shown, stacks, arguments.threads, kind == "cuda"), end="")
        return
    chosen = arrays.places(arguments.only, stacks) if arguments.only else range(1 + stacks)
    manifest = {**about, "stack": stack, "environment": environment(test.device)}
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
    with run.lock("report", tell=progress.waits("the report")):
        comparison = compare(run, train, test, work, poison=poison, defense=defense, name=name)
        _show(run, plan, name, train, test, comparison, arguments)


def _show(
    run: Run,
    plan: Plan,
    name: str,
    train: ImageDataset,
    test: ImageDataset,
    comparison: Comparison,
    arguments: argparse.Namespace,
) -> None:
    """Write the page and print the tables."""
    whole = "of the target class of" if plan.per_class else "of"
    attacked = f"{plan.attack} on {plan.rate:.2%} {whole}" if plan.attack else "no attack on"
    subtitle = f"{attacked} {len(train):,} training images of {plan.data}; measured on {len(test):,} test images"
    title = f"poisonkit: {name} on {plan.data}"
    page.write(run, comparison, title=title, subtitle=subtitle, command=arguments.shown)
    print(report.text_table(*page.table(comparison.rows)))
    for found in comparison.findings:
        print(f"\n{found.title}\n{report.text_table(found.headers, found.rows)}")
    if comparison.budget:
        print(page.legend(comparison.budget))
    print(f"\n{run.directory / 'report.html'}")
