"""What the methods that bound activations share: a network in which only bounds learn, and two ways to fit them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from poisonkit.defenses.margins import Ascent, margin, noise
from poisonkit.errors import PoisonkitError, require
from poisonkit.models import logits, predict
from poisonkit.models.clipping import ceilings, clipped, peaks
from poisonkit.models.resnet import folded
from poisonkit.perturb import frozen
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.train.checkpoints import digest
from poisonkit.types import ImageDataset

Precision = Literal["float32", "bfloat16"]
# logits [B, K] of the rows int64 [B] of the clean images, to what each row adds to the loss, [B]
Fit = Callable[[Tensor, Tensor], Tensor]
_SAVE_EVERY = 25
_BATCH = 250
_STILL = 3  # changes of the loss; the papers' rule is about one


class Bounding:
    """A copy of ``model`` with a bound on every ReLU that learns; weights are frozen, batch norms folded.

    start      where the bounds start; None for the largest activation of each channel on the clean images, which
               leaves what the network says of those as it is
    rate       of Adam
    floor      the least a bound may become; 0 is where a ReLU begins
    precision  of the arithmetic of layers; "bfloat16" is faster where the hardware has it
    method     what is fitted, for the checkpoint
    """

    def __init__(
        self,
        model: nn.Module,
        clean: ImageDataset,
        *,
        start: float | None,
        rate: float,
        floor: float | None,
        precision: Precision,
        method: object,
        key: Key,
        journal: Journal,
    ) -> None:
        require(len(clean) > 0, "clean images", "1 or more", 0)
        require(clean.num_classes > 1, "clean images", "of 2 classes or more", clean.num_classes)
        self.model, self.clean, self.floor, self.precision, self.journal = model, clean, floor, precision, journal
        plain = folded(model).requires_grad_(False)
        self.plain: nn.Module = plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        reached = peaks(self.plain, clean.images)
        first = reached if start is None else [torch.full_like(peak, start) for peak in reached]
        self.network = clipped(self.plain, first).eval()
        self.values = [bound.value for bound in ceilings(self.network)]
        self.adam = torch.optim.Adam(self.values, lr=rate)
        self.device = self.values[0].device
        self.checkpoint = journal.checkpoint(method=method, key=key, model=digest(model.state_dict()), data=clean)

    def scores(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """The logits with the bounds, or of another ``network``: float32, whatever the layers count in."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            scores: Tensor = (network or self.network)(images.to(self.device))
        return scores.float()

    def rows(self, rows: Tensor) -> Tensor:
        """The clean images of ``rows``."""
        return self.clean.images[rows.to(self.clean.device)]

    def preserve(self) -> Fit:
        """The mean squared difference to the logits of the model, which is asked once."""
        wanted = logits(self.model, self.clean.images).to(self.device)
        return lambda scores, rows: mse_loss(scores, wanted[rows.to(self.device)], reduction="none").mean(1)

    def descend(self) -> None:
        """A step of the bounds along the gradients that are summed up."""
        self.adam.step()
        self.adam.zero_grad()
        if self.floor is not None:
            for value in self.values:
                value.data.clamp_(min=self.floor)

    def resume(self, state: dict[str, Tensor]) -> int:
        """How many iterations are kept; the bounds and ``state`` are as they were after the last of them."""
        found = self.checkpoint.restore() if self.checkpoint else None
        if found is None:
            return 0
        tensors, done = found
        for name, tensor in state.items():
            state[name] = tensors[name].to(tensor.device)
        for place, value in enumerate(self.values):
            value.data.copy_(tensors[f"bound.{place}"])
            for name in ("step", "exp_avg", "exp_avg_sq"):
                if (slot := tensors.get(f"adam.{place}.{name}")) is not None:
                    self.adam.state[value][name] = slot if name == "step" else slot.to(self.device)
        return done

    def keep(self, state: dict[str, Tensor], done: int) -> None:
        """Write the place down now and then."""
        if self.checkpoint and done % _SAVE_EVERY == 0:
            bounds = {f"bound.{place}": value for place, value in enumerate(self.values)}
            slots = {
                f"adam.{place}.{name}": each
                for place, value in enumerate(self.values)
                for name, each in self.adam.state[value].items()
            }
            self.checkpoint.save({**state, **bounds, **slots}, done)

    def repaired(self) -> nn.Module:
        """The model itself, as it was, with these bounds, in evaluation mode."""
        self.journal.notes["bounds"] = torch.cat([value.detach().cpu() for value in self.values])
        return clipped(self.model, [value.detach() for value in self.values]).eval()


