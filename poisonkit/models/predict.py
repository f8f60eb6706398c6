"""What a classifier says about images, batch by batch, without gradients and without changing the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from poisonkit.errors import out_of_memory, require
from poisonkit.models.resnet import fold_into, folded

# Bytes of outputs in a chunk: 268 images for k = 250 models and K = 1000 classes
_CHUNK = 1 << 28
# Multiply-adds from which on the milliseconds of folding do not count
FOLDED = 200_000_000


class Predictor(Protocol):
    """Anything that votes or decides without being one network, such as an ensemble."""

    def predict(self, images: Tensor) -> Tensor: ...


#: What can be asked for classes: a network, or whatever predicts
Classifier = nn.Module | Predictor


def logits(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """The outputs of ``model`` in evaluation mode: uint8 [M, C, H, W] -> float32 [M, K].

    Batches go to the model's device, results return to the images'. One that does not fit in memory is halved, and so
    are those after it, by which the last bits may differ. Every module is left in the mode it was in.
    """
    return _map(model, images, batch_size, Tensor.float)


def predict(model: Classifier, images: Tensor, batch_size: int = 512) -> Tensor:
    """The class of the largest logit, ties to the smaller index: uint8 [M, C, H, W] -> int64 [M]."""
    if isinstance(model, nn.Module):
        return _map(model, images, batch_size, lambda scores: scores.argmax(1))
    return model.predict(images)


def top(model: nn.Module, images: Tensor, n: int = 1, batch_size: int = 512) -> Tensor:
    """The n classes of the largest logits, best first, ties to the smaller index: -> int64 [M, n]."""

    def best(scores: Tensor) -> Tensor:
        require(1 <= n <= scores.shape[1], "n", f"in [1, {scores.shape[1]}], the number of classes", n)
        if n == 1:
            return scores.argmax(1, keepdim=True)
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :n]

    return _map(model, images, batch_size, best)


def check_weights(model: nn.Module, name: str) -> None:
    """Raise ArgumentError where a weight of ``model``, called ``name``, is not finite: it would answer nonsense."""
    for weight, values in model.named_parameters():
        finite = bool(values.isfinite().all())
        require(finite, name, "a network of finite weights", f"inf or nan in {weight}", "train it again")


def multiply_adds(model: nn.Module, shape: Sequence[int]) -> int:
    """Those of one image [C, H, W] through the convolutions and linear layers of ``model``."""
    total = 0

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        total += out[0].numel() * layer.get_parameter("weight")[0].numel()

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        logits(model, torch.zeros(1, *shape, dtype=torch.uint8, device=next(model.parameters(), torch.empty(0)).device))
    finally:
        for hook in hooks:
            hook.remove()
    return total


@torch.no_grad()
def ensemble_logits(
    models: Sequence[nn.Module], images: Tensor, batch_size: int = 512, *, compiled: bool = False
) -> Iterator[Tensor]:
    """The outputs of every model in evaluation mode, chunk by chunk: uint8 [M, C, H, W] -> float32 [k, m, K] each.

    A chunk is as many images as make 256 MiB of outputs; the models take it one after the other and are
    left as they are. Where they are of one architecture and one has ``FOLDED`` multiply-adds or more to
    do on a chunk, by shapes alone, a copy takes the weights of each in turn, its batch norms folded and
    its channels last. With ``compiled`` that copy is a graph, which torch.compile takes 20 to 90 s to
    make on a CPU: for long runs.

    Raises ArgumentError where ``compiled`` is asked of networks of several architectures.
    """
    require(batch_size >= 1, "batch_size", "1 or more", batch_size)
    classes = logits(models[0], images[:0]).shape[1]
    rows = max(1, _CHUNK // (4 * len(models) * classes))
    batch_size = min(batch_size, rows)
    rows -= rows % batch_size
    work = multiply_adds(models[0], images.shape[1:]) * min(rows, len(images))
    alike = len({repr(model) for model in models}) == 1
    require(alike or not compiled, "models", "all of one architecture to share a graph", "others")
    fold = compiled or (alike and work >= FOLDED)
    networks: Iterable[nn.Module] = _Folded(models, compiled) if fold else models
    for chunk in torch.split(images, rows):
        # Whole batches for the compiled graph, which is made for one shape
        padding = chunk.new_zeros(-len(chunk) % batch_size if compiled else 0, *chunk.shape[1:])
        batch = torch.cat([chunk, padding]) if len(padding) else chunk
        out = chunk.new_empty(len(models), len(chunk), classes, dtype=torch.float32)
        for scores, network in zip(out, networks, strict=True):
            scores.copy_(logits(network, batch, batch_size)[: len(chunk)])
        yield out


class _Folded:
    """``models`` one after the other, in one copy with folded batch norms; compiled, in one graph."""

    def __init__(self, models: Sequence[nn.Module], compiled: bool) -> None:
        self.models = models
        self.copy = folded(models[0]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = cast(nn.Module, torch.compile(self.copy, dynamic=False)) if compiled else self.copy

    def __iter__(self) -> Iterator[nn.Module]:
        for model in self.models:
            fold_into(self.copy, model)
            yield self.network


@torch.no_grad()
def _map(model: nn.Module, images: Tensor, batch_size: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    require(batch_size >= 1, "batch_size", "1 or more", batch_size)
    first = next(model.parameters(), images)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        parts: list[Tensor] = []
        done = 0
        while done < len(images) or not parts:  # an empty batch tells the shape of no results at all
            batch = images[done : done + batch_size]
            try:
                parts.append(reduce(model(batch.to(first.device))).to(images.device))
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if len(batch) < 2 or not out_of_memory(error):
                    raise
                batch_size = len(batch) // 2
    finally:
        for module in training:
            module.training = True
    return torch.cat(parts)
