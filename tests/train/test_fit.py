"""Training: against a plain loop, from digits to an accuracy, and from rows, recipe and key alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from poisonkit.data.augment import Augment
from poisonkit.errors import ArgumentError, PoisonkitError
from poisonkit.models import ResNet, predict
from poisonkit.random import key
from poisonkit.train import Cosine, Epoch, OneCycle, Recipe, Step, fit, fit_job, train_epoch
from poisonkit.train.loop import new_optimizer
from poisonkit.types import ImageDataset

TINY = Recipe(ResNet(8, 4, stem="small"), epochs=2, batch_size=8, schedule=Step(0.05), augment=Augment(1))


def noise(n: int, shape: tuple[int, int, int] = (1, 6, 6)) -> ImageDataset:
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=key(1).generator())
    labels = torch.randint(0, 3, (n,), generator=key(2).generator())
    return ImageDataset(images, labels, ("a", "b", "c"))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "recipe",
    [
        replace(TINY, augment=None),
        replace(TINY, augment=None, nesterov=True, weight_decay=0.01, label_smoothing=0.1, channels_last=False),
        replace(TINY, augment=None, momentum=0.0, schedule=Cosine(0.1)),
    ],
)
def test_against_a_plain_loop(recipe: Recipe) -> None:
    data, seed = noise(20), key(4)
    expected = recipe.model.build(data.shape, 3, seed.child("init")).train()
    optimizer = torch.optim.SGD(
        expected.parameters(),
        1.0,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        foreach=False,
    )
    step, reports = 0, []
    for epoch in range(2):
        order, losses, hits = seed.child("order", epoch).permutation(20).tolist(), 0.0, 0
        for batch in (order[:8], order[8:16], order[16:] + order[:4]):  # 20 rows in steps of 8
            optimizer.param_groups[0]["lr"] = recipe.schedule.lr(step, 6)
            logits = expected(data.images[batch])
            loss = nn.functional.cross_entropy(logits, data.labels[batch], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += loss.item() * len(batch)
            hits += int((logits.argmax(1) == data.labels[batch]).sum())
            step += 1
        reports.append((epoch + 1, losses / 24, hits / 24))
    seen: list[Epoch] = []
    model = fit(data, recipe, key=seed, on_epoch=seen.append)
    assert not model.training
    for ours, theirs in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert [(e.number, e.total, e.lr) for e in seen] == [
        (1, 2, recipe.schedule.lr(2, 6)),
        (2, 2, recipe.schedule.lr(5, 6)),
    ]
    for epoch, (number, loss, accuracy) in zip(seen, reports, strict=True):
        assert (epoch.number, epoch.loss, epoch.accuracy) == pytest.approx((number, loss, accuracy), rel=1e-4)
    assert str(seen[1]).startswith("epoch 2/2: loss ")


def test_learns_digits() -> None:
    digits = load_digits()
    images = torch.from_numpy(digits.images * 255 / 16).round().to(torch.uint8)[:, None]
    rows = key(0).child("split").permutation(len(images))
    everything = ImageDataset(images, torch.from_numpy(digits.target), tuple("0123456789"))
    train, test = everything.take(rows[:1437]), everything.take(rows[1437:])
    recipe = Recipe(
        ResNet(8, 16, stem="small"), epochs=5, batch_size=64, schedule=OneCycle(0.02, 0.4, 0.0002), augment=None
    )
    model = fit(train, recipe, key=key(0))
    assert (predict(model, test.images) == test.labels).double().mean() >= 0.97


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_weights_do_not_depend_on_global_state_nor_change_it(dropout: float) -> None:
    recipe, data = replace(TINY, model=ResNet(8, 4, stem="small", dropout=dropout)), noise(11)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fit(data, recipe, key=key(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(first, fit(data, recipe, key=key(3)))
    assert not same(first, fit(data, recipe, key=key(4)))


def test_dropout_takes_part() -> None:
    data = noise(11)
    assert not same(
        fit(data, TINY, key=key(3)), fit(data, replace(TINY, model=replace(TINY.model, dropout=0.3)), key=key(3))
    )


@pytest.mark.parametrize("n", [0, 1, 2, 3, 9, 17])
def test_any_number_of_rows(n: int) -> None:
    data, seen = noise(n), []
    model = fit(data, TINY, key=key(0), on_epoch=seen.append)
    assert not model.training
    assert len(seen) == (2 if n else 0)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    start = TINY.model.build(data.shape, 3, key(0).child("init"))
    assert same(model, start) == (n == 0)


def test_one_pixel_one_row() -> None:
    assert fit(noise(1, (1, 1, 1)), TINY, key=key(0))(torch.zeros(1, 1, 1, 1)).isfinite().all()


class Recorder(nn.Module):
    """Learns nothing, and remembers the batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        return torch.zeros(len(images), 3) + self.weight


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(1, 8, [8]), (3, 8, [8]), (8, 8, [8]), (9, 8, [8, 8]), (17, 8, [8, 8, 8]), (3, 2, [2, 2])],
)
def test_every_step_is_of_one_size(n: int, batch_size: int, sizes: list[int]) -> None:
    model, recipe, data = Recorder(), replace(TINY, batch_size=batch_size, augment=None), noise(n)
    train_epoch(model, new_optimizer(model, recipe), data, recipe, key=key(0), epoch=0)
    assert [len(batch) for batch in model.batches] == sizes
    order = key(0).child("order", 0).permutation(n)
    wanted = order.repeat(batch_size)[: sum(sizes)]  # each row once, then again from the front
    assert torch.equal(torch.cat(model.batches), data.images[wanted])


