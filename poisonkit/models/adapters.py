"""Networks of other libraries as networks of this one: uint8 pixels in, logits out.

Of timm (https://github.com/huggingface/pytorch-image-models) by name; of transformers
(https://github.com/huggingface/transformers), or any other, in an :class:`Adapted`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from poisonkit.errors import MissingError, fail, require
from poisonkit.random import Key

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Adapted(nn.Module):
    """Images [N, C, H, W], uint8 or float 0..255, to the logits [N, K] of ``network``.

    network    takes normalised images; what it gives is logits, or has them as ``logits`` as transformers' networks do
    side       to which images are resized (bicubic); None: as they are
    mean, std  of pixels in [0, 1], one each channel
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        side: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        require(side is None or side >= 1, "side", "1 or more pixels, or None", side)
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std)[:, None, None], persistent=False)
        self.network, self.side = network, side

    def forward(self, images: Tensor) -> Tensor:
        x = (images.to(self.mean.dtype) - self.mean) / self.std
        if self.side:
            x = interpolate(x, (self.side, self.side), mode="bicubic", align_corners=False)
        found = self.network(x)
        logits: Tensor = getattr(found, "logits", found)
        return logits


def from_timm(name: str, num_classes: int, *, key: Key, **options: Any) -> Adapted:
    """The network ``name`` of timm with its image size and normalisation, untrained, initialised from ``key``.

    ``options`` go to ``timm.create_model``: img_size, depth, and with a connection ``pretrained=True``. Raises
    MissingError where timm does not import, ArgumentError for a name that it does not know.
    """
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision made for another torch
        remedy = "pip install timm, and a torchvision that fits this torch"
        fail("timm", "importable", error, remedy, MissingError)
    require(timm.is_model(name), "name", "one of timm.list_models()", name)
    with key.ambient():
        network = timm.create_model(name, num_classes=num_classes, **options)
    about = timm.data.resolve_model_data_config(network)
    return Adapted(network, side=options.get("img_size", about["input_size"][-1]), mean=about["mean"], std=about["std"])
