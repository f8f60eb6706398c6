"""One op, declared once: its reference is its schema, its documentation and its fallback on any device.

``@op(...)`` registers a reference with torch under the namespace ``poisonkit`` and returns the function users call.
On the CPU the native kernel runs where it was built, on CUDA the native kernel likewise or the Triton module where
Triton is there, elsewhere the reference. Tests and benches enumerate ``OPS``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch

from poisonkit.errors import PoisonkitError
from poisonkit.ops.native import core, cuda_is_built, forced_isa, threads

# registrations last as long as this object
_LIBRARY = torch.library.Library("poisonkit", "DEF")  # type: ignore[no-untyped-call]

Arguments = tuple[Any, ...]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Reject:
    """Arguments an op must refuse, and how."""

    args: Callable[[], Arguments]
    error: type[PoisonkitError]
    match: str  # a fragment of the message


@dataclass(frozen=True)
class Gradient:
    """The backward of an op, as torch.library.register_autograd takes it."""

    backward: Callable[..., Any]
    setup_context: Callable[..., None]
    samples: Callable[[], Iterator[Arguments]]  # where small steps change nothing but linearly


@dataclass(frozen=True)
class Op:
    """All there is to know about one op."""

    name: str
    reference: Callable[..., Any]  # a tensor or a tuple of them
    check: Callable[..., None]  # shapes and types alone: runs on fake tensors too
    check_values: Callable[..., None] | None
    fake: Callable[..., Any]
    samples: Callable[[], Iterator[Arguments]]
    rejects: tuple[Reject, ...]
    gradient: Gradient | None
    native: Callable[..., Any] | None  # takes the op's arguments, the forced isa or "", and the number of threads
    isas: tuple[str, ...]  # the paths of the native kernel
    triton: str | None  # module with a function of the op's name
    native_cuda: Callable[..., Any] | None  # takes the op's arguments; for what Triton cannot express

    def cpu(self, *args: Any) -> Any:
        self._check(args)
        forced = forced_isa()
        if core is None or self.native is None or forced == "reference":
            return self.reference(*args)
        return self.native(*args, isa=forced, threads=threads())

    def cuda(self, *args: Any) -> Any:
        self._check(args)
        if self.native_cuda is not None and cuda_is_built() and forced_isa() != "reference":
            return self.native_cuda(*args)
        if self.triton is None or forced_isa() == "reference" or importlib.util.find_spec("triton") is None:
            return self.reference(*args)
        kernel = getattr(importlib.import_module(self.triton), self.name)
        return kernel(*args)

    def elsewhere(self, *args: Any) -> Any:
        self._check(args)
        return self.reference(*args)

    def meta(self, *args: Any) -> Any:
        self.check(*args)
        return self.fake(*args)

    def _check(self, args: Arguments) -> None:
        self.check(*args)
        if self.check_values is not None:
            self.check_values(*args)


#: Every op by its name
OPS: dict[str, Op] = {}


def op(
    *,
    check: Callable[..., None],
    fake: Callable[..., Any],
    samples: Callable[[], Iterator[Arguments]],
    rejects: tuple[Reject, ...],
    check_values: Callable[..., None] | None = None,
    gradient: Gradient | None = None,
    native: Callable[..., Any] | None = None,
    isas: tuple[str, ...] = (),
    triton: str | None = None,
    native_cuda: Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare the op whose reference is the decorated function."""

    def declare(reference: Callable[P, R]) -> Callable[P, R]:
        name = reference.__name__
        declared = Op(
            *(name, reference, check, check_values, fake, samples, rejects, gradient, native, isas, triton, native_cuda)
        )
        # define, impl and register_fake: the custom_op decorator would import a compiler at its first call
        _LIBRARY.define(name + torch.library.infer_schema(reference, mutates_args=()))  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, declared.cpu, "CPU")  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, declared.cuda, "CUDA")  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, declared.elsewhere, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"poisonkit::{name}", declared.meta, lib=_LIBRARY)
        if gradient is not None:
            torch.library.register_autograd(
                f"poisonkit::{name}", gradient.backward, setup_context=gradient.setup_context, lib=_LIBRARY
            )
        OPS[name] = declared
        registered = getattr(torch.ops.poisonkit, name)

        @functools.wraps(reference)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result: R = registered(*args, **kwargs)
            return result

        return call

    return declare
