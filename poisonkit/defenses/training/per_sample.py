"""The gradient of every row of a batch, by one of two libraries: what DP-SGD clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

# images [B, C, H, W] and labels [B] to the gradients of their losses, by name [B, ...]
OfRows = Callable[[Tensor, Tensor], dict[str, Tensor]]


def by_func(model: nn.Module, smoothing: float) -> OfRows:
    """Gradients of rows by ``torch.func``."""
    free = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}

    def loss(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, values, (image[None],))
        return cross_entropy(logits, label[None], label_smoothing=smoothing)

    of_rows = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")

    def found(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # other kernels of attention are not there for gradients of rows
            return of_rows(free, images, labels)  # type: ignore[no-any-return]

    return found


def by_opacus(model: nn.Module, smoothing: float) -> OfRows:
    """Gradients of rows by the hooks of Opacus, on a copy of ``model``."""
    opacus: Any = import_module("opacus")
    # Opacus 1.6 gives zeros for convolutions where channels come last
    own: nn.Module = deepcopy(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in own.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]  # the hooks keep what would be overwritten
    hooked = opacus.GradSampleModule(own, loss_reduction="sum")

    def found(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hooked.zero_grad()
        logits = hooked(images.float().requires_grad_())  # else its first hook warns
        losses = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        losses.backward()  # type: ignore[no-untyped-call]
        return {name: vars(each)["grad_sample"] for name, each in own.named_parameters() if each.requires_grad}

    return found


PER_SAMPLE: Mapping[str, Callable[[nn.Module, float], OfRows]] = MappingProxyType(
    {"func": by_func, "opacus": by_opacus}
)
