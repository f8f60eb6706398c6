"""Crops and flips: worked by hand, and a function of key and position alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from poisonkit.data.augment import Augment
from poisonkit.errors import ArgumentError
from poisonkit.random import Key, key


class Fixed(Key):
    """A key whose every draw is given: (down, right, mirror, turn)."""

    def below(self, limits: tuple[int, ...], positions: Tensor) -> Tensor:
        assert limits == (3, 3, 2, 1)
        return torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0], [2, 1, 0, 0], [1, 0, 1, 0]])[positions]


def test_pixels_by_hand() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).view(1, 1, 2, 3)
    moved = Augment(crop=1)(image.expand(4, 1, 2, 3), torch.arange(4), Fixed(0))
    assert moved.flatten(1).tolist() == [
        [0, 0, 0, 0, 1, 2],  # the window at the upper left corner of the padding
        [1, 2, 3, 4, 5, 6],  # in the middle
        [4, 5, 6, 0, 0, 0],  # one row further down
        [2, 1, 0, 5, 4, 0],  # one column to the left, then mirrored
    ]


def test_floats_with_gradients_by_hand() -> None:
    """The same pixels, and each gradient goes back to where its pixel came from, as often as it was taken."""
    image = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(1, 1, 2, 3).expand(4, 1, 2, 3)
    free = image.clone().requires_grad_(True)
    moved = Augment(crop=1)(free, torch.arange(4), Fixed(0))
    assert torch.equal(moved.detach(), Augment(crop=1)(image, torch.arange(4), Fixed(0)))
    (slope,) = torch.autograd.grad((moved * torch.arange(1.0, 7.0).view(2, 3)).sum(), free)
    assert slope.flatten(1).tolist() == [
        [5, 6, 0, 0, 0, 0],
        [1, 2, 3, 4, 5, 6],
        [0, 0, 0, 1, 2, 3],
        [2, 1, 0, 5, 4, 0],
    ]


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    crop=st.integers(0, 3),
    flip=st.booleans(),
    data=st.data(),
)
def test_each_image_as_if_alone(shape: tuple[int, int, int], crop: int, flip: bool, data: st.DataObject) -> None:
    positions = torch.tensor(data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=6)))
    images = torch.randint(0, 256, (len(positions), *shape), dtype=torch.uint8, generator=key(1).generator())
    augment, stream = Augment(crop, flip), key(0).child("augment", 3)
    together = augment(images, positions, stream)
    assert (together.shape, together.dtype) == (images.shape, torch.uint8)
    for i, position in enumerate(positions):
        # Pixel by pixel from the definition
        down, right, mirror = stream.below((2 * crop + 1, 2 * crop + 1, 2), position[None])[0].tolist()
        expected = torch.zeros(shape, dtype=torch.uint8)
        _, height, width = shape
        for y in range(height):
            for x in range(width):
                row, column = y + down - crop, (width - 1 - x if mirror and flip else x) + right - crop
                if 0 <= row < height and 0 <= column < width:
                    expected[:, y, x] = images[i, :, row, column]
        assert torch.equal(together[i], expected)


def test_turns_are_those_of_pillow() -> None:
    images = torch.randint(0, 256, (40, 3, 12, 9), dtype=torch.uint8, generator=key(1).generator())
    augment, stream = Augment(crop=0, flip=False, rotate=10), key(0)
    turned, drawn = augment(images, torch.arange(40), stream), augment.draw(torch.arange(40), stream)[:, 3]
    assert len(drawn.unique()) > 10
    assert (drawn >= 0).all()
    assert (drawn <= 20).all()
    for image, found, by in zip(images, turned, drawn.tolist(), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate(by - 10, Image.Resampling.NEAREST)
        assert torch.equal(found, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    free = torch.ones_like(images).float().requires_grad_(True)
    taken = augment(free, torch.arange(40), stream)
    (slope,) = torch.autograd.grad(taken.sum(), free)
    assert slope.sum() == taken.sum() < taken.numel()


def test_nothing_to_do() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(2, 1, 3, 4)
    assert torch.equal(Augment(0, flip=False)(images, torch.arange(2), key(0)), images)
    assert Augment()(images[:0], torch.arange(0), key(0)).shape == (0, 1, 3, 4)


def test_epochs_and_positions_differ() -> None:
    image = torch.arange(1, 101, dtype=torch.uint8).view(1, 1, 10, 10).expand(200, 1, 10, 10)
    first, second = (Augment()(image, torch.arange(200), key(0).child("augment", epoch)) for epoch in (0, 1))
    assert 100 < len(first.flatten(1).unique(dim=0)) <= 162  # 81 windows, mirrored or not
    assert not torch.equal(first, second)


def test_images_are_not_changed_in_place() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=key(1).generator())
    before = images.clone()
    for augment in (Augment(), Augment(0), Augment(2, flip=False)):
        augment(images, torch.arange(4), key(0))
    assert torch.equal(images, before)


def test_rejects() -> None:
    with pytest.raises(ArgumentError, match="crop must be 0 or more"):
        Augment(-1)
    with pytest.raises(ArgumentError, match="rotate must be in"):
        Augment(rotate=-1)
