"""The certificate of a vote among models whose training rows an attacker reaches by cells.

One formula serves Deep Partition Aggregation (Levine and Feizi, ICLR 2021, arXiv 2006.14768), Finite Aggregation
(Wang, Levine and Feizi, ICML 2022, arXiv 2202.02628) and hash bagging (Chen, Li, Li, Wu and Yan, ICML 2022,
arXiv 2205.13176), with one vote for each model or with several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from poisonkit.errors import ArgumentError, fail, require
from poisonkit.ops.native import core
from poisonkit.ops.registry import Arguments, Reject, op

VOTES = (torch.uint8, torch.uint16, torch.int64)
MAX_CLASSES = 1 << 16
MAX_DEGREE = 1 << 14  # a cell's power, at most three times that, fits 16 bits

# Entries of the reference's [rows, models, K] powers held at once
_CHUNK = 1 << 22


def check_votes(name: str, votes: Tensor, order: Tensor, shifts: Sequence[int], groups: int) -> None:
    """The rules that ops on votes share."""
    require(votes.dtype in VOTES, name, "uint8, uint16 or int64", votes.dtype, f"{name}.to(torch.int64) will do")
    require(votes.shape[0] >= 1, name, "of at least one base model", list(votes.shape))
    require(order.dtype == torch.int64 and order.dim() == 1, "order", "int64 [K]", f"{order.dtype} {list(order.shape)}")
    require(2 <= len(order) <= MAX_CLASSES, "order", f"of 2 to {MAX_CLASSES} classes", len(order))
    require(order.device == votes.device, "order", f"on {votes.device} like {name}", order.device)
    require(
        groups >= 1 and votes.shape[0] % groups == 0,
        "groups",
        f"a divisor of the {votes.shape[0]} models",
        groups,
    )
    size = votes.shape[0] // groups
    require(
        1 <= len(shifts) <= MAX_DEGREE and len(set(shifts)) == len(shifts) and min(shifts) >= 0 and max(shifts) < size,
        "shifts",
        f"distinct and in [0, {size}), at most {MAX_DEGREE} of them",
        list(shifts),
    )


def check_order(order: Tensor) -> None:
    """Whether ``order`` is a permutation of its places."""
    places = torch.arange(len(order), device=order.device)
    require(bool((order.sort().values == places).all()), "order", f"a permutation of 0..{len(order) - 1}", "another")


def check_ids(name: str, ids: Tensor, num_classes: int) -> None:
    """Whether the int64 ``ids`` are classes."""
    if ids.numel():
        low, high = int(ids.min()), int(ids.max())
        require(low >= 0 and high < num_classes, name, f"classes in [0, {num_classes})", f"{low}..{high}")


def bucket_powers(values: Tensor, shifts: Sequence[int], groups: int) -> Tensor:
    """Sum ``values`` [rows, models, ...] over the models that each cell feeds: [rows, groups, cells, ...]."""
    grouped = values.reshape(len(values), groups, -1, *values.shape[2:])
    return torch.stack([grouped.roll(-shift, 2) for shift in shifts]).sum(0)


def strongest(powers: Tensor) -> Tensor:
    """Powers [rows, groups, cells, ...] to [rows, cells, ...]: what r + 1 hits on each group gain at most."""
    return powers.sort(2, descending=True).values.sum(1).cumsum(1)


def _check(top: Tensor, order: Tensor, label: Tensor | None, shifts: Sequence[int], groups: int) -> None:
    require(top.dim() == 3, "top", "of shape [n, M, t]", list(top.shape))
    check_votes("top", top, order, shifts, groups)
    require(
        1 <= top.shape[2] < len(order),
        "n",
        f"at least 1 and below the number of classes {len(order)}",
        top.shape[2],
        "the last dimension of top holds the n best classes of a model",
    )
    if label is not None:
        require(label.shape == top.shape[1:2], "label", f"of shape [{top.shape[1]}]", list(label.shape))
        require(label.dtype == torch.int64, "label", "int64", label.dtype)
        require(label.device == top.device, "label", f"on {top.device} like top", label.device)


def _check_values(top: Tensor, order: Tensor, label: Tensor | None, shifts: Sequence[int], groups: int) -> None:
    check_order(order)
    if label is not None:
        check_ids("label", label, len(order))


def _fake(
    top: Tensor, order: Tensor, label: Tensor | None, shifts: Sequence[int], groups: int
) -> tuple[Tensor, Tensor]:
    return order.new_empty(top.shape[1]), order.new_empty(top.shape[1])


def _native(
    top: Tensor, order: Tensor, label: Tensor | None, shifts: Sequence[int], groups: int, *, isa: str, threads: int
) -> tuple[Tensor, Tensor]:
    assert core is not None
    (models, inputs, each), order = top.shape, order.contiguous()
    label = label if label is None else label.contiguous()
    kept, radius = order.new_empty(inputs), order.new_empty(inputs)
    problem = core.vote_radius(
        *(top.data_ptr(), top.element_size(), models, inputs, each, *top.stride()),
        *(order.data_ptr(), len(order), 0 if label is None else label.data_ptr(), list(shifts), groups),
        *(kept.data_ptr(), radius.data_ptr(), threads),
    )
    if problem:
        _check_top(top.to(torch.int64), len(order))
    return kept, radius


def _check_top(top: Tensor, num_classes: int) -> None:
    """Raise for int64 [n, M, t] with a vote for no class, or with a class twice in one model's t."""
    check_ids("votes", top, num_classes)
    ids = top.sort(2).values
    if bool((ids[:, :, 1:] == ids[:, :, :-1]).any()):
        fail("top", "distinct classes for each model", "repeats")


