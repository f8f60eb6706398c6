"""Interleaved Ensemble Unlearning: the mathematics of its second stage, its options, and resuming."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.data.augment import Augment
from poisonkit.data.views import Views
from poisonkit.defenses.training import IEU
from poisonkit.defenses.training.gate import Gate, by_confidence, poisoned_module
from poisonkit.defenses.training.interleaved import Interleaved, UnlearningRate, dynamic_scale
from poisonkit.defenses.training.isolation import lowest, outcomes, shaped
from poisonkit.errors import ArgumentError, PoisonkitError
from poisonkit.models import ResNet, ViT, logits
from poisonkit.models.vit import VisionTransformer
from poisonkit.random import key
from poisonkit.train import Batch, Cosine, Epoch, Journal, OneCycle, Recipe, fit
from poisonkit.train.finetuning import FineTuning, fine_tune
from poisonkit.types import ImageDataset

VIT = ViT(depth=2, width=12, heads=3, patch=4)
RECIPE = Recipe(VIT, 2, 8, "adamw", Cosine(1e-2, 1e-3), weight_decay=0.01, augment=Augment(1), channels_last=False)
OWN = replace(RECIPE, epochs=2, weight_decay=0.0, augment=None)
IEU_SMALL = IEU(poisoned=OWN, threshold=0.48, views=None, decay=None)


def data(n: int = 32, classes: int = 4) -> ImageDataset:
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=key(1).generator())
    return ImageDataset(images, torch.arange(n) % classes, tuple(map(str, range(classes))))


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def start(classes: int = 4) -> VisionTransformer:
    return VIT.build((3, 8, 8), classes, key(3))


def gate(flagged: list[int], n: int = 32) -> Gate:
    marked = torch.zeros(n, dtype=torch.bool)
    marked[flagged] = True
    return Gate(~marked, marked, torch.arange(n) % 3)


def interleaved(
    flagged: list[int], *, views: Views | None = None, keep: bool = False, recipe: Recipe = RECIPE, **rate: object
) -> Interleaved:
    chosen = UnlearningRate(**rate)  # type: ignore[arg-type]
    at = gate(flagged)
    return Interleaved(recipe, data(), at, chosen, keep=keep, views=views, clip=None, decay=None, key=key(0))


def batch(rows: Tensor, step: int = 0, epoch: int = 0) -> Batch:
    own = data()
    return Batch(own.images[rows], own.labels[rows], rows, step, epoch, key(0).child("step", epoch, step))


# max(6 - exp(L/√2 - ln C), 0.2) by hand, as the paper's code has it
@pytest.mark.parametrize(
    ("classes", "at_zero", "at_chance", "floor"),
    [(10, 5.9, 5.491, 5.742), (43, 5.977, 5.668, 7.805), (200, 5.995, 5.788, 9.979)],
)
def test_dynamic_scale(classes: int, at_zero: float, at_chance: float, floor: float) -> None:
    assert dynamic_scale(0.0, classes) == pytest.approx(at_zero, abs=6e-4)
    assert dynamic_scale(math.log(classes), classes) == pytest.approx(at_chance, abs=6e-4)
    assert dynamic_scale(math.sqrt(2) * math.log(classes), classes) == pytest.approx(5)
    assert dynamic_scale(floor - 2e-3, classes) > 0.2
    assert dynamic_scale(floor + 2e-3, classes) == dynamic_scale(1e6, classes) == 0.2


def masked(model: nn.Module, views: Tensor, labels: Tensor, logits_p: Tensor, threshold: float) -> Tensor:
    """The ensemble's cross entropy as the paper writes it, rows masked by a factor."""
    p = logits_p.softmax(1)
    surest = p.max(1).values
    mask = (surest < threshold).float()[:, None]
    p = torch.where((surest > threshold)[:, None], p, torch.full_like(p, 1 / p.shape[1]))
    joint = p.log() + mask * model(views).log_softmax(1)
    return cross_entropy(joint.softmax(1).log(), labels)