def test_an_epoch_over_chosen_rows_augments_by_their_place_in_the_data() -> None:
    data, rows = noise(12), torch.tensor([2, 3, 5, 7, 11])
    recipe = replace(TINY, batch_size=12)  # so the five chosen rows are repeated
    some, every = Recorder(), Recorder()
    train_epoch(some, new_optimizer(some, recipe), data, recipe, key=key(0), epoch=1, rows=rows)
    train_epoch(every, new_optimizer(every, recipe), data, recipe, key=key(0), epoch=1)
    inverse = key(0).child("order", 1).permutation(12).argsort()
    expected = every.batches[0][inverse][rows]
    assert torch.equal(some.batches[0], expected[key(0).child("order", 1).permutation(5).repeat(3)[:12]])
    with pytest.raises(ArgumentError, match="rows must be 1 or more"):
        train_epoch(some, new_optimizer(some, recipe), data, recipe, key=key(0), epoch=0, rows=rows[:0])


def test_memory_mapped_and_taken_rows_give_the_same_weights(tmp_path: Path) -> None:
    data = noise(13)
    np.save(tmp_path / "images.npy", data.images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    expected = fit(data, TINY, key=key(0))
    assert same(fit(ImageDataset(mapped, data.labels, data.classes), TINY, key=key(0)), expected)

    class Job:
        def __init__(self) -> None:
            self.data, self.rows = noise(40), torch.arange(13)
            self.recipe, self.key = TINY, key(0)

    longer = Job()
    longer.data.images[:13], longer.data.labels[:13] = data.images, data.labels
    assert same(fit_job(longer), expected)


def test_momentum_follows_the_schedule() -> None:
    model = Recorder()
    recipe = replace(TINY, schedule=OneCycle(momenta=(0.85, 0.95)))
    optimizer = new_optimizer(model, recipe)
    train_epoch(model, optimizer, noise(5), recipe, key=key(0), epoch=1)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)
    train_epoch(model, optimizer, noise(5), replace(recipe, schedule=Step()), key=key(0), epoch=1)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_bfloat16_trains_float32_weights() -> None:
    model = fit(noise(6), replace(TINY, epochs=1, precision="bfloat16"), key=key(0))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not same(model, fit(noise(6), replace(TINY, epochs=1), key=key(0)))


def test_divergence_is_an_error_that_says_where() -> None:
    with pytest.raises(PoisonkitError, match=r"loss must be finite, got (nan|inf) at epoch 1, step \d of 3"):
        fit(noise(20), replace(TINY, schedule=Step(1e30)), key=key(0))


def test_divergence_at_the_last_step_is_an_error_too() -> None:
    with pytest.raises(PoisonkitError, match="weights must be finite, got inf or nan in "):
        fit(noise(5), replace(TINY, epochs=1, schedule=Step(3e38), weight_decay=100.0), key=key(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    data = noise(20)
    expected = fit(data, TINY, key=key(0))
    model = fit(data, TINY, key=key(0), device="cuda")
    for ours, theirs in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=0.05, atol=0.01)
