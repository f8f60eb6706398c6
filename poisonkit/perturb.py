"""What attacks do to pixels through a network's gradients. Pixels are floats 0..255 here; networks normalise them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.models.features import evaluating, watched
from poisonkit.random import Key

Score = Callable[[Tensor], Tensor]


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` in evaluation mode, its parameters without gradients; as it was afterwards."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with evaluating(model):
            yield model
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


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


def box(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The least and the greatest float pixels within ``eps`` of uint8 ``images``: whole, so rounding stays inside."""
    clean = images.float()
    return (clean - eps // 1).clamp(min=0), (clean + eps // 1).clamp(max=255)


def descend(
    loss: Callable[[Tensor, int], Tensor],
    start: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    steps: int,
    rate: Callable[[int, int], float],
    signed: bool = False,
) -> tuple[Tensor, float]:
    """Float pixels in [``low``, ``high``] that lower ``loss``, and the loss of the last step.

    loss    (pixels, step) to a scalar
    rate    (step, steps) to the step of Adam, in pixel steps, as the schedules of ``train`` give it
    signed  give Adam the sign of the gradient (Geiping et al., arXiv 2009.02276, appendix)
    """
    pixels = start.clamp(low, high).requires_grad_(True)
    adam = torch.optim.Adam([pixels])
    value = pixels.new_zeros(())
    for step in range(steps):
        adam.param_groups[0]["lr"] = rate(step, steps)
        value = loss(pixels, step)
        (slope,) = torch.autograd.grad(value, pixels)
        pixels.grad = slope.sign() if signed else slope
        adam.step()
        with torch.no_grad():
            pixels.clamp_(low, high)
    return pixels.detach(), float(value.detach())


def embedded(model: nn.Module, images: Tensor) -> Tensor:
    """What enters the last layer of ``model``, [B, d], with its gradient by the pixels."""
    with watched(model) as seen:
        model(images)
    return seen[0]


def gradient(model: nn.Module, images: Tensor, labels: Tensor, *, differentiable: bool = False) -> list[Tensor]:
    """The gradient of the mean cross entropy by every parameter that is trained; if ``differentiable``, by pixels."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(cross_entropy(model(images), labels), trained, create_graph=differentiable))


def misalignment(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """1 - cosine of two gradients, each over all parameters together: a scalar in [0, 2]."""
    product = torch.stack([(a * b).sum() for a, b in zip(one, other, strict=True)]).sum()
    squares = [torch.stack([a.square().sum() for a in each]).sum() for each in (one, other)]
    # a gradient that vanished has no direction: the clamp gives 1, and no nan
    lengths = [square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() for square in squares]
    return 1 - product / lengths[0] / lengths[1]
