"""Images triggered per second, against the same trigger written per image with NumPy and Pillow, as data loaders do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.measure import interleave, row, speedup
from bench.rows import Row
from poisonkit.models.unet import UNet
from poisonkit.random import key
from poisonkit.triggers import (
    Blend,
    Chessboard,
    Encoded,
    Encoder,
    Generated,
    Rotation,
    Sinusoid,
    Square,
    Warp,
    elastic_grid,
    pattern_patch,
    texture,
)
from poisonkit.types import Trigger

COUNT = 2000
DRAWN = 20  # images of which a network draws one trigger, while the others stamp this many
ROUNDS = 7

Picture = NDArray[np.uint8]  # [H, W, 3], as loaders have it


def bench(count: int = COUNT, rounds: int = ROUNDS) -> Iterator[Row]:
    """Every row of this bench, one thread."""
    for side in (32, 64):
        images = torch.randint(
            0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        pictures = list(images.permute(0, 2, 3, 1).contiguous().numpy())
        drawn = {name: (each, images[: count // DRAWN]) for name, each in networks(side).items()}
        stamped = {name: (each, images) for name, each in pipelines(side).items()}
        for name, ((trigger, one), some) in {**stamped, **drawn}.items():
            made = trigger(images[:8]).permute(0, 2, 3, 1).int()
            peer = torch.from_numpy(np.stack([one(picture) for picture in pictures[:8]])).int()
            assert int((made - peer).abs().max()) <= 1, f"{name} computes something else"

            def ours(trigger: Trigger = trigger, some: torch.Tensor = some) -> object:
                return trigger(some)

            few = pictures[: len(some)]

            def per_image(one: Callable[[Picture], Picture] = one, few: list[Picture] = few) -> object:
                return [one(picture) for picture in few]

            times = interleave({"ours": ours, "per_image": per_image}, rounds)
            yield row(f"triggers/{name}/{side}/images", len(some) / median(times["ours"]), "1/s", rounds)
            yield row(f"triggers/{name}/{side}/over_per_image", speedup(times, "ours", "per_image"), "ratio", rounds)


def pipelines(side: int) -> dict[str, tuple[Trigger, Callable[[Picture], Picture]]]:
    """Each trigger, and the same for one picture."""
    size, fold = side * 3 // 32, side // 32
    weave = texture(3, side, side).permute(1, 2, 0).numpy()
    cells = np.zeros((3 * fold, 3 * fold, 1), np.uint8)
    cells[-3:] = np.repeat([[0, 0, 255], [0, 255, 0], [255, 0, 255]], fold, 1)[..., None]
    waves = 40 * np.sin(np.arange(side) * 2 * np.pi * 6 / side)[None, :, None]
    board = (np.add.outer(np.arange(side), np.arange(side)) % 2 == 0)[..., None] * 3
    grid = elastic_grid(side, side, 4, 0.5, key(0))
    x, y = ((grid[0, ..., axis].double().numpy() + 1) * (side - 1) / 2 for axis in (0, 1))

    def square(picture: Picture) -> Picture:
        picture = picture.copy()
        picture[-size:, -size:] = 255
        return picture

    def pattern(picture: Picture) -> Picture:
        picture = picture.copy()
        picture[-3 * fold :, -3 * fold :] = cells
        return picture

    def blend(picture: Picture) -> Picture:
        return np.clip(picture * 0.8 + weave * 0.2 + 0.5, 0, 255).astype(np.uint8)

    def sinusoid(picture: Picture) -> Picture:
        return np.clip(picture + waves + 0.5, 0, 255).astype(np.uint8)

    def chessboard(picture: Picture) -> Picture:
        return np.clip(picture.astype(np.int16) + board, 0, 255).astype(np.uint8)

    def warp(picture: Picture) -> Picture:
        left, top = np.minimum(x.astype(int), side - 2), np.minimum(y.astype(int), side - 2)
        right, below = (x - left)[..., None], (y - top)[..., None]
        above = picture[top, left] * (1 - right) + picture[top, left + 1] * right
        under = picture[top + 1, left] * (1 - right) + picture[top + 1, left + 1] * right
        return (above * (1 - below) + under * below + 0.5).astype(np.uint8)

    def rotation(picture: Picture) -> Picture:
        return np.asarray(Image.fromarray(picture).rotate(16, Image.Resampling.NEAREST))

    return {
        "square": (Square(size, 255, "corner"), square),
        "pattern": (pattern_patch(side, side), pattern),
        "blend": (Blend(texture(3, side, side), 0.2), blend),
        "sinusoid": (Sinusoid(), sinusoid),
        "chessboard": (Chessboard(), chessboard),
        "warp": (Warp(grid), warp),
        "rotation": (Rotation(16), rotation),
    }


def networks(side: int) -> dict[str, tuple[Trigger, Callable[[Picture], Picture]]]:
    """Each trigger that a network draws, and the same network asked for one picture."""
    shape = (3, side, side)
    with key(0).ambient():
        generated = Generated(UNet(3, 3, 16), UNet(3, 1, 16))
        encoded = Encoded(Encoder(shape, 20, 16), torch.ones(20))

    @torch.no_grad()
    def generate(picture: Picture) -> Picture:
        pixels = picture.astype(np.float32).transpose(2, 0, 1)
        seen = torch.from_numpy((pixels - 127.5) / 63.75)[None]
        colours = 127.5 * (1 + np.tanh(generated.pattern(seen)[0].numpy()))
        soft = np.tanh(generated.mask(seen)[0].numpy()) / 2 + 0.5
        laid = pixels + (np.tanh(20 * soft - 10) / 2 + 0.5) * (colours - pixels)
        return (laid + 0.5).astype(np.uint8).transpose(1, 2, 0)

    @torch.no_grad()
    def encode(picture: Picture) -> Picture:
        pixels = picture.astype(np.float32).transpose(2, 0, 1)
        change = encoded.encoder(torch.from_numpy(pixels)[None], encoded.secret[None])[0].numpy()
        return (np.clip(pixels + change, 0, 255) + 0.5).astype(np.uint8).transpose(1, 2, 0)

    return {"generated": (generated, generate), "encoded": (encoded, encode)}