def alternate(
    bounding: Bounding,
    fit: Fit,
    *,
    weight: float,
    iterations: int,
    tolerance: float,
    starts: int | None,
    ascent: Ascent,
    key: Key,
    hold: float | None = None,
) -> nn.Module:
    """Minimise the mean of ``fit`` and ``weight`` times the mean margin of maximisers, which climb before every step.

    Of each class there are ``starts``, by default as many as clean images; they go on from where they were. Ends after
    ``iterations``, or where the loss has :func:`settled`. With ``hold``, every 10 iterations after
    30 the weight is raised where the bounded network still classifies that share right of what the model did, and else
    lowered. Notes the loss of each iteration.
    """
    clean, device, journal = bounding.clean, bounding.device, bounding.journal
    count = (starts or max(1, len(clean) // clean.num_classes)) if weight else 0
    pixels, classes = noise(count, clean.num_classes, clean.shape, key.child("starts"))
    classes = classes.to(device)
    state = {"pixels": pixels.to(device), "losses": torch.zeros(0), "weight": torch.tensor(weight)}
    labels = clean.labels.to(device)
    able = predict(bounding.plain, clean.images).to(device) == labels if hold else None
    for iteration in range(bounding.resume(state), iterations):
        weight, right = float(state["weight"]), 0
        if weight:
            with frozen(bounding.network):  # no gradient of the bounds, which stay as they are here
                state["pixels"] = ascent(bounding.scores, state["pixels"], classes)
        parts = []
        for some in torch.split(torch.arange(len(clean)), _BATCH):
            scores, rows = bounding.scores(bounding.rows(some)), some.to(device)
            parts.append(fit(scores, rows).sum() / len(clean))
            parts[-1].backward()  # type: ignore[no-untyped-call]
            if able is not None:
                right += int((able[rows] & (scores.argmax(1) == labels[rows])).sum())
        for images, wanted in zip(torch.split(state["pixels"], _BATCH), torch.split(classes, _BATCH), strict=True):
            if weight:
                parts.append(weight * margin(bounding.scores(255 * images.clamp(0, 1)), wanted).sum() / len(classes))
                parts[-1].backward()  # type: ignore[no-untyped-call]
        bounding.descend()
        loss = torch.stack([part.detach() for part in parts]).sum().cpu()
        _check_finite(loss)
        state["losses"] = torch.cat([state["losses"], loss[None]])
        journal.say(f"iteration {iteration + 1}/{iterations}: loss {float(loss):.4f}")
        if settled(state["losses"], tolerance):
            break
        if able is not None and hold and iteration in range(30, iterations, 10):
            state["weight"] = state["weight"] * _factor(right, int(able.sum()), hold)
        bounding.keep(state, iteration + 1)
    journal.notes["losses"] = state["losses"]
    return bounding.repaired()


def settled(losses: Tensor, tolerance: float) -> bool:
    """Whether each of the last changes was below ``tolerance``: one alone is, too, where a loss turns."""
    return len(losses) > _STILL and bool((losses[-_STILL - 1 :].diff().abs() < tolerance).all())


def by_epochs(
    bounding: Bounding,
    fit: Fit,
    penalty: Callable[[int, int], Tensor],
    *,
    weight: float,
    epochs: int,
    adjusted: Collection[int],
    key: Key,
    batch_size: int = 200,
) -> nn.Module:
    """Minimise ``fit`` and ``weight`` times ``penalty`` (of an epoch and a step) over batches, as the authors' code.

    After the epochs ``adjusted`` the weight is multiplied by 1.2 where the network with its bounds classified at least
    95 % of the epoch's clean images right, and else divided by it. Notes the weight of each epoch.
    """
    clean, journal = bounding.clean, bounding.journal
    labels = clean.labels.to(bounding.device)
    state = {"weights": torch.tensor([weight], dtype=torch.float64)}
    for epoch in range(bounding.resume(state), epochs):
        now, right = float(state["weights"][-1]), 0
        for step, some in enumerate(torch.split(key.child("epoch", epoch).permutation(len(clean)), batch_size)):
            scores = bounding.scores(bounding.rows(some))
            loss = fit(scores, some).mean() + now * penalty(epoch, step)
            _check_finite(loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            bounding.descend()
            right += int((scores.argmax(1) == labels[some.to(bounding.device)]).sum())
        factor = _factor(right, len(clean), 0.95) if epoch in adjusted else 1.0
        state["weights"] = torch.cat([state["weights"], torch.tensor([now * factor], dtype=torch.float64)])
        journal.say(f"epoch {epoch + 1}/{epochs}: {right} of {len(clean)} right, weight {now:.4g}")
        bounding.keep(state, epoch + 1)
    journal.notes["weights"] = state["weights"]
    return bounding.repaired()


def _factor(right: int, count: int, hold: float) -> float:
    """By what the weight of the margins changes."""
    return 1.2 if right >= hold * count else 1 / 1.2


def _check_finite(loss: Tensor) -> None:
    require(bool(loss.isfinite()), "loss of the bounds", "finite", float(loss), "lower the rate", PoisonkitError)
