"""The compiled part of the package: whether it is there, which instruction set it uses, and on how many threads."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch

from poisonkit.errors import require

core: ModuleType | None
try:
    from poisonkit import _core as core
except ImportError as error:  # pure Python: POISONKIT_NO_EXT=1, no compiler, or a source tree that was not built
    core, _core_error = None, str(error)

_ISA: ContextVar[str] = ContextVar("isa", default="")
_forked = False


def isas() -> tuple[str, ...]:
    """The CPU paths of this build that this processor can run, best last."""
    return ("reference", *(core.isas() if core is not None else ()))


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Force the CPU path of every op inside the block: one of ``isas()``.

    Raises ``ArgumentError`` where this build or this processor lacks it.
    """
    require(name in isas(), "isa", f"one of {', '.join(isas())}", name, "see ops.isas() for what this machine has")
    token = _ISA.set(name)
    try:
        yield
    finally:
        _ISA.reset(token)


def forced_isa() -> str:
    """The path forced here, or an empty string."""
    return _ISA.get()


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """Threads of a native kernel: torch's number, and one in a forked child.

    A child has none of the OpenMP threads its parent started, and would wait for them for ever.
    """
    return 1 if _forked else torch.get_num_threads()


def cuda_is_built() -> bool:
    """Whether this build has CUDA kernels."""
    return importlib.util.find_spec("poisonkit._cuda") is not None


def build_info() -> dict[str, object]:
    """What was built and what of it this machine can use, for ``poisonkit info``.

    ``core``: built, compiler, openmp, isas_compiled, isas_usable. ``isas``: as ``isas()``. ``cuda``: built, archs,
    runtime, devices as (name, compute capability). What is not there has its ``reason``.
    """
    return {"core": _core_info(), "isas": isas(), "cuda": _cuda_info()}


def _core_info() -> dict[str, object]:
    if core is None:
        return {"built": False, "reason": _core_error}
    return {"built": True, **core.build_info()}


def _cuda_info() -> dict[str, object]:
    try:
        from poisonkit import _cuda
    except ImportError as error:
        return {"built": False, "reason": str(error)}
    info: dict[str, object] = {"built": True, "archs": _cuda.archs(), "runtime": _cuda.runtime_version()}
    try:
        return {**info, "devices": _cuda.devices()}
    except RuntimeError as error:
        return {**info, "devices": [], "reason": str(error)}
