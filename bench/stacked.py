"""Many base models for the price of one: training them together, and asking them all, on one core.

Training is compared with the same networks trained one after the other by ``fit``; asking all of them, with asking the
one network of full width by the same function. How the bound of ``stack_size`` was found: speed-up of a stack over the
networks alone, one thread of a busy AMD EPYC (Zen 3), median of 3 to 5 turns, ResNet-8 but where it says ResNet-18:

| million multiply-adds a step | image, batch, width              | k=2  | k=4  | k=8  | k=16 |
|------------------------------|----------------------------------|------|------|------|------|
| 0.8                          | 1x8x8, 16, 4                     | 1.71 | 2.78 | 4.20 | 6.14 |
| 3                            | 1x8x8, 16, 8                     | 1.58 | 2.44 | 3.63 | 4.21 |
| 4                            | 3x32x32, 16, 2                   |      | 2.20 |      | 2.95 |
| 12                           | 1x8x8, 16, 16                    | 1.42 | 1.92 | 2.30 | 2.62 |
| 14                           | 3x32x32, 16, 4                   |      | 1.80 |      | 2.24 |
| 49                           | 1x8x8, 16, 32                    | 1.23 | 1.31 | 1.44 | 1.39 |
| 49                           | 1x16x16, 64, 8                   |      | 1.37 |      | 1.15 |
| 52                           | 3x32x32, 16, 8                   |      | 1.29 |      | 1.41 |
| 54                           | 3x64x64, 16, 8 (ResNet-18)       |      |      | 1.41 |      |
| 55                           | 3x32x32, 64, 4                   |      | 1.60 |      | 1.27 |
| 64: the bound                |                                  |      |      |      |      |
| 177                          | 3x64x64, 16, 16 (ResNet-18)      |      |      | 1.32 |      |
| 194                          | 1x8x8, 16, 64                    | 1.24 | 0.99 | 0.86 | 0.74 |
| 195                          | 1x16x16, 64, 16                  |      | 1.11 |      | 1.07 |
| 200                          | 3x32x32, 16, 16                  |      | 1.15 |      | 0.91 |
| 207                          | 3x32x32, 64, 8                   |      | 0.98 |      | 0.69 |
| 800                          | 3x32x32, 64, 16                  |      | 0.73 |      | 0.49 |
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch

from bench.measure import interleave, row, speedup
from bench.rows import Row
from poisonkit.data import load
from poisonkit.data.augment import Augment
from poisonkit.experiments.presets import RECIPES
from poisonkit.models import ResNet
from poisonkit.models.predict import ensemble_logits, multiply_adds
from poisonkit.random import key
from poisonkit.train import Job, Recipe, fit_job, fit_stack, stack_size
from poisonkit.types import ImageDataset

ROUNDS = 5


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    digits, _ = load("digits")
    for width in (4, 8, 16):
        recipe = replace(RECIPES["digits"], model=ResNet(8, width, stem="small"), epochs=6)
        for partitions in (8, 16, 50):
            yield training(f"digits/w{width}", digits, recipe, partitions)
    # The largest steps that the rule stacks
    noise = random_images(2048, (3, 32, 32), 10)
    for width, batch_size in ((4, 64), (8, 16)):
        model = ResNet(8, width, stem="small")
        recipe = Recipe(model, epochs=1, batch_size=batch_size, augment=Augment())
        yield training(f"32px/w{width}", noise, recipe, 16)
    yield asking("resnet50", ResNet(50, 128), (3, 64, 64), 32)
    yield asking("resnet18", ResNet(18, 64), (3, 64, 64), 128)


def random_images(count: int, shape: tuple[int, int, int], classes: int) -> ImageDataset:
    images = torch.randint(256, (count, *shape), dtype=torch.uint8)
    return ImageDataset(images, torch.randint(classes, (count,)), tuple(map(str, range(classes))))


def training(name: str, data: ImageDataset, recipe: Recipe, partitions: int) -> Row:
    """Base models on equal parts of ``data``, in stacks as the rule has them, over one after the other."""
    rows = torch.randperm(len(data)).tensor_split(partitions)
    jobs = [Job(i, data, part, recipe, key(0).child("partition", i)) for i, part in enumerate(rows)]
    size = stack_size(recipe, data.shape, data.num_classes, partitions, "cpu")
    assert size > 1, f"{name} is not stacked"
    stacks = [jobs[start : start + size] for start in range(0, partitions, size)]
    candidates = {
        "together": lambda: [fit_stack(stack) for stack in stacks],
        "alone": lambda: [fit_job(job) for job in jobs],
    }
    times = interleave(candidates, ROUNDS)
    note = f"{recipe.model}, batch {recipe.batch_size}; in stacks of {size}; alone {median(times['alone']):.3g} s"
    ratio = speedup(times, "together", over="alone")
    return row(f"stacked/cpu/train/{name}/k{partitions}/over_alone", ratio, "ratio", ROUNDS, note)


def asking(name: str, wide: ResNet, shape: tuple[int, int, int], batch_size: int, partitions: int = 16) -> Row:
    """The outputs of all base models, whose widths are those of DPA, in times of the one network's."""
    narrow = wide.scaled(partitions)
    base = [narrow.build(shape, 1000, key(i)) for i in range(partitions)]
    single = [wide.build(shape, 1000, key(0))]
    images = random_images(batch_size, shape, 1).images
    candidates = {
        "ensemble": lambda: list(ensemble_logits(base, images, batch_size)),
        "single": lambda: list(ensemble_logits(single, images, batch_size)),
    }
    times = interleave(candidates, ROUNDS)
    note = f"{partitions} of width {narrow.width} against one of {wide.width}, batch {batch_size}, 1000 classes; "
    note += f"single {median(times['single']):.3g} s; "
    work = partitions * multiply_adds(base[0], shape) / multiply_adds(single[0], shape)
    note += f"{work:.2f} times its multiply-adds, since the first layer has as many channels to read"
    ratio = 1 / speedup(times, "ensemble", over="single")
    return row(f"stacked/cpu/predict/{name}/k{partitions}/of_single", ratio, "ratio", ROUNDS, note, "lower")
