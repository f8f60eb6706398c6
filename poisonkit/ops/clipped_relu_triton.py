"""The clipped ReLU and its gradients, each in one pass over the tensor (Triton).

In memory the tensor is a matrix: planes by their pixels, or where channels come last, pixels by channels. A program
takes one tile of it after another, and sums what the bounds' gradients get from them. Those partial sums are added by
torch, in an order that depends on the shape alone: there are no atomics.

Imported on first use: nothing else needs Triton. ``TRITON_INTERPRET=1`` must be set before the import to run without
a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from poisonkit.ops.clipped_relu import dense, laid_out_like, sizes, sum_dtype

# Fixed rather than autotuned, as in the hash. A tile of 4096 numbers is 32 for each of 128 threads: loads of 16 bytes,
# several of them in flight. Not timed yet.
TILE = 4096
MAX_COLUMNS = 1024
WARPS = 4
STEPS = 8  # tiles of a program where channels come last: a partial sum there is a column of one


@triton.jit
def _wide(x):  # type: ignore[no-untyped-def]
    """Comparisons in float32 are exact for 16 bits; sums are in it too."""
    return x.to(tl.float64 if x.dtype.is_fp64() else tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _bounds(bound, rows, columns, A, B, C, LAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bound of every row, or column."""
    if LAST:
        z = tl.load(bound + columns, mask=columns < B, other=0)[None, :]
    else:
        z = tl.load(bound + rows % C, mask=rows < A, other=0)[:, None]
    return _wide(z)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, bound, y, A, B, C, LAST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    z = _bounds(bound, rows, columns, A, B, C, LAST)
    at = rows.to(tl.int64)[:, None] * B + columns[None, :]
    inside = (rows < A)[:, None] & (columns < B)[None, :]
    value = _wide(tl.load(x + at, mask=inside, other=0))
    rectified = tl.where(value <= 0, 0.0, value)
    # NaN compares false: one in z comes out of the inner choice, one in x out of the outer.
    clipped = tl.where(value != value, value, tl.where(rectified < z, rectified, z))
    tl.store(y + at, clipped.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad,
    y,
    bound,
    dx,
    sums,
    A,
    B,
    C,
    LAST: tl.constexpr,
    FOR_X: tl.constexpr,
    FOR_BOUND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,
):
    block, strip = tl.program_id(0), tl.program_id(1)
    columns = strip * COLUMNS + tl.arange(0, COLUMNS)
    kind: tl.constexpr = sums.dtype.element_ty
    total = tl.zeros((COLUMNS if LAST else ROWS,), kind)
    for step in range(STEPS):
        rows = (block * STEPS + step) * ROWS + tl.arange(0, ROWS)
        z = _bounds(bound, rows, columns, A, B, C, LAST)
        at = rows.to(tl.int64)[:, None] * B + columns[None, :]
        inside = (rows < A)[:, None] & (columns < B)[None, :]
        value = _wide(tl.load(y + at, mask=inside, other=0))
        given = tl.load(grad + at, mask=inside, other=0)
        if FOR_X:
            tl.store(dx + at, tl.where((value > 0) & (value < z), given, 0.0).to(dx.dtype.element_ty), mask=inside)
        if FOR_BOUND:
            total += tl.sum(tl.where(value == z, _wide(given), 0.0), axis=0 if LAST else 1)
    if FOR_BOUND:
        if LAST:
            tl.store(sums + block.to(tl.int64) * B + columns, total, mask=columns < B)
        else:  # STEPS is 1
            rows = block * ROWS + tl.arange(0, ROWS)
            tl.store(sums + strip.to(tl.int64) * A + rows, total, mask=rows < A)


def _matrix(x: Tensor) -> tuple[int, int, int, bool, int, int]:
    """Rows, columns and channels of a dense tensor, whether the columns are the channels, and its tiles."""
    outer, channels, inner = sizes(x)
    last = inner == 1
    A, B = (outer, channels) if last else (outer * channels, inner)
    columns = min(triton.next_power_of_2(B), MAX_COLUMNS)
    return A, B, channels, last, TILE // columns, columns


def clipped_relu(x: Tensor, bound: Tensor) -> Tensor:
    """``min(max(x, 0), z_c)`` of arguments that the op has checked, on one device."""
    x, bound = dense(x), bound.to(x.dtype).contiguous()
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    A, B, C, last, rows, columns = _matrix(x)
    # Triton launches on the current device, which need not be that of x.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _forward[(triton.cdiv(A, rows), triton.cdiv(B, columns))](
            *(x, bound, y, A, B, C),
            LAST=last,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=WARPS,
            enable_fp_fusion=False,  # there is nothing to fuse; Triton 3.9 warns where it is not said
        )
    return y


def clipped_relu_backward(
    grad: Tensor, y: Tensor, bound: Tensor, for_x: bool, for_bound: bool
) -> tuple[Tensor, Tensor]:
    """``dx`` and ``dbound`` of arguments that the op has checked, on one device; empty where not asked for."""
    y = dense(y)
    grad = laid_out_like(grad, y)
    dx = torch.empty_like(y) if for_x else y.new_empty(0)
    if y.numel() == 0:
        return dx, bound.new_zeros(bound.shape if for_bound else 0)
    A, B, C, last, rows, columns = _matrix(y)
    steps = STEPS if last else 1
    blocks, strips = triton.cdiv(A, rows * steps), triton.cdiv(B, columns)
    shape = (blocks, C) if last else (strips * A // C, C)
    sums = y.new_empty(shape if for_bound else 0, dtype=sum_dtype(y))
    with torch.cuda.device_of(y):  # type: ignore[no-untyped-call]
        _backward[(blocks, strips)](
            *(grad, y, bound.to(y.dtype).contiguous(), dx, sums, A, B, C),
            LAST=last,
            FOR_X=for_x,
            FOR_BOUND=for_bound,
            ROWS=rows,
            COLUMNS=columns,
            STEPS=steps,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
    return dx, (sums.sum(0) if for_bound else sums).to(bound.dtype)
