"""Dotted options of the parts of a configuration, and the arguments that every study of a data set has."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

import torch

from poisonkit import config
from poisonkit.commands.parsing import Parser, device_named, pairs
from poisonkit.commands.run import spread
from poisonkit.data import DATASETS, load
from poisonkit.errors import require
from poisonkit.models import MODELS
from poisonkit.types import ImageDataset


def add_data(parser: Parser) -> None:
    """--data, --root, --limit."""
    parser.add_argument("--data", required=True, choices=sorted(DATASETS), help="`poisonkit list` describes them")
    parser.add_argument("--root", help="folder that holds it")
    parser.add_argument("--limit", type=int, metavar="N", help="use N training and N test rows only, spread evenly")


def add_running(parser: Parser, out: str) -> None:
    """--device, --threads, --out, --overwrite, --dry-run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's); recorded")
    parser.add_argument("--out", default=out, help="run directory (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="start afresh instead of taking up an earlier run")
    parser.add_argument("--dry-run", action="store_true", help="check the arguments, print the configuration, and stop")


def apply(parts: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """``parts`` with ``--part.field value`` options set; raises ArgumentError for any other option."""
    parts = dict(parts)
    for option, text in pairs(options):
        part, _, path = option.removeprefix("--").partition(".")
        require(part in parts and path != "", "an option", f"of --help or below --{', --'.join(parts)}", option)
        if option == "--recipe.model" and text in MODELS:
            parts[part] = replace(parts[part], model=MODELS[text])
        else:
            parts[part] = config.with_option(parts[part], path, text, part)
    return parts


def device_of(arguments: argparse.Namespace) -> torch.device:
    """The device, which is there; --threads are set."""
    device, cores = device_named(arguments.device), os.cpu_count() or 1
    threads = arguments.threads
    require(threads is None or 1 <= threads <= cores, "--threads", f"from 1 to this machine's {cores}", threads)
    if device.type == "cuda":
        found = torch.cuda.device_count()
        require((device.index or 0) < found, "--device", f"one of {found} CUDA devices", device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as `poisonkit run` does
    if threads:
        torch.set_num_threads(threads)
    return device


def loaded(name: str, root: str | None, limit: int | None) -> tuple[ImageDataset, ImageDataset]:
    """(train, test) of a data set, ``limit`` rows of each spread evenly."""
    require(limit is None or limit >= 1, "--limit", "at least 1 row", limit)
    train, test = load(name, root)
    return (spread(train, limit), spread(test, limit)) if limit else (train, test)
