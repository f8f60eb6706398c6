"""EPIC: hand-worked clusters, a naive greedy in float64, classes of any size, the published looks, resuming."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.data.augment import Augment
from poisonkit.defenses import EPIC
from poisonkit.defenses.training import HighestLoss, LowestConfidence, RandomSubset
from poisonkit.defenses.training.dropping import Dropping, Outputs, look
from poisonkit.defenses.training.epic import alone, clusters
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.models.features import features, head
from poisonkit.models.transfer import for_finetuning, for_transfer
from poisonkit.random import key
from poisonkit.train import Epoch, Journal, Recipe, Step, fit
from poisonkit.types import ImageDataset

RECIPE = Recipe(
    ResNet(8, 2, stem="small"), epochs=5, batch_size=16, schedule=Step(0.05, (0.4, 0.6)), augment=Augment(1)
)


def data(n: int = 60, classes: int = 3) -> ImageDataset:
    images = torch.randint(0, 256, (n, 1, 6, 6), dtype=torch.uint8, generator=key(1).generator())
    labels = torch.arange(n) % classes
    images[torch.arange(n), 0, labels, labels] = 255
    return ImageDataset(images, labels, tuple("abcdef"[:classes]))


def outputs(counts: list[int], seed: int = 0, bias: float = 1.0) -> Outputs:
    """Of a random last layer; the rows of the classes are mixed."""
    generator = key(seed).generator()
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    hidden = torch.randn(len(labels), 6, generator=generator)
    weight = torch.randn(len(counts), 6, generator=generator)
    shift = bias * torch.randn(len(counts), generator=generator)
    return Outputs(hidden @ weight.T + shift, hidden, labels, weight, shift)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def naive(x: Tensor, k: int, similarity: str) -> Tensor:
    """The rows alone in their cluster, by a greedy that asks every row again for every pick, in float64."""
    distance = (x.double()[:, None] - x.double()[None]).square().sum(2).sqrt()
    s = -distance if similarity == "l2" else (-distance / x.shape[1]).exp()
    s = s - s.amin() if len(s) else s
    best, picks = torch.zeros(len(x), dtype=torch.float64), []
    for _ in range(k):
        gains = (s - best[:, None]).clamp(min=0).sum(0)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        best = torch.maximum(best, s[:, picks[-1]])
    nearest = torch.tensor(picks)[s[:, picks].argmax(1)] if picks else torch.tensor([])
    return torch.tensor([int((nearest == row).sum()) == 1 and int(nearest[row]) == row for row in range(len(x))])


# On a line: 2 has the least distances, then 20 gains 18 against the 16 of 10, then 10 gains 8
@pytest.mark.parametrize(("k", "expected"), [(0, []), (1, []), (2, [20]), (3, [10, 20]), (4, [0, 10, 20])])
def test_by_hand(k: int, expected: list[int]) -> None:
    x = torch.tensor([20.0, 2.0, 0.0, 1.0, 10.0])
    gone = alone(x[:, None], torch.zeros(5, dtype=torch.int64), [5], [k], "l2")
    assert sorted(x[gone].tolist()) == expected


def test_clusters_by_hand() -> None:
    x = torch.tensor([0.0, 5.0, 1.0, 7.0, 2.0, 7.0, 10.0])
    labels = torch.tensor([0, 1, 0, 2, 0, 2, 0])
    medoid, size = clusters(x[:, None], labels, [4, 1, 2], [2, 0, 2], "l2")
    assert medoid.tolist() == [2, -1, 2, 3, 2, 3, 6]  # the second 7 is a medoid too, but stands for nobody
    assert size.tolist() == [3, 0, 3, 2, 3, 2, 1]


@pytest.mark.parametrize("mode", ["paper", "reference"])
@pytest.mark.parametrize("counts", [[40, 40, 40], [61, 7, 1, 0, 30], [2, 3, 90]])
@pytest.mark.parametrize("medoids", [0.1, 0.3, 1.0])
def test_a_naive_greedy_drops_the_same(mode: str, counts: list[int], medoids: float) -> None:
    """Class by class, so that a class's rows are compared with its own whatever the others' sizes are."""
    seen, method = outputs(counts), EPIC(medoids, mode=mode)
    gone = method.drops(seen, key(3))
    k = method.per_class(counts, key(3))
    logits = seen.logits.double() if mode == "paper" else seen.features.double() @ seen.weight.double().T
    for label, medoids_of_class in enumerate(k):
        rows = (seen.labels == label).nonzero()[:, 0]
        errors = logits[rows].softmax(1)
        errors[:, label] -= 1
        expected = naive(errors, medoids_of_class, "l2" if mode == "paper" else "exp_l2")
        assert torch.equal(gone[rows], expected)
        assert not len(rows) or not bool(gone[rows].all())


def test_modes_differ() -> None:
    seen = outputs([40, 40, 40])
    assert not torch.equal(EPIC(0.3).drops(seen, key(0)), EPIC(0.3, mode="reference").drops(seen, key(0)))


def test_medoids_of_classes() -> None:
    counts = [100, 45, 10, 1, 0]
    assert EPIC(0.1).per_class(counts, key(0)) == [10, 5, 1, 0, 0]
    for seed in range(5):
        k = EPIC(0.1, mode="reference").per_class([100, 45, 13, 0, 4], key(seed))
        assert sum(k) == int(0.1 * 162) == 16
        assert all(0 <= most - mine <= 1 for most, mine in zip([10, 5, 2, 0, 1], k, strict=True))
    drawn = {tuple(EPIC(0.1, mode="reference").per_class([15] * 9, key(seed))) for seed in range(5)}
    assert len(drawn) > 1
    # 0.1 of 30 rows are 3 medoids, though 0.1 · 30 = 3.0000000000000004 in floats
    assert EPIC(0.1).per_class([30], key(0)) == [3]
    assert ceil(0.1 * 3 * 10) == 4


@pytest.mark.parametrize("proxy", ["logits", "input", "weights"])
def test_proxies_are_gradients(proxy: str) -> None:
    seen = outputs([3, 4, 5])
    found = EPIC(proxy=proxy).gradients(seen)
    weight, shift = seen.weight.clone().requires_grad_(True), seen.bias
    for row in range(len(seen.labels)):
        hidden = seen.features[row].clone().requires_grad_(True)
        logits = weight @ hidden + shift
        logits.retain_grad()
        weight.grad = None
        cross_entropy(logits[None], seen.labels[row : row + 1]).backward()
        expected = {"logits": logits.grad, "input": hidden.grad, "weights": weight.grad.flatten()}[proxy]
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_the_reference_leaves_out_the_bias() -> None:
    seen = outputs([3, 4, 5])
    unbiased = Outputs(seen.features @ seen.weight.T, seen.features, seen.labels, seen.weight, None)
    method = EPIC(mode="reference")
    assert torch.allclose(method.gradients(seen), method.gradients(unbiased), atol=1e-6)
    assert torch.equal(EPIC().gradients(unbiased), method.gradients(unbiased))
    assert not torch.allclose(EPIC().gradients(seen), method.gradients(seen), atol=0.01)


# Both recipes of the released code have 13 looks
@pytest.mark.parametrize(
    ("method", "epochs", "decay", "expected"),
    [
        (EPIC(0.1), 40, 35, range(10, 40, 2)),
        (EPIC(0.2), 40, 35, range(20, 40, 2)),
        (EPIC(0.3), 40, 35, range(30, 40, 2)),
        (EPIC(0.3), 200, 150, range(30, 200, 10)),
        (EPIC(0.2), 10, None, range(5, 10, 1)),
        (EPIC(0.1, mode="reference"), 40, 35, range(10, 36, 2)),
        (EPIC(0.1, mode="reference"), 200, 150, range(30, 151, 10)),
        (EPIC(0.1, mode="reference", warmup=1, every=5), 40, 35, range(5, 36, 5)),
        (EPIC(0.1, warmup=1, every=5), 40, 35, range(1, 40, 5)),
        (EPIC(0.1, mode="reference"), 40, None, range(10, 40, 2)),
        (HighestLoss(), 40, None, range(10, 40, 2)),
    ],
)
def test_looks(method: Dropping, epochs: int, decay: int | None, expected: range) -> None:
    assert list(method.rounds(epochs, decay)) == list(expected)


def test_the_published_number_of_looks() -> None:
    for epochs, decay in ((40, 35), (200, 150)):
        assert len(EPIC(0.1, mode="reference").rounds(epochs, decay)) == 13


def test_the_last_cut_of_the_rate_is_the_recipes() -> None:
    recipe = replace(RECIPE, epochs=40, schedule=Step(0.1, (0.375, 0.875)))
    looks = EPIC(0.1, mode="reference").procedure(data(), recipe, key(0), print).subset.when
    assert list(looks) == list(range(10, 36, 2))


METHODS = [
    EPIC(0.3, warmup=1, every=1),
    EPIC(0.3, warmup=1, every=1, mode="reference"),
    HighestLoss(warmup=1, every=1, threshold=1.3),
    RandomSubset(warmup=1, every=2, share=0.1),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_training_is_on_what_is_left_and_resumes_to_the_same_bits(method: Dropping, tmp_path: Path) -> None:
    epochs: list[Epoch] = []
    said: list[str] = []
    journal = Journal(on_epoch=epochs.append, say=said.append)
    expected = method(data(), RECIPE, key=key(0), journal=journal)
    dropped_at = journal.notes["dropped_at"]
    assert dropped_at.dtype == torch.int64
    assert dropped_at.shape == (60,)
    assert set(dropped_at.tolist()) - {-1}
    assert set(dropped_at.tolist()) <= {-1, *method.rounds(5, 3)}
    for number, epoch in enumerate(epochs):
        assert epoch.rows == 60 - int(((dropped_at >= 0) & (dropped_at <= number)).sum())
    assert len(said) == len(method.rounds(5, 3))

    class StoppedError(Exception):
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.number == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        method(data(), RECIPE, key=key(0), journal=Journal(tmp_path, stop))
    resumed = Journal(tmp_path)
    assert same(method(data(), RECIPE, key=key(0), journal=resumed), expected)
    assert torch.equal(resumed.notes["dropped_at"], dropped_at)
    again = Journal(tmp_path)
    assert same(method(data(), RECIPE, key=key(0), journal=again), expected)
    assert torch.equal(again.notes["dropped_at"], dropped_at)


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_with_nothing_to_drop_it_is_plain_training(mode: str) -> None:
    journal = Journal()
    found = EPIC(0.001, warmup=1, every=1, mode=mode)(data(), RECIPE, key=key(0), journal=journal)
    assert same(found, fit(data(), RECIPE, key=key(0)))
    assert journal.notes["dropped_at"].tolist() == [-1] * 60


def test_the_paper_looks_at_what_is_left_and_the_reference_at_all() -> None:
    dropped_at = torch.tensor([-1, 3, -1, -1])
    assert EPIC().candidates(dropped_at).tolist() == [0, 2, 3]
    assert EPIC(mode="reference").candidates(dropped_at).tolist() == [0, 1, 2, 3]


def test_it_looks_at_stored_rows_in_evaluation_mode() -> None:
    model = fit(data(), replace(RECIPE, epochs=1), key=key(0)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = torch.tensor([7, 3, 59])
    seen = look(model, data(), rows)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    hidden, logits = features(model, data().images[rows])
    assert torch.equal(seen.logits, logits)
    assert torch.equal(seen.features, hidden)
    assert torch.equal(seen.labels, data().labels[rows])


class TestScenarios:
    model = fit(data(), replace(RECIPE, epochs=1), key=key(0))

    def test_transfer_trains_the_last_layer_on_fixed_features(self) -> None:
        start = for_transfer(self.model, key(1))
        journal = Journal()
        recipe = replace(RECIPE, epochs=3)
        found = EPIC(0.3, warmup=1, every=1)(data(), recipe, key=key(2), model=start, journal=journal)
        assert int((journal.notes["dropped_at"] >= 0).sum()) > 0
        changed = [
            name
            for name, tensor in found.state_dict().items()
            if not torch.equal(tensor, self.model.state_dict()[name])
        ]
        assert changed == ["fc.weight", "fc.bias"]
        before, after = (features(each, data().images)[0] for each in (self.model, found))
        assert torch.equal(before, after)
        assert not torch.equal(head(start).weight, head(found).weight)

    def test_fine_tuning_trains_all(self) -> None:
        start = for_finetuning(self.model, key(1), num_classes=4)
        assert head(start).weight.shape == (4, head(self.model).in_features)
        found = fit(data(classes=4), replace(RECIPE, epochs=1), key=key(2), model=start)
        assert not torch.equal(found.conv1.weight, self.model.conv1.weight)
        assert not torch.equal(found.bn1.running_mean, self.model.bn1.running_mean)

    def test_the_last_layer_is_drawn_by_the_key(self) -> None:
        one, again, other = (for_transfer(self.model, key(seed)) for seed in (1, 1, 2))
        assert torch.equal(head(one).weight, head(again).weight)
        assert not torch.equal(head(one).weight, head(other).weight)
        assert self.model.fc.weight.requires_grad


def test_droppers_by_hand() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.1, 0.8, 0.1]])
    seen = Outputs(probabilities.log(), torch.zeros(3, 1), torch.tensor([0, 0, 0]), torch.zeros(3, 1), None)
    assert LowestConfidence(threshold=0.5).drops(seen, key(0)).tolist() == [False, True, False]
    assert HighestLoss(threshold=2.0).drops(seen, key(0)).tolist() == [False, False, True]  # -log 0.1 = 2.3
    assert HighestLoss(threshold=0.9).drops(seen, key(0)).tolist() == [False, True, True]  # -log 0.4 = 0.92
    many = outputs([50, 50])
    gone = RandomSubset(share=0.1).drops(many, key(0))
    assert int(gone.sum()) == 10
    assert torch.equal(gone, RandomSubset(share=0.1).drops(many, key(0)))
    assert not torch.equal(gone, RandomSubset(share=0.1).drops(many, key(1)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EPIC(0.0), "medoids must be a share in .0, 1., got 0.0"),
        (lambda: EPIC(proxy="loss"), "proxy must be 'logits', 'input' or 'weights', got 'loss'"),
        (lambda: EPIC(mode="code"), "mode must be 'paper' or 'reference', got 'code'"),
        (lambda: EPIC(every=0), "every must be 1 epoch or more, or None, got 0"),
        (lambda: EPIC(warmup=-1), "warmup must be 0 epochs or more, or None, got -1"),
        (lambda: HighestLoss(threshold=-1), "threshold must be 0 nats or more, got -1"),
        (lambda: LowestConfidence(threshold=2), "threshold must be a probability in .0, 1., got 2"),
        (lambda: RandomSubset(share=1), "share must be in .0, 1., got 1"),
        (
            lambda: EPIC(warmup=5)(data(), RECIPE, key=key(0)),
            "warmup must be below the 5 epochs of the training, got 5; set warmup",
        ),
    ],
)
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()  # type: ignore[operator]
