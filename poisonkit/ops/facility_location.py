"""Medoids of many groups at once, by exact greedy facility location on an integer lattice.

The greedy and its guarantee: Nemhauser, Wolsey and Fisher, "An analysis of approximations for maximizing submodular
set functions", 1978, doi:10.1007/BF01588971. Medoids of gradients against poisons: Yang, Liu and Mirzasoleiman, "Not
All Poisons are Created Equal: Robust Training against Data Poisoning", ICML 2022, arXiv:2210.09671. Stochastic greedy:
Mirzasoleiman et al., "Lazier Than Lazy Greedy", AAAI 2015, arXiv:1409.7938.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from poisonkit.errors import ArgumentError, fail, require
from poisonkit.ops.native import core
from poisonkit.ops.registry import Arguments, Reject, op
from poisonkit.random import Key

SIMILARITIES = ("l2", "exp_l2", "sq_l2")
MAX_DIM = 1 << 20
MAX_ROWS = 1 << 28

_LARGEST = 1 << 24  # of the costs
_TAKEN = -(1 << 62)
_CHUNK = 1 << 20  # costs the reference holds at once


class Medoids(NamedTuple):
    """The medoids of B groups, those of one group after those of another, each group's in selection order."""

    rows: Tensor  #: int64 [sum k], rows of x
    sizes: Tensor  #: int64 [sum k], the rows of x nearest to each medoid, itself included
    nearest: Tensor  #: int64 [N], of each row of x the place of its medoid in `rows`; -1 in a group without medoids
    gains: Tensor  #: float64 [sum k]


def facility_location(
    x: Tensor,
    offsets: Tensor | Sequence[int],
    k: Tensor | Sequence[int],
    similarity: str = "l2",
    scale: float | None = None,
    *,
    greedy: str = "exact",
    epsilon: float = 0.1,
    key: Key | None = None,
) -> Medoids:
    """Greedy medoids of ``B`` groups of rows: those that add most to ``sum_i max_j s(i, j)``, one after the other.

    ``x``: float32 [N, d], finite, 1 <= d <= 2^20. Group b is ``x[offsets[b]:offsets[b + 1]]``, with ``offsets`` [B + 1]
    rising from 0 to N, and gets ``k[b]`` medoids, at most its rows; an empty group gets none. ``similarity``:

    - ``"l2"``: a constant less the Euclidean distance, as in the EPIC paper;
    - ``"exp_l2"``: exp(-distance / ``scale``), ``scale`` > 0 and by default d, as in EPIC's code;
    - ``"sq_l2"``: a constant less the squared distance, as in CRAIG.

    Ties go to the smaller row; a row as near to two medoids counts for the one picked first, so a medoid equal to an
    earlier one has size 0. ``gains`` are in the unit of the similarity, the first against a constant of the group that
    is at least its largest distance, or 0 for ``"exp_l2"``. Similarities are integers times a step of at most 2^-21 of
    the group's largest distance (2^-20 squared, and 2^-24 for ``"exp_l2"``), computed by IEEE additions,
    multiplications and square roots in a fixed order: every device, processor and number of threads makes the same
    picks.

    ``greedy="stochastic"`` takes the best of only ``n / k ln(1 / epsilon)`` candidates, drawn anew for every pick by
    ``key``. It is here for comparison: exact is as fast, and the rows left alone in their cluster differ a lot.

    The CPU kernel gives each group a thread and needs some 60 + 8 d bytes a row. Where d > 32 and a group has at most
    5,792 rows it keeps the distances, four bytes a pair. Raises ``ArgumentError``.

    Source: Yang, Liu and Mirzasoleiman 2022 (arXiv:2210.09671), section 3.4 and Algorithm 1.
    """
    bounds, counts = _integers("offsets", offsets), _integers("k", k)
    require(similarity in SIMILARITIES, "similarity", f"one of {', '.join(SIMILARITIES)}", similarity)
    if similarity == "exp_l2":
        scale = float(x.shape[-1]) if scale is None else float(scale)
    else:
        require(scale is None, "scale", f"None for {similarity}", scale, 'only "exp_l2" has a scale')
    draws, seeds = [0] * len(counts), [0] * len(counts)
    if greedy == "stochastic":
        require(0 < epsilon < 1, "epsilon", "in (0, 1)", epsilon)
        if key is None:
            fail("key", "given for stochastic greedy", None, "pass key=poisonkit.key(seed)")
        rows = [end - start for start, end in pairwise(bounds)]
        draws = [math.ceil(n / max(1, count) * -math.log(epsilon)) for n, count in zip(rows, counts, strict=False)]
        seeds = [key.child("facility_location", group).integer(63) for group in range(len(counts))]
    else:
        require(greedy == "exact", "greedy", "exact or stochastic", greedy)
    return Medoids(*greedy_medoids(x, bounds, counts, similarity, 1.0 if scale is None else scale, draws, seeds))


