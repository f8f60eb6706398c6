"""Measures of a classifier under attack: functions of predictions, and the same asked of a model.

Attack success rate leaves out test images that already belong to the target class: a model with no
backdoor would score its share of that class on them. ``include_target=True`` counts them, as
Wang and Feizi (arXiv 2306.16415, section 5.1) do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin, sqrt, tan
from statistics import NormalDist, fmean, stdev

from torch import Tensor

from poisonkit.errors import require
from poisonkit.models.predict import Classifier, predict
from poisonkit.types import Backdoor, Goal, ImageDataset, Victims


def accuracy(prediction: Tensor, labels: Tensor) -> float:
    """Share of ``prediction`` int64 [M] equal to ``labels`` int64 [M]."""
    _check(prediction, labels)
    return float((prediction == labels).double().mean())


def success_rate(prediction: Tensor, labels: Tensor, target: int | Tensor, *, include_target: bool = False) -> float:
    """Share of triggered images sent to ``target`` (a class, or int64 [M]), among those whose own label is another."""
    _check(prediction, labels)
    hits = prediction == target
    counted = hits if include_target else hits[labels != target]
    require(len(counted) > 0, "labels", "of at least one class other than the target", "none")
    return float(counted.double().mean())


def clean_accuracy(model: Classifier, data: ImageDataset) -> float:
    """Accuracy on clean images (ACC, CA)."""
    return accuracy(predict(model, data.images), data.labels)


def attack_success_rate(model: Classifier, data: ImageDataset, goal: Goal, *, include_target: bool = False) -> float:
    """Share of attacked test images classified as the attacker wants (ASR).

    For a Backdoor, ``data`` is the clean test set, and the trigger is applied to it; for Victims the
    goal carries its own images and ``data`` is not used.
    """
    if isinstance(goal, Victims):
        return accuracy(predict(model, goal.images), goal.labels)
    prediction = predict(model, goal.trigger(data.images))
    return success_rate(prediction, data.labels, goal.wanted(data.labels), include_target=include_target)


def poison_accuracy(model: Classifier, data: ImageDataset, goal: Backdoor) -> float:
    """Share of triggered test images still given their own label (PACC, RA), target class left out."""
    other = data.labels != goal.wanted(data.labels)
    prediction = predict(model, goal.trigger(data.images))
    return accuracy(prediction[other], data.labels[other])


def poisoned_deviation(features: Tensor, poisoned: Tensor, counted: Tensor | None = None) -> float:
    """What poisoned rows put into a mean: the norm of their sum over the number of rows that count.

    Of features (float [N, d]), those that are ``poisoned`` (bool [N]), where only the rows ``counted`` (bool [N], by
    default all) make up the mean. Zheng and Li, RDM-DC, UAI 2023, Definition 4.1 and equation 6.
    """
    shapes = [list(each.shape) for each in (poisoned, *([] if counted is None else [counted]))]
    fits = features.ndim == 2 and all(shape == [len(features)] for shape in shapes)
    require(fits, "poisoned and counted", f"of shape [{len(features)}], for features [N, d]", shapes)
    rows = len(features) if counted is None else int(counted.sum())
    require(rows > 0, "counted", "at least one row", 0)
    inside = poisoned if counted is None else poisoned & counted
    return float(features[inside].double().sum(0).norm()) / rows


@dataclass(frozen=True)
class Interval:
    """A rate, and bounds that hold the true one as often as the confidence they were asked for says."""

    rate: float
    low: float
    high: float


def over_seeds(rates: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean of the rates of several seeds, and Student's t interval of it.

    It takes the seeds as independent and their rates as normal, and is not cut at 0 and 1: two or three seeds say
    little, and a bound beyond 1 says so.
    """
    require(len(rates) >= 2, "rates", "of 2 or more seeds: one has no spread", len(rates))
    _check_confidence(confidence)
    mean = fmean(rates)
    half = _student(confidence, len(rates) - 1) * stdev(rates) / sqrt(len(rates))
    return Interval(mean, mean - half, mean + half)


def wilson(hits: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """The share ``hits``/``trials`` of one classifier, and the score interval for test images drawn at random.

    Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22, 1927,
    doi:10.1080/01621459.1927.10502953.
    """
    require(trials > 0, "trials", "1 or more", trials)
    require(0 <= hits <= trials, "hits", f"from 0 to the {trials} trials", hits)
    _check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = hits / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def _student(confidence: float, freedom: int) -> float:
    """How far from 0 a t of ``freedom`` degrees stays with probability ``confidence``."""
    low, high = 0.0, pi / 2  # of the angle whose tangent is t over the root of the degrees
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return tan(low) * sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """The probability that atan(|t|/√freedom) is at most ``angle``: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    odd = freedom % 2
    total, term = 0.0, cos(angle) if odd else 1.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= (2 * k - 1 + odd) / (2 * k + odd) * cos(angle) ** 2
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def _check_confidence(confidence: float) -> None:
    require(0 < confidence < 1, "confidence", "between 0 and 1", confidence)


def _check(prediction: Tensor, labels: Tensor) -> None:
    require(
        prediction.shape == labels.shape and prediction.ndim == 1 and len(labels) > 0,
        "prediction",
        f"of shape {list(labels.shape)}, one for each label, and not empty",
        list(prediction.shape),
    )
