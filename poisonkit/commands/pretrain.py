"""``poisonkit pretrain``: a small checkpoint on a clean split, for whatever fine-tunes a pretrained network."""

from __future__ import annotations

import argparse
from typing import Any

from poisonkit import config, metrics, report
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.data.augment import Augment
from poisonkit.engine import Progress, Run, environment, journal, seconds_of
from poisonkit.models import MODELS
from poisonkit.random import key
from poisonkit.train import Cosine, Recipe
from poisonkit.train.pretraining import clean_split, pretrain

# AdamW at 0.001 with a warm-up of a tenth: what small vision transformers are commonly trained with
RECIPE = Recipe(
    model=MODELS["vit_mini4"],
    epochs=20,
    batch_size=64,
    optimizer="adamw",
    schedule=Cosine(1e-3, 1e-5, 0.1),
    weight_decay=0.05,
    augment=Augment(),
    channels_last=False,
)


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "pretrain",
        help="a small checkpoint on a clean split, to fine-tune from",
        description="Trains a network on a random share of the training set, before any attack, and keeps it as "
        "pretrained.safetensors with its configuration and the rows it saw; fine-tune on the others. Options of the "
        "recipe follow: --recipe.model.depth 4 --recipe.epochs 30",
    )
    opt.add_data(parser)
    parser.add_argument("--share", type=float, default=0.5, help="of the rows, to train on (default: %(default)s)")
    parser.add_argument(
        "--objective", choices=("labels", "rotations"), default="labels", help="what is learned (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    opt.add_running(parser, None, "runs/DATA-pretrained")
    parser.set_defaults(command=_pretrain)


def _pretrain(arguments: argparse.Namespace, options: list[str]) -> None:
    recipe: Recipe = opt.apply({"recipe": RECIPE}, options)["recipe"]
    plan: dict[str, Any] = {
        "study": "pretrain",
        **{name: getattr(arguments, name) for name in ("data", "limit", "share", "objective", "seed")},
        "recipe": config.to_dict(recipe),
    }
    if arguments.dry_run:
        print(report.text_table(["option", "value"], [[name, str(value)] for name, value in plan.items()]))
        return
    device, root = opt.device_of(arguments), key(arguments.seed).child("pretrain")
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    manifest = {"plan": plan, "data": opt.described(train, test), "environment": environment(device)}
    run = Run(arguments.out or f"runs/{arguments.data}-pretrained", manifest, overwrite=arguments.overwrite)
    rows, rest = clean_split(len(train), arguments.share, root)
    found = pretrain(
        train.to(device),
        rows,
        recipe,
        source=f"{arguments.data}'s training set",
        objective=arguments.objective,
        key=root,
        journal=journal(run, "pretraining", Progress()),
    )
    path = run.directory / "pretrained.safetensors"
    found.save(path)
    print(f"{found}, {len(rest):,} are left; {seconds_of(run, 'pretraining'):.0f} s")
    if arguments.objective == "labels":
        print(f"test accuracy {report.percent(metrics.clean_accuracy(found.model, test.to(device)))}")
    print(path)