def _integers(name: str, values: Tensor | Sequence[int]) -> list[int]:
    tensor = torch.as_tensor(values if len(values) else [], dtype=None if len(values) else torch.int64)
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    require(tensor.dim() == 1 and whole, name, "a list of integers", f"{tensor.dtype} {list(tensor.shape)}")
    found: list[int] = tensor.tolist()
    return found


def _check(
    x: Tensor,
    offsets: Sequence[int],
    k: Sequence[int],
    similarity: str,
    scale: float,
    draws: Sequence[int],
    seeds: Sequence[int],
) -> None:
    require(x.dtype == torch.float32, "x", "float32", x.dtype, "x.float() will do")
    require(x.dim() == 2, "x", "of shape [N, d]", list(x.shape), "flatten each row: x.flatten(1)")
    require(1 <= x.shape[1] <= MAX_DIM, "x", f"of 1 to {MAX_DIM} features", x.shape[1])
    require(len(offsets) == len(k) + 1, "offsets", f"one more than the {len(k)} of k", len(offsets))
    ends = f"{offsets[0]}..{offsets[-1]}"
    require(offsets[0] == 0 and offsets[-1] == x.shape[0], "offsets", f"from 0 to the {x.shape[0]} rows", ends)
    for group, count in enumerate(k):
        rows = offsets[group + 1] - offsets[group]
        require(rows >= 0, "offsets", "rising", f"{offsets[group + 1]} after {offsets[group]}")
        require(rows <= MAX_ROWS, "offsets", f"groups of at most {MAX_ROWS} rows", rows)
        require(0 <= count <= rows, "k", f"in [0, {rows}], the rows of group {group}", count)
    require(similarity in SIMILARITIES, "similarity", f"one of {', '.join(SIMILARITIES)}", similarity)
    require(math.isfinite(scale) and scale > 0, "scale", "finite and above 0", scale)
    require(len(draws) == len(k) == len(seeds), "draws", "as many as k, and so the seeds", [len(draws), len(seeds)])
    require(min(draws, default=0) >= 0, "draws", "at least 0", min(draws, default=0))


def _check_values(
    x: Tensor,
    offsets: Sequence[int],
    k: Sequence[int],
    similarity: str,
    scale: float,
    draws: Sequence[int],
    seeds: Sequence[int],
) -> None:
    if x.numel():
        low, high = torch.stack(x.aminmax()).tolist()  # a NaN anywhere is one here
        require(math.isfinite(low) and math.isfinite(high), "x", "finite", f"values in [{low}, {high}]")


