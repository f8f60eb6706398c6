"""GCL: Gaussian clouded logits, training for class priors with a long tail.

Mengke Li, Yiu-ming Cheung, Yang Lu, "Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment", CVPR 2022,
arXiv 2305.11733, section 3, with the settings of the authors' code.

The logit of class j is the cosine between the features and row j of the last layer, less a cloud that is the larger
the rarer the class, which leaves rare classes more room:

    z_j = s (cos_j - m [j = y] - a |ε_j| Δ_j)    Δ_j = (ln n_max - ln n_j) / (ln n_max - ln n_min)

with ε_j ~ N(0, 1/9) cut to [-1, 1]. A second stage keeps the features and trains the last layer alone on rows drawn
evenly from the classes, under the loss (1 - p_y) CE with p_y held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import normalize

from poisonkit.defenses.training.clouded import Clouded, Stage
from poisonkit.errors import require
from poisonkit.models.features import head
from poisonkit.random import Key
from poisonkit.train import Cosine, Journal, Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class GCL:
    """Train under clouded logits, then train the last layer anew on classes drawn evenly.

    scale    s of the first stage
    cloud    a, the size of the clouds of the rarest class, in both stages
    mixup    α of the mixing of images in both stages (Zhang et al., arXiv 1710.09412); 0: none
    epochs   of the second stage; 0: there is none
    rate     of its learning, from which it falls to 0
    scale_2  s of the second stage
    margin   m of the second stage; the first has none
    focus    γ of the second stage; the first has 0
    """

    source: ClassVar[str] = "Li, Cheung, Lu, CVPR 2022, arXiv 2305.11733"

    scale: float = 30.0
    cloud: float = 0.5
    mixup: float = 1.0
    epochs: int = 30
    rate: float = 0.002
    scale_2: float = 20.0
    margin: float = 0.1
    focus: float = 1.0

    def __post_init__(self) -> None:
        require(self.mixup >= 0, "mixup", "0 or more", self.mixup)
        require(self.epochs >= 0, "epochs", "0 or more", self.epochs)

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """A network whose last layer has rows of norm 1 and no bias: the classes of the cosines, as an ordinary one."""
        journal = journal or Journal()
        counts = torch.bincount(data.labels, minlength=data.num_classes)
        require(int(counts.min()) > 0, "data", "of every class", f"none of class {int(counts.argmin())}")

        def train(name: str, recipe: Recipe, model: nn.Module | None, procedure: Clouded) -> nn.Module:
            return journal.stage(name).fit(data, recipe, key=key.child(name), model=model, procedure=procedure)

        first = Clouded(Stage(self.scale, self.cloud, 0.0, 0.0, self.mixup), counts)
        model = train("clouded", recipe, model, first)
        if self.epochs:
            model.requires_grad_(False)
            head(model).weight.requires_grad_(True)
            stage = Stage(self.scale_2, self.cloud, self.margin, self.focus, self.mixup)
            again = replace(recipe, epochs=self.epochs, schedule=Cosine(self.rate))
            model = train("balanced", again, model, Clouded(stage, counts, balanced=True)).requires_grad_(True)
        last = head(model)
        with torch.no_grad():
            last.weight.copy_(normalize(last.weight))
            if last.bias is not None:
                last.bias.zero_()
        return model
