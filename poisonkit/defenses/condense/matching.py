"""The one loop of distribution matching: synthetic images whose mean features in random networks are those of the data.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, https://arxiv.org/abs/2110.04181,
Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poisonkit import ops
from poisonkit.data.siamese import Siamese
from poisonkit.defenses.condense.means import Calibrated, RobustMean
from poisonkit.errors import PoisonkitError, require
from poisonkit.models import Model
from poisonkit.perturb import embedded
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.train.checkpoints import digest
from poisonkit.train.loop import deterministic
from poisonkit.types import ImageDataset

# A unit of the synthetic images: what networks here divide pixels by, after taking off mid-grey. The reference divides
# by the deviation of the data set's pixels, which is 51 for CIFAR-10.
UNIT, GREY = 63.75, 127.5
CHECKPOINT, SNAPSHOTS = 50, 10  # iterations between two checkpoints; looks at the images on the way
# Images through a network at once. On a CPU more leave the cache and fault pages: 128 took 1.3 to 1.7 times as long,
# an image, at widths from 32 to 128. CUDA's is not measured: enough to fill a device, in gigabytes that it has.
TOGETHER = {"cpu": 32, "cuda": 4096}


class Step(NamedTuple):
    """What an iteration finds.

    slope    the gradient of the loss by the synthetic images, like them
    loss     a scalar
    dropped  bool [K, n], which of its rows did not count
    top      float64 [K, 2], share and gap of :func:`poisonkit.ops.top_direction` of every class, where asked for
    """

    slope: Tensor
    loss: Tensor
    dropped: Tensor
    top: Tensor


@dataclass(frozen=True, eq=False)
class Matching:
    """What is matched; the fields are those of :class:`poisonkit.defenses.condense.DM`. ``drop`` is by class."""

    data: ImageDataset
    images: int
    batch_size: int
    model: Model
    augment: Siamese | None
    mean: RobustMean
    drop: list[int]
    key: Key

    def rows(self, classes: Tensor, iteration: int) -> Tensor:
        """The real rows that an iteration sees of every class, int64 [K, n]; ``classes`` from :func:`by_class`."""
        count, most = classes.shape
        # a class's own place and the row's within it: what is drawn of one does not depend on the size of another
        places = (torch.arange(count, device=classes.device) << 40)[:, None] + torch.arange(most, device=classes.device)
        words = self.key.child("rows", iteration).words(places.flatten(), 1).view_as(classes)
        words = words.masked_fill(classes < 0, torch.iinfo(torch.int64).min)
        return classes.gather(1, words.topk(self.batch_size, 1).indices)

    def step(self, units: Tensor, rows: Tensor, iteration: int, *, look: bool = False) -> Step:
        """An iteration on ``units`` [K·images, C, H, W] and ``rows`` [K, n].

        Real images go through the network as many together as suits the device, synthetic ones in whole classes; all
        at once where they share the statistics of a batch norm.
        """
        device, count = units.device, len(rows)
        network = self.model.build(self.data.shape, self.data.num_classes, self.key.child("network", iteration))
        network = network.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
        drawn = self.augment.draw(count, self.key.child("augment", iteration)) if self.augment else torch.empty(count)
        slope, dropped = torch.empty_like(units), torch.empty_like(rows, dtype=torch.bool)
        loss, top = units.new_zeros(()), torch.zeros(count, 2, dtype=torch.float64, device=device)
        shared = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        together = rows.numel() if shared else TOGETHER[device.type]
        for group in torch.split(torch.arange(count), max(1, together // self.images)):
            mine = (group[:, None] * self.images + torch.arange(self.images)).flatten().to(device)
            with torch.no_grad():
                real = self.data.images[rows[group].flatten()].to(device).float()
                r = self._features(network, real, drawn[group], together)
                drop = [self.drop[c] for c in group.tolist()]
                mean, dropped[group] = self.mean(r, drop, key=self.key.child("mean", iteration))
                if look:
                    top[group] = torch.stack(ops.top_direction(r), 1)
            free = units[mine].requires_grad_(True)
            s = self._features(network, free * UNIT + GREY, drawn[group], len(free))
            part = (s.mean(1) - mean).square().sum()
            (slope[mine],) = torch.autograd.grad(part, free)
            loss += part.detach()
        return Step(slope, loss, dropped, top)

    def _features(self, network: nn.Module, images: Tensor, drawn: Tensor, together: int) -> Tensor:
        """[G·m, C, H, W] to [G, m, d], the images of each of G classes augmented alike."""
        if self.augment:
            images = self.augment.apply(images, drawn)
        images = images.contiguous(memory_format=torch.channels_last)
        found = torch.cat([embedded(network, part) for part in torch.split(images, together)])
        return found.view(len(drawn), -1, found.shape[1])


def by_class(data: ImageDataset) -> Tensor:
    """The rows of every class, int64 [K, of the largest], filled up with -1; ArgumentError for an empty class."""
    found = [(data.labels == label).nonzero()[:, 0] for label in range(data.num_classes)]
    empty = [name for name, rows in zip(data.classes, found, strict=True) if not len(rows)]
    require(not empty, "data", "of at least one row of every class", f"none of {', '.join(empty[:3])}")
    return nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=-1)


def random_rows(data: ImageDataset, images: int, key: Key) -> ImageDataset:
    """``images`` random rows of every class, class by class. Raises ArgumentError where a class has fewer."""
    order = key.permutation(len(data), data.device)
    found = [order[data.labels[order] == label][:images] for label in range(data.num_classes)]
    least = min(map(len, found))
    require(least == images, "images", f"at most {least}, as the smallest class has", images)
    return data.take(torch.cat(found))


def condense(
    matching: Matching, units: Tensor, *, iterations: int, learning_rate: float, momentum: float, journal: Journal
) -> Tensor:
    """``units`` [K·images, C, H, W] after so many steps, keeping its place in ``journal``, to the same bits.

    Notes loss [iterations]; drop_share [N], how often each row was left out of the times it was drawn; and for the
    calibrated mean top_share and top_gap [K], :func:`poisonkit.ops.top_direction` of the last look at the features.
    """
    data, classes = matching.data, by_class(matching.data)
    state = {
        "units": units.clone(),
        "speed": torch.zeros_like(units),
        "loss": units.new_zeros(iterations),
        "top": torch.zeros(data.num_classes, 2, dtype=torch.float64, device=units.device),
        "drawn": units.new_zeros(len(data), dtype=torch.int64),
        "dropped": units.new_zeros(len(data), dtype=torch.int64),
    }
    steps = {"iterations": iterations, "learning_rate": learning_rate, "momentum": momentum}
    place, done, calibrated = journal.stage("condense"), 0, isinstance(matching.mean, Calibrated)
    checkpoint = place.checkpoint(start=digest({"units": units}), **vars(matching), **steps)
    if checkpoint and (found := checkpoint.restore()):
        tensors, done = found
        for name, tensor in state.items():
            tensor.copy_(tensors[name])
    every = max(1, iterations // SNAPSHOTS)
    with deterministic(units.device):
        for iteration in range(done, iterations):
            now = iteration + 1
            look = now % every == 0 or now == iterations
            rows = matching.rows(classes, iteration)
            step = matching.step(state["units"], rows, iteration, look=look and calibrated)
            state["speed"].mul_(momentum).add_(step.slope)
            state["units"].sub_(state["speed"], alpha=learning_rate)
            state["loss"][iteration] = step.loss
            state["drawn"][rows] += 1
            state["dropped"][rows] += step.dropped.long()
            if look or now % CHECKPOINT == 0:
                finite, remedy = bool(state["units"].isfinite().all()), "lower the learning rate"
                require(finite, "synthetic images", "finite", f"others at iteration {now}", remedy, PoisonkitError)
            if look:
                state["top"].copy_(step.top)
                place.once(f"snapshot-{now:06d}", lambda: {"images": state["units"] * UNIT + GREY})
                journal.say(f"iteration {now}/{iterations}: loss {float(step.loss):.4g}")
            if checkpoint and (look or now % CHECKPOINT == 0):
                checkpoint.save(state, now)
    journal.notes["loss"] = state["loss"]
    journal.notes["drop_share"] = state["dropped"] / state["drawn"].clamp(min=1)
    if calibrated:
        journal.notes["top_share"], journal.notes["top_gap"] = state["top"].unbind(1)
    return state["units"]