def _fake(
    x: Tensor,
    offsets: Sequence[int],
    k: Sequence[int],
    similarity: str,
    scale: float,
    draws: Sequence[int],
    seeds: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    places = sum(k)
    rows, sizes = (x.new_empty(places, dtype=torch.int64) for _ in range(2))
    return rows, sizes, x.new_empty(x.shape[0], dtype=torch.int64), x.new_empty(places, dtype=torch.float64)


def _native(
    x: Tensor,
    offsets: Sequence[int],
    k: Sequence[int],
    similarity: str,
    scale: float,
    draws: Sequence[int],
    seeds: Sequence[int],
    *,
    isa: str,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert core is not None
    if x.stride(1) != 1:
        x = x.contiguous()
    results = _fake(x, offsets, k, similarity, scale, draws, seeds)
    core.facility_location(
        *(x.data_ptr(), x.shape[1], x.stride(0), list(offsets), list(k), list(draws), list(seeds), similarity, scale),
        *(result.data_ptr() for result in results),
        isa,
        threads,
    )
    return results


def _native_cuda(
    x: Tensor,
    offsets: Sequence[int],
    k: Sequence[int],
    similarity: str,
    scale: float,
    draws: Sequence[int],
    seeds: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from poisonkit import _cuda

    results = _fake(x, offsets, k, similarity, scale, draws, seeds)
    rows, sizes, nearest, gains = results
    sizes.zero_()
    largest = max((end - start for start, end in pairwise(offsets)), default=0)
    if largest == 0:
        return results
    if x.stride(1) != 1:
        x = x.contiguous()
    places = [0, *accumulate(k)]
    groups = torch.tensor([offsets, places, [*k, 0], [*draws, 0], [*seeds, 0]]).to(x.device)
    # a launch goes to the current device and stream
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        room = x.new_empty(_cuda.facility_location_room(len(x), x.shape[1], len(k), largest), dtype=torch.uint8)
        _cuda.facility_location(
            *(x.data_ptr(), len(x), x.shape[1], x.stride(0), groups.data_ptr(), len(k), largest, similarity, scale),
            *(rows.data_ptr(), sizes.data_ptr(), nearest.data_ptr(), gains.data_ptr(), room.data_ptr()),
            torch.cuda.current_stream().cuda_stream,
        )
    return results


def _samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def exact(
        x: Tensor, offsets: list[int], k: list[int], similarity: str = "l2", scale: float = 1.0, draws: int = 0
    ) -> Arguments:
        return x, offsets, k, similarity, scale, [draws] * len(k), list(range(7, 7 + len(k)))

    yield exact(normal(0, 3), [0], [])
    yield exact(normal(0, 3), [0, 0], [0])
    yield exact(normal(1, 1), [0, 1], [1])
    yield exact(normal(5, 2), [0, 5], [0])
    for similarity in SIMILARITIES:
        yield exact(normal(333, 5), [0, 0, 1, 66, 333], [0, 1, 65, 30], similarity, 0.7)
        yield exact(normal(150, 35), [0, 33, 150], [33, 20], similarity, 3.0)  # where the CPU keeps the costs
    yield exact(normal(40, 6)[:, ::2], [0, 40], [9])  # not contiguous
    yield exact(normal(40, 6)[::2, 1:5], [0, 20], [9])  # rows apart
    yield exact(normal(4, 40).T, [0, 40], [9])
    yield exact(normal(1, 3).expand(35, 3), [0, 35], [35])  # all rows one
    yield exact((normal(300, 2) * 2).round(), [0, 300], [200])  # duplicates, and more medoids than distinct rows
    yield exact(normal(50, 3) * torch.tensor([3e38, 1e30, 1.0]).clamp(max=1e38), [0, 50], [20])  # near the largest
    yield exact(normal(50, 3) * 1e-41, [0, 50], [20])  # subnormal
    yield exact(torch.cat([normal(30, 2), normal(3, 2) * 1e30]), [0, 33], [20], "sq_l2")
    yield exact(normal(70, 3), [0, 70], [20], "exp_l2", 1e-30)
    yield exact(normal(70, 3), [0, 70], [20], "exp_l2", 1e30)
    yield exact(normal(300, 3), [0, 100, 300], [100, 50], "l2", 1.0, 6)


_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: _bad(torch.zeros(2, 3).double()), "x must be float32"),
        (lambda: _bad(torch.zeros(2)), "x must be of shape [N, d]"),
        (lambda: _bad(torch.zeros(2, 0)), "x must be of 1 to 1048576 features"),
        (lambda: _bad(torch.tensor([[0.0], [math.nan]])), "x must be finite"),
        (lambda: _bad(torch.tensor([[0.0], [math.inf]])), "x must be finite"),
        (lambda: _bad(torch.tensor([[-math.inf], [0.0]])), "x must be finite"),
        (lambda: _bad(offsets=[0, 1, 2]), "offsets must be one more than the 1 of k"),
        (lambda: _bad(offsets=[1, 2]), "offsets must be from 0 to the 2 rows, got 1..2"),
        (lambda: _bad(offsets=[0, 3]), "offsets must be from 0 to the 2 rows, got 0..3"),
        (lambda: _bad(offsets=[0, 3, 2], k=[1, 0]), "offsets must be rising, got 2 after 3"),
        (lambda: _bad(k=[3]), "k must be in [0, 2], the rows of group 0, got 3"),
        (lambda: _bad(k=[-1]), "k must be in [0, 2], the rows of group 0, got -1"),
        (lambda: _bad(similarity="cosine"), "similarity must be one of l2, exp_l2, sq_l2, got cosine"),
        (lambda: _bad(similarity="exp_l2", scale=0.0), "scale must be finite and above 0, got 0.0"),
        (lambda: _bad(scale=math.nan), "scale must be finite and above 0, got nan"),
        (lambda: _bad(draws=[]), "draws must be as many as k"),
        (lambda: _bad(draws=[-1]), "draws must be at least 0, got -1"),
    )
)


