"""What attacks do to pixels through a network's gradients. Pixels are floats 0..255 here; networks normalise them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.random import Key

Score = Callable[[Tensor], Tensor]


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in evaluation mode, its parameters without gradients; as it was afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def ascend(
    score: Score,
    images: Tensor,
    rows: Tensor,
    free: Tensor,
    put: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    rate: float,
    batch_size: int,
    key: Key,
) -> Tensor:
    """Variables that raise the mean score of images changed by them: float32 like ``free``, where it starts.

    score  float images [B, C, H, W] to [B], of a network that is frozen
    images uint8 [N, C, H, W], which may be mapped and larger than memory
    rows   int64 [n], those of which each of ``steps`` steps takes ``batch_size`` at random
    put    (float images, variables) to changed images; what the variables must obey is written into it
    rate   the step of Adam (Kingma and Ba, arXiv 1412.6980), which falls linearly to 0
    """
    free = free.clone().requires_grad_(True)
    adam = torch.optim.Adam([free], lr=rate)
    taken = key.child("images").below((len(rows),) * batch_size, torch.arange(steps)).to(rows.device)
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate * (1 - step / steps)
        loss = -score(put(images[rows[taken[step]]].float(), free)).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return free.detach()


def projected_descent(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step: float, steps: int, key: Key
) -> Tensor:
    """Images within ``eps`` pixel steps of ``images`` that ``model`` finds hard: float [N, C, H, W] in [0, 255].

    From a uniform start, ``steps`` steps of size ``step`` along the sign of the gradient of the cross entropy of
    ``labels`` (int64 [N]), each held within the bounds. Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep
    Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083, 2018, section 2.1.
    """
    clean = images.float()
    start = torch.rand(clean.shape, generator=key.generator()).to(clean.device)
    low, high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=255)
    changed = (clean + eps * (2 * start - 1)).clamp(low, high)
    with frozen(model):
        for _ in range(steps):
            changed.requires_grad_(True)
            loss = cross_entropy(model(changed), labels, reduction="sum")
            (slope,) = torch.autograd.grad(loss, changed)
            changed = (changed.detach() + step * slope.sign()).clamp(low, high)
    return changed
