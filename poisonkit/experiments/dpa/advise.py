"""How many base models a data set can feed: the data-to-complexity ratio.

Wang and Feizi, arXiv 2306.16415, section 4.2: a base model sees 1/k of the rows, so the largest k that keeps an
accuracy is about N divided by the sample complexity, the number of rows that one base model needs to reach it. A few
base models on small parts of the data cost little beside the ensembles they speak of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log

from poisonkit.defenses import DPA
from poisonkit.defenses.certified import Ensemble
from poisonkit.errors import require
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import Row, apart, mean


@dataclass(frozen=True)
class Point:
    """What base models trained on 1/``partitions`` of the data do.

    rows    mean number of rows of a base model
    models  one row for each
    mean    their mean
    """

    partitions: int
    rows: float
    models: tuple[Row, ...]
    mean: Row


@dataclass(frozen=True)
class Advice:
    """The answer for one target.

    target      the accuracy to keep
    complexity  rows that one base model needs for it; None where all the rows do not reach it
    ratio       N / complexity; None likewise
    partitions  the suggested k; 1 where only all the rows, or not even they, suffice
    bound       whether the smallest part tried suffices, so that complexity is at most, and the ratio at least, this
    """

    target: float
    complexity: float | None
    ratio: float | None
    partitions: int
    bound: bool


def learn(lab: Lab, defense: DPA, partitions: Sequence[int], models: int) -> list[Point]:
    """Train the first ``models`` base models of DPA for each k (as many as there are), on clean data."""
    data, points = lab.train.to(lab.test.device), []
    for k in partitions:
        dpa, name = replace(defense, partitions=k, seeds=1), f"k-{k:04d}"
        split = lab.split(name, dpa, data)
        jobs = dpa.jobs(data, lab.recipe, key=lab.key.child("defense"), split=split)[:models]
        sizes = [len(job.rows) for job in jobs]
        require(min(sizes) > 0, "partitions", "so few that no base model is without rows", k)
        trained = lab.networks(name, jobs)
        ballots = lab.ask(name, Ensemble(trained.models, lab.test.num_classes), None)
        rows = apart(trained.models, ballots, lab.test, None)
        average = mean(f"1/{k} of the data" if k > 1 else "all data", rows, trained.seconds / len(jobs))
        points.append(Point(k, sum(sizes) / len(sizes), tuple(rows), average))
    return points


def advise(points: Sequence[Point], total: int, target: float, guesses: int = 1) -> Advice:
    """The ratio for ``target``, an acc@``guesses``, from ``points`` in order of falling rows, of ``total`` rows in all.

    The complexity is where a line through the two points around the target meets it, over the logarithm of the rows.
    Where accuracy is not monotone, it is the largest number of rows at which the target is met from below.
    """
    above: Point | None = None
    for point in points:
        low = point.mean.guesses[guesses]
        if low < target:
            break
        above = point
    else:
        assert above is not None
        return _advice(target, above.rows, total, bound=True)
    if above is None:
        return Advice(target, None, None, 1, False)
    high = above.mean.guesses[guesses]
    share = (target - low) / (high - low)
    return _advice(target, exp(log(point.rows) + share * log(above.rows / point.rows)), total, bound=False)


def _advice(target: float, complexity: float, total: int, *, bound: bool) -> Advice:
    ratio = total / complexity
    # a complexity of N/16 rows is a ratio of 16, whatever rounding made of it; sizes of parts are not quite equal
    return Advice(target, complexity, ratio, max(1, round(ratio) if bound else int(ratio + 1e-9)), bound)
