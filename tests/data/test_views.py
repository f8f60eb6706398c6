"""Augmented views: functions of the key and the row, of the sizes they are said to have."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor

from poisonkit.data import views as module
from poisonkit.data.views import Views
from poisonkit.errors import ArgumentError
from poisonkit.random import key

STILL = Views(area=1.0, jitter=0.0, grey=0.0)


def images(n: int = 16, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (n, channels, 16, 16), dtype=torch.uint8, generator=key(1).generator())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_depends_on_its_row_and_the_key_alone(channels: int) -> None:
    rows = torch.arange(100, 116)
    whole = Views()(images(16, channels), rows, key(0))
    part = Views()(images(16, channels)[[9, 3]], rows[[9, 3]], key(0))
    other = Views()(images(16, channels), rows, key(1))
    for a, b, c in zip(whole, part, other, strict=True):
        assert a.shape == (16, channels, 16, 16)
        torch.testing.assert_close(a[[9, 3]], b, rtol=0, atol=1e-3)
        assert not torch.equal(a, c)


def test_views_stay_pixels_but_for_the_noise() -> None:
    first, second = Views()(images(), torch.arange(16), key(0))
    assert first.min() >= 0
    assert first.max() <= 255
    changed = (first != second).any(1).float().mean((1, 2))
    # rectangles of at most 30 % of the side, until 5 to 30 % are covered: the last may go beyond by one
    assert changed.min() >= 0.05
    assert changed.max() <= 0.3 + 0.09
    noise = second[(first != second)]
    noise = noise[noise != 127.5]
    assert abs(float(noise.mean()) - 127.5) < 3
    assert abs(float(noise.std()) - 63.75) < 3


def test_without_crop_and_colours_a_view_is_the_image_or_its_mirror() -> None:
    pixels = images(64)
    first, _ = STILL(pixels, torch.arange(64), key(0))
    # the aspect still changes; of a constant image nothing does
    flat = torch.full_like(pixels, 77)
    torch.testing.assert_close(STILL(flat, torch.arange(64), key(0))[0], flat.float())
    assert first.shape == pixels.shape
    square = module._crop(pixels.float(), 1.0, torch.tensor([[0.0, 0.5, 0.0, 0.0, 0.9]]).expand(64, -1))
    torch.testing.assert_close(
        square,
        pixels.flip(3).float() if bool((square[0, 0, 0, 0] != pixels[0, 0, 0, 0]).item()) else pixels.float(),
        rtol=0,
        atol=1e-2,
    )


def test_hue_against_the_standard_library() -> None:
    colours = torch.rand(50, 3, generator=key(2).generator())
    turned = module._turn_hue(colours[:, :, None, None], torch.full((50,), 0.07))[:, :, 0, 0]
    for before, after in zip(colours.tolist(), turned.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + 0.07) % 1, saturation, value), abs=1e-4)


def test_grey() -> None:
    view, _ = Views(jitter=0.0, grey=1.0)(images(), torch.arange(16), key(0))
    assert torch.equal(view[:, 0], view[:, 1])
    red = module._grey(torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1))
    assert float(red) == pytest.approx(0.299)


@pytest.mark.parametrize(
    "options", [{"area": 0.0}, {"jitter": 2.0}, {"grey": -1.0}, {"rectangle": 0.0}, {"replaced": (0.4, 0.3)}]
)
def test_errors(options: dict) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} must be"):
        Views(**options)
