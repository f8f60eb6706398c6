"""Elections by their definitions, and an attacker who tries everything: nothing here knows a certificate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

Ballots = tuple  # what each model says: a class, or classes with the best first
Decide = Callable[[Ballots], object]


def plurality(order: Sequence[int]) -> Decide:
    return lambda votes: max(order, key=lambda c: (sum(v == c for v in votes), -order.index(c)))


def most_named(order: Sequence[int], n: int, label: int) -> Decide:
    """Whether ``label`` is among the n classes that the most models name."""

    def decide(ballots: Ballots) -> bool:
        return label in sorted(order, key=lambda c: (-sum(c in b for b in ballots), order.index(c)))[:n]

    return decide


def run_off(order: Sequence[int]) -> Decide:
    def decide(rankings: Ballots) -> int:
        one, two = sorted(order, key=lambda c: (-sum(r[0] == c for r in rankings), order.index(c)))[:2]
        lead = sum(1 if r.index(one) < r.index(two) else -1 for r in rankings)
        return one if lead > 0 or (lead == 0 and order.index(one) < order.index(two)) else two

    return decide


def bucket_models(models: int, shifts: Sequence[int], groups: int = 1) -> list[list[set[int]]]:
    """For each group, for each of its cells, the models it feeds."""
    size = models // groups
    return [[{g * size + (h + s) % size for s in shifts} for h in range(size)] for g in range(groups)]


def attacks(cells: list[list[set[int]]], hits: int) -> Iterator[frozenset[int]]:
    """The sets of models that ``hits`` cells of every group reach."""
    choices = [itertools.combinations(group, min(hits, len(group))) for group in cells]
    return iter({frozenset().union(*itertools.chain(*chosen)) for chosen in itertools.product(*choices)})


def changed(ballots: Ballots, reached: frozenset[int], choices: Sequence[object], decide: Decide) -> bool:
    """Whether the models reached can change the outcome by any ballots at all."""
    before, free = decide(ballots), sorted(reached)
    for new in itertools.product(choices, repeat=len(free)):
        attacked = list(ballots)
        for model, ballot in zip(free, new, strict=True):
            attacked[model] = ballot
        if decide(tuple(attacked)) != before:
            return True
    return False


def exhaustive(
    ballots: Ballots, cells: list[list[set[int]]], choices: Sequence[object], decide: Decide, cap: int | None = None
) -> int:
    """The largest number of hits, up to ``cap``, that never changes the outcome."""
    most = max(len(group) for group in cells) if cap is None else cap
    for hits in range(1, most + 1):
        if any(changed(ballots, reached, choices, decide) for reached in attacks(cells, hits)):
            return hits - 1
    return most
