"""Every construction against pixels worked out by hand, on images of 32×32 and 64×64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from poisonkit.attacks import (
    BadNetsAllToAll,
    BadNetsRandom,
    BadNetsWhite,
    Blended,
    BlendedPatch,
    CentrePatch,
    SigWrapped,
)
from poisonkit.errors import ArgumentError
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
    Patch,
    Rotation,
    Sinusoid,
    Warp,
    elastic_grid,
    jittered,
    pattern_patch,
    random_patch,
    side,
    texture,
    wrapped_wave,
)
from poisonkit.triggers.warp import identity_grid
from poisonkit.types import Budget, ImageDataset

SIDES = pytest.mark.parametrize("n", [32, 64])


def grey(n: int, level: int = 100, count: int = 1) -> Tensor:
    return torch.full((count, 3, n, n), level, dtype=torch.uint8)


def noise(n: int, count: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (count, channels, n, n), dtype=torch.uint8, generator=generator)


def test_patch_lies_where_it_is_put() -> None:
    patch = Patch(torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8), top=5, left=30)
    made = patch(grey(32))[0]
    for channel in made:
        assert channel[5:7, 30:].tolist() == [[1, 2], [3, 4]]
    assert int((made != 100).sum()) == 3 * 4
    with pytest.raises(ArgumentError, match="patch must be inside 31x31, got 2x2 at row 5, column 30"):
        patch(grey(31))


def test_half_transparent_patch_by_hand() -> None:
    made = Patch(torch.tensor([[[0, 200, 255]]], dtype=torch.uint8), 1, 0, alpha=0.3)(grey(32, 101))
    # 0.7 · 101 = 70.7; + 0.3 · (0, 200, 255) = 70.7, 130.7, 147.2
    assert made[0, 2, 1, :4].tolist() == [71, 131, 147, 101]
    assert int((made != 101).sum()) == 9


def test_pattern_patch_at_32() -> None:
    made = pattern_patch(32, 32)(grey(32))[0]
    for channel in made:
        assert channel[29:, 29:].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert int((made != 100).sum()) == 27


def test_pattern_patch_at_64() -> None:
    made = pattern_patch(64, 64)(grey(64))[0]
    for channel in made:
        assert channel[58:61, 58:].tolist() == [[0] * 6] * 3
        assert channel[61].tolist()[58:] == [0, 0, 0, 0, 255, 255]
        assert channel[62].tolist()[58:] == [0, 0, 255, 255, 0, 0]
        assert channel[63].tolist()[58:] == [255, 255, 0, 0, 255, 255]
    assert int((made != 100).sum()) == 3 * 36


@pytest.mark.parametrize(("n", "size", "first", "last"), [(32, 3, 3, 25), (64, 6, 6, 51)])
def test_random_patch_keeps_away_from_the_edges(n: int, size: int, first: int, last: int) -> None:
    assert side(n) == size
    patches = [random_patch((3, n, n), size, key(seed)) for seed in range(400)]
    for places in ([patch.top for patch in patches], [patch.left for patch in patches]):
        assert (min(places), max(places)) == (first, last)  # 400 draws leave out an end once in 30 million
    assert patches[0].pixels.shape == (3, size, size)
    assert len({patch.pixels.numpy().tobytes() for patch in patches}) == 400


@pytest.mark.parametrize(
    ("image", "picture", "alpha", "expected"),
    [
        (100, 200, 0.2, 120),
        (255, 0, 0.1, 230),  # 229.5, a half, goes up
        (0, 255, 0.1, 26),  # 25.5
        (7, 8, 0.5, 8),  # 7.5
        (250, 3, 0.4, 151),  # 151.2
        (13, 90, 0.0, 13),
        (13, 90, 1.0, 90),
        (1, 2, 0.999, 2),  # 1.999
        (0, 1, 0.499, 0),
    ],
)
def test_blend_by_hand(image: int, picture: int, alpha: float, expected: int) -> None:
    laid = Blend(torch.full((1, 32, 32), picture, dtype=torch.uint8), alpha)(grey(32, image))
    assert laid.unique().tolist() == [expected]


@pytest.mark.parametrize("thousandths", [1, 3, 100, 125, 200, 333, 400, 500, 999])
def test_blend_is_exact_for_every_pair_of_pixels(thousandths: int) -> None:
    image, picture = torch.arange(256)[:, None], torch.arange(256)[None, :]
    exact = (image * (1000 - thousandths) + picture * thousandths + 500) // 1000
    plane = picture.expand(256, 256).to(torch.uint8)[None]
    laid = Blend(plane, thousandths / 1000)(image.expand(256, 256).to(torch.uint8)[None, None])
    assert torch.equal(laid[0, 0].long(), exact)


def test_blend_refuses_what_it_could_not_round_exactly() -> None:
    for alpha in (0.1234, 1.1, -0.1):
        with pytest.raises(ArgumentError, match=r"alpha must be in \[0, 1\], of three decimals at most"):
            Blend(texture(3, 32, 32), alpha)
    with pytest.raises(ArgumentError, match=r"picture must be of shape \[1 or 3, 32, 32\], as the images, got"):
        Blend(texture(3, 64, 64), 0.2)(grey(32))


@pytest.mark.parametrize("n", [8, 32, 64])
def test_texture_by_hand(n: int) -> None:
    step = 256 // n
    picture = texture(3, n, n)
    for i, j in ((0, 0), (0, 1), (1, 1), (n // 2, 3), (n - 1, 5)):
        red = (i * step) ^ (j * step)
        assert picture[:, i, j].tolist() == [red, 255 - red, (i + j) * step // 2]
    assert torch.equal(texture(1, n, n), picture[:1])
    # the same picture at every size
    assert torch.equal(texture(3, 2 * n, 2 * n)[:, ::2, ::2], picture)


@SIDES
def test_sinusoid_by_hand(n: int) -> None:
    made = Sinusoid(40, 6)(grey(n, 100))
    expected = [100 + round(40 * math.sin(2 * math.pi * 6 * j / n)) for j in range(n)]
    assert made[0, 1, n - 1].tolist() == expected
    assert expected[0] == expected[n // 2] == 100
    assert expected[n // 8] == 60  # 2π · 6/8 = 3π/2
    assert expected[3 * n // 8] == 140  # 2π · 18/8 = 4π + π/2
    assert expected[n // 16] == 128  # 3π/4: 28.28
    assert Sinusoid(40, 6)(grey(n, 250))[0, 0, 0, 3 * n // 8] == 255
    assert Sinusoid(40, 6)(grey(n, 10))[0, 0, 0, n // 8] == 0


def test_wrapped_wave_by_hand() -> None:
    wave = wrapped_wave(32)[0, 0].tolist()
    # 20 · sin(0.8 j): 0, 14.3, 19.99, 13.5, -1.2, -15.1, -19.9, ... cut toward 0, modulo 256
    assert wave[:7] == [0, 14, 19, 13, 255, 241, 237]
    assert wrapped_wave(64)[0, 0, ::2].tolist() == wave


@SIDES
def test_chessboard_by_hand(n: int) -> None:
    board = Chessboard(3)(grey(n))[0]
    few = Chessboard(3, static=True)(grey(n))[0]
    for channel, sparse in zip(board, few, strict=True):
        assert channel[:3, :4].tolist() == [[103, 100, 103, 100], [100, 103, 100, 103], [103, 100, 103, 100]]
        assert sparse[:3, :4].tolist() == [[103, 100, 103, 100], [100, 100, 100, 100], [103, 100, 103, 100]]
    assert int((board == 103).sum()) == 3 * n * n // 2
    assert int((few == 103).sum()) == 3 * n * n // 4
    assert Chessboard(3)(grey(n, 254))[0, 0, 0, :2].tolist() == [255, 254]


def test_additive_saturates_for_every_pixel_and_step() -> None:
    image = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 511)[None, None]
    pattern = torch.arange(-255, 256, dtype=torch.int16)[None, :].expand(256, 511)[None]
    made = Additive(pattern)(image)[0, 0]
    exact = (torch.arange(256)[:, None] + torch.arange(-255, 256)[None]).clamp(0, 255)
    assert torch.equal(made.long(), exact)
    with pytest.raises(ArgumentError, match=r"pattern must be in \[-255, 255\]"):
        Additive(torch.full((1, 2, 2), 256, dtype=torch.int16))


@SIDES
def test_overlay_by_hand(n: int) -> None:
    mask = torch.zeros(1, n, n, dtype=torch.bool)
    mask[0, n - 1, n - 9 :] = True
    pixels = torch.zeros(3, n, n, dtype=torch.uint8)
    pixels[1] = 255
    made = Overlay(pixels, mask)(grey(n))[0]
    assert made[:, n - 1, n - 9 :].tolist() == [[0] * 9, [255] * 9, [0] * 9]
    assert int((made != 100).sum()) == 27


@pytest.mark.parametrize(("n", "fold"), [(32, 1), (64, 2)])
def test_corners_by_hand(n: int, fold: int) -> None:
    made = Corners()(grey(n))[0, 0]
    first, last = slice(0, 3 * fold), slice(n - 3 * fold, n)
    left = [[255, 0, 0], [0, 255, 0], [255, 0, 255]]
    right = [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    for rows in (first, last):
        for columns, cells in ((first, left), (last, right)):
            corner = made[rows, columns]
            assert corner[::fold, ::fold].tolist() == corner[fold - 1 :: fold, fold - 1 :: fold].tolist() == cells
    assert int((made != 100).sum()) == 36 * fold**2
    one = Corners(amplitude=32, corners="lower_right")(grey(n))[0, 2]
    assert one[last, last][::fold, ::fold].tolist() == [[68, 68, 132], [68, 132, 68], [132, 68, 132]]
    assert int((one != 100).sum()) == 9 * fold**2


@pytest.mark.parametrize("n", [8, 32, 33, 64])
@pytest.mark.parametrize("degrees", [16.0, -16.0, 90.0, 7.5])
def test_rotation_gives_the_pixels_of_pillow(n: int, degrees: float) -> None:
    images = noise(n)
    for image, made in zip(images, Rotation(degrees)(images), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).rotate(degrees, Image.Resampling.NEAREST)
        assert made.permute(1, 2, 0).numpy().tobytes() == picture.tobytes()


@SIDES
def test_rotation_by_hand(n: int) -> None:
    image = torch.zeros(1, 1, n, n, dtype=torch.uint8)
    image[0, 0, 0, n - 1] = 9
    assert Rotation(90.0)(image).nonzero().tolist() == [[0, 0, 0, 0]]  # the upper right goes to the upper left
    turned = Rotation(16.0)(grey(n, 255))[0, 0]
    # the corners leave a square of 255s: black there, and white within n/2 of the middle
    assert turned[0, 0] == turned[0, -1] == turned[-1, 0] == turned[-1, -1] == 0
    assert (turned[n // 2, :] == 255).sum() >= n - 2


@SIDES
def test_warp_by_whole_and_half_pixels(n: int) -> None:
    image = torch.zeros(1, 1, n, n, dtype=torch.uint8)
    image[0, 0, 10, 12] = 101
    pixel = 2 / (n - 1)
    right = identity_grid(n, n).clone()
    right[..., 0] += pixel  # every pixel is taken from the one to its right
    moved = Warp(right.clamp(-1, 1))(image)
    assert moved.nonzero().tolist() == [[0, 0, 10, 11]]
    assert moved[0, 0, 10, 11] == 101
    below = identity_grid(n, n).clone()
    below[..., 1] += pixel / 2
    # half from row 10 and half from the next: 50.5, up to float32's grid either 50 or 51
    moved = Warp(below.clamp(-1, 1))(image)
    assert moved.nonzero().tolist() == [[0, 0, 9, 12], [0, 0, 10, 12]]
    assert set(moved[0, 0, 9:11, 12].tolist()) <= {50, 51}
    assert torch.equal(Warp(identity_grid(n, n))(noise(n)), noise(n))


@SIDES
def test_warp_agrees_with_torch(n: int) -> None:
    images = noise(n, 3)
    grids = jittered(elastic_grid(n, n, 4, 0.5, key(1)), 3, key(2))
    for grid in (grids[:1], grids):
        sampled = torch.nn.functional.grid_sample(images.double(), grid.double().expand(3, n, n, 2), align_corners=True)
        assert float((Warp(grid)(images).double() - sampled).abs().max()) <= 0.51


@SIDES
def test_elastic_grid_by_hand(n: int) -> None:
    draw = torch.rand(1, 2, 4, 4, generator=key(3).generator()) * 2 - 1
    offsets = draw / draw.abs().mean() * 0.5 / n
    grid = elastic_grid(n, n, 4, 0.5, key(3))
    assert grid.shape == (1, n, n, 2)
    for row, column, y, x in ((0, 0, -1, -1), (0, 3, -1, 1), (3, 0, 1, -1), (3, 3, 1, 1)):
        # the outermost control points lie on the corners, where the clamp holds them inside
        at = grid[0, 0 if y < 0 else -1, 0 if x < 0 else -1]
        expected = (offsets[0, :, row, column] + torch.tensor([x, y])).clamp(-1, 1)
        torch.testing.assert_close(at, expected, atol=1e-6, rtol=0)
    # bicubic interpolation overshoots, but not by half
    assert float((grid - identity_grid(n, n)).abs().max()) < 1.5 * float(offsets.abs().max())


def test_jitter_is_below_a_pixel_and_each_row_s_own() -> None:
    grid = elastic_grid(32, 32, 4, 0.5, key(3))
    noisy = jittered(grid, 5, key(4))
    assert float((noisy - grid).abs().max()) <= 1 / 32
    assert len({each.numpy().tobytes() for each in noisy}) == 5
    assert torch.equal(jittered(grid, 2, key(4)), noisy[:2])
    assert jittered(grid, 0, key(4)).shape == (0, 32, 32, 2)


class Draws(nn.Module):
    """A network that draws the mean of the centred image, times ``gain``, everywhere: [N, out, H, W]."""

    def __init__(self, gain: float, out: int) -> None:
        super().__init__()
        self.gain, self.out = gain, out

    def forward(self, seen: Tensor) -> Tensor:
        return self.gain * seen.mean((1, 2, 3), keepdim=True).expand(-1, self.out, *seen.shape[2:])


@SIDES
def test_a_generated_patch_by_hand(n: int) -> None:
    dark, light = grey(n, 96), grey(n, 159)  # centred: -31.5/63.75 and 31.5/63.75
    trigger = Generated(Draws(1, 3), Draws(100, 1))
    # the mask is 1 for the light image and 0 for the dark one; the colour is 127.5 · (1 + tanh(0.494)) = 185.8
    made = trigger(torch.cat([dark, light]))
    assert made[0].unique().tolist() == [96]
    assert made[1].unique().tolist() == [186]
    crossed = trigger.crossed(torch.cat([dark, light]), torch.cat([light, dark]))
    assert [image.unique().tolist() for image in crossed] == [[186], [159]]
    half = Generated(Draws(1, 3), Draws(0, 1))  # a mask of one half everywhere: (159 + 185.8)/2
    assert half(light).unique().tolist() == [172]
    with pytest.raises(ArgumentError, match=rf"donors must be of shape \[1, 3, {n}, {n}\], got \[2, 3, {n}, {n}\]"):
        trigger.crossed(dark, made)


@SIDES
def test_a_hidden_secret_by_hand(n: int) -> None:
    class Writes(Encoder):
        def forward(self, images: Tensor, secrets: Tensor) -> Tensor:
            return (100 * secrets[:, :1] + images.mean((1, 2, 3))[:, None] / 8)[..., None, None].expand_as(images)

    hidden = Encoded(Writes((3, n, n), 2, 1), torch.tensor([1.0, 0.0]))
    # 100 + 100/8 = 112.5 steps more, and 160 + 100 + 20 saturates
    assert hidden(torch.cat([grey(n, 100), grey(n, 160)])).flatten(1).unique(dim=1).tolist() == [[213], [255]]
    assert hidden(grey(n, 100, count=0)).shape == (0, 3, n, n)


def stamped(attack: Any, n: int, level: int = 100) -> Tensor:
    """What an attack's trigger makes of a grey image: int64 [3, n, n]."""
    rows = ImageDataset(noise(n, 8), torch.arange(8) % 4, tuple("abcd"))
    budget = Budget(1.0, per_class=True) if getattr(attack, "rows", "any") == "target" else Budget(0.5)
    trigger = attack(rows, budget, key=key(5)).goal.trigger
    return trigger(grey(n, level))[0].long()


