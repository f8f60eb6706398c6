"""Poisoned training sets, the ways to train on them, and what comes of it; all kept in the run of a lab."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.defenses.filters import FILTERS
from poisonkit.engine import seconds_of
from poisonkit.experiments.epic.dynamics import distances
from poisonkit.experiments.epic.effective import Effective, smallest_sufficient
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import asked, attacked
from poisonkit.models import predict
from poisonkit.models.features import features
from poisonkit.models.transfer import for_finetuning, for_transfer
from poisonkit.random import Key
from poisonkit.train import Job, Journal, Procedure, Recipe, fit
from poisonkit.types import Budget, ImageDataset, Poison, Victims

Scenario = Literal["scratch", "transfer", "tuned"]
UNDEFENDED = "undefended"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one training led to.

    success     share of the victims, or of the triggered test images, that went where the attacker wants
    accuracy    share of the clean test images classified right
    seconds     of the training, and of what went before it for the same defense
    dropped_at  int64 [N], of a method that drops rows; empty for others
    """

    success: float
    accuracy: float
    seconds: float
    dropped_at: Tensor


@dataclass(frozen=True, eq=False)
class Trial:
    """A poisoned training set.

    name      below which all of it is kept
    scenario  "scratch"; "transfer", the last layer alone on the features of the ``clean`` network; "tuned", all of it
    recipe    of every training
    """

    lab: Lab
    name: str
    key: Key
    poison: Poison
    dirty: ImageDataset
    clean: nn.Module
    scenario: Scenario
    recipe: Recipe

    def start(self) -> nn.Module | None:
        """What training starts from; None for a network drawn anew."""
        if self.scenario == "scratch":
            return None
        return (for_transfer if self.scenario == "transfer" else for_finetuning)(self.clean, self.key.child("head"))

    def fit(self, data: ImageDataset, journal: Journal, procedure: Procedure | None = None) -> nn.Module:
        """A network trained on ``data``, the poisoned set or what is left of it."""
        return journal.fit(data, self.recipe, key=self.key.child("network"), model=self.start(), procedure=procedure)

    def outcome(self, label: str, defense: Any = None, recipe: Recipe | None = None) -> Outcome:
        """Train with ``defense`` (of the training family, or a filter; None for none) and measure, once."""
        trial = replace(self, recipe=recipe or self.recipe)
        name = trial._at(label)
        before = self.outcome(UNDEFENDED, None, recipe).seconds if type(defense) in FILTERS.values() else 0.0

        def said() -> Mapping[str, Tensor]:
            with self.lab.journal(name) as journal:
                model = trial._train(defense, journal)
            images = asked(self.lab.test, self.poison)
            found = {part: predict(model, pixels).cpu() for part, pixels in images.items()}
            dropped_at = journal.notes.get("dropped_at", torch.zeros(0, dtype=torch.int64))
            return {**found, "dropped_at": dropped_at}

        kept = self.lab.run.tensors(f"{name}/said", said)
        success = attacked(kept, self.lab.test, self.poison).attack_success_rate
        assert success is not None
        accuracy = metrics.accuracy(kept["clean"], self.lab.test.labels.cpu())
        return Outcome(success, accuracy, before + seconds_of(self.lab.run, name), kept["dropped_at"])

    def _at(self, label: str) -> str:
        return f"{self.name}/{self.recipe.epochs:03d}-epochs/{label}"

    def _train(self, defense: Any, journal: Journal) -> nn.Module:
        if defense is None:
            return self.fit(self.dirty, journal)
        if type(defense) in FILTERS.values():
            with self.lab.journal(self._at(UNDEFENDED)) as there:
                undefended = self.fit(self.dirty, there)  # which is trained already
            found = defense(features(undefended, self.dirty.images)[0], self.dirty.labels, key=self.key.child("filter"))
            return self.fit(self.dirty.take((~found.flagged).nonzero()[:, 0]), journal)
        key = self.key.child("network")  # so that it is the undefended training until the defense does something
        network: nn.Module = defense(self.dirty, self.recipe, key=key, model=self.start(), journal=journal)
        return network

    def effective(self, tries: int) -> Effective | None:
        """The effective poisons, as rows of the training set; None where the attack fails with all of them."""
        goal, rows = self.poison.goal, self.poison.rows.to(self.dirty.device)
        assert isinstance(goal, Victims)
        goal = Victims(goal.images.to(self.dirty.device), goal.labels.to(self.dirty.device))

        def succeeds(subset: Tensor) -> bool:
            which = hashlib.sha256(repr(sorted(subset.tolist())).encode()).hexdigest()[:16]

            def trained() -> Mapping[str, Tensor]:
                left = torch.ones(len(self.dirty), dtype=torch.bool, device=self.dirty.device)
                left[rows] = False
                left[subset] = True
                name = f"{self.name}/subsets/{which}"
                with self.lab.journal(name) as journal:
                    model = self.fit(self.dirty.take(left.nonzero()[:, 0]), journal)
                return {"hits": predict(model, goal.images) == goal.labels}

            return bool(self.lab.run.tensors(f"{self.name}/subsets/{which}", trained)["hits"].double().mean() > 0.5)

        nearest = distances(self.clean, self.dirty, rows, goal).argsort(stable=True)
        return smallest_sufficient(rows[nearest], succeeds, tries)


def clean_network(lab: Lab, data: ImageDataset) -> nn.Module:
    """The network trained on clean rows: the attacker's, and in transfer learning where the victim starts."""
    job = Job(0, data, torch.arange(len(data)), lab.recipe, lab.key.child("clean"))
    return lab.networks("clean", [job]).models[0]


def poisoned(lab: Lab, name: str, attack: Any, rate: float, scenario: Scenario, recipe: Recipe, number: int) -> Trial:
    """Trial ``number`` of ``attack``, which draws the classes: a target, and that of the images to be misclassified."""
    data = lab.train.to(lab.test.device)
    clean, key, name = clean_network(lab, data), lab.key.child(name, number), f"{name}/trial-{number:03d}"
    target, victim = key.child("classes").permutation(data.num_classes)[:2].tolist()
    attack = replace(attack, target=target, victim_class=victim)
    given: dict[str, Any] = {"victims": lab.test} if attack.needs_victims else {}
    surrogate = _surrogate(data, clean)

    def crafted() -> Mapping[str, Tensor]:
        with lab.journal(f"{name}/attack") as journal:
            state: Mapping[str, Tensor] = attack.craft(
                data, Budget(rate), key=key.child("attack"), fit=surrogate, journal=journal, **given
            )
        return {part: tensor.cpu() for part, tensor in state.items()}

    state = lab.run.tensors(f"{name}/state", crafted)
    poison: Poison = attack(data, Budget(rate), key=key.child("attack"), state=state, **given)
    return Trial(lab, name, key, poison, poison.apply(data), clean, scenario, recipe)


def _surrogate(data: ImageDataset, clean: nn.Module) -> Callable[..., nn.Module]:
    """How the attacker trains: on clean rows it has the network already."""

    def trained(rows: ImageDataset, recipe: Recipe, *, key: Key) -> nn.Module:
        return clean if rows is data else fit(rows, recipe, key=key)

    return trained
