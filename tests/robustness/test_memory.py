"""What is done where memory runs out: prediction takes smaller batches, training says so and stops."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from poisonkit.errors import PoisonkitError
from poisonkit.models import ResNet, logits, predict, top
from poisonkit.random import key
from poisonkit.train import Job, Recipe, fit, fit_stack
from poisonkit.types import ImageDataset

CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Small(nn.Module):
    """Takes so many images at a time, and raises as torch does where there are more."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error
        self.taken: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise self.error
        self.taken.append(len(images))
        return images.flatten(1).float()


IMAGES = torch.randint(0, 256, (23, 1, 1, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ERRORS = [RuntimeError(CPU), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=["cpu", "cuda", "core"])
def test_prediction_halves_a_batch_that_does_not_fit(error: Exception) -> None:
    whole, model = Small(99, error), Small(3, error)
    for ask in (logits, predict, top):
        assert torch.equal(ask(model, IMAGES, batch_size=16), ask(whole, IMAGES, batch_size=16))
    assert model.taken[:8] == [2] * 8  # 16, 8 and 4 do not fit, and are not tried again
    assert sum(model.taken) == 3 * len(IMAGES)


def test_what_never_fits_and_what_is_another_error_is_raised() -> None:
    with pytest.raises(MemoryError):
        predict(Small(0, MemoryError()), IMAGES)
    model = Small(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        predict(model, IMAGES, 16)
    assert model.taken == []


def data(n: int = 24) -> ImageDataset:
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageDataset(images, torch.arange(n) % 3, ("a", "b", "c"))


RECIPE = Recipe(ResNet(8, 4, stem="small"), epochs=1, batch_size=8, augment=None)


@pytest.mark.parametrize("error", ERRORS, ids=["cpu", "cuda", "core"])
def test_training_stops_and_says_what_does_not_fit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(*_: object, **__: object) -> None:
        raise error

    rows = data()
    jobs = [Job(i, rows, torch.arange(i, 24, 2), RECIPE, key(0).child(i)) for i in range(2)]
    monkeypatch.setattr(Tensor, "backward", backward)
    with pytest.raises(PoisonkitError, match="a step must be one that fits in the memory of cpu, got 8 rows at a time"):
        fit(data(), RECIPE, key=key(0))
    with pytest.raises(PoisonkitError, match="a step must be one that fits in the memory of cpu, got 16 rows"):
        fit_stack(jobs)


def test_another_error_of_training_is_raised_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "backward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(data(), replace(RECIPE, epochs=1), key=key(0))


LIMITED = """
import resource, sys, torch
from poisonkit.errors import PoisonkitError
from poisonkit.models import ResNet, predict
from poisonkit.random import key
from poisonkit.train import Recipe, fit
from poisonkit.types import ImageDataset
torch.set_num_threads(1)
config = ResNet(8, 16, stem="small")
model = config.build((3, 32, 32), 5, key(0))
images = torch.randint(0, 256, (600, 3, 32, 32), dtype=torch.uint8)
data = ImageDataset(images, torch.arange(600) % 5, tuple("abcde"))
fit(data.take(torch.arange(8)), Recipe(config, epochs=1, batch_size=8, augment=None), key=key(0))
parts = predict(model, images, 16)
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20), resource.RLIM_INFINITY))
torch.equal(predict(model, images, 600), parts) and print("the same")
try:
    fit(data, Recipe(config, batch_size=600, augment=None), key=key(0))
except PoisonkitError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_process_with_little_memory_left() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("the same\na step must be one that fits in the memory of cpu, got 600"), done.stderr
