"""Networks trained together: as near to those trained alone as rounding allows, and as resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from poisonkit.data import load
from poisonkit.data.augment import Augment
from poisonkit.errors import ArgumentError, PoisonkitError, RunError
from poisonkit.models import ResNet, predict
from poisonkit.random import key
from poisonkit.train import Epoch, Job, OneCycle, Recipe, Step, fit_job, fit_stack, new_model, stack_size
from poisonkit.types import ImageDataset

RECIPE = Recipe(
    ResNet(8, 4, stem="small", dropout=0.3),
    epochs=2,
    batch_size=8,
    schedule=OneCycle(0.01, 0.05, 0.001, momenta=(0.85, 0.95)),
    augment=Augment(1),
)
SIZES = (21, 0, 8, 1, 9)  # 3, 0, 1, 1 and 2 steps an epoch


def noise(n: int = 60) -> ImageDataset:
    images = torch.randint(0, 256, (n, 2, 6, 6), dtype=torch.uint8, generator=key(1).generator())
    return ImageDataset(images, torch.arange(n) % 3, ("a", "b", "c"))


def jobs(recipe: Recipe = RECIPE, sizes: tuple[int, ...] = SIZES, data: ImageDataset | None = None) -> list[Job]:
    data = data or noise()
    order = key(2).permutation(len(data))
    parts = order[: sum(sizes)].split(list(sizes))
    return [Job(10 + i, data, rows, recipe, key(3).child("partition", i)) for i, rows in enumerate(parts)]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_near(recipe: Recipe, rtol: float, atol: float, sizes: tuple[int, ...] = SIZES) -> None:
    reports: list[list[Epoch]] = []
    parts = jobs(recipe, sizes)
    together = fit_stack(parts, on_epochs=reports.append)
    assert [[epoch.number for epoch in each] for each in reports] == [[1] * len(sizes), [2] * len(sizes)]
    for place, (job, network) in enumerate(zip(parts, together, strict=True)):
        seen: list[Epoch] = []
        alone = fit_job(job, on_epoch=seen.append)
        assert not network.training
        for ours, theirs in zip(network.state_dict().values(), alone.state_dict().values(), strict=True):
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
        idle = [Epoch(number, 2, 0.0, 0.0, 0.0, 0) for number in (1, 2)]
        for ours, theirs in zip(reports, seen or idle, strict=True):
            assert (ours[place].total, ours[place].lr, ours[place].accuracy) == (2, theirs.lr, theirs.accuracy)
            assert ours[place].loss == pytest.approx(theirs.loss, rel=1e-3)


# The stated tolerance: after a few steps the weights differ by rounding alone. Augmentation, dropout, order or a rate
# that were not those of the network alone would make the first digit differ.
@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(RECIPE, augment=None, nesterov=True, label_smoothing=0.1, channels_last=False),
        replace(RECIPE, momentum=0.0, schedule=Step(0.05), weight_decay=0.0),
        replace(RECIPE, model=ResNet(18, 8, stem="small"), batch_size=4),
    ],
)
def test_near_those_trained_alone(float64: None, recipe: Recipe) -> None:
    assert_near(recipe, rtol=1e-8, atol=1e-9)


def test_near_those_trained_alone_with_bottlenecks(float64: None) -> None:
    # without the partition of one row: normalising its equal activations turns rounding into noise, layer by layer
    assert_near(replace(RECIPE, model=ResNet(50, 4, stem="small")), rtol=1e-6, atol=1e-7, sizes=(21, 9))


def test_near_those_trained_alone_in_float32() -> None:
    assert_near(RECIPE, rtol=1e-2, atol=1e-4)


def test_bfloat16_trains_float32_weights() -> None:
    recipe = replace(RECIPE, precision="bfloat16", epochs=1)
    (one, *_), (other, *_) = fit_stack(jobs(recipe)), fit_stack(jobs(replace(recipe, precision="float32")))
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}
    assert not same(one, other)


def test_as_accurate_as_those_trained_alone() -> None:
    train, test = load("digits")
    recipe = Recipe(ResNet(8, 8, stem="small"), epochs=3, batch_size=16, schedule=OneCycle(0.02, 0.2), augment=None)
    parts = jobs(recipe, (350, 340, 330, 360), train)
    ours, theirs = (
        torch.stack([predict(network, test.images) for network in networks]) == test.labels
        for networks in (fit_stack(parts), [fit_job(job) for job in parts])
    )
    assert float(theirs.double().mean()) > 0.85
    assert abs(float(ours.double().mean()) - float(theirs.double().mean())) < 0.02


def test_no_rows_give_the_initialised_network() -> None:
    for network, job in zip(fit_stack(jobs(sizes=(0, 0))), jobs(sizes=(0, 0)), strict=True):
        assert same(network, new_model(RECIPE, job.data, job.key))


def test_one_job_is_fit_to_the_bit() -> None:
    (job, *_), seen = jobs(), []
    (network,) = fit_stack([job], on_epochs=seen.append)
    alone: list[Epoch] = []
    assert same(network, fit_job(job, on_epoch=alone.append))
    assert seen == [[epoch] for epoch in alone]


def test_the_same_twice_and_global_state_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit_stack(jobs())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert all(map(same, first, fit_stack(jobs())))


class StoppedError(Exception):
    pass


def stop(reports: list[Epoch]) -> None:
    if reports[0].number == 2:  # before its checkpoint is written
        raise StoppedError


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, channels_last=False)], ids=["NHWC", "NCHW"])
def test_stopped_and_resumed(tmp_path: Path, recipe: Recipe) -> None:
    recipe = replace(recipe, epochs=3)
    with pytest.raises(StoppedError):
        fit_stack(jobs(recipe), directory=tmp_path, on_epochs=stop)
    (tmp_path / ".checkpoint.safetensors.0f.tmp").write_bytes(b"half a file")
    seen: list[list[Epoch]] = []
    expected = fit_stack(jobs(recipe))
    assert all(map(same, fit_stack(jobs(recipe), directory=tmp_path, on_epochs=seen.append), expected))
    assert [each[0].number for each in seen] == [2, 3]
    assert all(map(same, fit_stack(jobs(recipe), directory=tmp_path, on_epochs=stop), expected))  # finished
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_another_training_is_refused(tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=1)
    first, second = jobs(recipe, (9, 8))
    fit_stack([first, second], directory=tmp_path)
    other = noise()
    other.images[first.rows[3], 0, 0, 0] ^= 1
    for wrong, changed in {
        "recipe": [replace(first, recipe=RECIPE), replace(second, recipe=RECIPE)],
        "keys": [second, first],
        "data": [replace(first, data=other), replace(second, data=other)],
    }.items():
        with pytest.raises(RunError, match=rf"the {wrong} of .*delete the checkpoint"):
            fit_stack(changed, directory=tmp_path)


def test_divergence_names_the_network() -> None:
    parts = jobs(replace(RECIPE, schedule=Step(1e30), augment=None))
    with pytest.raises(PoisonkitError, match=r"(loss|weights) of network 10 must be finite, got .* at epoch 1, step"):
        fit_stack(parts)


def test_rejects() -> None:
    parts = jobs()
    with pytest.raises(ArgumentError, match="jobs must be 1 or more"):
        fit_stack([])
    for other in (replace(parts[1], recipe=replace(RECIPE, epochs=1)), replace(parts[1], data=noise())):
        with pytest.raises(ArgumentError, match="one data set and one recipe"):
            fit_stack([parts[0], other])


def test_stacks_are_of_tiny_networks_and_even() -> None:
    def size(width: int, jobs: int, batch_size: int = 16, device: str = "cpu", pixels: int = 8) -> int:
        recipe = replace(RECIPE, model=ResNet(8, width, stem="small"), batch_size=batch_size)
        return stack_size(recipe, (1, pixels, pixels), 10, jobs, device)

    assert [size(8, jobs) for jobs in (0, 1, 2, 16, 250)] == [1, 1, 2, 16, 250]
    assert [size(32, jobs) for jobs in (16, 20, 21, 50)] == [16, 20, 11, 17]  # at most 20
    assert [size(64, 16), size(8, 16, 64, pixels=32)] == [1, 1]
    assert size(8, 16, device="mps") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    parts = jobs(sizes=(21, 0, 9))
    moved = [replace(job, data=job.data.to("cuda")) for job in parts]
    moved = [replace(job, data=moved[0].data) for job in moved]
    for ours, theirs in zip(fit_stack(moved), fit_stack(parts), strict=True):
        for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0.05, atol=0.01)