def _samples() -> Iterator[Arguments]:
    generator = torch.Generator().manual_seed(0)

    def draw(classes: int, *shape: int) -> Tensor:
        skewed = torch.rand(*shape, classes, generator=generator) * torch.linspace(1, 0.3, classes)
        return skewed.argsort(-1, descending=True)

    def order(classes: int) -> Tensor:
        return torch.randperm(classes, generator=generator)

    yield draw(3, 5, 0)[..., :1], order(3), None, [0], 1
    yield draw(2, 1, 1)[..., :1], order(2), None, [0], 1
    yield draw(7, 33, 300)[..., :1].to(torch.uint8), order(7), None, [0], 1
    yield draw(5, 24, 37)[..., :1].to(torch.uint16), order(5), None, [0, 7, 11], 1
    yield draw(300, 40, 35)[..., :1].to(torch.uint16), order(300), None, [3, 0, 39, 17], 1
    yield draw(4, 24, 37)[..., :1], order(4), None, [0], 3
    yield draw(4, 24, 37)[..., :1], order(4), None, [5, 2], 3
    for shifts, groups in (([0], 1), ([1, 4, 2], 1), ([0, 1], 2)):
        top = draw(9, 10, 40)[..., :4]
        yield top.to(torch.uint8), order(9), torch.randint(9, (40,), generator=generator), shifts, groups
    yield draw(9, 10, 40)[..., :8], order(9), None, [0], 1
    yield draw(6, 21, 80)[::2, ::3, :2], order(6), None, [0, 4], 1  # not contiguous
    yield torch.full((600, 3, 1), 4), order(5), None, list(range(0, 600, 2)), 1  # strong cells
    yield torch.full((6, 3, 1), 65535).to(torch.uint16), order(65536), None, [0, 5], 1


def _votes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


