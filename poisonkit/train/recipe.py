"""How to train: everything that decides the weights besides the rows and the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from poisonkit.data.augment import Augment
from poisonkit.errors import require
from poisonkit.models import Model, ResNet
from poisonkit.train.schedules import Cosine, OneCycle, Step


@dataclass(frozen=True)
class Recipe:
    """Gradient descent on the cross entropy. Its ``repr`` is the configuration.

    The defaults are those of Wang and Feizi (arXiv 2306.16415, section 2) where it gives them: SGD,
    20 epochs, one cycle from 0.05 up to 1.0 in 30 % of the steps and down to 0.0005. It does not
    give the batch size, the momentum, the weight decay, the augmentation or the shape of the
    anneal; those are this package's choice.

    model            the network
    batch_size       rows in every step, 2 or more; an epoch of n rows has ⌈n/batch_size⌉ steps, the last of
                     which is filled up from the front of the epoch's order
    optimizer        "sgd", or "adamw" (Loshchilov and Hutter, arXiv 1711.05101): ``momentum`` is its β₁, β₂ is 0.999
    schedule         learning rate, and if it says so momentum, by step
    weight_decay     L2 penalty on every parameter; decoupled with adamw
    augment          random crops and flips, or None
    label_smoothing  share of the target spread over all classes
    precision        "float32", or "bfloat16" for the arithmetic of layers (weights stay float32): faster
                     where the hardware has it, many times slower where it does not
    channels_last    memory layout of the network: a fifth to a third faster on the CPU
    """

    model: Model = field(default_factory=ResNet)
    epochs: int = 20
    batch_size: int = 256
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: OneCycle | Step | Cosine = field(default_factory=OneCycle)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    augment: Augment | None = field(default_factory=Augment)
    label_smoothing: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", "1 or more", self.epochs)
        require(self.batch_size >= 2, "batch_size", "2 or more: batch normalisation needs a variance", self.batch_size)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.optimizer in ("sgd", "adamw"), "optimizer", "'sgd' or 'adamw'", repr(self.optimizer))
        require(not self.nesterov or self.optimizer == "sgd", "nesterov", "False with adamw", True)
        require(not self.nesterov or self.momentum > 0, "momentum", "above 0 with nesterov", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "0 or more", self.weight_decay)
        require(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        require(self.precision in ("float32", "bfloat16"), "precision", "'float32' or 'bfloat16'", repr(self.precision))
