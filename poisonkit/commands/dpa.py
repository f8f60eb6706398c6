"""``poisonkit dpa``: how many partitions, whether they help, four certificates, and new data for an old run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from poisonkit import config, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands, Parser, no_options
from poisonkit.commands.run import Plan
from poisonkit.defenses import CERTIFIED, DPA, RunOffElection
from poisonkit.engine import Local, Progress, Run, environment, units
from poisonkit.engine.finished import finished_manifest
from poisonkit.errors import require
from poisonkit.experiments import RECIPES, arrange, page, prepare
from poisonkit.experiments.dpa import page as pages
from poisonkit.experiments.dpa.advise import advise, learn
from poisonkit.experiments.dpa.family import family
from poisonkit.experiments.dpa.scan import scan
from poisonkit.experiments.dpa.update import changes, copy, require_same
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import GUESSES, measure, poll
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import Budget, ImageDataset

Command = Callable[[argparse.Namespace, list[str]], None]


def add(commands: Commands) -> None:
    dpa = commands.add_parser("dpa", help="how many partitions, whether they help, four certificates, updates")
    studies = dpa.add_subparsers(required=True, metavar="STUDY", parser_class=Parser)
    _add_study(studies, "family", "certify DPA and Finite Aggregation, by plurality and by run-off", _family, _FAMILY)
    advice = _add_study(studies, "advise", "how many partitions the data can feed", _advise, _ADVISE, attack=False)
    advice.add_argument("--partitions", type=_numbers, default=[1, 2, 4, 8, 16, 32], metavar="K,K,...")
    advice.add_argument("--models", type=int, default=2, help="base models for each k (default: %(default)s)")
    target = advice.add_mutually_exclusive_group()
    target.add_argument("--target", type=float, help="accuracy to keep")
    target.add_argument("--share", type=float, default=0.9, help="or that share of all data's (default: %(default)s)")
    advice.add_argument("--guesses", type=int, default=1, metavar="N", help="of acc@N (default: %(default)s)")
    scans = _add_study(studies, "scan", "attack success against training-set size, at a constant rate", _scan, _SCAN)
    scans.add_argument("--parts", type=_numbers, default=[1, 2, 4, 8, 16], metavar="P,P,...", help="1/P of the data")
    scans.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    update = studies.add_parser("update", help="a finished run on changed data: only base models that changed train")
    update.add_argument("old", help="directory of a finished `poisonkit run`")
    opt.add_data(update)
    opt.add_running(update, "runs/updated")
    update.set_defaults(command=_update)


_FAMILY = "Options follow their names: --defense.partitions 16 --defense.spread 4 --attack.size 3 --recipe.epochs 10"
_ADVISE = "Options of the defense and the recipe follow their names: --defense.scale_width no --recipe.epochs 10"
_SCAN = "Options of the attack and the recipe follow their names: --attack.size 3 --recipe.epochs 10"


def _add_study(studies: Commands, name: str, about: str, command: Command, text: str, *, attack: bool = True) -> Parser:
    study = studies.add_parser(name, help=about, description=text)
    opt.add_data(study)
    if attack:
        study.add_argument("--attack", default="centre_patch", choices=list(ATTACKS), help="(default: %(default)s)")
        study.add_argument("--rate", type=float, default=0.01, help="fraction of rows to poison (default: %(default)s)")
    study.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    opt.add_running(study, f"runs/dpa-{name}")
    study.set_defaults(command=command, study=name)
    return study


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) for word in words):
        raise argparse.ArgumentTypeError(f"must be numbers of 1 or more, such as 1,2,4, got {text}")
    return sorted(set(map(int, words)))


def _parts(arguments: argparse.Namespace, options: list[str], **others: Any) -> dict[str, Any]:
    """The configuration of a study: its attack, where it has one, its recipe, and ``others``."""
    attack = {"attack": ATTACKS[arguments.attack]()} if hasattr(arguments, "attack") else {}
    return opt.apply({**attack, "recipe": RECIPES.get(arguments.data, Recipe()), **others}, options)


def _plan_of(arguments: argparse.Namespace, configs: dict[str, Any], **numbers: Any) -> dict[str, Any] | None:
    """What the study is a function of; None where only that was asked for, which is printed."""
    key(arguments.seed)  # refuses a seed out of range
    about = {name: config.to_dict(part) for name, part in configs.items()}
    plan = {"study": arguments.study, "data": arguments.data, "limit": arguments.limit, "seed": arguments.seed}
    plan = {**plan, **about, **numbers}
    if arguments.dry_run:
        print(json.dumps(plan, indent=2))
        return None
    return plan


def _loaded(arguments: argparse.Namespace) -> tuple[ImageDataset, ImageDataset]:
    """The training set where it lies, and the test set on the device."""
    device = opt.device_of(arguments)
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    return train, test.to(device)


def _lab(
    arguments: argparse.Namespace, plan: dict[str, Any], train: ImageDataset, test: ImageDataset, recipe: Recipe
) -> Lab:
    """Where the study works; to be opened once everything else was checked."""
    manifest = {"plan": plan, "data": opt.described(train, test), "environment": environment(test.device)}
    run = Run(arguments.out, manifest, overwrite=arguments.overwrite)
    return Lab(run, train, test, recipe, key(arguments.seed), Local(), Progress())


def _subtitle(arguments: argparse.Namespace, lab: Lab, attack: object = None) -> str:
    poisoned = f"{attack} on {arguments.rate:.2%} of " if attack else ""
    return (
        f"{poisoned}{len(lab.train):,} training images of {arguments.data}; measured on {len(lab.test):,} test images"
    )


def _show(lab: Lab, headers: Sequence[str], rows: Sequence[Sequence[object]], *lines: str) -> None:
    print("\n".join([report.text_table(headers, rows), *lines, f"\n{lab.run.directory / 'report.html'}"]))


def _family(arguments: argparse.Namespace, options: list[str]) -> None:
    parts, rate = _parts(arguments, options, defense=RunOffElection(spread=4)), arguments.rate
    require(0 <= rate <= 1, "--rate", "a fraction in [0, 1]", rate)
    plan = _plan_of(arguments, parts, rate=rate)
    if plan is None:
        return
    attack, defense, root = parts["attack"], parts["defense"], key(arguments.seed)
    train, test = _loaded(arguments)
    poison = prepare(train, test, attack=opt.ready(attack), budget=Budget(rate), defense=defense, key=root)
    lab = _lab(arguments, plan, train, test, parts["recipe"])
    found = family(lab, defense, poison)
    pages.write_family(lab.run, found, subtitle=_subtitle(arguments, lab, attack), command=arguments.shown)
    _show(lab, *page.table(found.rows), page.legend(pages.BUDGET))


def _advise(arguments: argparse.Namespace, options: list[str]) -> None:
    for option in options:
        fixed = option.startswith(("--defense.partitions", "--defense.seeds"))
        require(
            not fixed, "options", "without the number of partitions and seeds", option, "--partitions 1,2,4 says it"
        )
    parts, ks, n = _parts(arguments, options, defense=DPA()), arguments.partitions, arguments.guesses
    require(arguments.models >= 1, "--models", "1 or more", arguments.models)
    whole = arguments.target is not None or 1 in ks
    require(whole, "--partitions", "with 1, to know what all data give", ks, "or give --target")
    for name, value in (("--target", arguments.target), ("--share", arguments.share)):
        require(value is None or 0 < value <= 1, name, "a fraction in (0, 1]", value)
    plan = _plan_of(arguments, parts, partitions=ks, models=arguments.models)
    if plan is None:
        return
    train, test = _loaded(arguments)
    parts["defense"].check(train.num_classes)
    known = [each for each in GUESSES if each < test.num_classes]
    require(n in known, "--guesses", f"one of {', '.join(map(str, known))}", n)
    lab = _lab(arguments, plan, train, test, parts["recipe"])
    points = learn(lab, parts["defense"], ks, arguments.models)
    target = arguments.share * points[0].mean.guesses[n] if arguments.target is None else arguments.target
    advice = advise(points, len(train), target, n)
    pages.write_advice(lab.run, points, advice, n, subtitle=_subtitle(arguments, lab), command=arguments.shown)
    _show(lab, *pages.learning_table(points), pages.sentence(advice, n))


def _scan(arguments: argparse.Namespace, options: list[str]) -> None:
    parts, rate, cuts, seeds = _parts(arguments, options), arguments.rate, arguments.parts, arguments.seeds
    require(seeds >= 1, "--seeds", "1 or more", seeds)
    require(0 <= rate <= 1, "--rate", "a fraction in [0, 1]", rate)
    plan = _plan_of(arguments, parts, rate=rate, parts=cuts, seeds=seeds)
    if plan is None:
        return
    attack, root = parts["attack"], key(arguments.seed)
    train, test = _loaded(arguments)
    require(max(cuts) <= len(train), "--parts", f"at most {len(train)}, one row each", cuts)
    prepare(train, test, attack=opt.ready(attack), budget=Budget(rate), defense=DPA(), key=root)
    lab = _lab(arguments, plan, train, test, parts["recipe"])
    sizes = scan(lab, opt.ready(attack), rate, cuts, seeds)
    pages.write_scan(lab.run, sizes, subtitle=_subtitle(arguments, lab, attack), command=arguments.shown)
    _show(lab, *pages.scan_table(sizes))


def _update(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    apart = Path(arguments.out).resolve() != Path(arguments.old).resolve()
    require(apart or arguments.dry_run, "--out", f"another directory than {arguments.old}", arguments.out)
    then = finished_manifest(Path(arguments.old))
    old, plan = Run(arguments.old, then), Plan.of(then["plan"])
    require(plan.data == arguments.data, "--data", f"{plan.data}, as of {arguments.old}", arguments.data)
    plan = replace(plan, limit=arguments.limit)
    device, root, progress, defense = opt.device_of(arguments), key(plan.seed), Progress(), plan.defense
    require_same(old, environment(device))
    train, test = (part.to(device) for part in opt.loaded(plan.data, arguments.root, arguments.limit))
    attack = opt.ready(plan.attack) if plan.attack else None
    poison = prepare(train, test, attack=attack, budget=plan.budget, defense=defense, key=root)
    name = next(name for name, kind in CERTIFIED.items() if type(defense) is kind)
    about = {"plan": plan.manifest(), "data": opt.described(train, test), "stack": then["stack"]}
    manifest = {**about, "environment": environment(device)}
    with TemporaryDirectory() as scratch:
        run = Run(scratch if arguments.dry_run else arguments.out, manifest, overwrite=arguments.overwrite)
        work = arrange(
            run,
            train,
            poison=poison,
            defense=defense,
            name=name,
            recipe=plan.recipe,
            key=root,
            stack=then["stack"],
            progress=progress,
        )
        found = changes(old, name, work.bases)
        total = sum(len(unit.jobs) for unit in work.bases)
        models, stale = (", ".join(map(str, each)) or "none" for each in (found.models, [u.name for u in found.stale]))
        print(f"base models with other rows, {len(found.models)} of {total}: {models}")
        print(f"units to train, {len(found.stale)} of {len(work.bases)}: {stale}")
        if arguments.dry_run:
            return
        copy(old, run, found.kept)
        Local()(run, found.stale, progress)
    ensemble = defense.gather(units.load(run, work.bases, test.device), test.num_classes, work.split)
    ballots = poll(run, name, ensemble, test, poison)
    row = measure(name, ensemble, ballots, test, poison, units.seconds(run, found.stale), certify=True)
    run.write("results.json", json.dumps([asdict(row)], indent=2) + "\n")
    run.finish()
    print(report.text_table(*page.table([row])))
    print(f"{page.legend(defense.budget)}; train: of this update")
    print(f"\n{run.directory}; `poisonkit run` with its options and --out {run.directory} adds the undefended network")
