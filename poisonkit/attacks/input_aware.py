"""Input-aware backdoor: each image has a patch of its own, and the patch of another image does nothing.

Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, arXiv 2010.08138. In the paper the attacker trains
the victim; here the networks that draw the patches are trained with a surrogate, frozen, and only poison data: stamped
rows with the target's label, and rows with the patch of another image, which keep their own. The budget pays for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.attacks.crafting import PLAIN_SURROGATE, State, below, weights_of
from poisonkit.attacks.poisoning import Rows, choose
from poisonkit.errors import require
from poisonkit.models.unet import UNet
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe
from poisonkit.train.checkpoints import digest
from poisonkit.train.loop import batches, deterministic, load_optimizer, optimizer_state
from poisonkit.triggers.generated import Generated, centred, colours, patched, shown
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison


@dataclass(frozen=True)
class InputAware:
    """A patch that networks draw for each image.

    target       the class the attacker wants
    rows         which rows may be picked: any, those of other classes, or those of the target
    cross        rows with the patch of another image and their own label, for each stamped row
    share        of a batch that carries its own patch while the networks are trained; as many carry another's
    density      share of the image that a mask may cover before it is penalised
    diversity    weight of the penalty on patches that are more alike than their images
    mask_epochs  in which the masks are trained, before colours and surrogate (25 in the paper)
    width        features of the networks that draw, at full scale (32 in the paper)
    rate         of Adam, for the networks that draw
    surrogate    how the attacker's own network is trained
    """

    source: ClassVar[str] = "Nguyen and Tran 2020, arXiv 2010.08138"

    target: int = 0
    rows: Rows = "any"
    cross: int = 1
    share: float = 0.1
    density: float = 0.032
    diversity: float = 1.0
    mask_epochs: int = 1
    width: int = 8
    rate: float = 0.01
    surrogate: Recipe = field(default_factory=lambda: replace(PLAIN_SURROGATE, epochs=8))

    def __post_init__(self) -> None:
        require(self.cross >= 0, "cross", "0 or more rows", self.cross)
        require(0 < self.share <= 1 / 3, "share", "above 0, and at most a third", self.share)

    def craft(self, data: ImageDataset, *, key: Key, journal: Journal | None = None) -> State:
        """The weights of ``pattern``, ``mask`` and ``surrogate``, by name."""
        journal, channels = journal or Journal(), data.shape[0]
        with key.child("networks").ambient():
            pattern, mask = (UNet(channels, out, self.width).to(data.device) for out in (channels, 1))
        with deterministic(data.device):
            self._train_mask(mask, data, key.child("mask"), journal.stage("mask"))
        joint = _Joint(self, pattern, mask.eval().requires_grad_(False))
        model = journal.stage("joint").fit(data, self.surrogate, key=key.child("surrogate"), procedure=joint)
        return weights_of({"pattern": pattern, "mask": mask, "surrogate": model})

    def trigger(self, state: State) -> Generated:
        drawn = {name: below(state, name) for name in ("pattern", "mask")}
        out, width = drawn["pattern"]["last.weight"].shape[:2]
        networks = {name: UNet(out, len(weights["last.bias"]), width) for name, weights in drawn.items()}
        for name, network in networks.items():
            network.load_state_dict(drawn[name])
        return Generated(networks["pattern"], networks["mask"])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Change as many rows as ``budget`` allows, in groups of one stamped and ``cross`` with its patch."""
        trigger = self.trigger(state or self.craft(data, key=key))
        goal = Backdoor(trigger, self.target)
        chosen = choose(data, self.target, budget, key, self.rows)
        count = len(chosen) // (1 + self.cross)
        stamped, crossed = chosen[:count], chosen[count : count * (1 + self.cross)]
        donors = data.images[stamped.repeat(self.cross)]
        images = [trigger(data.images[stamped]), trigger.crossed(data.images[crossed], donors)]
        labels = [goal.wanted(data.labels[stamped]), data.labels[crossed]]
        return Poison(torch.cat([stamped, crossed]), torch.cat(images), torch.cat(labels), goal, budget)

    def _train_mask(self, mask: nn.Module, data: ImageDataset, key: Key, journal: Journal) -> None:
        """Masks that are small, and differ where images do."""
        adam = _adam(mask, self.rate)
        for epoch in journal.epochs(self.mask_epochs, mask, adam, attack=self, data=data, key=key):
            for rows in batches(len(data), self.surrogate.batch_size, key, epoch, data.device):
                seen = centred(data.images[rows])
                drawn = shown(mask, seen)
                loss = 100 * (drawn - self.density).relu().mean() + self.diversity * _likeness(seen, drawn)
                adam.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                adam.step()


class _Joint(Procedure):
    """Surrogate and colours together: an image's own patch means the target, another's nothing."""

    def __init__(self, attack: InputAware, pattern: nn.Module, mask: nn.Module) -> None:
        self.attack, self.pattern, self.mask = attack, pattern, mask
        self.adam = _adam(pattern, attack.rate)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.attack!r}, {digest(self.mask.state_dict())})"

    def state(self) -> Mapping[str, Tensor]:
        remembered = {f"adam.{name}": tensor for name, tensor in optimizer_state(self.adam, self.pattern).items()}
        return {**weights_of({"pattern": self.pattern}), **remembered}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.pattern.load_state_dict(below(state, "pattern"))
        load_optimizer(self.adam, self.pattern, below(state, "adam"))

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        n = max(1, int(self.attack.share * len(batch.images)))
        # the first n carry their own patch, the next n that of the n after them
        seen = centred(batch.images[: 3 * n])
        drawn, where = colours(self.pattern, seen), shown(self.mask, seen)
        images, labels = batch.images.float(), batch.labels.clone()
        marked = [patched(images[: 2 * n], *(torch.cat([each[:n], each[2 * n :]]) for each in (drawn, where)))]
        labels[:n] = self.attack.target
        logits = model(torch.cat([*marked, images[2 * n :]]))
        loss = cross_entropy(logits, labels, label_smoothing=batch.smoothing)
        return loss + self.attack.diversity * _likeness(seen, drawn / 255), logits

    def gradients(self, model: nn.Module, batch: Batch) -> None:
        self.adam.step()
        self.adam.zero_grad()


def _adam(network: nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=rate, betas=(0.5, 0.9))


def _likeness(images: Tensor, drawn: Tensor) -> Tensor:
    """How much less what is drawn for neighbours in a batch differs than they do, which is to be small (section 3)."""
    apart, drawn_apart = ((x - x.roll(1, 0)).square().mean((1, 2, 3)).sqrt() for x in (images, drawn))
    return (apart / (drawn_apart + 1e-7)).mean()
