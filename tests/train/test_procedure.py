"""What a method may change of the training loop, and what a killed one takes up again."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from poisonkit.data.augment import Augment
from poisonkit.errors import ArgumentError, RunError
from poisonkit.models import ResNet
from poisonkit.random import Key, key
from poisonkit.train import Batch, Epoch, Journal, OneCycle, Procedure, Recipe, fit, stack_size
from poisonkit.types import ImageDataset

RECIPE = Recipe(ResNet(8, 2, stem="small"), epochs=3, batch_size=4, schedule=OneCycle(0.01, 0.1), augment=Augment(1))


def data(n: int = 12) -> ImageDataset:
    images = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=key(1).generator())
    return ImageDataset(images, torch.arange(n) % 3, ("a", "b", "c"))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


class Half(Procedure):
    """The first rows only, and a count of the steps, which its state carries and its loss depends on."""

    def __init__(self) -> None:
        self.steps = torch.zeros(1)
        self.seen: list[Batch] = []

    def state(self) -> Mapping[str, Tensor]:
        return {"steps": self.steps}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"].clone()

    def rows(self, model: nn.Module, data: ImageDataset, epoch: int, key: Key) -> Tensor | None:
        return torch.arange(len(data) // 2) if epoch else None

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        self.steps += 1
        self.seen.append(batch)
        loss, logits = super().loss(model, batch)
        return loss * (1 + self.steps[0] / 10), logits


def test_rows_and_batches() -> None:
    half, epochs = Half(), list[Epoch]()
    fit(data(), RECIPE, key=key(0), procedure=half, on_epoch=epochs.append)
    assert [epoch.rows for epoch in epochs] == [12, 6, 6]
    assert len(half.seen) == 3 + 2 + 2
    taken = [set(torch.cat([b.rows for b in half.seen if b.epoch == epoch]).tolist()) for epoch in range(3)]
    assert taken == [set(range(12)), set(range(6)), set(range(6))]
    assert len({batch.key for batch in half.seen}) == len(half.seen)
    assert all(torch.equal(batch.labels, data().labels[batch.rows]) for batch in half.seen)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumes_with_its_state(tmp_path: Path, optimizer: str) -> None:
    recipe = replace(RECIPE, optimizer=optimizer)
    straight = fit(data(), recipe, key=key(0), procedure=Half())

    def stop(epoch: Epoch) -> None:
        if epoch.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(data(), recipe, key=key(0), procedure=Half(), directory=tmp_path, on_epoch=stop)
    assert same(straight, fit(data(), recipe, key=key(0), procedure=Half(), directory=tmp_path))


def test_another_procedure_or_start_is_refused(tmp_path: Path) -> None:
    start = RECIPE.model.build((1, 6, 6), 3, key(5))
    fit(data(), RECIPE, key=key(0), directory=tmp_path / "one")
    with pytest.raises(RunError, match="procedure"):
        fit(data(), RECIPE, key=key(0), directory=tmp_path / "one", procedure=Half())
    with pytest.raises(RunError, match="start"):
        fit(data(), RECIPE, key=key(0), directory=tmp_path / "one", model=start)


def test_a_given_network_is_trained_further_where_it_may() -> None:
    start = fit(data(), RECIPE, key=key(0))
    start.requires_grad_(False)
    start.fc.requires_grad_(True)
    before = deepcopy(start.state_dict())
    after = fit(data(), RECIPE, key=key(1), model=start)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    moved = {name for name, parameter in after.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {"fc.weight", "fc.bias"}


def test_gradients_may_be_changed() -> None:
    class Still(Procedure):
        def gradients(self, model: nn.Module, batch: Batch) -> None:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)

    recipe = replace(RECIPE, weight_decay=0.0)
    start = recipe.model.build((1, 6, 6), 3, key(0).child("init"))
    after = fit(data(), recipe, key=key(0), procedure=Still())
    for one, other in zip(start.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, other)


def test_adamw_is_torchs() -> None:
    recipe = replace(RECIPE, optimizer="adamw", augment=None, epochs=1, channels_last=False)
    expected = recipe.model.build((1, 6, 6), 3, key(0).child("init")).train()
    adam = torch.optim.AdamW(expected.parameters(), 1.0, (0.9, 0.999), weight_decay=5e-4)
    order = key(0).child("order", 0).permutation(12).view(3, 4)
    for step, rows in enumerate(order):
        adam.param_groups[0]["lr"] = recipe.schedule.lr(step, 3)
        adam.zero_grad()
        nn.functional.cross_entropy(expected(data().images[rows]), data().labels[rows]).backward()
        adam.step()
    found = fit(data(), recipe, key=key(0))
    for one, other in zip(expected.parameters(), found.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ArgumentError, match="nesterov must be False with adamw"):
        replace(recipe, nesterov=True)
    assert stack_size(recipe, (1, 6, 6), 3, 4, "cpu") == 1


def test_a_journal_keeps_what_was_computed(tmp_path: Path) -> None:
    asked: list[int] = []

    def compute() -> dict[str, Tensor]:
        asked.append(1)
        return {"x": torch.arange(3)}

    for journal, times in ((Journal(tmp_path), 1), (Journal(), 3)):
        asked.clear()
        for _ in range(3):
            assert torch.equal(journal.stage("a").once("b", compute)["x"], torch.arange(3))
        assert len(asked) == times
    assert (tmp_path / "a" / "b.safetensors").is_file()
    journal = Journal()
    journal.stage("a").notes["n"] = torch.ones(1)
    assert "n" in journal.notes
