"""What holds of every trigger: bytes in and out, one image at a time, nothing outside its mask, the same every time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from poisonkit.models.unet import UNet
from poisonkit.random import key
from poisonkit.triggers import (
    Additive,
    Blend,
    Chessboard,
    Corners,
    Encoded,
    Encoder,
    Generated,
    Overlay,
    Rotation,
    Sinusoid,
    Square,
    Warp,
    elastic_grid,
    pattern_patch,
    pieces,
    random_patch,
    texture,
)
from poisonkit.types import Trigger

Make = Callable[[tuple[int, int, int]], Trigger]


def overlay(shape: tuple[int, int, int]) -> Overlay:
    generator = key(5).generator()
    return Overlay(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.rand(1, *shape[1:], generator=generator) < 0.1,
    )


def additive(shape: tuple[int, int, int]) -> Additive:
    return Additive(torch.randint(-255, 256, shape, dtype=torch.int16, generator=key(6).generator()))


def generated(shape: tuple[int, int, int]) -> Generated:
    with key(7).ambient():
        return Generated(UNet(shape[0], shape[0], 4), UNet(shape[0], 1, 4))


def encoded(shape: tuple[int, int, int]) -> Encoded:
    with key(8).ambient():
        return Encoded(Encoder(shape, 5, 4), torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))


TRIGGERS: dict[str, Make] = {
    "square": lambda shape: Square(3, 255, "corner"),
    "pattern": lambda shape: pattern_patch(*shape[1:]),
    "random_patch": lambda shape: random_patch(shape, 2, key(1)),
    "faint_patch": lambda shape: random_patch(shape, 2, key(1), 0.2),
    "blend": lambda shape: Blend(texture(*shape), 0.2),
    "additive": additive,
    "overlay": overlay,
    "sinusoid": lambda shape: Sinusoid(),
    "chessboard": lambda shape: Chessboard(),
    "chessboard_static": lambda shape: Chessboard(static=True),
    "corners": lambda shape: Corners(),
    "faint_corners": lambda shape: Corners(32),
    "warp": lambda shape: Warp(elastic_grid(*shape[1:], 4, 0.5, key(2))),
    "rotation": lambda shape: Rotation(),
    "generated": generated,
    "encoded": encoded,
}
SHAPES = [(1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 20, 31)]

every = pytest.mark.parametrize("name", TRIGGERS)


def pixels(shape: tuple[int, int, int], n: int = 9) -> Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@every
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bytes_in_bytes_out(name: str, shape: tuple[int, int, int]) -> None:
    trigger, images = TRIGGERS[name](shape), pixels(shape)
    before = images.clone()
    made = trigger(images)
    assert made.dtype == torch.uint8
    assert made.shape == images.shape
    assert torch.equal(images, before)
    assert not torch.equal(made, images)
    assert torch.equal(TRIGGERS[name](shape)(images), made)
    assert trigger(images[:0]).shape == (0, *shape)


@every
def test_an_image_is_changed_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (3, 32, 32)
    trigger, images = TRIGGERS[name](shape), pixels(shape)
    made = trigger(images)
    assert torch.equal(torch.cat([trigger(image[None]) for image in images]), made)
    assert torch.equal(trigger(images.flip(0)).flip(0), made)
    assert torch.equal(trigger(images.repeat(15, 1, 1, 1))[-9:], made)  # in another place of another batch
    monkeypatch.setattr(pieces, "PIECE", 2 * images[0].numel() + 1)
    assert torch.equal(trigger(images), made)


@every
def test_layout_changes_nothing(name: str) -> None:
    shape = (3, 32, 32)
    trigger, images = TRIGGERS[name](shape), pixels(shape)
    made = trigger(images)
    wide = torch.zeros(9, 3, 32, 64, dtype=torch.uint8)
    wide[..., ::2] = images
    assert torch.equal(trigger(wide[..., ::2]), made)
    assert torch.equal(trigger(images.contiguous(memory_format=torch.channels_last)), made)
    assert torch.equal(trigger(images[:1].expand(9, *shape)), made[:1].expand(9, *shape))


@every
@pytest.mark.gpu
def test_device_changes_nothing(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    shape = (3, 32, 32)
    trigger, images = TRIGGERS[name](shape), pixels(shape)
    made = trigger(images.cuda())
    assert made.is_cuda
    difference = int((made.cpu().int() - trigger(images).int()).abs().max())
    assert difference <= (name in ("generated", "encoded"))  # a network may round a pixel otherwise elsewhere


@every
def test_every_level_is_handled(name: str) -> None:
    """Black and white images do not wrap around."""
    shape = (3, 32, 32)
    trigger = TRIGGERS[name](shape)
    for level in (0, 255):
        flat = torch.full((1, *shape), level, dtype=torch.uint8)
        change = trigger(flat).int() - flat.int()
        assert bool((change >= 0).all() if level == 0 else (change <= 0).all())


def test_nothing_moves_outside_the_mask() -> None:
    shape = (3, 32, 32)
    images = pixels(shape)
    for name, allowed in {"square": 9, "pattern": 9, "random_patch": 4, "faint_patch": 4, "corners": 36}.items():
        moved = (TRIGGERS[name](shape)(images) != images).any(0).any(0)
        assert 0 < int(moved.sum()) <= allowed, name
    trigger = overlay(shape)
    moved = (trigger(images) != images).any(0).any(0)
    assert not bool((moved & ~trigger.mask[0]).any())
