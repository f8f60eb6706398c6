"""Measures of a classifier under attack: functions of predictions, and the same asked of a model.

Attack success rate leaves out test images that already belong to the target class: a model with no
backdoor would score its share of that class on them. ``include_target=True`` counts them, as
Wang and Feizi (arXiv 2306.16415, section 5.1) do.
"""

from __future__ import annotations

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


def _check(prediction: Tensor, labels: Tensor) -> None:
    require(
        prediction.shape == labels.shape and prediction.ndim == 1 and len(labels) > 0,
        "prediction",
        f"of shape {list(labels.shape)}, one for each label, and not empty",
        list(prediction.shape),
    )
