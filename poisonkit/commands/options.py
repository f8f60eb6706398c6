"""Dotted options of the parts of a configuration, and the arguments that whatever works on a data set has."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from poisonkit import config
from poisonkit.commands.parsing import Parser, device_named, pairs
from poisonkit.data import DATASETS, load
from poisonkit.engine import Progress
from poisonkit.engine.crafting import FOLDER, Ready
from poisonkit.errors import require
from poisonkit.models import MODELS
from poisonkit.types import Attack, ImageDataset


def add_data(parser: Parser) -> None:
    """--data, --root, --limit."""
    parser.add_argument("--data", required=True, choices=sorted(DATASETS), help="`poisonkit list` describes them")
    parser.add_argument("--root", help="folder that holds it")
    parser.add_argument("--limit", type=int, metavar="N", help="use N training and N test rows only, spread evenly")


AFRESH = "start afresh instead of taking up an earlier run"


def add_running(parser: Parser, out: str | None, out_shown: str = "%(default)s", afresh: str = AFRESH) -> None:
    """--device, --threads, --out, --overwrite, --dry-run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's); recorded, results depend on it")
    parser.add_argument("--out", default=out, help=f"run directory (default: {out_shown})")
    parser.add_argument("--overwrite", action="store_true", help=afresh)
    parser.add_argument("--dry-run", action="store_true", help="check the arguments, print the configuration, and stop")


def apply(parts: dict[str, Any], options: list[str], known: str = "of --help", remedy: str = "") -> dict[str, Any]:
    """``parts`` with ``--part.field value`` options set; raises ArgumentError for any other option."""
    parts = dict(parts)
    for option, text in pairs(options):
        part, _, path = option.removeprefix("--").partition(".")
        there = parts.get(part) is not None and path != ""
        require(there, "an option", f"{known} or below --{', --'.join(parts)}", option, remedy)
        if option == "--recipe.model" and text in MODELS:
            parts[part] = replace(parts[part], model=MODELS[text])
        else:
            parts[part] = config.with_option(parts[part], path, text, part)
    return parts


def device_asked(arguments: argparse.Namespace) -> torch.device:
    """The device that is named, which need not be there; raises ArgumentError where there are not so many --threads."""
    threads, cores = arguments.threads, os.cpu_count() or 1
    require(threads is None or 1 <= threads <= cores, "--threads", f"from 1 to this machine's {cores}", threads)
    return device_named(arguments.device)


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device, which is there; --threads are set."""
    device = device_asked(arguments)
    if device.type == "cuda":
        found = torch.cuda.device_count()
        require((device.index or 0) < found, "--device", f"one of {found} CUDA devices", device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic training needs it, and needs it now
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return device


def check_limit(limit: int | None) -> None:
    require(limit is None or limit >= 1, "--limit", "at least 1 row", limit)


def loaded(name: str, root: str | None, limit: int | None) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a data set, ``limit`` rows of each spread evenly."""
    check_limit(limit)
    train, test = load(name, root)
    return (_spread(train, limit), _spread(test, limit)) if limit else (train, test)


def _spread(data: ImageDataset, rows: int) -> ImageDataset:
    """``rows`` rows spread evenly, since many data sets are sorted by class."""
    rows = min(rows, len(data))
    return data.take(torch.arange(rows) * len(data) // rows)


def described(train: ImageDataset, test: ImageDataset) -> dict[str, Any]:
    """What a manifest says of the data."""
    return {"shape": train.shape, "classes": train.classes, "train": train.digest(), "test": test.digest()}


def ready(attack: Attack) -> Attack:
    """The attack, its trigger, where a network makes it, kept where `poisonkit craft` keeps it."""
    return Ready(attack, Path(FOLDER), Progress())
