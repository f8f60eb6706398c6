"""ReLU with a learnable ceiling for each channel, and its gradients.

Wang, Miller and Kesidis, "Post-Training Overfitting Mitigation in DNN Classifiers", 2023, arXiv 2309.16827, bound the
activations of a trained network with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor

from poisonkit.errors import ArgumentError, require
from poisonkit.ops.native import core
from poisonkit.ops.registry import Arguments, Gradient, Reject, op

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TRITON = "poisonkit.ops.clipped_relu_triton"


def dense(x: Tensor) -> Tensor:
    """``x`` itself where it is contiguous, or would be with its channels last; else a contiguous copy."""
    return x if x.is_contiguous() or _channels_last(x) else x.contiguous()


def laid_out_like(grad: Tensor, y: Tensor) -> Tensor:
    """``grad`` in the layout of a dense ``y``, copied only where it has another."""
    same = grad.is_contiguous() if y.is_contiguous() else _channels_last(grad)
    return grad if same else torch.empty_like(y).copy_(grad)


def sizes(x: Tensor) -> tuple[int, int, int]:
    """A dense ``x`` as it lies in memory: [outer, channels, inner], with inner 1 where its channels are last."""
    channels = x.shape[1]
    if x.is_contiguous():
        return x.shape[0], channels, prod(x.shape[2:])
    return x.shape[0] * prod(x.shape[2:]), channels, 1


def sum_dtype(y: Tensor) -> torch.dtype:
    """What gradients of the bounds are summed in."""
    return torch.float64 if y.dtype == torch.float64 else torch.float32


def _channels_last(x: Tensor) -> bool:
    return x.movedim(1, -1).is_contiguous()


def _rounded(bound: Tensor, x: Tensor) -> Tensor:
    """The bounds in the dtype and the shape that go with ``x``; adding 0 makes -0.0 the 0.0 that it equals."""
    return (bound.to(x.dtype) + 0).view(-1, *[1] * (x.dim() - 2))


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check(x: Tensor, bound: Tensor) -> None:
    _check_input("x", x, bound)


def _check_input(name: str, x: Tensor, bound: Tensor) -> None:
    require(x.dtype in DTYPES, name, "float32, bfloat16, float16 or float64", x.dtype)
    require(x.dim() >= 2, name, "of shape [N, C, ...]", list(x.shape))
    require(bound.dtype in (torch.float32, x.dtype), "bound", f"float32 or {x.dtype} like {name}", bound.dtype)
    shape = [x.shape[1]]
    require(list(bound.shape) == shape, "bound", f"of shape {shape}", list(bound.shape), "for one bound: .expand(C)")
    require(bound.device == x.device, "bound", f"on {x.device} like {name}", bound.device, "move it with .to()")


def _fake(x: Tensor, bound: Tensor) -> Tensor:
    return torch.empty_like(dense(x))


def _native(x: Tensor, bound: Tensor, *, isa: str, threads: int) -> Tensor:
    assert core is not None
    x = dense(x)
    y = torch.empty_like(x)
    if y.numel():
        bound = bound.to(x.dtype).contiguous()
        core.clipped_relu(x.data_ptr(), bound.data_ptr(), y.data_ptr(), *sizes(x), _dtype_name(x), isa, threads)
    return y


def _samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def bounds(channels: int) -> Tensor:
        return torch.rand(channels, generator=generator) + 0.1

    for shape in [(0, 3, 4, 4), (2, 0, 3), (2, 3, 0), (1, 1), (7, 13), (5, 300), (2, 3, 17, 17), (3, 5, 1, 7)]:
        yield normal(*shape), bounds(shape[1])
    for dtype in DTYPES:
        yield normal(600, 130, dtype=dtype), bounds(130)
        yield normal(3, 10, 5, 7, dtype=dtype), bounds(10).to(dtype)
        yield normal(2, 10, 5, 7, dtype=dtype).to(memory_format=torch.channels_last), bounds(10)
        # every kind of number but NaN, which some checks find unequal to itself, against every kind of bound
        info = torch.finfo(dtype)
        numbers = torch.tensor([0, info.smallest_normal / 4, 0.5, 1, 1 + info.eps, info.max, torch.inf], dtype=dtype)
        numbers = torch.cat([numbers, -numbers])
        yield numbers[:, None].repeat(1, len(numbers)), numbers
        yield numbers.repeat(len(numbers), 1)[None], numbers
    yield normal(2, 6, 2, 3, 4).to(memory_format=torch.channels_last_3d), bounds(6)
    # gaps, other orders, repeated elements
    yield normal(4, 10, 6)[:, ::2], bounds(10)[::2]
    yield normal(4, 5, 12)[..., ::2], bounds(5)
    yield normal(4, 5, 6).permute(2, 1, 0), bounds(5)
    yield normal(1, 5, 1).expand(3, 5, 4), bounds(1).expand(5)


def _smooth_samples() -> Iterator[Arguments]:
    """Numbers away from 0 and from the bounds."""
    x = torch.tensor([-1.5, -0.3, 0.2, 0.6, 1.1, 2.0, 5.0, -4.0, 0.9, 3.0, 0.1, 1.6])
    bound = torch.tensor([1.4, 0.5, -0.7])
    yield x.view(4, 3), bound
    yield x.view(2, 3, 2), bound
    yield x.view(1, 2, 2, 3).permute(0, 3, 1, 2), bound


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: (_zeros(2, 3, dtype=torch.int64), _zeros(3)), "x must be float32, bfloat16, float16 or float64"),
        (lambda: (_zeros(3), _zeros(3)), "x must be of shape [N, C, ...]"),
        (lambda: (_zeros(2, 3), _zeros(3, dtype=torch.float64)), "bound must be float32 or torch.float32 like x"),
        (lambda: (_zeros(2, 3, 4), _zeros(4)), "bound must be of shape [3]"),
        (lambda: (_zeros(2, 3), _zeros(3, 1)), "bound must be of shape [3]"),
        (lambda: (_zeros(2, 3), torch.zeros(3, device="meta")), "bound must be on cpu like x"),
    )
)


def _setup_context(ctx: Any, inputs: Arguments, output: Tensor) -> None:
    _, bound = inputs
    ctx.save_for_backward(output, bound)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    for_x, for_bound = ctx.needs_input_grad
    y, bound = ctx.saved_tensors
    dx, dbound = clipped_relu_backward(grad, y, bound, for_x, for_bound)
    return dx if for_x else None, dbound if for_bound else None


@op(
    check=_check,
    fake=_fake,
    samples=_samples,
    rejects=_REJECTS,
    gradient=Gradient(_backward, _setup_context, _smooth_samples),
    native=_native,
    isas=("scalar", "avx2", "avx512_vnni"),
    triton=_TRITON,
)
def clipped_relu(x: Tensor, bound: Tensor) -> Tensor:
    """``y = min(max(x, 0), z_c)`` with one bound ``z_c`` a channel, for a learnable ceiling of activations.

    ``x``: [N, C, ...], float32, bfloat16, float16 or float64. The channels are axis 1: feature maps of [N, C, H, W],
    neurons of [N, F]. ``bound``: [C], float32 or the dtype of ``x``, on its device; a bound that all channels share is
    ``bound.expand(C)``. Returns the dtype and the shape of ``x``, and its layout where that is contiguous or
    channels last, else contiguous. Raises ``ArgumentError`` for anything else.

    The bound is first rounded to the dtype of ``x``. Then, with ``r = max(x, 0)``:

    - the gradient of ``x`` is that of ``y`` where ``0 < x < z``, else 0;
    - the gradient of ``z_c`` is the sum of those of ``y`` where ``r >= z_c``: a tie counts as clipped. (There,
      ``torch.minimum`` gives half to either side; in bfloat16 ties are frequent.)
    - ``z <= 0`` makes the channel the constant ``z``, whose gradient is the sum over the channel, so it can recover;
    - a NaN in ``x`` or in ``bound`` gives NaN, through which no gradient passes; infinities follow the rules above;
    - gradients are selected, not multiplied: what is NaN in them and not asked for does no harm.

    Gradients of bounds are summed in float32, in float64 where ``x`` is; the order depends on the shape alone, so they
    are the same for any number of threads, and on all CPU kernels. They have the dtype of ``bound``. The gradients need
    only ``y``, which the next layer mostly keeps anyway, and nothing is computed for a frozen ``x`` or ``bound``. As
    with ``torch.relu``, ``y`` must not be changed in place before the backward pass. Second derivatives are supported.

    Source: Wang, Miller and Kesidis 2023 (arXiv 2309.16827), Section 3.
    """
    x = dense(x)
    rectified = torch.where(x <= 0, 0, x)
    return torch.minimum(rectified, _rounded(bound, x))


def _check_backward(grad: Tensor, y: Tensor, bound: Tensor, for_x: bool, for_bound: bool) -> None:
    _check_input("y", y, bound)
    require(grad.shape == y.shape, "grad", f"of shape {list(y.shape)} like y", list(grad.shape))
    require(grad.dtype == y.dtype, "grad", f"{y.dtype} like y", grad.dtype)
    require(grad.device == y.device, "grad", f"on {y.device} like y", grad.device)
    require(for_x or for_bound, "for_x", "true where for_bound is not", for_x)


def _fake_backward(grad: Tensor, y: Tensor, bound: Tensor, for_x: bool, for_bound: bool) -> tuple[Tensor, Tensor]:
    return (
        torch.empty_like(dense(y)) if for_x else y.new_empty(0),
        torch.empty_like(bound, memory_format=torch.contiguous_format) if for_bound else bound.new_empty(0),
    )


def _native_backward(
    grad: Tensor, y: Tensor, bound: Tensor, for_x: bool, for_bound: bool, *, isa: str, threads: int
) -> tuple[Tensor, Tensor]:
    assert core is not None
    y = dense(y)
    grad = laid_out_like(grad, y)
    dx = torch.empty_like(y) if for_x else y.new_empty(0)
    sums = bound.new_zeros(bound.shape if for_bound else 0, dtype=sum_dtype(y))
    if y.numel():
        rounded = bound.to(y.dtype).contiguous()
        pointers = (tensor.data_ptr() for tensor in (grad, y, rounded, dx, sums))  # 0 for what is not wanted
        core.clipped_relu_backward(*pointers, *sizes(y), _dtype_name(y), isa, threads)
    return dx, sums.to(bound.dtype)


def _backward_samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(1)
    for index, (x, bound) in enumerate(_samples()):
        y = clipped_relu(x, bound)
        grad = torch.randn(x.shape, generator=generator).to(x.dtype)
        if index % 4 == 1:
            grad = torch.randn(x.shape[0], generator=generator).to(x.dtype).view(-1, *[1] * (x.dim() - 1)).expand_as(x)
        yield grad, y, bound, index % 3 != 1, index % 3 != 2


def _backward_smooth_samples() -> Iterator[Arguments]:
    """Outputs that are not clipped: the others are a step away from another gradient."""
    y = torch.tensor([[0.2, 0.9], [0.5, 0.3], [1.0, 0.1]])
    yield y.flip(0), y, torch.tensor([1.5, 1.2]), True, True


_BACKWARD_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: (_zeros(2, 3), _zeros(2, 3), _zeros(2), True, True), "bound must be of shape [3]"),
        (lambda: (_zeros(2, 3), _zeros(2, 3, 1), _zeros(3), True, True), "grad must be of shape [2, 3, 1] like y"),
        (lambda: (_zeros(2, 3).double(), _zeros(2, 3), _zeros(3), True, True), "grad must be torch.float32 like y"),
        (lambda: (torch.zeros(2, 3, device="meta"), _zeros(2, 3), _zeros(3), True, True), "grad must be on cpu"),
        (lambda: (_zeros(2, 3), _zeros(2, 3), _zeros(3), False, False), "for_x must be true where for_bound is not"),
    )
)


def _setup_second(ctx: Any, inputs: Arguments, output: tuple[Tensor, Tensor]) -> None:
    _, y, bound, ctx.for_x, ctx.for_bound = inputs
    ctx.save_for_backward(y, bound)


def _second_backward(ctx: Any, grad_dx: Tensor, grad_dbound: Tensor) -> tuple[Tensor, None, None, None, None]:
    """Both gradients are linear in that of ``y``, and constant in ``y`` and ``bound`` wherever they are smooth."""
    y, bound = ctx.saved_tensors
    z = _rounded(bound, y)
    second = torch.zeros_like(y)
    if ctx.for_x:
        second = torch.where((y > 0) & (y < z), grad_dx, second)
    if ctx.for_bound:
        second = torch.where(y == z, grad_dbound.to(y.dtype).view_as(z), second)
    return second, None, None, None, None


@op(
    check=_check_backward,
    fake=_fake_backward,
    samples=_backward_samples,
    rejects=_BACKWARD_REJECTS,
    gradient=Gradient(_second_backward, _setup_second, _backward_smooth_samples),
    native=_native_backward,
    isas=("scalar", "avx2", "avx512_vnni"),
    triton=_TRITON,
)
def clipped_relu_backward(
    grad: Tensor, y: Tensor, bound: Tensor, for_x: bool, for_bound: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of ``clipped_relu`` in one pass: ``(dx, dbound)`` from that of its output ``y``.

    ``grad``: [N, C, ...], like ``y`` in shape, dtype and device, and not copied where it has its layout. ``bound``: as
    ``clipped_relu`` took it. ``dx`` is like ``y``, ``dbound`` like ``bound``; one that is not asked for is empty.
    Autograd calls this; the rules are in ``clipped_relu``. Raises ``ArgumentError`` for anything else.

    Source: Wang, Miller and Kesidis 2023 (arXiv 2309.16827), Section 3.
    """
    y = dense(y)
    z = _rounded(bound, y)
    dx, dbound = y.new_empty(0), bound.new_empty(0)
    if for_x:
        dx = torch.where((y > 0) & (y < z), grad, 0)
        dx = laid_out_like(dx, y)
    if for_bound:
        clipped = torch.where(y == z, grad, 0)
        axes = [axis for axis in range(y.dim()) if axis != 1]
        dbound = clipped.sum(axes, dtype=sum_dtype(y)).to(bound.dtype)
    return dx, dbound