def test_the_learning_gradient_is_that_of_the_masked_ensemble() -> None:
    model, own = start(), data()
    logits_p = 4 * torch.randn(32, 4, generator=key(2).generator())
    seen = {"confidence": logits_p.softmax(1).max(1).values}
    learned, flagged = by_confidence(seen["confidence"], 0.9, "neither")
    assert 0 < int(flagged.sum()) < 32
    assert torch.equal(learned, ~flagged)
    procedure = Interleaved(
        RECIPE,
        own,
        Gate(learned, flagged, logits_p.argmax(1)),
        UnlearningRate(),
        keep=False,
        views=Views(),
        clip=None,
        decay=None,
        key=key(0),
    )
    step = batch(torch.arange(32))
    loss, answers = procedure.loss(model, step)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    views = torch.cat(procedure.views_of(step.images, step.rows, 0))
    assert len(views) == 64
    theirs_loss = masked(model, views, own.labels.repeat(2), logits_p.repeat(2, 1), 0.9)
    theirs = torch.autograd.grad(theirs_loss, list(model.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-7)
    # of a masked row the ensemble's answer is the poisoned module's
    assert torch.equal(answers.argmax(1)[flagged], logits_p.argmax(1)[flagged])


def test_no_nan_where_the_reference_has_one() -> None:
    class Sure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 4)

        def forward(self, images: Tensor) -> Tensor:
            return 1e4 * self.fc(images.float().flatten(1) / 255)

    model, step = Sure(), batch(torch.arange(32))
    loss, _ = interleaved([0, 1, 2, 3]).loss(model, step)
    loss.backward()
    assert bool(loss.isfinite())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    scores = model(step.images)
    assert scores.softmax(1).log().mul(0).isnan().any(), "which multiplying by zero makes of it"


def test_a_batch_of_flagged_rows_teaches_nothing() -> None:
    model = start()
    loss, answers = interleaved(list(range(32))).loss(model, batch(torch.arange(8)))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None for p in model.parameters())
    assert answers.argmax(1).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]


class Watched(Interleaved):
    """Notes what is unlearned, and at which rate; steps of the learner are as ever."""

    def unlearn(self, model: nn.Module, rows: Tensor, step: Batch) -> None:
        self.seen.append((step.step, rows.tolist()))
        before = [p.detach().clone() for p in model.parameters()]
        super().unlearn(model, rows, step)
        assert self.optimizer is not None
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def watched(flagged: list[int], *, keep: bool = False, epochs: int = 2, **rate: object) -> Watched:
    recipe = replace(RECIPE, epochs=epochs)
    chosen = UnlearningRate(**rate)  # type: ignore[arg-type]
    procedure = Watched(
        recipe, data(), gate(flagged), chosen, keep=keep, views=None, clip=3.0, decay=(0.04, 0.1), key=key(0)
    )
    procedure.seen, procedure.rates = [], []
    fine_tune(data(), procedure, model=start())
    return procedure


def test_the_queue_gives_a_batch_at_a_time_in_order() -> None:
    procedure = watched(list(range(20)), epochs=1)  # four steps of 8 rows; 20 flagged: two batches, four left over
    assert [len(rows) for _, rows in procedure.seen] == [8, 8]
    order = key(0).child("order", 0).permutation(32)
    arrived = [int(row) for row in order if row < 20]
    assert [row for _, rows in procedure.seen for row in rows] == arrived[:16]
    assert procedure.queue.tolist() == arrived[16:]
    steps = [step for step, _ in procedure.seen]
    assert len(set(steps)) == len(steps)


def test_leftovers_are_dropped_or_kept() -> None:
    dropped, kept = (watched(list(range(20)), keep=keep) for keep in (False, True))
    assert len(dropped.seen) == 4
    assert len(kept.seen) == 5  # 40 flagged rows
    again = key(0).child("order", 1).permutation(32)
    assert dropped.seen[2][1] == [int(row) for row in again if row < 20][:8]


def test_unlearning_rates() -> None:
    def schedule(procedure: Watched) -> list[float]:
        return [RECIPE.schedule.lr(step, 8) for step, _ in procedure.seen]

    first = watched(list(range(20)))
    ratios = [rate / lr for rate, lr in zip(first.rates, schedule(first), strict=True)]
    assert ratios[0] == 1, "nothing was unlearned before"
    assert all(0.2 <= ratio < 6 and ratio != 1 for ratio in ratios[1:])
    restarted = watched(list(range(20)), restart=True)
    assert restarted.rates[2] == RECIPE.schedule.lr(restarted.seen[2][0], 8), "as at the first epoch's beginning"
    constant = watched(list(range(20)), kind="constant", constant=2.0)
    assert constant.rates == [2 * lr for lr in schedule(constant)]
    averaged = watched(list(range(20)), kind="average", memory=0.5)
    assert averaged.rates[:2] == first.rates[:2]
    assert averaged.rates[2:] != first.rates[2:]