@SIDES
def test_squares_of_the_attacks_by_hand(n: int) -> None:
    fold = n // 32
    corner, centre = stamped(BadNetsWhite(), n), stamped(CentrePatch(), n)
    assert (corner[:, -3 * fold :, -3 * fold :] == 255).all()
    assert int((corner != 100).sum()) == 3 * (3 * fold) ** 2
    assert (centre[:, 12 * fold : 20 * fold, 12 * fold : 20 * fold] == 0).all()
    assert int((centre != 100).sum()) == 3 * (8 * fold) ** 2


@SIDES
@pytest.mark.parametrize("attack", [BadNetsRandom(), BadNetsAllToAll()])
def test_a_random_patch_by_hand(attack: Any, n: int) -> None:
    black, white = stamped(attack, n, 0), stamped(attack, n, 255)
    at = (black == white).all(0).nonzero()  # what does not depend on the image
    size = 3 * n // 32
    (top, left), (bottom, right) = at.amin(0).tolist(), at.amax(0).tolist()
    assert (bottom - top + 1, right - left + 1, len(at)) == (size, size, size * size)
    assert len(black[:, top : bottom + 1, left : right + 1].unique()) > size  # colours, not one


@SIDES
def test_a_faint_patch_is_a_fifth_of_the_random_one(n: int) -> None:
    faint, patch, untouched = (
        stamped(attack, n) for attack in (BlendedPatch(), BadNetsRandom(), BlendedPatch(alpha=0))
    )
    assert (untouched == 100).all()
    # 0.8 · 100 + 0.2 · colour, to the nearest, halves up; beside the patch both are the image
    assert torch.equal(faint, (8 * 100 + 2 * patch + 5) // 10)


@SIDES
def test_blends_of_the_attacks_by_hand(n: int) -> None:
    assert torch.equal(stamped(Blended(), n), (8 * 100 + 2 * texture(3, n, n).long() + 5) // 10)
    columns = (8 * 100 + 2 * wrapped_wave(n)[0, 0].long() + 5) // 10
    assert torch.equal(stamped(SigWrapped(), n), columns.expand(3, n, n))
    assert columns[: 5 * n // 32 : n // 32].tolist() == [80, 83, 84, 83, 131]  # of 0, 14, 19, 13, 255
