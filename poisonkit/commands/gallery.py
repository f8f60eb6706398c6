"""``poisonkit gallery``: one picture of an image with every trigger, and of what each trigger changes."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from poisonkit import font, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands, no_options
from poisonkit.engine import Progress, crafting
from poisonkit.errors import require
from poisonkit.random import key
from poisonkit.train.checkpoints import write_atomic
from poisonkit.types import Backdoor, Budget

# Of those that say whether they need victims none has a trigger, but the sleeper agent, which takes long to craft
SHOWN = [name for name, kind in ATTACKS.items() if not hasattr(kind, "needs_victims")]

COLUMNS = 4
GAP, MARGIN, CAPTION = 2, 14, 20  # between the three images of a tile, around tiles, the height of a caption
PAPER, INK = 240, 32


def add(commands: Commands) -> None:
    gallery = commands.add_parser(
        "gallery",
        help="one picture of an image with every trigger",
        description="For every backdoor: a test image, the same with the trigger, and the difference on grey, "
        "multiplied by the number in the caption. Triggers that a network must make are made where they are not kept.",
    )
    opt.add_data(gallery)
    gallery.add_argument("--image", type=int, default=0, help="which test image (default: %(default)s)")
    gallery.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    gallery.add_argument("--attack", choices=SHOWN, nargs="+", default=SHOWN, help="(default: all)")
    gallery.add_argument("--triggers", default=crafting.FOLDER, help="where they are kept (default: %(default)s)")
    gallery.add_argument("--out", default="gallery.png", help="(default: %(default)s)")
    gallery.set_defaults(command=_gallery)


def _gallery(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    require(0 <= arguments.image < len(test), "--image", f"in [0, {len(test)})", arguments.image)
    image = test.images[arguments.image]
    progress = Progress()
    tiles = []
    for name in arguments.attack:
        attack = crafting.Ready(ATTACKS[name](), Path(arguments.triggers), progress)
        # as a run with this seed makes it; of the smallest budget, since only the trigger is looked at
        poison = attack(train, Budget(0.01), key=key(arguments.seed).child("attack"))
        if isinstance(poison.goal, Backdoor):
            tiles.append(tile(name, image, poison.goal.trigger(image[None])[0]))
    write_atomic(Path(arguments.out), report.png(sheet(tiles)))
    progress.line(f"{len(tiles)} triggers in {arguments.out}")


def tile(name: str, clean: Tensor, triggered: Tensor) -> Tensor:
    """A caption over an image uint8 [C, H, W], the same triggered, and their difference: uint8 [3, h, w]."""
    change = triggered.int() - clean.int()
    gain = max(1, 127 // max(1, int(change.abs().max())))
    amplified = (128 + gain * change).clamp(0, 255).to(torch.uint8)
    times = -(-96 // max(clean.shape[1:]))
    pictures = report.picture_grid([torch.stack([clean, triggered, amplified])], times, GAP, (PAPER,) * 3)
    caption = torch.full((3, CAPTION, pictures.shape[2]), PAPER, dtype=torch.uint8)
    ink = font.line(f"{name} ×{gain}").repeat_interleave(2, 0).repeat_interleave(2, 1)[:, : pictures.shape[2]]
    caption[:, : ink.shape[0], : ink.shape[1]][:, ink] = INK
    return torch.cat([caption, pictures], 1)


def sheet(tiles: list[Tensor]) -> Tensor:
    """Tiles of one size, uint8 [3, h, w], in rows of four: uint8 [3, H, W]."""
    _, h, w = tiles[0].shape
    columns, rows = min(COLUMNS, len(tiles)), -(-len(tiles) // COLUMNS)
    canvas = torch.full((3, rows * (h + MARGIN) + MARGIN, columns * (w + MARGIN) + MARGIN), PAPER, dtype=torch.uint8)
    for place, each in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        top, left = MARGIN + row * (h + MARGIN), MARGIN + column * (w + MARGIN)
        canvas[:, top : top + h, left : left + w] = each
    return canvas
