"""Training of several networks of one shape in one process: every layer of all of them is one call.

Each network has its own order of rows, augmentation, dropout, learning rate and momentum, by its own
count of steps. One of fewer rows has fewer steps in an epoch; its place in the stack goes on computing
with the others, and what comes of it is thrown away. So the bits of a network are a function of its
own rows, recipe and key, and of the stack's fixed shape: how many networks, which place in it. They are
not those of :func:`poisonkit.train.fit`, where sums are taken in another order, but as near as
rounding lets them be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.errors import require
from poisonkit.models.predict import multiply_adds
from poisonkit.models.stack import StackedDropout, by_network, obstacle, stack
from poisonkit.random import Key
from poisonkit.train.loop import (
    Checkpoint,
    Epoch,
    Job,
    batches,
    check_finite,
    deterministic,
    fit_job,
    fitting,
    new_model,
)
from poisonkit.train.recipe import Recipe

#: What is called after an epoch of a stack, with the epoch of each of its networks
OnEpochs = Callable[[list[Epoch]], None]

# Multiply-adds of a network's forward step, and of a stack's. The CPU's are measured, by bench/stacked.py. CUDA's are
# not: below its bound some hundred launches of a few microseconds are longer than the arithmetic.
STACKED = {"cpu": 64_000_000, "cuda": 500_000_000}
TOTAL = {"cpu": 1_000_000_000, "cuda": 8_000_000_000}


def stack_size(recipe: Recipe, shape: tuple[int, int, int], num_classes: int, jobs: int, device: str) -> int:
    """How many of ``jobs`` networks to train together: a fixed rule of shapes, never of the data.

    Networks are stacked where a step of one of them is so little work that calling its layers costs
    more: up to ``STACKED`` multiply-adds forward. A stack holds up to ``TOTAL`` of them, which bounds its
    memory too, to about a byte each. The jobs are spread evenly over as few stacks as that needs.
    """
    kind = torch.device(device).type
    if jobs < 2 or kind not in STACKED or recipe.optimizer != "sgd":
        return 1
    model = recipe.model.build(shape, num_classes, Key(0))
    work = multiply_adds(model, shape) * recipe.batch_size
    if obstacle(model) or work > STACKED[kind]:
        return 1
    stacks = -(-jobs // (TOTAL[kind] // work))
    return -(-jobs // stacks)


def fit_stack(
    jobs: Sequence[Job], *, directory: Path | None = None, on_epochs: OnEpochs | None = None
) -> list[nn.Module]:
    """The networks of ``jobs``, of one data set and one recipe, trained together, in evaluation mode.

    ``directory`` and the errors are as for :func:`poisonkit.train.fit`, with one checkpoint for the
    stack. ``on_epochs`` is called after each epoch with what it did to each network, in the order of
    ``jobs``; learning rate, loss and accuracy of a network without rows are 0. A single job is trained
    by :func:`poisonkit.train.fit`, to its bits.
    """
    require(len(jobs) > 0, "jobs", "1 or more", 0)
    if len(jobs) == 1:
        return [fit_job(jobs[0], directory=directory, on_epoch=(lambda e: on_epochs([e])) if on_epochs else None)]
    data, recipe = jobs[0].data, jobs[0].recipe
    alike = all(job.data is data and job.recipe == recipe for job in jobs)
    require(alike, "jobs", "of one data set and one recipe", "others", "train them apart")
    require(recipe.optimizer == "sgd", "optimizer", "sgd for networks trained together", recipe.optimizer, "one by one")
    training = _Training(jobs)
    checkpoint = Checkpoint(directory, _identity(jobs)) if directory else None
    done = 0
    if checkpoint and (found := checkpoint.restore()):
        tensors, done = found
        for name, tensor in training.state.items():
            tensor.copy_(tensors[name])
    with deterministic(data.device):
        for epoch in range(done, recipe.epochs if any(map(len, training.rows)) else 0):
            reports = training.epoch(epoch)
            if on_epochs:
                on_epochs(reports)
            if checkpoint:
                checkpoint.save(training.state, epoch + 1)
    return training.networks()


def _identity(jobs: Sequence[Job]) -> dict[str, str]:
    sha = hashlib.sha256()
    for job in jobs:
        sha.update(job.data.take(job.rows).digest().encode())
    return {"recipe": repr(jobs[0].recipe), "keys": repr([job.key for job in jobs]), "data": sha.hexdigest()}


class _Training:
    """Networks in training; ``state`` is all that changes: weights, statistics, momenta, as views [k, ...]."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs, self.recipe, self.data = jobs, jobs[0].recipe, jobs[0].data
        self.device = self.data.device
        self.rows = [job.rows.to(self.device) for job in jobs]
        self.models = [new_model(self.recipe, self.data, job.key) for job in jobs]
        self.stack = stack(self.models).train()
        self.dropout = next((module for module in self.stack.modules() if isinstance(module, StackedDropout)), None)
        self.views = by_network(self.stack, self.models[0])
        # In the parameter's own memory format
        momenta = {name: torch.zeros_like(parameter) for name, parameter in self.stack.named_parameters()}
        self.momenta = {name: momentum.view_as(self.views[name]) for name, momentum in momenta.items()}
        self.state = {f"model.{name}": tensor for name, tensor in self.views.items()}
        self.state |= {f"momentum.{name}": tensor for name, tensor in self.momenta.items()}

    def epoch(self, epoch: int) -> list[Epoch]:
        """:func:`poisonkit.train.train_epoch` of every network."""
        recipe, data, count, size = self.recipe, self.data, len(self.jobs), self.recipe.batch_size
        plans = [
            batches(len(rows), size, job.key, epoch, self.device)
            for job, rows in zip(self.jobs, self.rows, strict=True)
        ]
        longest = max(map(len, plans))
        # Rows of the data, and how to augment them; a place that has finished takes row 0
        index = torch.zeros(longest, size, count, dtype=torch.int64, device=self.device)
        drawn = torch.zeros(longest, size, count, 4, dtype=torch.int64, device=self.device)
        for place, (job, rows, plan) in enumerate(zip(self.jobs, self.rows, plans, strict=True)):
            index[: len(plan), :, place] = rows[plan]
            if recipe.augment:
                mine = recipe.augment.draw(plan.flatten(), job.key.child("augment", epoch))
                drawn[: len(plan), :, place] = mine.view(*plan.shape, 4)
        losses, hits = torch.zeros(2, longest, count, device=self.device)
        for step in range(longest):
            idle = [place for place, plan in enumerate(plans) if step >= len(plan)]
            kept = [tensor[idle] for tensor in self.state.values()] if idle else []
            now = [epoch * len(plan) + step for plan in plans]
            if self.dropout:
                self.dropout.keys = [job.key.child("dropout", at) for job, at in zip(self.jobs, now, strict=True)]
            batch = index[step].flatten()
            images, labels = data.images[batch], data.labels[batch]
            if recipe.augment:
                images = recipe.augment.apply(images, drawn[step].flatten(0, 1))
            images = images.reshape(size, -1, *data.shape[1:])
            if recipe.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with fitting(size * count, self.device):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    logits = self.stack(images).view(size * count, -1)
                    each = cross_entropy(logits, labels, reduction="none", label_smoothing=recipe.label_smoothing)
                    loss = each.view(size, count).mean(0)
                self.stack.zero_grad()
                # The sum: every network has the gradient of its own mean
                loss.sum().backward()  # type: ignore[no-untyped-call]
                self._descend(now, [recipe.epochs * len(plan) for plan in plans])
            losses[step] = loss.detach()
            hits[step] = (logits.detach().argmax(1) == labels).view(size, count).float().mean(0)
            if idle:
                for tensor, before in zip(self.state.values(), kept, strict=True):
                    tensor[idle] = before
                losses[step, idle] = hits[step, idle] = 0
        self._check(losses, plans, epoch)
        return [self._report(epoch, i, losses[: len(plan), i], hits[: len(plan), i]) for i, plan in enumerate(plans)]

    @torch.no_grad()
    def _descend(self, steps: list[int], totals: list[int]) -> None:
        """A step of :func:`poisonkit.train.loop.new_optimizer`, by the learning rate and momentum of each network."""
        recipe, schedule = self.recipe, self.recipe.schedule
        rates, momenta = [], []
        for step, total in zip(steps, totals, strict=True):
            at = min(step, max(total - 1, 0)), max(total, 1)  # a finished network's are thrown away
            momentum = schedule.momentum(*at)
            rates.append(schedule.lr(*at))
            momenta.append(recipe.momentum if momentum is None else momentum)
        rate, momentum = torch.tensor([rates, momenta], device=self.device)
        for name, parameter in self.stack.named_parameters():
            assert parameter.grad is not None
            weight, speed = self.views[name], self.momenta[name]
            gradient = parameter.grad.view(weight.shape)
            each = (-1, *[1] * (weight.ndim - 1))
            if recipe.weight_decay:
                gradient = gradient.add_(weight, alpha=recipe.weight_decay)
            speed.mul_(momentum.view(each)).add_(gradient)
            direction = gradient.addcmul_(speed, momentum.view(each)) if recipe.nesterov else speed
            weight.addcmul_(direction, rate.view(each), value=-1)

    def _check(self, losses: Tensor, plans: list[Tensor], epoch: int) -> None:
        weights = {name: self.views[name] for name in self.momenta}
        if all(bool(tensor.isfinite().all()) for tensor in (losses, *weights.values())):
            return
        for place, (job, plan) in enumerate(zip(self.jobs, plans, strict=True)):
            mine = {name: weight[place] for name, weight in weights.items()}
            check_finite(mine, losses[: len(plan), place], epoch, f" of network {job.id}")

    def _report(self, epoch: int, place: int, losses: Tensor, hits: Tensor) -> Epoch:
        total, steps = self.recipe.epochs, len(losses)
        if not steps:
            return Epoch(epoch + 1, total, 0.0, 0.0, 0.0, 0)
        rate = self.recipe.schedule.lr((epoch + 1) * steps - 1, total * steps)
        return Epoch(epoch + 1, total, rate, float(losses.mean()), float(hits.mean()), len(self.rows[place]))

    def networks(self) -> list[nn.Module]:
        for place, model in enumerate(self.models):
            model.load_state_dict({name: tensor[place] for name, tensor in self.views.items()})
            model.eval()
        return self.models
