"""The winner and the certificate of a run-off election among models.

Rezaei, Banihashem, Chegini and Feizi, "Run-Off Election: Improved Provable Defense against Data Poisoning Attacks",
ICML 2023, arXiv 2302.02300.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from poisonkit.errors import ArgumentError, require
from poisonkit.ops.native import core
from poisonkit.ops.registry import Arguments, Reject, op
from poisonkit.ops.vote_radius import bucket_powers, check_ids, check_order, check_votes, strongest

# Entries of the reference's [rows, models, K] powers held at once
_CHUNK = 1 << 22


def _check(first: Tensor, above: Tensor, order: Tensor, shifts: Sequence[int]) -> None:
    require(first.dim() == 2, "first", "of shape [n, M]", list(first.shape))
    check_votes("first", first, order, shifts, 1)
    shape = (*first.shape, 2, (len(order) + 7) // 8)
    require(above.dtype == torch.uint8, "above", "uint8", above.dtype, "pack eight classes to a byte")
    require(above.shape == shape, "above", f"of shape {list(shape)}", list(above.shape))
    require(above.device == first.device, "above", f"on {first.device} like first", above.device)


def _check_values(first: Tensor, above: Tensor, order: Tensor, shifts: Sequence[int]) -> None:
    check_order(order)


def _fake(first: Tensor, above: Tensor, order: Tensor, shifts: Sequence[int]) -> tuple[Tensor, Tensor]:
    return order.new_empty(first.shape[1]), order.new_empty(first.shape[1])


def _native(
    first: Tensor, above: Tensor, order: Tensor, shifts: Sequence[int], *, isa: str, threads: int
) -> tuple[Tensor, Tensor]:
    assert core is not None
    order = order.contiguous()
    above = above if above.stride(3) == 1 else above.contiguous()
    winner, radius = order.new_empty(first.shape[1]), order.new_empty(first.shape[1])
    problem = core.run_off_radius(
        *(first.data_ptr(), first.element_size(), *first.shape, *first.stride()),
        *(above.data_ptr(), *above.stride()[:3], order.data_ptr(), len(order), list(shifts)),
        *(winner.data_ptr(), radius.data_ptr(), threads),
    )
    if problem:
        check_ids("first", first.to(torch.int64), len(order))
    return winner, radius


def _samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def election(models: int, inputs: int, classes: int, shifts: list[int], ties: bool = False) -> Arguments:
        logits = torch.rand(models, inputs, classes, generator=generator) * torch.linspace(1, 0.4, classes)
        if ties:
            logits = (4 * logits).round()
        order = torch.randperm(classes, generator=generator)
        first = logits.argmax(2)
        count = torch.zeros(inputs, classes).scatter_add_(1, first.T, torch.ones(inputs, models))
        finalists = order[(count[:, order] * classes - torch.arange(classes)).topk(2).indices]
        greater = logits.gather(2, finalists.expand(models, -1, -1))[..., None] > logits[:, :, None]
        bits = torch.nn.functional.pad(greater, (0, -classes % 8)).reshape(models, inputs, 2, -(-classes // 8), 8)
        return first, (bits << torch.arange(8)).sum(4).to(torch.uint8), order, shifts

    yield election(5, 0, 3, [0])
    yield election(1, 1, 2, [0])
    yield election(1, 20, 9, [0])
    for models, classes, shifts in ((7, 3, [0]), (300, 11, [0]), (12, 5, [0, 3]), (24, 40, [5, 2, 9])):
        first, *rest = election(models, 41, classes, shifts)
        yield (first.to(torch.uint8), *rest)
        yield election(models, 41, classes, shifts, ties=True)
    first, above, order, shifts = election(10, 40, 9, [0, 1])
    yield first[::2, ::3], above[::2, ::3], order, shifts  # not contiguous
    yield first[:, :1].to(torch.uint16).expand(10, 5), above[:, :1].expand(10, 5, 2, 2), order, [3]


def _votes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def _bits(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: (_votes(2, 3, 1), _bits(2, 3, 2, 1), torch.arange(3), [0]), "first must be of shape [n, M]"),
        (lambda: (_votes(2, 3).int(), _bits(2, 3, 2, 1), torch.arange(3), [0]), "first must be uint8, uint16 or"),
        (lambda: (_votes(2, 3), _votes(2, 3, 2, 1), torch.arange(3), [0]), "above must be uint8"),
        (lambda: (_votes(2, 3), _bits(2, 3, 2, 2), torch.arange(3), [0]), "above must be of shape [2, 3, 2, 1]"),
        (lambda: (_votes(2, 3), _bits(2, 3, 2, 1), torch.zeros(3).long(), [0]), "order must be a permutation"),
        (lambda: (_votes(2, 3) + 3, _bits(2, 3, 2, 1), torch.arange(3), [0]), "first must be classes in [0, 3)"),
        (lambda: (_votes(2, 3), _bits(2, 3, 2, 1), torch.arange(3), [2]), "shifts must be distinct and in [0, 2)"),
    )
)


@op(
    check=_check,
    check_values=_check_values,
    fake=_fake,
    samples=_samples,
    rejects=_REJECTS,
    native=_native,
    isas=("scalar",),
)
def run_off_radius(first: Tensor, above: Tensor, order: Tensor, shifts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The winner of a run-off between the two most-voted classes, and how many hits cannot change it: int64 [M] each.

    ``first``: uint8, uint16 or int64 [n, M], the favourite of each model. ``above``: uint8 [n, M, 2, ceil(K/8)], bit
    c % 8 of byte c // 8 set where the model puts the finalist above class c, the finalists being the two most-voted
    classes, most votes first. ``order``: int64 [K], the class that wins ties first. Cell h feeds the models
    (h + s) mod n for s in ``shifts``, as in ``vote_radius`` with one group.

    The first finalist wins with more than half of the models, or with half if it comes first in ``order``. Where a
    model puts neither finalist above the other, it counts for the second, and in the certificate for none.

    Let y be the winner, s the other finalist, n_c the first votes of c, and need(gap, w) the least number of cells
    whose powers, sums of w_i over the models they feed, reach the gap (0 where gap <= 0). The radius is one less than
    the least number of hits by which

    - any a and b come before y: max(need(g_a, w_a), need(g_b, w_b), need(g_a + g_b, 1 + 2[v=y] - [v=a] - [v=b])) with
      g_c = n_y - n_c + [y before c] and w_c = 1 + [v=y] - [v=c]. For disjoint cells that is the closed form
      max(ceil(g_a / 2), ceil(g_b / 2), ceil((g_a + g_b) / 3));
    - any c comes before s, for c = s at once, and beats y: max(need(n_s - n_c + [s before c], 1 + [v=s] - [v=c]),
      need(2 #{y above c} - n + [y before c], 2 [y above c])).

    Raises ``ArgumentError`` for ids outside [0, K). On CUDA the reference runs, as for ``vote_radius``.

    Source: Rezaei, Banihashem, Chegini and Feizi 2023 (arXiv 2302.02300).
    """
    models, inputs = first.shape
    classes = len(order)
    column_of = order.argsort()
    column = torch.arange(classes, device=first.device)
    bits = torch.arange(8, device=first.device, dtype=torch.uint8)
    winner, radius = order.new_empty(inputs), order.new_empty(inputs)
    step = max(1, _CHUNK // (models * classes * len(shifts)))
    for start in range(0, inputs, step):
        part = first[:, start : start + step].to(torch.int64).T  # [rows, n]
        check_ids("first", part, classes)
        voted = torch.zeros(*part.shape, classes, dtype=torch.int64, device=first.device)
        voted.scatter_(2, column_of[part][..., None], 1)
        count = voted.sum(1)
        finalists = (count * classes - column).topk(2).indices
        one, two = finalists[:, :1], finalists[:, 1:]
        packed = above[:, start : start + step].permute(2, 1, 0, 3)
        over = ((packed[..., None] >> bits) & 1).flatten(3)[..., :classes][..., order].long()  # [2, rows, n, K]
        lead = 2 * over[0].gather(2, two[:, None].expand(-1, models, 1)).sum(1) - models
        wins = (lead > 0) | ((lead == 0) & (one < two))
        y, s = torch.where(wins, one, two), torch.where(wins, two, one)
        over = torch.where(wins[..., None], over[0], over[1])  # [rows, n, K], of the winner

        def gap(c: Tensor, count: Tensor = count) -> Tensor:
            """n_c less the votes of every class, and one more where c comes first."""
            return count.gather(1, c) - count + (c < column).long()

        def one_hot(c: Tensor, voted: Tensor = voted) -> Tensor:
            return voted.gather(2, c[:, None].expand(-1, models, 1))

        final = _need(2 * over.sum(1) - models + (y < column).long(), 2 * over, shifts)
        reach = _need(gap(s), 1 + one_hot(s) - voted, shifts).scatter_(1, s, 0)
        never = models + 2
        best = torch.maximum(final, reach).scatter_(1, y, never).amin(1)
        alone = _need(gap(y), 1 + one_hot(y) - voted, shifts).scatter_(1, y, never)
        for a in range(classes):
            both = gap(y) + gap(y)[:, a : a + 1]
            pair = _need(both, 1 + 2 * one_hot(y) - voted - voted[:, :, a : a + 1], shifts)
            pair = torch.maximum(torch.maximum(pair, alone), alone[:, a : a + 1])
            pair[:, a] = never
            best = torch.minimum(best, pair.amin(1))
        winner[start : start + step] = order[y[:, 0]]
        radius[start : start + step] = (best - 1).clamp(min=0)
    return winner, radius


def _need(gap: Tensor, values: Tensor, shifts: Sequence[int]) -> Tensor:
    """Least hits whose gains reach ``gap`` [rows, K], from ``values`` [rows, n, K]; n + 1 where none do."""
    gains = strongest(bucket_powers(values, shifts, 1))
    return torch.where(gap > 0, 1 + (gains < gap[:, None]).sum(1), 0)
