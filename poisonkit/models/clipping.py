"""A ceiling on every ReLU of a trained network, one for each channel, kept with its weights.

    bounds = [2 * peak for peak in peaks(model, images)]  # one tensor a ReLU, one number a channel
    network = clipped(model, bounds)                      # the same network, each ReLU a min(max(x, 0), bound)
    again = restored(model, network.state_dict())         # from a file: the names of the model, and relu_bounds.*

A ReLU may be a module, shared or not, a function or a method, in place or not; each call of one has bounds of its own.
The calls are found by tracing the network with torch.fx. One that cannot be traced, or hides calls in a module that is
not traced into, has hooks instead that replace them in the order in which they come. Either way the network that is
given stays as it was, and the state dicts are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from poisonkit import ops
from poisonkit.errors import fail, require
from poisonkit.models.predict import logits

NAME = "relu_bounds"
_FUNCTIONS = (functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_IN_PLACE = (functional.relu_, torch.relu_, Tensor.relu_, "relu_")


class Bound(nn.Module):
    """The ceiling of one ReLU: a number for each channel, axis 1 of [N, C, ...]; of tokens [N, T, C] the last axis.

    where  which ReLU it took the place of
    """

    def __init__(self, value: Tensor, where: str) -> None:
        super().__init__()
        self.value, self.where = nn.Parameter(value.detach().clone()), where

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return ops.clipped_relu(x.movedim(-1, 1), self.value).movedim(1, -1)
        return ops.clipped_relu(x, self.value)

    def extra_repr(self) -> str:
        return f"{len(self.value)} channels, {self.where}"


def peaks(model: nn.Module, images: Tensor, batch_size: int = 512) -> list[Tensor]:
    """The largest output of every channel of every ReLU of ``model`` over ``images`` (uint8 [M, C, H, W]).

    One float [channels] for each call of a ReLU, in the order of the calls, on the model's device.
    Raises ArgumentError where there are no images, or the model calls no ReLU.
    """
    require(len(images) > 0, "images", "1 or more", 0)
    found: list[Tensor] = []
    for batch in torch.split(images, batch_size):
        with _Peaks(found):
            logits(model, batch, batch_size)
    remedy = "GELU and other activations are not bounded, nor is a network that has its bounds already"
    require(len(found) > 0, "model", "a network with ReLUs", f"{type(model).__name__} without", remedy)
    return found


def clipped(model: nn.Module, bounds: Sequence[Tensor]) -> nn.Module:
    """A copy of ``model``, each call of a ReLU clipped at ``bounds`` (one [channels] for each, as :func:`peaks` gives).

    Bounds of infinity change nothing. The copy predicts as the model does in the mode it is in, training or
    evaluation. Raises ArgumentError where it already has bounds, or has none; a call too many or too few is one of
    the forward pass.
    """
    require(len(bounds) > 0, "bounds", "1 or more", 0)
    require(not hasattr(model, NAME), "model", "a network without bounds", f"one with {NAME}")
    copy = deepcopy(model)
    graph = _traced(copy)
    calls = _calls(graph) if graph else []
    if graph is None or len(calls) != len(bounds):
        ceilings = [Bound(bound, f"ReLU {index}") for index, bound in enumerate(bounds)]
        copy.add_module(NAME, nn.ModuleList(ceilings))
        copy.register_forward_pre_hook(_enter)
        copy.register_forward_hook(_leave, always_call=True)
        return copy
    graph.add_module(NAME, nn.ModuleList())
    for index, (node, bound) in enumerate(zip(calls, bounds, strict=True)):
        _replace(graph, node, index, Bound(bound, _where(node)))
    for node in graph.graph.nodes:
        node.type = None  # an annotation kept as a string would keep the network from being pickled
    graph.graph.lint()
    graph.recompile()
    return graph


def restored(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A network in evaluation mode with the weights and the bounds of ``state``, which one with bounds gave.

    ``model`` is a network of its architecture without bounds, and stays as it was. Raises ArgumentError where the
    state has no bounds or is of another architecture.
    """
    bounds = [tensor for _, tensor in sorted(_bounds_of(state).items())]
    require(len(bounds) > 0, "state", f"of a network with bounds, {NAME}.0.value and so on", "one without")
    network = clipped(model, bounds)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        fail("state", f"of a {type(model).__name__} with bounds", error)
    return network.eval()


def ceilings(network: nn.Module) -> list[Bound]:
    """The bounds of a network that :func:`clipped` gave, in the order of the calls; none of any other."""
    found = getattr(network, NAME, ())
    return [each for each in found if isinstance(each, Bound)]


