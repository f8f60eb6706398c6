"""Networks of one shape as one network: every layer of all of them is a single call.

The networks lie side by side in the channels, [B, k·C, H, W]: convolutions are grouped, linear layers
a batch of products, and batch normalisation, activation and pooling treat every channel by itself
anyway; groups of group normalisation are of one network. No arithmetic joins two networks, not even
by zeros, so an inf or nan stays in its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from poisonkit.errors import require
from poisonkit.random import Key

# Layers that treat every channel by itself, and keep nothing
_CHANNELWISE = (nn.ReLU, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten)


def obstacle(model: nn.Module) -> str | None:
    """What keeps networks like ``model`` from being stacked, or None.

    The layers are looked at; that the code between them treats every channel by itself is taken on trust.
    """
    dropouts = 0
    for name, module in model.named_modules():
        about = f"{name or 'the network'}, {type(module).__name__}"
        if isinstance(module, nn.BatchNorm2d):
            if module.momentum is None:
                return f"{about} without momentum"
        elif isinstance(module, nn.Dropout):
            dropouts += 1
            if dropouts > 1:
                return f"{about}: a second dropout"
        elif isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                return f"{about} with padding {module.padding_mode}"
        elif isinstance(module, (nn.Linear, nn.GroupNorm, *_CHANNELWISE)):
            continue
        elif not any(True for _ in module.children()):
            return about
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            return f"{about} with weights of its own"
    return None


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """All ``models``, equal but for their weights, as one network: images [B, k·C, H, W] to outputs [B, k·K].

    Its state dict has the names of a single one, and the k tensors of each lie one after the other:
    :func:`by_network` takes them apart. Weights are copied.

    Raises ArgumentError where the networks differ or contain a layer that cannot be stacked.
    """
    require(len(models) > 0, "models", "1 or more", 0)
    first, count = models[0], len(models)
    found = obstacle(first)
    rule = "of convolutions, batch or group norm, linear layers and one dropout"
    require(found is None, "models", rule, found, "train alone")
    require(all(repr(model) == repr(first) for model in models), "models", "all of one architecture", "others")
    # In a container, so that the root too can be replaced
    holder = nn.ModuleList([deepcopy(first)])
    for parent in list(holder.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                # Its own class stays, which may do more than convolve
                child.out_channels *= count
                child.in_channels *= count
                child.groups *= count
            elif isinstance(child, nn.BatchNorm2d):
                child.num_features *= count
            elif isinstance(child, nn.GroupNorm):
                child.num_channels *= count
                child.num_groups *= count
            elif isinstance(child, nn.Linear):
                parent.add_module(name, _Linear(child, count))
            elif isinstance(child, nn.Dropout):
                parent.add_module(name, StackedDropout(child.p, count).train(child.training))
    stacked = holder[0]
    states = [model.state_dict() for model in models]
    for name in states[0]:
        tensors = [state[name] for state in states]
        joined = torch.cat(tensors) if tensors[0].ndim else torch.stack(tensors)
        path, _, leaf = name.rpartition(".")
        owner = stacked.get_submodule(path)
        setattr(owner, leaf, nn.Parameter(joined) if leaf in dict(owner.named_parameters(recurse=False)) else joined)
    return stacked


def by_network(stacked: nn.Module, single: nn.Module) -> dict[str, Tensor]:
    """The state of every network in a stack of networks like ``single``: name -> a view [k, *shape of one]."""
    state = single.state_dict()
    return {name: tensor.view(-1, *state[name].shape) for name, tensor in stacked.state_dict().items()}


class _Linear(nn.Linear):
    """The linear layers of k networks: [B, k·I] to [B, k·O]."""

    def __init__(self, one: nn.Linear, count: int) -> None:
        super().__init__(one.in_features, one.out_features, one.bias is not None, device="meta")
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.view(self.count, self.out_features, self.in_features)
        x = x.view(len(x), self.count, self.in_features).transpose(0, 1)
        y = torch.bmm(x, weight.transpose(1, 2)).transpose(0, 1).flatten(1)
        return y if self.bias is None else y + self.bias


class StackedDropout(nn.Module):
    """Dropout of k networks, each with the mask it would draw alone; ``keys`` are those of the step."""

    def __init__(self, p: float, count: int) -> None:
        super().__init__()
        self.p, self.count = p, count
        self.keys: Sequence[Key] = ()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        ones = torch.ones_like(x[:, : x.shape[1] // self.count])
        masks = []
        for key in self.keys:
            with key.ambient((x.device,)):
                masks.append(nn.functional.dropout(ones, self.p))
        return x * torch.cat(masks, 1)
