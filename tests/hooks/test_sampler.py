"""Methods that drop rows, in a loop of plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from poisonkit.defenses.training import EPIC, HighestLoss, RandomSubset
from poisonkit.errors import ArgumentError
from poisonkit.hooks import SubsetSampler
from poisonkit.random import key
from poisonkit.types import ImageDataset

EPOCHS = 6


def blobs(n: int = 60) -> TensorDataset:
    generator = key(5).generator()
    labels = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, 4, generator=generator) + 2 * nn.functional.one_hot(labels, 4), labels)


def network() -> nn.Sequential:
    with key(0).ambient():
        return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 3))


def sampler(data: TensorDataset, method: object = None, **options: object) -> SubsetSampler:
    method = method or EPIC(0.3, warmup=1, every=2)
    return SubsetSampler(data, method, epochs=EPOCHS, key=key(1), batch_size=7, **options)


def train(model: nn.Module, rows: SubsetSampler, epochs: range = range(EPOCHS)) -> list[int]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    for epoch in epochs:
        rows.start(epoch, model)
        model.train()
        loader = DataLoader(rows.stored, batch_size=8, sampler=rows)
        assert len(loader) == -(-len(rows) // 8)
        with key(2).child(epoch).ambient():
            for images, labels in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images), labels).backward()
                optimizer.step()
        seen.append(len(rows))
    return seen


def test_rows_go_at_the_looks_and_stay_away() -> None:
    rows = sampler(blobs())
    seen = train(network(), rows)
    assert list(rows.subset.when) == [1, 3, 5]
    assert seen == [60 - int(((rows.dropped_at >= 0) & (rows.dropped_at <= epoch)).sum()) for epoch in range(EPOCHS)]
    assert seen[0] == 60 > seen[1] == seen[2] > seen[3] == seen[4] > seen[5]
    assert set(rows) == set((rows.dropped_at < 0).nonzero()[:, 0].tolist())


def test_it_drops_what_the_method_drops_of_the_same_outputs() -> None:
    """The loop of others and ours, on one model: the same rows."""
    images = torch.randint(0, 256, (40, 1, 2, 2), dtype=torch.uint8, generator=key(3).generator())
    labels = torch.arange(40) % 3
    with key(0).ambient():
        model = nn.Sequential(nn.Flatten(), Scale(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train()
    method = EPIC(0.3, warmup=0)
    theirs = SubsetSampler(TensorDataset(images, labels), method, epochs=3, key=key(1), batch_size=9)
    theirs.start(0, model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    data = ImageDataset(images, labels, ("a", "b", "c"))
    ours = method.procedure(data, Schedule(3), key(1), lambda text: None)
    ours.rows(model, data, 0, key(1))
    assert torch.equal(theirs.dropped_at, ours.subset.dropped_at)
    assert 0 < int((theirs.dropped_at == 0).sum()) < 40


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


class Schedule:
    """As much of a recipe as a procedure asks for."""

    schedule = None

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs


def test_a_killed_loop_goes_on() -> None:
    data, whole, halves = blobs(), network(), network()
    rows = sampler(data)
    train(whole, rows)
    first, second = sampler(data), sampler(data)
    train(halves, first, range(4))
    second.load_state_dict(first.state_dict())
    assert second.start(3, halves) == 0  # an epoch that had begun: it looks no second time
    train(halves, second, range(4, EPOCHS))
    assert torch.equal(second.dropped_at, rows.dropped_at)
    assert all(map(torch.equal, whole.state_dict().values(), halves.state_dict().values()))
    with pytest.raises(ArgumentError, match=r"dropped_at must be of shape \[61\], got \[60\]"):
        sampler(blobs(61)).load_state_dict(first.state_dict())


def test_filled_epochs_have_one_length_and_every_row_left() -> None:
    rows = sampler(blobs(), RandomSubset(warmup=1, every=1, share=0.4), fill=True)
    assert train(network(), rows) == [60] * EPOCHS
    left = set((rows.dropped_at < 0).nonzero()[:, 0].tolist())
    counts = torch.bincount(torch.tensor(list(rows)), minlength=60)
    assert set(counts.nonzero()[:, 0].tolist()) == left
    spread = counts[sorted(left)]
    assert int(spread.max() - spread.min()) <= 1


def test_a_method_that_drops_all_is_told() -> None:
    with pytest.raises(
        ArgumentError, match=r"rows must be 1 or more, got 0; HighestLoss\(.*\) drops all that are left before epoch 1"
    ):
        sampler(blobs(), HighestLoss(warmup=0, threshold=0.0)).start(0, network())