@torch.no_grad()
def binding(network: nn.Module, images: Tensor, batch_size: int = 512) -> list[Tensor]:
    """Which channels reach their bound somewhere in ``images`` (uint8 [M, C, H, W]): bool [channels] for each ReLU."""
    found = [torch.zeros_like(each.value, dtype=torch.bool) for each in ceilings(network)]

    def look(at: Tensor) -> Any:
        def hook(bound: Bound, inputs: object, y: Tensor) -> None:
            at.logical_or_(_peak(y) >= bound.value.to(y.dtype))

        return hook

    hooks = [each.register_forward_hook(look(at)) for each, at in zip(ceilings(network), found, strict=True)]
    try:
        logits(network, images, batch_size)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _bounds_of(state: Mapping[str, Tensor]) -> dict[int, Tensor]:
    names = {name: name.split(".") for name in state if name.startswith(f"{NAME}.")}
    return {int(parts[1]): state[name] for name, parts in names.items()}


def _peak(y: Tensor) -> Tensor:
    """The largest of each channel."""
    axis = y.dim() - 1 if y.dim() == 3 else 1
    return y.detach().movedim(axis, 0).flatten(1).amax(1)


def _traced(model: nn.Module) -> fx.GraphModule | None:
    try:
        return fx.symbolic_trace(model)
    except Exception:  # noqa: BLE001, the model's own code runs on stand-ins, and may raise anything
        return None


def _calls(graph: fx.GraphModule) -> list[fx.Node]:
    """The calls of a ReLU, in the order in which they are made."""
    modules = dict(graph.named_modules())

    def is_relu(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(modules[str(node.target)], nn.ReLU)
        return node.target in (("relu", "relu_") if node.op == "call_method" else _FUNCTIONS)

    return [node for node in graph.graph.nodes if is_relu(node)]


def _replace(graph: fx.GraphModule, node: fx.Node, index: int, bound: Bound) -> None:
    x = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(x, fx.Node)
    replaced = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    in_place = replaced.inplace if isinstance(replaced, nn.ReLU) else _in_place(node.target, node.args, node.kwargs)
    graph.get_submodule(NAME).append(bound)  # type: ignore[operator]
    place = {each: at for at, each in enumerate(graph.graph.nodes)}
    with graph.graph.inserting_after(node):
        y = graph.graph.call_module(f"{NAME}.{index}", (x,))
    node.replace_all_uses_with(y)
    if in_place:  # whatever looks at the input later sees what was written into it
        x.replace_all_uses_with(y, delete_user_cb=lambda user: user is not y and place[user] > place[node])
    graph.graph.erase_node(node)


def _where(node: fx.Node) -> str:
    """The module that calls the ReLU, and which; a module of the list of modules knows its name."""
    if node.op == "call_module":
        return str(node.target)
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{path}.{node.name}".lstrip(".")


def _in_place(function: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if function is functional.relu:
        return bool(args[1] if len(args) > 1 else kwargs.get("inplace", False))
    return function in _IN_PLACE


class _Calls(TorchFunctionMode):
    """Hands every ReLU that is called in the block to :meth:`relu`."""

    def relu(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        x = args[0] if args else kwargs["input"]
        y = self.relu(x)
        return x.copy_(y) if _in_place(func, args, kwargs) else y


class _Peaks(_Calls):
    """Raises ``found``, a tensor [channels] for each call, to what is reached in the block."""

    def __init__(self, found: list[Tensor]) -> None:
        super().__init__()
        self.found, self.at = found, 0

    def relu(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        peak = _peak(y)
        if self.at == len(self.found):
            self.found.append(peak)
        else:
            self.found[self.at] = torch.maximum(self.found[self.at], peak)
        self.at += 1
        return y


class _Clipping(_Calls):
    """Clips each call with the next bound."""

    def __init__(self, bounds: Sequence[Bound]) -> None:
        super().__init__()
        self.count, self.left = len(bounds), iter(bounds)

    def relu(self, x: Tensor) -> Tensor:
        bound = next(self.left, None)
        if bound is None:
            fail("network", f"one that calls {self.count} ReLUs, as it has bounds", "more calls")
        y: Tensor = bound(x)
        return y


# On the module, since hooks are copied as they are; a stack, since a forward pass may hold another
def _enter(module: nn.Module, inputs: object) -> None:
    mode = _Clipping(ceilings(module))
    mode.__enter__()  # type: ignore[no-untyped-call]
    module.__dict__.setdefault("_clipping", []).append(mode)


def _leave(module: nn.Module, inputs: object, out: object) -> None:
    mode = module.__dict__["_clipping"].pop()
    mode.__exit__(None, None, None)
    missing = sum(1 for _ in mode.left)
    if out is not None:  # None where the forward pass raised
        require(not missing, "network", f"one that calls {mode.count} ReLUs, as it has bounds", mode.count - missing)
