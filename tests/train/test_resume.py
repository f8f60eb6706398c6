"""A run that stops at any moment and starts again ends with the bits of one that never stopped."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from poisonkit.data.augment import Augment
from poisonkit.errors import DataError, RunError
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Epoch, OneCycle, Recipe, fit
from poisonkit.types import ImageDataset

RECIPE = Recipe(
    ResNet(8, 4, stem="small", dropout=0.2),
    epochs=6,
    batch_size=8,
    schedule=OneCycle(0.01, 0.2, 0.001, momenta=(0.85, 0.95)),
    augment=Augment(1),
)


def data(n: int = 21) -> ImageDataset:
    images = torch.randint(0, 256, (n, 2, 6, 6), dtype=torch.uint8, generator=key(1).generator())
    return ImageDataset(images, torch.arange(n) % 3, ("a", "b", "c"))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class StoppedError(Exception):
    pass


def stop_after(number: int):
    def on_epoch(epoch: Epoch) -> None:
        if epoch.number == number:
            raise StoppedError

    return on_epoch


@pytest.mark.parametrize("channels_last", [True, False])
def test_stopped_between_epochs(tmp_path: Path, channels_last: bool) -> None:
    recipe = replace(RECIPE, channels_last=channels_last)
    expected = fit(data(), recipe, key=key(0))
    for number in (1, 2, 5):
        with pytest.raises(StoppedError):
            fit(data(), recipe, key=key(0), directory=tmp_path, on_epoch=stop_after(number))
    seen: list[Epoch] = []
    assert same(fit(data(), recipe, key=key(0), directory=tmp_path, on_epoch=seen.append), expected)
    assert [epoch.number for epoch in seen] == [5, 6]  # the fifth was reported, and its checkpoint not written
    # Finished: the same call loads what is there
    seen.clear()
    assert same(fit(data(), recipe, key=key(0), directory=tmp_path, on_epoch=seen.append), expected)
    assert seen == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


CHILD = """
import sys, pathlib, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_resume import RECIPE, data, fit, key
fit(data(), RECIPE, key=key(0), directory=pathlib.Path(sys.argv[2]), on_epoch=lambda epoch: print(epoch, flush=True))
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    # Each child is killed a random moment after a random epoch: while it computes, or while it writes
    rng = random.Random(0)
    killed = 0
    for _ in range(3):
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            for _ in range(rng.randint(1, 2)):
                child.stdout.readline()
            time.sleep(rng.random() * 0.03)
            child.send_signal(signal.SIGKILL)
            child.stdout.read()
        killed += child.returncode == -signal.SIGKILL
    assert killed
    (tmp_path / ".checkpoint.safetensors.0f.tmp").write_bytes(b"half a file")
    assert same(fit(data(), RECIPE, key=key(0), directory=tmp_path), fit(data(), RECIPE, key=key(0)))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_another_training_is_refused(tmp_path: Path) -> None:
    fit(data(), replace(RECIPE, epochs=1), key=key(0), directory=tmp_path)
    other = data()
    other.images[3, 0, 0, 0] ^= 1
    for wrong, call in {
        "recipe": lambda: fit(data(), RECIPE, key=key(0), directory=tmp_path),
        "key": lambda: fit(data(), replace(RECIPE, epochs=1), key=key(1), directory=tmp_path),
        "data": lambda: fit(other, replace(RECIPE, epochs=1), key=key(0), directory=tmp_path),
    }.items():
        with pytest.raises(RunError, match=rf"the {wrong} of .*delete the checkpoint"):
            call()
    with pytest.raises(RunError, match="the data of"):
        fit(data(22), replace(RECIPE, epochs=1), key=key(0), directory=tmp_path)


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    fit(data(), replace(RECIPE, epochs=1), key=key(0), directory=tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-100] ^= 4
    for damaged in (b"", content[:7], content[:-1], content[: len(content) // 2], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="delete the file"):
            fit(data(), replace(RECIPE, epochs=1), key=key(0), directory=tmp_path)
