"""A pretended CUDA device, for machines without one: where tensors lie is kept track of and checked, as CUDA does.

Every tensor is an ordinary one in this machine's memory; those that were put on the device carry a mark. While the
device is there, every call of torch from Python is looked at: tensors of both kinds in one call, a generator of the
CPU's for the device, or numpy of a tensor on the device are errors, as they are with CUDA. Under
``torch.use_deterministic_algorithms`` every operation, of backward passes too, is held to torch's list of those that
have no deterministic form on CUDA, and products ask for CUBLAS_WORKSPACE_CONFIG.

What it cannot tell: whether kernels are right, memory suffices, or torch itself has a fault there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from poisonkit import ops

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

# What torch.use_deterministic_algorithms says will raise on CUDA, by the operators underneath
_NONDETERMINISTIC = {
    *("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward"),
    *("avg_pool3d_backward", "max_pool3d_with_indices_backward", "max_unpool2d", "max_unpool3d"),
    *("fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *("upsample_linear1d_backward", "upsample_bilinear2d_backward", "_upsample_bilinear2d_aa_backward"),
    *("upsample_bicubic2d_backward", "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "nll_loss2d_forward", "nll_loss2d_backward"),
    *("_ctc_loss_backward", "put_", "histc", "kthvalue", "median.dim", "scatter_reduce.two"),
}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "mv", "dot", "addmv"}
# Calls that take tensors from one device to another, or do not look where they lie
_ACROSS = {"_has_compatible_shallow_copy_type", "copy_", "to", "type_as", "load_state_dict", "set_data", "__set__"}
# Calls that say where a tensor is
_WHERE: dict[Any, Callable[[bool], object]] = {
    Tensor.device.__get__: lambda there: CUDA if there else CPU,
    Tensor.is_cuda.__get__: lambda there: there,
    Tensor.is_cpu.__get__: lambda there: not there,
    Tensor.get_device: lambda there: 0 if there else -1,
}


class MixedDevices(RuntimeError):
    """What CUDA would refuse."""


def there(value: object) -> bool:
    """Whether a tensor was put on the device."""
    return isinstance(value, Tensor) and "_pretended" in value.__dict__


def _put(value: Any) -> Any:
    if isinstance(value, Tensor):
        value.__dict__["_pretended"] = True
    return value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Those in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _scalar(value: Tensor) -> bool:
    return value.dim() == 0


class _Placing(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _WHERE:
            return _WHERE[func](there(args[0]))
        name = getattr(func, "__name__", "")
        found = list(_tensors((args, kwargs)))
        wanted = self._device(name, args, kwargs)
        if wanted is not None:
            args = tuple(map(self._home, args))
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
        on = any(map(there, found))
        target = on if wanted is None else wanted.type == "cuda"
        if name in ("cpu", "cuda", "to") and wanted is not None:
            return self._moved(func, name, args, kwargs, target)
        if name in ("numpy", "__array__", "data_ptr") and on:
            raise MixedDevices(f"{name} of a tensor on the device")
        generator = kwargs.get("generator")
        if generator is not None and target:
            raise MixedDevices(f"{name} on the device with a generator of the CPU's")
        self._check(func, name, args, kwargs, found)
        if on and isinstance(func, torch._ops.OpOverloadPacket) and name in ops.OPS:
            with self, torch.no_grad():  # torch calls kernels out of sight, so look at what it will call
                ops.OPS[name].reference(*args, **kwargs)
        result = func(*args, **kwargs)
        if name in ("_local_scalar_dense", "item", "tolist"):
            return result
        if name == "__set__":
            if there(args[1]):
                _put(args[0])
            return result
        if target:
            for tensor in _tensors(result):
                _put(tensor)
        return result

    @staticmethod
    def _device(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
        """The device that a call asks for."""
        if name == "cpu":
            return CPU
        if name == "cuda":
            return CUDA
        named = [kwargs.get("device"), *(args[1:] if name == "to" else ())]
        for each in named:
            if isinstance(each, torch.device):
                return each
            if isinstance(each, str):
                return torch.device(each)
            if name == "to" and isinstance(each, Tensor):
                return CUDA if there(each) else CPU
        return None

    @staticmethod
    def _home(value: Any) -> Any:
        return (
            CPU if isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda")) else value
        )

    @staticmethod
    def _moved(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: bool) -> Tensor:
        tensor = args[0]
        moved = tensor.to(*args[1:], **kwargs) if name == "to" else tensor
        if there(tensor) == target:
            return _put(moved) if target else moved
        moved = moved.clone() if moved is tensor else moved
        moved.__dict__.pop("_pretended", None)
        return _put(moved) if target else moved

    @staticmethod
    def _check(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Tensor]) -> None:
        if name in _ACROSS:
            return
        if name in ("__getitem__", "__setitem__"):
            places = list(_tensors(args[1]))
            if not there(args[0]) and any(there(place) and not _scalar(place) for place in places):
                raise MixedDevices("a tensor of the CPU's indexed by one on the device")
            apart = name == "__setitem__" and isinstance(args[2], Tensor) and there(args[2]) != there(args[0])
            if apart and places and not _scalar(args[2]):
                raise MixedDevices("values set by index from another device")
            return
        strict = name in ("cat", "stack", "concat") or name.startswith("_fused")
        kinds = {there(tensor) for tensor in found if strict or not _scalar(tensor)}
        if len(kinds) > 1:
            raise MixedDevices(f"tensors of both devices in {resolve_name(func) or name}")


class _Deterministic(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.are_deterministic_algorithms_enabled():
            name = func.overloadpacket.__name__
            names = {name, f"{name}.{func._overloadname}"}
            weighted = name == "bincount" and len(args) > 1 and args[1] is not None
            floats = name == "cumsum" and args[0].is_floating_point()
            if names & _NONDETERMINISTIC or weighted or floats:
                raise RuntimeError(f"{func} has no deterministic form on CUDA")
            if name in _PRODUCTS and os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
                raise RuntimeError("CUBLAS_WORKSPACE_CONFIG is not set")
        return func(*args, **kwargs)


class _Event:
    def __init__(self, **_: object) -> None: ...
    def record(self) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, _: object) -> float:
        return 1.0


@contextmanager
def pretended() -> Iterator[None]:
    """The device, for the block. ``torch.cuda`` answers what this package asks of it."""
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "mem_get_info": lambda *_: (80 << 30, 80 << 30),
        "get_device_name": lambda *_: "a pretended device",
        "synchronize": lambda *_: None,
        "reset_peak_memory_stats": lambda *_: None,
        "max_memory_allocated": lambda *_: 1 << 30,
        "Event": _Event,
        "default_generators": [SimpleNamespace(manual_seed=lambda seed: None)],
    }
    new_parameter, fork = nn.Parameter.__new__, torch.random.fork_rng
    autocast = torch.autocast.__init__

    def parameter(cls: Any, data: Any = None, requires_grad: bool = True) -> Any:
        made = new_parameter(cls, data, requires_grad)
        return _put(made) if there(data) else made

    def on_cpu(self: Any, device: str, *args: Any, **kwargs: Any) -> None:
        autocast(self, "cpu", *args, **kwargs)

    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(nn.Parameter, "__new__", parameter))
        stack.enter_context(patch.object(torch.random, "fork_rng", lambda devices=(): fork([])))
        stack.enter_context(patch.object(torch.autocast, "__init__", on_cpu))
        stack.enter_context(patch.object(torch, "compile", lambda function, **_: function))
        # As there, where an op without a kernel for CUDA is its reference
        stack.enter_context(ops.isa("reference"))
        stack.enter_context(_Deterministic())
        stack.enter_context(_Placing())
        yield
