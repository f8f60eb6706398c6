"""Siamese augmentation: each change by hand, the same for both sides whatever the batch, gradients to the pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from poisonkit.data.siamese import CHANGES, Change, Siamese, gathered
from poisonkit.errors import ArgumentError
from poisonkit.random import key

GREY = 127.5


def images(count: int, side: int = 8, channels: int = 3, seed: int = 0) -> Tensor:
    return 255 * torch.rand(count, channels, side, side, generator=key(seed).generator())


def one(change: Change, x: Tensor, *numbers: float) -> Tensor:
    """``change`` alone, its strength from numbers in [0, 1)."""
    drawn = torch.zeros(1, 4, dtype=torch.float64)
    drawn[0, 1 : 1 + len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
    return Siamese((change,)).apply(x, drawn)


def test_crop_moves_by_an_eighth_and_fills_with_grey() -> None:
    x = images(2)
    down = one("crop", x, 0.99, 0.5)  # of -1, 0, 1 pixels
    assert (down[:, :, 0] == GREY).all()
    torch.testing.assert_close(down[:, :, 1:], x[:, :, :-1])
    left = one("crop", x, 0.5, 0.0)
    assert (left[..., -1] == GREY).all()
    torch.testing.assert_close(left[..., :-1], x[..., 1:])
    moved = one("crop", images(1, 32), 0.0, 0.999)[0, 0]
    assert (moved == GREY).sum() == 32 * 32 - 28 * 28  # four pixels each way


def test_cutout_is_half_the_side_and_cut_off_at_the_border() -> None:
    x = images(2, 32)
    middle = one("cutout", x, 0.5, 0.5)  # the centre is 16 of 0..32
    grey = middle == GREY
    assert grey[:, :, 8:24, 8:24].all()
    assert int(grey.sum()) == 2 * 3 * 16 * 16
    corner = one("cutout", x, 0.0, 0.999)
    assert int((corner == GREY).sum()) == 2 * 3 * 8 * 8
    assert (corner[:, :, :8, 24:] == GREY).all()


def test_flip_is_a_coin() -> None:
    x = images(2)
    torch.testing.assert_close(one("flip", x, 0.49), x.flip(3))
    torch.testing.assert_close(one("flip", x, 0.5), x)


def test_color_by_hand() -> None:
    x = torch.tensor([0.0, 30.0, 90.0, 120.0]).view(1, 2, 1, 2)  # two channels of two pixels
    brighter = one("color", x, 0.75, 0.5, 0.5)
    torch.testing.assert_close(brighter, x + 0.25 * 63.75)
    grey = one("color", x, 0.5, 0.0, 0.5)  # every channel the mean of both
    torch.testing.assert_close(grey.flatten(), torch.tensor([45.0, 75.0, 45.0, 75.0]))
    flat = one("color", x, 0.5, 0.5, 0.0)  # half the distance to 60
    torch.testing.assert_close(flat.flatten(), torch.tensor([30.0, 45.0, 75.0, 90.0]))


def test_scale_of_one_and_rotation_of_nought_change_nothing() -> None:
    x = images(2, 16)
    whole = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    torch.testing.assert_close(one("scale", x, whole, whole), x, rtol=0, atol=1e-2)
    torch.testing.assert_close(one("rotate", x, 0.5), x, rtol=0, atol=1e-2)


def test_rotation_turns_by_fifteen_degrees_at_most() -> None:
    x = torch.full((1, 1, 33, 33), GREY)
    x[0, 0, 16, 26] = 255.0  # ten pixels right of the centre
    turned = one("rotate", x, 0.0)[0, 0] - GREY
    row, column = divmod(int(turned.argmax()), 33)
    assert column == 26  # 10 · cos 15° = 9.7
    assert abs(row - 16) == 3  # 10 · sin 15° = 2.6


def test_scale_stretches_by_a_fifth_at_most() -> None:
    x = torch.full((1, 1, 32, 32), 255.0)
    small = one("scale", x, 0.9999, 0.9999)[0, 0]  # coordinates times 1.2: the image shrinks, grey comes in
    assert small[16, 16] == 255
    assert small[0, 16] == small[16, 31] == GREY
    assert (one("scale", x, 0.0, 0.0) == 255).all()


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_for_both_sides(change: Change) -> None:
    """A group's change depends on what was drawn, not on how many images or groups there are."""
    siamese, real = Siamese((change,)), images(12, 16)
    drawn = siamese.draw(3, key(1))
    together = siamese.apply(real, drawn)
    for group in range(3):
        alone = siamese.apply(real[4 * group : 4 * group + 2], drawn[group : group + 1])
        torch.testing.assert_close(together[4 * group : 4 * group + 2], alone, rtol=0, atol=1e-3)
    assert torch.equal(siamese.draw(5, key(1))[:3], drawn)
    assert not torch.equal(siamese.draw(3, key(2)), drawn)


def test_all_changes_in_one_batch_are_those_of_each() -> None:
    siamese, x = Siamese(), images(60, 16)
    drawn = siamese.draw(60, key(3))
    whole = siamese.apply(x, drawn)
    assert set((drawn[:, 0] * 6).long().tolist()) == set(range(6))
    for i in range(60):
        torch.testing.assert_close(whole[i], siamese.apply(x[i : i + 1], drawn[i : i + 1])[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("change", CHANGES)
def test_gradients(change: Change) -> None:
    """Every change is affine in the pixels, so a difference is a derivative, whatever the step."""
    siamese, x = Siamese((change,)), images(4).double()
    drawn, weight = siamese.draw(2, key(4)), torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    x.requires_grad_(True)
    (slope,) = torch.autograd.grad((siamese.apply(x, drawn) * weight).sum(), x)
    step = torch.randn(x.shape, generator=key(5).generator(), dtype=torch.float64)
    with torch.no_grad():
        change_of_sum = ((siamese.apply(x + step, drawn) - siamese.apply(x, drawn)) * weight).sum()
    torch.testing.assert_close((slope * step).sum(), change_of_sum)


def test_what_is_looked_up_is_grid_sample() -> None:
    x = torch.randn(5, 3, 7, 9, dtype=torch.float64, generator=key(0).generator(), requires_grad=True)
    theta = torch.randn(5, 2, 3, dtype=torch.float64, generator=key(1).generator())
    grid = affine_grid(theta, [5, 3, 7, 9], align_corners=False)
    theirs = grid_sample(x, grid, align_corners=False)
    torch.testing.assert_close(gathered(x, grid), theirs)
    weight = torch.linspace(-1, 1, theirs.numel(), dtype=torch.float64).view_as(theirs)
    slopes = [
        torch.autograd.grad((y * weight).sum(), x)[0]
        for y in (gathered(x, grid), grid_sample(x, grid, align_corners=False))
    ]
    torch.testing.assert_close(*slopes)


def test_changes_are_drawn_evenly() -> None:
    drawn = Siamese().draw(6000, key(0))
    counts = torch.bincount((drawn[:, 0] * 6).long(), minlength=6)
    assert (counts - 1000).abs().max() < 120  # four standard deviations
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert (drawn.mean(0) - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Siamese(()), "changes must be one or more of color, crop"),
        (lambda: Siamese(("blur",)), "changes must be one or more of color, crop"),  # type: ignore[arg-type]
        (
            lambda: Siamese().apply(images(5), torch.zeros(2, 4)),
            r"drawn must be of shape \[G, 4\] with G a divisor of 5",
        ),
    ],
)
def test_what_is_refused(call: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()  # type: ignore[operator]
