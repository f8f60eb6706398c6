"""The mean of a class without the rows that lie farthest along its top direction of variance, for many classes at once.

Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching", UAI 2023, PMLR 216
(https://proceedings.mlr.press/v216/zheng23a.html), Algorithms 4 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor

from poisonkit.errors import ArgumentError, require
from poisonkit.ops.native import core
from poisonkit.ops.registry import Arguments, Gradient, Reject, op
from poisonkit.random import Key

DEFAULT_KEY = Key(0).child("calibrated_mean")


class CalibratedMean(NamedTuple):
    """The means of B groups of rows, without those that vary most along the top direction."""

    mean: Tensor  #: [B, d], of the rows that were kept
    dropped: Tensor  #: bool [B, N], or [N] where the groups have offsets
    scores: Tensor  #: like dropped: ``|<row - mean of all rows, direction>|``


class TopDirection(NamedTuple):
    """How much of each of B groups lies along the direction in which it varies most."""

    share: Tensor  #: [B], of the variance that lies along the top direction
    gap: Tensor  #: [B], 1 - second / first eigenvalue of the covariance


def calibration_drop(eps: float | Fraction, n: int) -> int:
    """How many of ``n`` rows to drop at a poisoning rate ``eps``: ceil(3 eps n), of the decimal number as written.

    ``eps`` is the rate within the group: where all poison may lie in one class, its share of that class. One per cent
    of ten equal classes is eps = 0.1 of one, and 77 of 256 rows. (In floating point 3 * 0.1 * 10 is more than 3.)

    Raises ``ArgumentError`` unless eps is in [0, 1], n >= 1, and a row remains.

    Source: RDM-DC, Section 4.3.
    """
    require(0 <= eps <= 1, "eps", "in [0, 1]", eps)
    require(n >= 1, "n", "at least 1", n)
    drop = ceil(3 * Fraction(str(eps)) * n)
    require(drop < n, "n", f"more than the {drop} rows that eps = {eps} drops", n, "larger groups, or a smaller eps")
    return drop


def calibrated_mean(
    r: Tensor,
    drop: int | Sequence[int] | Tensor,
    offsets: Sequence[int] | Tensor | None = None,
    iterations: int = 50,
    key: Key | None = None,
    tolerance: float = 0.0,
) -> CalibratedMean:
    """The mean of each group's rows without the ``drop`` that lie farthest along its top direction of variance.

    ``r``: [B, N, d], groups of N rows; or [N, d] with ``offsets``, B + 1 integers from 0 to N: group g is the rows
    from offsets[g] to offsets[g + 1]. Float32 or float64. ``drop``: one number, or one for each group, less than its
    rows; see ``calibration_drop``. Returns mean [B, d], dropped and scores, as ``calibrate`` does, which says more.

    The first direction is drawn from N(0, I) with ``key``, by default always the same, on the CPU whatever the device.
    All groups share it, so the result of one does not depend on which others there are. ``iterations`` and
    ``tolerance``: the largest number of power iterations, and when to stop before.

    The method needs the poison to dominate the variance. Ten iterations find a strong one; 50, the default, find
    nearly the exact direction, and cost little more since they run in Gram space. But the variance of natural features
    often has a dominant direction of its own: then natural rows are dropped, and the mean may get worse. See
    ``top_direction``, and compare with clean data where there is some.

    Raises ``ArgumentError`` for anything else than the above.

    Source: RDM-DC, Algorithms 4 and 5.
    """
    if offsets is None:
        require(r.dim() == 3, "r", "of shape [B, N, d]", list(r.shape), "groups of several sizes need offsets")
        B, N, d = r.shape
        rows, bounds = r.flatten(0, 1), [N * group for group in range(B + 1)]
    else:
        require(r.dim() == 2, "r", "of shape [N, d] where there are offsets", list(r.shape))
        rows, d, bounds = r, r.shape[1], _integers(offsets)
    drops = [drop] * (len(bounds) - 1) if isinstance(drop, int) else _integers(drop)
    start = torch.randn(d, generator=(key or DEFAULT_KEY).generator()).to(r.device, r.dtype)
    mean, dropped, scores = calibrate(rows, start, bounds, drops, iterations, tolerance)
    return CalibratedMean(mean, dropped.view(r.shape[:-1]), scores.view(r.shape[:-1]))


def top_direction(r: Tensor, offsets: Sequence[int] | Tensor | None = None) -> TopDirection:
    """How far each group's top direction of variance stands out: its share of the variance, and the gap to the next.

    ``r`` and ``offsets`` as for ``calibrated_mean``. Returns float64 [B] each, on the device of ``r``; zeros where
    there is no variance. By singular values in float64: for a look at the data, not for every step.

    A power iteration divides what is left of other directions by 1 / (1 - gap). Rows that were shifted alike, a
    fraction eps of them by a distance s, add eps (1 - eps) s^2 to the variance, along one direction. But a large share
    does not say that rows were shifted: spectra of natural features fall off like a power law, and their top direction
    is natural. Calibration then drops good rows. If clean data of the same kind has about the same share, it is that.

    Source: RDM-DC, Lemma 4.1, whose conditions these are about.
    """
    with torch.no_grad():
        groups = r.unbind() if offsets is None else [r[a:b] for a, b in pairwise(_integers(offsets))]
        spectra = [torch.linalg.svdvals(rows.double() - rows.double().mean(0)) ** 2 for rows in groups]
        pairs = [(values[:1].sum(), values[1:2].sum(), values.sum()) for values in spectra]
        first, second, total = torch.tensor(pairs, dtype=torch.float64, device=r.device).view(-1, 3).unbind(1)
        varied = total > 0
        return TopDirection(
            torch.where(varied, first / total, 0.0),
            torch.where(varied, 1 - second / first, 0.0),
        )


def in_gram_space(rows: int, dim: int, iterations: int) -> bool:
    """Whether a group is iterated in Gram space: where that takes less arithmetic, by a fixed rule of shapes.

    An iteration takes 2 · rows · dim multiply-adds without the Gram matrix and rows² with it, at about half the speed;
    the matrix itself rows² · dim / 2, at five times the speed, for it reuses what is in registers.
    """
    return 10 * iterations * (dim - rows) > rows * dim


def _integers(values: Sequence[int] | Tensor) -> list[int]:
    return [int(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def _check(
    r: Tensor, start: Tensor, offsets: Sequence[int], drop: Sequence[int], iterations: int, tolerance: float
) -> None:
    require(r.dtype in (torch.float32, torch.float64), "r", "float32 or float64", r.dtype, "convert it with .float()")
    require(r.dim() == 2, "r", "of shape [N, d]", list(r.shape))
    require(list(start.shape) == [r.shape[1]], "start", f"of shape [{r.shape[1]}]", list(start.shape))
    require(start.dtype == r.dtype, "start", f"{r.dtype} like r", start.dtype)
    require(start.device == r.device, "start", f"on {r.device} like r", start.device, "move it with .to()")
    bounded = len(offsets) >= 1 and offsets[0] == 0 and offsets[-1] == r.shape[0]
    require(bounded, "offsets", f"from 0 to the {r.shape[0]} rows of r", list(offsets))
    sizes = [b - a for a, b in pairwise(offsets)]
    require(all(n >= 1 for n in sizes), "offsets", "ascending: every group has a row", list(offsets))
    require(len(drop) == len(sizes), "drop", f"one number for each of {len(sizes)} groups", len(drop))
    left = all(0 <= k < n for k, n in zip(drop, sizes, strict=True))
    require(left, "drop", "at least 0 and less than the rows of its group", list(drop), f"they have {sizes} rows")
    require(iterations >= 1, "iterations", "at least 1", iterations)
    require(tolerance >= 0, "tolerance", "at least 0", tolerance)


def _fake(
    r: Tensor, start: Tensor, offsets: Sequence[int], drop: Sequence[int], iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows = r.shape[0]
    return r.new_empty((len(drop), r.shape[1])), r.new_empty(rows, dtype=torch.bool), r.new_empty(rows)


def _native(
    r: Tensor,
    start: Tensor,
    offsets: Sequence[int],
    drop: Sequence[int],
    iterations: int,
    tolerance: float,
    *,
    isa: str,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    if r.dtype == torch.float64:
        return calibrate.__wrapped__(r, start, offsets, drop, iterations, tolerance)  # type: ignore[attr-defined,no-any-return]
    assert core is not None
    d = r.shape[1]
    if d > 1 and r.stride(1) != 1:
        r = r.contiguous()
    start = start.contiguous()
    sizes = [b - a for a, b in pairwise(offsets)]
    groups = [(n, k, in_gram_space(n, d, iterations)) for n, k in zip(sizes, drop, strict=True)]
    table = torch.tensor(groups, dtype=torch.int64)
    mean, dropped, scores = result = _fake(r, start, offsets, drop, iterations, tolerance)
    core.calibrated_mean(
        *(r.data_ptr(), d, r.stride(0), table.data_ptr(), len(groups), start.data_ptr(), iterations, tolerance),
        *(mean.data_ptr(), dropped.data_ptr(), scores.data_ptr(), isa, threads),
    )
    return result


def _samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def groups(sizes: list[int]) -> list[int]:
        return [sum(sizes[:g]) for g in range(len(sizes) + 1)]

    # no group, one row, no column, one column; then odd sizes on both sides of the rule for Gram space
    yield normal(0, 3), normal(3), [0], [], 5, 0.0
    yield normal(1, 3), normal(3), [0, 1], [0], 5, 0.0
    yield normal(2, 0), normal(0), [0, 2], [1], 5, 0.0
    yield normal(7, 1), normal(1), [0, 7], [2], 5, 0.0
    for sizes, d, iterations in [([3, 1, 9, 17], 5, 1), ([33, 26, 7], 17, 2), ([50, 49], 150, 3), ([100], 40, 40)]:
        rows = normal(sum(sizes), d)
        rows[::5] += 3  # a direction to converge to, else rounding grows from step to step
        yield rows, normal(d), groups(sizes), [n // 4 for n in sizes], iterations, 0.0
    x = normal(60, 24)
    x[:6] += 4
    ramp = torch.arange(60)[:, None] * normal(24)
    for iterations in (1, 30):
        yield x, normal(24), [0, 60], [18], iterations, 1e-3  # stops early
        yield x[::2], normal(24), [0, 30], [9], iterations, 0.0  # rows apart
        yield x[:, ::2], normal(24)[::2], [0, 60], [18], iterations, 0.0
        yield x.T.contiguous().T, normal(24), [0, 30, 60], [9, 0], iterations, 0.0
        yield x[:1].expand(30, 24), normal(24), [0, 10, 30], [9, 0], iterations, 0.0  # equal rows
        yield torch.cat([ramp * 1e-30, ramp * 1e30]), normal(24), [0, 60, 120], [18, 18], iterations, 0.0


def _smooth_samples() -> Iterator[Arguments]:
    """Scores far apart, so that a small step drops the same rows."""
    x = torch.tensor([[0.0, 1.0, 2.0], [1.0, -0.5, 0.0], [9.0, 0.5, 0.3], [0.3, 0.2, 0.1], [-3.0, 0.1, 4.0]])
    start = torch.tensor([1.0, 0.3, -0.2])
    yield x, start, [0, 5], [1], 20, 0.0
    yield x, start, [0, 2, 5], [0, 2], 1, 0.0


_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: _arguments(r=torch.zeros(4, 3).half()), "r must be float32 or float64"),
        (lambda: _arguments(r=torch.zeros(2, 2, 3)), "r must be of shape [N, d]"),
        (lambda: _arguments(start=torch.zeros(4)), "start must be of shape [3]"),
        (lambda: _arguments(start=torch.zeros(3).double()), "start must be torch.float32 like r"),
        (lambda: _arguments(start=torch.zeros(3, device="meta")), "start must be on cpu like r"),
        (lambda: _arguments(offsets=[]), "offsets must be from 0 to the 4 rows of r"),
        (lambda: _arguments(offsets=[1, 4]), "offsets must be from 0 to the 4 rows of r"),
        (lambda: _arguments(offsets=[0, 5]), "offsets must be from 0 to the 4 rows of r"),
        (lambda: _arguments(offsets=[0, 0, 4]), "offsets must be ascending"),
        (lambda: _arguments(drop=[1]), "drop must be one number for each of 2 groups"),
        (lambda: _arguments(drop=[1, 3]), "drop must be at least 0 and less than the rows of its group"),
        (lambda: _arguments(drop=[-1, 1]), "drop must be at least 0 and less than the rows of its group"),
        (lambda: _arguments(iterations=0), "iterations must be at least 1"),
        (lambda: _arguments(tolerance=-1.0), "tolerance must be at least 0"),
    )
)


def _arguments(**changed: Any) -> Arguments:
    good = {"r": torch.zeros(4, 3), "start": torch.zeros(3), "offsets": [0, 1, 4], "drop": [0, 2]}
    return tuple((good | {"iterations": 5, "tolerance": 0.0} | changed).values())


def _setup_context(ctx: Any, inputs: Arguments, output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, _, ctx.offsets, ctx.drop, _, _ = inputs
    _, dropped, scores = output
    ctx.mark_non_differentiable(dropped, scores)
    ctx.save_for_backward(dropped)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    (dropped,) = ctx.saved_tensors
    sizes = [b - a for a, b in pairwise(ctx.offsets)]
    kept = torch.tensor([n - k for n, k in zip(sizes, ctx.drop, strict=True)], device=grad.device)
    rows = _group_of_rows(sizes).to(grad.device)
    return (grad / kept[:, None])[rows].masked_fill(dropped[:, None], 0), None, None, None, None, None


def _group_of_rows(sizes: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))


@op(
    check=_check,
    fake=_fake,
    samples=_samples,
    rejects=_REJECTS,
    gradient=Gradient(_backward, _setup_context, _smooth_samples),
    native=_native,
    isas=("scalar", "avx2"),
)
def calibrate(
    r: Tensor, start: Tensor, offsets: Sequence[int], drop: Sequence[int], iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Calibrated means from a given first direction: what ``calibrated_mean`` is made of.

    ``r``: float32 or float64 [N, d]. ``start``: [d], of the dtype and on the device of ``r``. ``offsets``: B + 1
    ascending integers from 0 to N; group g is the rows from offsets[g] to offsets[g + 1]. ``drop``: B integers, each
    less than its group's rows. Returns mean [B, d], dropped bool [N] and scores [N]. Raises ``ArgumentError`` for
    anything else.

    In each group, X being its rows less their mean: ``v <- X'X v / |X'X v|``, ``iterations`` times from ``start``; the
    scores are ``|X v|``; the ``drop`` largest are dropped, of equal scores the first; the mean is that of the others.
    It stops before if ``X v / |X v|`` moves by ``tolerance`` or less in one iteration; 0 never does. The covariance is
    never formed: groups of many rows for their ``d`` and ``iterations`` take one pass over X an iteration, others form
    X X' once and iterate there, with the same v but for rounding (``in_gram_space`` is the rule). Without variance all
    scores are 0. A group with a row that is not finite gets NaN for its mean and all its scores.

    Means are summed in float64 (by the CPU kernel, after sums of at most four rows in float32); all else is in the
    dtype of ``r``, X scaled by a power of two so that its squares stay in range. The CPU kernel is float32 only; it
    gives equal rows equal scores, each group goes to one thread, and the result does not depend on how many threads
    there are, but in the last digits on the instruction set. On a GPU, and in float64, this is batched matrix products
    in torch, small groups padded to the largest. It has not been timed on a GPU.

    The gradient of ``mean`` with respect to a row that was kept is 1 / (rows kept); the choice of rows counts as
    constant, and scores have no gradient.

    Source: RDM-DC (Zheng and Li 2023), Algorithms 4 and 5.
    """
    sizes = [b - a for a, b in pairwise(offsets)]
    B, N, d = len(sizes), max(sizes, default=0), r.shape[1]
    count = torch.tensor(sizes, dtype=torch.int64, device=r.device)[:, None]
    k = torch.tensor(drop, dtype=torch.int64, device=r.device)[:, None]
    ranks = torch.arange(N, device=r.device)
    real = ranks < count  # [B, N]

    # where each row lies among B groups of N
    shifts = torch.tensor([N * group - first for group, first in enumerate(offsets[:-1])], dtype=torch.int64)
    places = (torch.arange(r.shape[0]) + shifts[_group_of_rows(sizes)]).to(r.device)
    rows = r.new_zeros(B * N, d).index_copy_(0, places, r).view(B, N, d)

    mean = (rows.sum(1, dtype=torch.float64) / count).to(r.dtype)
    largest = rows.abs().reshape(B, N * d).amax(1) if rows.numel() else rows.new_zeros(B)
    exponent = -torch.frexp(largest).exponent.clamp(-100, 100)[:, None]
    x = torch.ldexp(torch.where(real[..., None], rows - mean[:, None], 0), exponent[..., None])

    w = x @ (start / start.norm())
    gram = x @ x.mT if in_gram_space(N, d, iterations) else None
    stopped = torch.zeros(B, 1, dtype=torch.bool, device=r.device)
    for _ in range(iterations):
        if gram is None:
            v = (w[:, None] @ x)[:, 0]
            norm = v.norm(dim=1, keepdim=True)
            moved = (x @ (v / norm)[..., None])[..., 0]
        else:
            image = (gram @ w[..., None])[..., 0]
            norm = (w * image).sum(1, keepdim=True).clamp_min(0).sqrt()
            moved = image / norm
        moved = torch.where((norm == 0) | stopped, w, moved)
        if tolerance > 0:
            change = moved / moved.norm(dim=1, keepdim=True) - w / w.norm(dim=1, keepdim=True)
            stopped = stopped | (change.norm(dim=1, keepdim=True) <= tolerance)
        w = moved
        if tolerance > 0 and bool(stopped.all()):
            break

    scores = torch.ldexp(w.abs(), -exponent)
    finite = (scores.isfinite() | ~real).all(1, keepdim=True)
    scores = torch.where(finite, scores, torch.nan).masked_fill(~real, -1)
    order = scores.sort(dim=1, descending=True, stable=True).indices
    dropped = torch.zeros_like(real).scatter_(1, order, ranks < k)
    kept = torch.where((real & ~dropped)[..., None], rows, 0).sum(1, dtype=torch.float64) / (count - k)
    mean = torch.where(finite, kept.to(r.dtype), torch.nan)
    return mean, dropped.view(-1)[places], scores.view(-1)[places]
