"""A step of distribution matching on one core: against the reference's loop over classes, and what calibration adds.

The loop is that of the reference, a class at a time: 256 real images through a new random network, then the 50
synthetic ones, the squared distance of the mean features, and at the end of all classes one backward pass. Ours takes
the real images in pieces that stay in the cache, and goes back as soon as it can.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch
from torch import Tensor

from bench.measure import interleave, row, speedup
from bench.rows import Row
from poisonkit import key, ops
from poisonkit.data.siamese import Siamese
from poisonkit.defenses.condense import Calibrated, Mean, RobustMean
from poisonkit.defenses.condense.matching import GREY, UNIT, Matching, by_class
from poisonkit.models import ConvNet
from poisonkit.perturb import embedded
from poisonkit.types import ImageDataset

ROUNDS = 5
CLASSES, REAL, SYNTHETIC, WIDTH = 10, 256, 50, 128


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    yield from step(REAL, SYNTHETIC, WIDTH)


def step(real: int, synthetic: int, width: int) -> Iterator[Row]:
    """A step of DM over the loop's, and the share of RDM-DC's step that calibrating its ten means takes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (CLASSES * real, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = ImageDataset(images, torch.arange(CLASSES * real) % CLASSES, tuple("0123456789"))
    units = torch.randn(CLASSES * synthetic, 3, 32, 32, generator=generator)
    drop = ops.calibration_drop(0.1, real)

    def made(mean: RobustMean) -> Matching:
        return Matching(data, synthetic, real, ConvNet(3, width), Siamese(), mean, [drop] * CLASSES, key(0))

    plain, robust = made(Mean()), made(Calibrated())
    rows = plain.rows(by_class(data), 0)
    ours, theirs = plain.step(units, rows, 0).slope, loop(plain, units, rows, 0)
    # by norm: a rounding that puts an activation on the other side of a ReLU changes single pixels for good
    away = float((ours - theirs).norm() / theirs.norm())
    assert away < 1e-2, f"the loop computes something else: {away:.2g} of its gradient"
    features = torch.randn(CLASSES, real, width * 16, generator=generator)
    times = interleave(
        {
            "ours": lambda: plain.step(units, rows, 0),
            "loop": lambda: loop(plain, units, rows, 0),
            "robust": lambda: robust.step(units, rows, 0),
            "calibration": lambda: ops.calibrated_mean(features, drop),
        },
        ROUNDS,
    )
    name = f"condense/cpu/{CLASSES}x{real}+{synthetic}/w{width}"
    yield row(f"{name}/step", median(times["ours"]), "s", ROUNDS, "DM, one thread's CPU time", better="lower")
    yield row(f"{name}/over_loop", speedup(times, "ours", over="loop"), "ratio", ROUNDS, "the reference's loop")
    share = median(part / whole for part, whole in zip(times["calibration"], times["robust"], strict=True))
    yield row(f"{name}/calibration", share, "share", ROUNDS, "of a step of RDM-DC", better="lower")


def loop(made: Matching, units: Tensor, rows: Tensor, iteration: int) -> Tensor:
    """The gradient by the synthetic images as the reference comes to it; the same network, rows and augmentation."""
    network = made.model.build((3, 32, 32), CLASSES, made.key.child("network", iteration)).requires_grad_(False)
    assert made.augment
    drawn = made.augment.draw(CLASSES, made.key.child("augment", iteration))
    free, loss = units.clone().requires_grad_(True), torch.zeros(())
    for c in range(CLASSES):
        real = made.data.images[rows[c]].float()
        synthetic = free[c * made.images : (c + 1) * made.images] * UNIT + GREY
        target = embedded(network, made.augment.apply(real, drawn[c : c + 1])).detach().mean(0)
        found = embedded(network, made.augment.apply(synthetic, drawn[c : c + 1])).mean(0)
        loss = loss + (found - target).square().sum()
    (slope,) = torch.autograd.grad(loss, free)
    return slope
