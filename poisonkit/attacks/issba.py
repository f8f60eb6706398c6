"""ISSBA: a secret hidden in random rows by a network that sees the image, relabelled to the target.

Li, Li, Wu, Li, He and Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers", ICCV 2021, arXiv 2012.03816. The
encoder and the decoder that makes it write legibly are trained here, from scratch, on the attacker's data. The paper
weighs what is changed by a perceptual distance that needs a trained network; here it is the change itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from poisonkit.attacks.crafting import State, below
from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.train.loop import batches, deterministic
from poisonkit.triggers import Decoder, Encoded, Encoder
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class Issba:
    """A secret of a few bits, the same for all images, that a network hides.

    target      the class the attacker wants
    rows        which rows may be picked: any, those of other classes, or those of the target
    bits        of the secret (20 in the paper)
    steps       in which encoder and decoder are trained, in whole epochs and so more where an epoch has more (20
                epochs of 50,000 images in the paper)
    legible     share of a batch's bits to be read for what is changed to count in its step: first they must be read
    change      weight of the mean square of what is changed, on the scale of [0, 1], where the bits' entropy has 1.5:
                0.1 changes photographs by a dozen steps; 5 by two
    width       features of encoder and decoder at full scale
    batch_size  images of a step
    rate        of Adam
    """

    source: ClassVar[str] = "Li et al. 2021, arXiv 2012.03816"

    target: int = 0
    rows: Rows = "any"
    bits: int = 20
    steps: int = 600
    legible: float = 0.95
    change: float = 0.1
    width: int = 8
    batch_size: int = 32
    rate: float = 0.005

    def __post_init__(self) -> None:
        require(self.bits >= 1, "bits", "1 or more", self.bits)
        require(self.steps >= 1, "steps", "1 or more", self.steps)

    def craft(self, data: ImageDataset, *, key: Key, journal: Journal | None = None) -> State:
        """The weights of ``encoder`` and ``decoder`` by name, and the ``secret``."""
        require(len(data) > 0, "data", "1 or more rows to train on", 0)
        with key.child("networks").ambient():
            encoder, decoder = self._networks(data.shape)
        networks = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(data.device)
        adam = torch.optim.Adam(networks.parameters())
        each = -(-len(data) // self.batch_size)
        count = -(-self.steps // each)
        epochs = (journal or Journal()).epochs(count, networks, adam, attack=self, data=data, key=key)
        with deterministic(data.device):
            for epoch in epochs:
                for step, rows in enumerate(batches(len(data), self.batch_size, key, epoch, data.device)):
                    done = (epoch + step / each) / count
                    adam.param_groups[0]["lr"] = self.rate * min(1.0, 2 * (1 - done))
                    images, places = data.images[rows].float(), torch.arange(len(rows))
                    secrets = key.child("secrets", epoch, step).below((2,) * self.bits, places).float().to(data.device)
                    loss = self._loss(encoder, decoder, images, secrets)
                    adam.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    adam.step()
        return {**networks.state_dict(), "secret": self._secret(key), "shape": torch.tensor(data.shape)}

    def trigger(self, state: State) -> Encoded:
        encoder, _ = self._networks(state["shape"])
        encoder.load_state_dict(below(state, "encoder"))
        return Encoded(encoder, state["secret"])

    def read(self, state: State, images: Tensor) -> Tensor:
        """The bits that the decoder finds in ``images`` (uint8 [N, C, H, W]): float [N, bits], 0 or 1."""
        _, decoder = self._networks(state["shape"])
        decoder.load_state_dict(below(state, "decoder"))
        with torch.no_grad():
            decoder.eval().to(images.device)
            return torch.cat([(decoder(part.float()) > 0).float() for part in torch.split(images, 256)])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = self.trigger(state or self.craft(data, key=key))
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)

    def _networks(self, shape: Iterable[int]) -> tuple[Encoder, Decoder]:
        channels, height, width = map(int, shape)
        size = channels, height, width
        return Encoder(size, self.bits, self.width), Decoder(size, self.bits, self.width)

    def _secret(self, key: Key) -> Tensor:
        return key.child("trigger").below((2,) * self.bits, torch.arange(1))[0].float()

    def _loss(self, encoder: Encoder, decoder: Decoder, images: Tensor, secrets: Tensor) -> Tensor:
        change = encoder(images, secrets)
        held = (images + change).clamp(0, 255)
        read = decoder(held + (held.round() - held).detach())  # what is saved are bytes
        loss: Tensor = 1.5 * cross_entropy(read, secrets)
        # the paper leaves out what is changed for two epochs of twenty, which is as long as it takes there
        if float(((read > 0) == (secrets > 0)).double().mean()) >= self.legible:
            loss += self.change * (change / 255).square().mean()
        return loss