def test_the_two_optimisers_keep_apart() -> None:
    """The learner's moments are those of learning alone, the unlearner's those of one ascent."""
    procedure = watched(list(range(8)), epochs=1)
    assert len(procedure.seen) == 1
    [state] = {float(s["step"]) for s in procedure.optimizer.state.values()}  # type: ignore[union-attr]
    assert state == 1


def test_without_flagged_rows_it_is_fine_tuning_to_the_bit() -> None:
    plain = fit(data(), RECIPE, key=key(0), model=start())
    assert same(plain, fine_tune(data(), FineTuning(RECIPE, 32, key=key(0)), model=start()))
    # rows of a batch are learned in one call, and the sum is divided afterwards: equal but for rounding
    unmasked = fine_tune(data(), interleaved([]), model=start())
    for a, b in zip(plain.parameters(), unmasked.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_clip_and_decay() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    (1000 * model(torch.ones(2, 4)).sum() + 0.1 * model.bias.sum()).backward()
    recipe = replace(RECIPE, epochs=4)
    procedure = FineTuning(recipe, 32, clip=3.0, decay=(0.04, 0.1), key=key(0))
    procedure.regularise(model, 8, 0.5)  # the middle of 16 steps
    torch.testing.assert_close(model.weight.grad.norm(), torch.tensor(3.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(model.bias.grad.norm(), torch.tensor(3.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(model.weight.detach(), weight * (1 - 0.5 * 0.07))
    assert torch.equal(model.bias, bias)
    assert procedure.recipe.weight_decay == 0


@pytest.mark.parametrize(
    ("at", "learned", "flagged"),
    [("flagged", [1, 0, 0], [0, 1, 1]), ("learned", [1, 1, 0], [0, 0, 1]), ("neither", [1, 0, 0], [0, 0, 1])],
)
def test_exactly_the_threshold(at: str, learned: list[int], flagged: list[int]) -> None:
    found = by_confidence(torch.tensor([0.9, 0.95, 0.96]), torch.tensor(0.95), at)  # type: ignore[arg-type]
    assert [each.int().tolist() for each in found] == [learned, flagged]


def test_the_gate_sees_plain_images_and_decides_once() -> None:
    journal = Journal()
    IEU_SMALL(data(), RECIPE, key=key(0), model=start(), journal=journal)
    one = IEU_SMALL.gate(data(), RECIPE, key=key(0), model=start())
    other = IEU_SMALL.gate(data(), replace(RECIPE, augment=Augment(3)), key=key(0), model=start())
    for name in ("loss", "confidence", "predicted"):
        assert torch.equal(one[name], other[name])
    assert torch.equal(journal.notes["confidence"], one["confidence"])
    assert torch.equal(journal.notes["flagged"], one["confidence"] >= 0.48)
    assert 8 <= int(journal.notes["flagged"].sum()) < 32


def test_options_of_the_gate() -> None:
    seen = {
        "loss": torch.tensor([0.3, 0.1, 0.2, 0.1]),
        "confidence": torch.tensor([0.5, 0.99, 0.96, 0.95]),
        "predicted": torch.tensor([0, 1, 2, 3]),
    }
    assert IEU().decide(seen).flagged.tolist() == [False, True, True, True]  # 0.95 in float32, too
    isolated = IEU(isolate=0.5).decide(seen)
    assert isolated.flagged.tolist() == [False, True, False, True]
    assert isolated.learned.tolist() == [True, False, True, False]
    unmasked = IEU(mask=False, threshold=0.96).decide(seen)
    assert bool(unmasked.learned.all())
    assert unmasked.flagged.tolist()[:2] == [False, True]


def test_noise_is_drawn_once_and_from_the_key() -> None:
    model = start()
    plain, noisy, again = (outcomes(model, data(), noise, key(4)) for noise in (0.0, 0.5, 0.5))
    assert torch.equal(noisy["confidence"], again["confidence"])
    drawn = torch.randn(32, 4, generator=key(4).child("noise", 0).generator())
    expected = (logits(model, data().images) + 0.5 * drawn).softmax(1).max(1).values
    torch.testing.assert_close(noisy["confidence"], expected)
    assert not torch.equal(plain["confidence"], noisy["confidence"])


def test_isolation_is_by_loss() -> None:
    assert lowest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 0.26).tolist() == [False, True, False, False]
    assert lowest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 0.0).sum() == 0
    loss = torch.tensor(0.3, requires_grad=True)
    for shape, value, slope in (("none", 0.3, 1.0), ("lga", -0.3, -1.0), ("flooding", 0.7, -1.0)):
        found = shaped(loss, shape, 0.5)  # type: ignore[arg-type]
        assert float(found.detach()) == pytest.approx(value)
        assert float(torch.autograd.grad(found, loss)[0]) == slope


def test_the_poisoned_module() -> None:
    own, deep = data(), start()
    cut = poisoned_module(OWN, 1, own, RECIPE, key(0), deep)
    assert isinstance(cut, VisionTransformer)
    assert torch.equal(cut.blocks[0].attn.qkv.weight, deep.blocks[0].attn.qkv.weight)
    assert not torch.equal(cut.head.weight, deep.head.weight)
    new = poisoned_module(OWN, 1, own, RECIPE, key(0), None)
    assert isinstance(new, VisionTransformer)
    assert len(new.blocks) == 1
    assert len(poisoned_module(OWN, None, own, RECIPE, key(0), deep).blocks) == 2  # type: ignore[arg-type]


def test_any_network_is_defended() -> None:
    recipe = replace(RECIPE, model=ResNet(8, 2, stem="small"), optimizer="sgd", schedule=OneCycle(0.01, 0.05))
    defense = replace(IEU_SMALL, threshold=0.3, decay=(0.04, 0.1), views=Views())
    first, again = (defense(data(), recipe, key=key(0)) for _ in range(2))
    assert same(first, again)


def test_a_sweep_of_thresholds_trains_the_poisoned_module_once(tmp_path: Path) -> None:
    told: list[Epoch] = []
    journal = Journal(tmp_path, told.append)
    seen = journal.once(
        "gate", lambda: IEU_SMALL.gate(data(), RECIPE, key=key(0), model=start(), journal=journal.stage("gate"))
    )
    count = len(told)
    for threshold in (0.4, 0.5):
        defense = replace(IEU_SMALL, threshold=threshold)
        swept = defense.interleave(
            data(), RECIPE, seen, key=key(0), model=start(), journal=journal.stage(str(threshold))
        )
        assert same(swept, defense(data(), RECIPE, key=key(0), model=start()))
    assert (count, len(told)) == (2, 2 + 2 * 2)


def kills(at: int) -> Iterator[Journal]:
    """A journal that stops at the ``at``-th epoch it hears of."""
    count = 0

    def on_epoch(epoch: Epoch) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt

    yield Journal(None, on_epoch)


@pytest.mark.parametrize("at", [2, 3, 4])
@pytest.mark.parametrize("views", [None, Views()])
def test_killed_and_resumed_to_the_same_bits(tmp_path: Path, at: int, views: Views | None) -> None:
    defense = replace(IEU_SMALL, views=views, keep=True, decay=(0.04, 0.1), rate=UnlearningRate("average"))
    recipe = replace(RECIPE, model=replace(VIT, drop_path=0.2), epochs=3)
    straight = defense(data(), recipe, key=key(0))
    [journal] = kills(at)
    with pytest.raises(KeyboardInterrupt):
        defense(data(), recipe, key=key(0), journal=replace(journal, directory=tmp_path))
    assert same(straight, defense(data(), recipe, key=key(0), journal=Journal(tmp_path)))


def test_divergence_is_an_error() -> None:
    wild = replace(IEU_SMALL, clip=None, rate=UnlearningRate("constant", constant=float("inf")))
    with pytest.raises(PoisonkitError, match="must be finite"):
        wild(data(), RECIPE, key=key(0), model=start())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, r"threshold must be a confidence in \(0, 1\], got 0.0"),
        ({"depth": 0}, "depth must be 1 or more, or None, got 0"),
        ({"isolate": 1.5}, "isolate must be a share"),
        ({"noise": -1.0}, "noise must be 0 or more"),
        ({"clip": 0.0}, "clip must be above 0, or None"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(IEU_SMALL, **options)
