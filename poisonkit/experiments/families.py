"""Defenses that certify nothing, in the table of those that do: each family becomes something that predicts.

What a family takes and gives is in :mod:`poisonkit.defenses.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.data.siamese import Siamese
from poisonkit.defenses import FAMILIES
from poisonkit.defenses.families import Guarded
from poisonkit.engine import seconds_of, units
from poisonkit.errors import require
from poisonkit.experiments.comparison import Comparison, baseline, pictures, poisoned, undefended
from poisonkit.experiments.condensed import Augmented
from poisonkit.experiments.findings import findings
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import Row, asked, attacked
from poisonkit.models import predict
from poisonkit.models.features import features
from poisonkit.random import Key
from poisonkit.train import Journal, Procedure, Recipe, new_model
from poisonkit.types import Detection, ImageDataset, Poison

#: Families that are given a few clean images, which the measures then leave out
WITH_CLEAN = ("repair", "detectors", "guards")


def family(defense: object) -> str:
    """The family of a defense."""
    return next(name for name, kinds in FAMILIES.items() if type(defense) in kinds.values())


def set_aside(test: ImageDataset, per_class: int, key: Key) -> tuple[ImageDataset, ImageDataset]:
    """``per_class`` images of every class, taken at random by ``key``, and all others.

    Raises ArgumentError where a class has no more than so many.
    """
    require(per_class >= 1, "clean images", "1 or more of each class", per_class)
    order = key.permutation(len(test), test.device)
    by_class = [order[test.labels[order] == label] for label in range(test.num_classes)]
    least = min(map(len, by_class))
    require(per_class < least, "clean images", f"fewer than {least} of each class, as the smallest has", per_class)
    taken = torch.zeros(len(test), dtype=torch.bool, device=test.device)
    taken[torch.cat([rows[:per_class] for rows in by_class])] = True
    return test.take(taken.nonzero()[:, 0]), test.take((~taken).nonzero()[:, 0])


def check(defense: object, recipe: Recipe, data: ImageDataset) -> None:
    """Raise ArgumentError where ``defense`` knows beforehand that it cannot do with the network of ``recipe``."""
    if look := getattr(defense, "check_model", None):
        look(new_model(recipe, data, Key(0)), data)


@dataclass(frozen=True, eq=False)
class Case:
    """What a defense may be given.

    dirty    the poisoned training set
    network  trained on it as on any
    clean    a few images that nobody poisoned; None for families that take none
    """

    lab: Lab
    defense: Any
    dirty: ImageDataset
    network: nn.Module
    clean: ImageDataset | None
    journal: Journal

    @property
    def key(self) -> Key:
        return self.lab.key.child("defense")

    def fit(self, data: ImageDataset, recipe: Recipe | None = None, procedure: Procedure | None = None) -> nn.Module:
        """A network trained on ``data`` as on any, by default with the recipe of all."""
        key, home = self.lab.key.child("undefended"), self.dirty.device
        return self.journal.fit(data, recipe or self.lab.recipe, key=key, procedure=procedure, device=home)

    def note(self, found: Detection) -> None:
        noted = {"flagged": found.flagged, "score": found.score, "p_value": found.p_value}
        self.journal.notes.update({name: tensor for name, tensor in noted.items() if tensor is not None})


Defended = nn.Module | Guarded


def _training(case: Case) -> Defended:
    network: nn.Module = case.defense(case.dirty, case.lab.recipe, key=case.key, journal=case.journal)
    return network


def _filter(case: Case) -> Defended:
    found, _ = features(case.network, case.dirty.images)
    case.note(case.defense(found, case.dirty.labels, key=case.key))
    case.journal.say("rows looked at")
    return case.fit(case.dirty.take((~case.journal.notes["flagged"]).nonzero()[:, 0]))


def _repair(case: Case) -> Defended:
    network: nn.Module = case.defense(case.network, case.clean, key=case.key, journal=case.journal)
    return network


def _detector(case: Case) -> Defended:
    case.note(case.defense(case.network, case.clean, key=case.key, journal=case.journal))
    return case.network


def _guard(case: Case) -> Defended:
    guarded: Guarded = case.defense(case.network, case.clean, key=case.key, journal=case.journal)
    return guarded


def _condense(case: Case) -> Defended:
    synthetic: ImageDataset = case.defense(case.dirty, key=case.key, journal=case.journal)
    case.journal.notes.update({"images": synthetic.images, "labels": synthetic.labels})
    recipe = as_many_steps(case.lab.recipe, len(case.dirty), len(synthetic))
    siamese: Siamese | None = getattr(case.defense, "augment", None)
    return case.fit(synthetic, replace(recipe, augment=None), Augmented(siamese) if siamese else None)


def as_many_steps(recipe: Recipe, rows: int, fewer: int) -> Recipe:
    """``recipe`` for ``fewer`` rows, in as many steps as it takes on ``rows``."""
    size = min(recipe.batch_size, max(2, fewer))
    steps = recipe.epochs * -(-rows // recipe.batch_size)
    return replace(recipe, batch_size=size, epochs=max(1, round(steps / -(-fewer // size))))


_FAMILY: dict[str, Callable[[Case], Defended]] = {
    "training": _training,
    "filters": _filter,
    "repair": _repair,
    "detectors": _detector,
    "guards": _guard,
    "condense": _condense,
}


def defend(lab: Lab, name: str, defense: object, poison: Poison | None, clean: ImageDataset | None) -> Comparison:
    """Train undefended and with ``defense``, or from the undefended network on, and measure, resuming what is there."""
    run, test = lab.run, lab.test
    dirty = poisoned(run, lab.train, poison, lab.progress).to(test.device)
    unit = undefended(dirty, lab.recipe, lab.key)
    lab.engine(run, [unit], lab.progress)
    rows = [baseline(run, test, unit, poison)]

    def said() -> Mapping[str, Tensor]:
        network = units.load(run, [unit], test.device)[0]
        with lab.journal(name) as journal:
            defended = _FAMILY[family(defense)](Case(lab, defense, dirty, network, clean, journal))
        if isinstance(defended, nn.Module):
            run.save(f"{name}/model", defended.state_dict())
        images = asked(test, poison)
        found = {part: predict(defended, pixels).cpu() for part, pixels in images.items()}
        if not isinstance(defended, nn.Module):
            found |= {f"flagged {part}": defended.flagged(pixels).cpu() for part, pixels in images.items()}
        journal.say("measured")
        return {**found, **{f"note {note}": tensor for note, tensor in journal.notes.items()}}

    kept = run.tensors(f"{name}/said", said)
    run.sweep(name)
    accuracy = metrics.accuracy(kept["clean"], test.labels.cpu())
    rows.append(
        Row(
            name,
            accuracy,
            guesses={1: accuracy},
            certified=None,
            seconds=seconds_of(run, name),
            **attacked(kept, test, poison)._asdict(),
        )
    )
    return Comparison(tuple(rows), *pictures(lab.train, poison), findings=findings(kept, dirty, poison))