def _bad(
    x: Tensor | None = None,
    offsets: Sequence[int] = (0, 2),
    k: Sequence[int] = (1,),
    similarity: str = "l2",
    scale: float = 1.0,
    draws: Sequence[int] = (0,),
) -> Arguments:
    return torch.zeros(2, 3) if x is None else x, list(offsets), list(k), similarity, scale, list(draws), [0] * len(k)


@op(
    check=_check,
    check_values=_check_values,
    fake=_fake,
    samples=_samples,
    rejects=_REJECTS,
    native=_native,
    isas=("scalar", "avx2"),
    native_cuda=_native_cuda,
)
def greedy_medoids(
    x: Tensor,
    offsets: Sequence[int],
    k: Sequence[int],
    similarity: str,
    scale: float,
    draws: Sequence[int],
    seeds: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What ``facility_location`` calls: the same with host integers only.

    ``x``: float32 [N, d]; ``offsets`` [B + 1]; ``k`` [B]; ``similarity`` and ``scale`` > 0, which only ``"exp_l2"``
    uses; ``draws`` [B]: 0 for exact greedy, else the candidates drawn for every pick, with replacement, from the rows
    of the group not picked yet; ``seeds`` [B]: of those draws. Returns the four fields of ``Medoids``. Raises
    ``ArgumentError``.

    Source: Yang, Liu and Mirzasoleiman 2022 (arXiv:2210.09671), Algorithm 1.
    """
    results = _fake(x, offsets, k, similarity, scale, draws, seeds)
    rows, sizes, nearest, gains = results
    place = 0
    for group, count in enumerate(k):
        start, end = offsets[group], offsets[group + 1]
        if end == start or count == 0:
            nearest[start:end] = -1
            continue
        costs = _Costs(x[start:end], similarity, scale)
        picks, mine, worth = _greedy(costs, count, draws[group], seeds[group])
        slots = slice(place, place + count)
        rows[slots], gains[slots] = picks + start, worth * costs.unit
        sizes[slots], nearest[start:end] = torch.bincount(mine, minlength=count), mine + place
        place += count
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@_one_thread()  # on a CPU threads wait for each other longer than such small steps take
def _greedy(costs: _Costs, k: int, draws: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Picks [k], each row's nearest of them [n] and gains [k] in steps of the lattice, by eager updates of all gains.

    A pick lowers the cost of some rows to their best medoid from ``old`` to ``now``, and every gain by what those rows
    gave it: clamp(old - cost, 0, old - now).
    """
    n = costs.rows
    device = costs.columns.device
    every = torch.arange(n, device=device)
    best = torch.full((n,), _LARGEST + 1, dtype=torch.int32, device=device)
    nearest = torch.zeros(n, dtype=torch.int64, device=device)
    picks, worth = [], []
    left = list(range(n)) if draws else []
    gains = n * _LARGEST - costs.summed(every, None, None)
    for pick in range(k):
        picked = _drawn(gains, left, draws, seed, pick) if draws else int(gains.argmax())  # the first of the largest
        picks.append(picked)
        worth.append(int(gains[picked]))
        row = costs(every[picked : picked + 1])[0]
        closer = (row < best).nonzero()[:, 0]
        old, now = best[closer], row[closer]
        best[closer], nearest[closer] = now, pick
        if pick == 0:
            gains = costs.summed(closer, now, now)
        else:
            gains -= costs.summed(closer, old, old - now)
        gains[picks] = _TAKEN
    return torch.tensor(picks, device=device), nearest, torch.tensor(worth, dtype=torch.float64, device=device)


def _drawn(gains: Tensor, left: list[int], draws: int, seed: int, pick: int) -> int:
    """The best of the candidates drawn from ``left``, taken out of it."""
    places = [(_word(seed, pick, draw) >> 1) % len(left) for draw in range(draws)]
    values = gains[[left[place] for place in places]].tolist()
    place = min(zip(values, places, strict=True), key=lambda found: (-found[0], left[found[1]]))[1]
    picked, left[place] = left[place], left[-1]
    left.pop()
    return picked


def _word(seed: int, pick: int, draw: int) -> int:
    """64 random bits: splitmix64 (Steele, Lea, Flood 2014) of a counter."""
    gamma, low = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & low
        z = (z ^ z >> 27) * 0x94D049BB133111EB & low
        return z ^ z >> 31

    return mix((mix((pick * gamma + seed) & low) + (draw + 1) * gamma) & low)


class _Costs:
    """Integer costs between the rows of one group; csrc/core/facility_location.hpp says why they are what they are.

    Nothing here may be fused or reordered: every operation is rounded to float32 before the next.
    """

    def __init__(self, x: Tensor, similarity: str, scale: float) -> None:
        self.rows, dim = x.shape
        self.similarity = similarity
        moved = x.double() - x[0].double()
        exponent = math.frexp(float(moved.abs().max()))[1]
        moved = (moved * math.ldexp(1.0, -exponent)).add(6144.0).sub(6144.0)  # to whole multiples of 2^-40
        self.columns = moved.float().T.contiguous()
        reach = float(self._squared(torch.zeros_like(self.columns[:, :1])).max())
        level = math.frexp(4.0 * reach * (1.0 + math.ldexp(dim + 16, -22)))[1]
        level = (level + 1) // 2  # every distance is at most 2^level
        if similarity == "l2":
            self.factor, self.unit = math.ldexp(1.0, 24 - level), math.ldexp(1.0, exponent + level - 24)
        elif similarity == "sq_l2":
            self.factor, self.unit = math.ldexp(1.0, 24 - 2 * level), math.ldexp(1.0, 2 * (exponent + level) - 24)
        else:
            self.factor = max(-1.4426950408889634 * math.ldexp(1.0, exponent) / scale, -3e38)
            self.unit = math.ldexp(1.0, -24)

    def __call__(self, rows: Tensor) -> Tensor:
        """Int32 [len(rows), n]."""
        squared = self._squared(self.columns[:, rows])
        if self.similarity == "sq_l2":
            return (squared * self.factor + 0.5).int()
        # torch's float32 square root is off by a bit at times; float64 rounded to float32 is not
        scaled = squared.double().sqrt().float() * self.factor
        if self.similarity == "l2":
            return (scaled + 0.5).int()
        y = scaled.clamp(min=-64.0)
        whole = (y + 0.5).floor()
        rest = y - whole
        power = torch.full_like(y, 1.5252734e-5)  # log(2)^j / j!, highest first
        for term in (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0):
            power = power * rest + term
        two_to_whole = (whole.int() + (24 + 127) << 23).view(torch.float32)
        return _LARGEST - (power * two_to_whole + 0.5).int()

    def summed(self, rows: Tensor, old: Tensor | None, most: Tensor | None) -> Tensor:
        """Int64 [n]: the sum over ``rows`` of the costs, or of clamp(old - cost, 0, most)."""
        total = torch.zeros(self.rows, dtype=torch.int64, device=rows.device)
        step = max(1, _CHUNK // self.rows)
        for start in range(0, len(rows), step):
            chunk = slice(start, start + step)
            costs = self(rows[chunk])
            if old is not None and most is not None:
                costs = (old[chunk, None] - costs).clamp(min=0).minimum(most[chunk, None])
            total += costs.sum(0)
        return total

    def _squared(self, columns: Tensor) -> Tensor:
        """Squared distances of the rows in ``columns`` [d, r] to all: float32 [r, n], added up feature by feature."""
        squared = torch.zeros(columns.shape[1], self.rows, device=columns.device)
        for mine, all_rows in zip(columns, self.columns, strict=True):
            difference = mine[:, None] - all_rows
            squared = squared + difference * difference
        return squared