_REJECTS = tuple(
    Reject(args, ArgumentError, match)
    for args, match in (
        (lambda: (_votes(2, 3), torch.arange(3), None, [0], 1), "top must be of shape [n, M, t]"),
        (lambda: (_votes(2, 3, 1).int(), torch.arange(3), None, [0], 1), "top must be uint8, uint16 or int64"),
        (lambda: (_votes(0, 3, 1), torch.arange(3), None, [0], 1), "top must be of at least one base model"),
        (lambda: (_votes(2, 3, 1), torch.arange(1), None, [0], 1), "order must be of 2 to 65536 classes"),
        (lambda: (_votes(2, 3, 1), torch.zeros(3).long(), None, [0], 1), "order must be a permutation of 0..2"),
        (lambda: (_votes(2, 3, 3), torch.arange(3), None, [0], 1), "n must be at least 1 and below the number"),
        (lambda: (_votes(2, 3, 2), torch.arange(3), None, [0], 1), "top must be distinct classes"),
        (lambda: (_votes(2, 3, 1) + 3, torch.arange(3), None, [0], 1), "votes must be classes in [0, 3), got 3..3"),
        (lambda: (_votes(2, 3, 1) - 1, torch.arange(3), None, [0], 1), "votes must be classes in [0, 3), got -1..-1"),
        (lambda: (_votes(2, 3, 1), torch.arange(3), _votes(2), [0], 1), "label must be of shape [3]"),
        (lambda: (_votes(2, 3, 1), torch.arange(3), _votes(3) + 3, [0], 1), "label must be classes in [0, 3)"),
        (lambda: (_votes(2, 3, 1), torch.arange(3), None, [0], 3), "groups must be a divisor of the 2 models"),
        (lambda: (_votes(4, 3, 1), torch.arange(3), None, [0, 0], 1), "shifts must be distinct and in [0, 4)"),
        (lambda: (_votes(4, 3, 1), torch.arange(3), None, [2], 2), "shifts must be distinct and in [0, 2)"),
        (lambda: (_votes(4, 3, 1), torch.arange(3), None, [], 1), "shifts must be distinct and in [0, 4)"),
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
def vote_radius(
    top: Tensor, order: Tensor, label: Tensor | None, shifts: Sequence[int], groups: int
) -> tuple[Tensor, Tensor]:
    """Which class each input keeps, and how many hits cannot push it out of the t most-voted: int64 [M] each.

    ``top``: uint8, uint16 or int64 [n, M, t], the t < K distinct best classes of n models, each worth one vote.
    ``order``: int64 [K], the class that wins ties first. ``label``: int64 [M], the class to keep; None for the most
    voted. The models stand in ``groups`` equal groups; in a group of m models, cell h feeds the models (h + s) mod m
    for s in ``shifts``. A hit on a cell lets the attacker choose the votes of all models it feeds; the radius r
    allows r hits in every group at once.

    With y the class to keep and n_c the votes of c, rival c needs gains above n_y - n_c - [c before y]; cell h gains
    at most the sum of 1 + [y in T_i] - [c in T_i] over the models i it feeds. r_c is the largest r for which the r
    strongest cells of every group gain no more than that, or -1; the radius is the t-th smallest r_c. A model fed by
    two hit cells counts twice, so with several shifts the radius may be below the best possible; it is never above.

    Raises ``ArgumentError`` for ids outside [0, K) or repeated in a model's t. The C++ kernel spends O(n d) on an
    input, with no sort; on CUDA the reference runs, since certificates are a vanishing part of any run there.

    Source: Wang, Levine and Feizi 2022 (arXiv 2202.02628) for one group and t = 1.
    """
    models, inputs, each = top.shape
    classes = len(order)
    column_of = order.argsort()
    kept, radius = order.new_empty(inputs), order.new_empty(inputs)
    column = torch.arange(classes, device=top.device)
    step = max(1, _CHUNK // (models * classes * len(shifts)))
    for start in range(0, inputs, step):
        part = top[:, start : start + step].to(torch.int64).transpose(0, 1)
        _check_top(part, classes)
        voted = torch.zeros(*part.shape[:2], classes, dtype=torch.int64, device=top.device)
        voted.scatter_(2, column_of[part], 1)  # [rows, n, K]
        count = voted.sum(1)
        if label is None:
            mine = (count * classes - column).argmax(1, keepdim=True)
        else:
            mine = column_of[label[start : start + step, None]]
        gap = count.gather(1, mine) - count - (column < mine).long()
        own = voted.gather(2, mine[:, None].expand(-1, models, -1))
        gains = strongest(bucket_powers(1 + own - voted, shifts, groups))
        most = (gains <= gap[:, None]).sum(1).masked_fill_(gap < 0, -1)
        most.scatter_(1, mine, models)  # no rival of itself
        kept[start : start + step] = order[mine[:, 0]]
        radius[start : start + step] = most.sort(1).values[:, each - 1]
    return kept, radius
