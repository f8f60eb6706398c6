"""``poisonkit convert``: published ImageNet64 batches to a memory-mapped folder, once."""

from __future__ import annotations

import argparse

from poisonkit.commands.parsing import Commands, no_options
from poisonkit.data import imagenet64
from poisonkit.engine import Progress


def add(commands: Commands) -> None:
    convert = commands.add_parser("convert", help="convert ImageNet64 batches once, to a memory-mapped folder")
    convert.add_argument("source", help="folder of train_data_batch_* and val_data, npz or pickled")
    convert.add_argument("destination", help="folder to write")
    convert.set_defaults(command=_convert)


def _convert(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    progress = Progress()
    imagenet64.convert(arguments.source, arguments.destination, progress=progress.status)
    progress.line(f"converted to {arguments.destination}")
