"""Tables 1 to 5 and Figures 1 and 2 of Wang, Miller and Kesidis, arXiv 2309.16827, at three scales.

The clean images that a defense is given are taken out of the test set; everything is measured on the others. What is
kept of a classifier is what it predicts of them. Tables 2 to 5 and the figures share their networks; with another data
set (``--data cifar100``) their parts are named after it, and only CIFAR-10 and CIFAR-100 have the paper's beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from statistics import mean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.attacks import BadNetsRandom, BlendedPatch, Chessboard, InputAware, LabelConsistent, WaNet
from poisonkit.attacks.crafting import PLAIN_SURROGATE
from poisonkit.data.augment import Augment
from poisonkit.data.priors import PRIORS
from poisonkit.defenses.guards.mmdf import MMDF, TwoNetworks
from poisonkit.defenses.repair import IBAU, MMAC, MMBM, MMOM, NAD, FinePruning, NeuralCleanseMitigation
from poisonkit.defenses.training import GCL, Mixup
from poisonkit.engine.crafting import Ready
from poisonkit.experiments.families import set_aside
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import mmac_paper as paper
from poisonkit.experiments.reproduce.registry import Part, Reproduction, Training
from poisonkit.models import ResNet, predict
from poisonkit.models.predict import Classifier
from poisonkit.random import Key
from poisonkit.train import Job, OneCycle, Recipe, Step
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison


@dataclass(frozen=True)
class Setting:
    """A scale of the whole paper.

    data        its data set; ``digits-32`` is the digits enlarged to 3×32×32
    recipe      of every network
    limit       use so many training and test rows, spread evenly; None for all
    clean       images of each class that a defense is given; two fifths of them for NAD, one for I-BAU
    iterations  of MMAC and MMOM
    attacks     those of Table 1
    rate        share of rows with a trigger that get the target's label, rows of noise not counted; the clean-label
                attack poisons half of the target class
    patch       the blended patch; ``drawn``, the input-aware attack; ``hard``, the clean-label one
    seeds       trainings of each attack, over which Table 1 has means and deviations
    longer      over-training, in times of the recipe's epochs
    seed        of everything random
    """

    data: str
    recipe: Recipe
    limit: int | None = None
    clean: int = 50
    iterations: int = 300
    attacks: tuple[str, ...] = paper.ATTACKS
    rate: float = 0.1
    patch: BlendedPatch = field(default_factory=BlendedPatch)
    drawn: InputAware = field(default_factory=InputAware)
    hard: LabelConsistent = field(default_factory=LabelConsistent)
    seeds: int = 3
    longer: int = 5
    weights: tuple[float, ...] = paper.WEIGHTS
    seed: int = 0


SCALES = {
    "smoke": Setting(
        "digits-32",
        Recipe(
            ResNet(8, 4, stem="imagenet"),
            epochs=3,
            batch_size=32,
            schedule=OneCycle(0.02, 0.2, 0.0001),
            augment=Augment(crop=2, flip=False),
        ),
        clean=3,
        iterations=3,
        attacks=("chessboard", "BadNet"),
        seeds=1,
        longer=2,
        weights=(0.0, 1e-3),
    ),
    "small": Setting(
        "cifar10",
        # No crops and flips, and a patch less faint: with them, in so short a training, a chessboard and a patch in
        # the corner are hardly learned, and a patch a fifth opaque not even without (docs/attacks.md)
        Recipe(ResNet(8, 16, stem="small"), epochs=12, batch_size=64, schedule=OneCycle(0.02, 0.2), augment=None),
        limit=20_000,
        clean=20,
        patch=BlendedPatch(alpha=0.4),
        hard=LabelConsistent(train_steps=1, steps=40, surrogate=PLAIN_SURROGATE),
    ),
    "paper": Setting(
        "cifar10",
        Recipe(
            ResNet(32, 16, stem="small"),
            epochs=200,
            batch_size=128,
            schedule=Step(0.1, (0.8, 0.9)),
            weight_decay=2e-4,
        ),
        drawn=InputAware(mask_epochs=25, width=32),
    ),
}

FALSE_ALARMS, DETECTED = "Clean images held for triggered", "Triggered images held for triggered"
# The paper's rule also flags where the two networks decide otherwise; the authors' code does not
_WATCHES = {"MMDF": MMDF(), "MMDF, released": MMDF(mode="released")}
_TITLES = {"cifar10": paper.TEN, "cifar100": paper.HUNDRED}


@dataclass(frozen=True, eq=False)
class _Shown:
    """The images a defense is given, and those it is measured on."""

    clean: ImageDataset
    rest: ImageDataset

    @classmethod
    def of(cls, lab: Lab, setting: Setting) -> _Shown:
        return cls(*set_aside(lab.test, setting.clean, lab.key.child("clean")))

    def fewer(self, fifths: int) -> ImageDataset:
        """So many fifths of the clean images of each class, at least one."""
        labels = self.clean.labels
        of_each = [(labels == label).nonzero()[:, 0] for label in range(self.clean.num_classes)]
        return self.clean.take(torch.cat([rows[: max(1, len(rows) * fifths // 5)] for rows in of_each]))


def _network(lab: Lab, name: str, data: ImageDataset, recipe: Recipe, key: Key) -> nn.Module:
    """The network of the plain training, kept as ``name``."""
    return lab.networks(name, [Job(0, data, torch.arange(len(data)), recipe, key)]).models[0]


def _say(lab: Lab, name: str, images: Mapping[str, Tensor], make: Callable[[], Classifier]) -> dict[str, Tensor]:
    """What a classifier predicts of ``images``, and a guard flags, kept as ``name``; made only where not known yet."""

    def compute() -> dict[str, Tensor]:
        classifier = make()
        found = {part: predict(classifier, pixels).cpu() for part, pixels in images.items()}
        if isinstance(classifier, TwoNetworks):
            found |= {f"flagged {part}": classifier.flagged(pixels).cpu() for part, pixels in images.items()}
        return found

    return lab.run.tensors(f"{name}/predictions", compute)


def _attack(setting: Setting, name: str) -> Any:
    """An attack by the name of its column."""
    known = {
        "chessboard": Chessboard(),
        "BadNet": BadNetsRandom(),
        "blend": setting.patch,
        "WaNet": WaNet(),
        "Input-aware": setting.drawn,
        "Clean-Label": setting.hard,
    }
    return known[name]


def _poison(lab: Lab, setting: Setting, attack: str, key: Key) -> Poison | None:
    if attack == paper.NO_ATTACK:
        return None
    kind = _attack(setting, attack)
    if isinstance(kind, LabelConsistent):
        budget = Budget(0.5, clean_label=True, per_class=True)
    else:
        budget = Budget(setting.rate * (1 + getattr(kind, "noise", 0) + getattr(kind, "cross", 0)))
    ready = Ready(kind, lab.run.directory / "crafting", lab.progress)
    return ready(lab.train, budget, key=key.child("attack"))


def _repairs(setting: Setting, shown: _Shown) -> dict[str, tuple[Any, ImageDataset]]:
    """The methods of Table 1 that give a network, and the images each is given."""
    return {
        "NC": (NeuralCleanseMitigation(), shown.clean),
        "NAD": (NAD(), shown.fewer(2)),
        "FP": (FinePruning(), shown.clean),
        "I-BAU": (IBAU(), shown.fewer(1)),
        "MM-BM": (MMBM(), shown.clean),
        "MM-BM, released": (MMBM(mode="released"), shown.clean),
        "MMAC": (MMAC(iterations=setting.iterations), shown.clean),
    }


def _case(lab: Lab, setting: Setting, attack: str, number: int) -> dict[str, dict[str, float]]:
    """PACC, ASR and ACC of every defense against one poisoned training set."""
    shown, key, name = _Shown.of(lab, setting), lab.key.child("seed", number), f"{attack}/seed-{number}"
    poison = _poison(lab, setting, attack, key)
    data = (poison.apply(lab.train) if poison else lab.train).to(lab.test.device)
    model = _network(lab, name, data, lab.recipe, key.child("train"))
    images = {"clean": shown.rest.images}
    goal = poison.goal if poison else None
    if isinstance(goal, Backdoor):
        images["triggered"] = goal.trigger(shown.rest.images)

    def repaired(row: str, method: Any, clean: ImageDataset) -> nn.Module:
        with lab.journal(f"{name}/{row}") as journal:
            return method(model, clean, key=key.child(row), journal=journal)  # type: ignore[no-any-return]

    makers: dict[str, Callable[[], Classifier]] = {paper.UNDEFENDED: lambda: model}
    for row, (method, clean) in _repairs(setting, shown).items():
        makers[row] = cache(partial(repaired, row, method, clean))

    def watched(rule: MMDF) -> Classifier:
        clipped = makers["MMAC"]()
        assert isinstance(clipped, nn.Module)
        return rule.between(model, clipped, shown.clean)

    makers |= {row: partial(watched, rule) for row, rule in _WATCHES.items()}
    found = {}
    labels = shown.rest.labels.cpu()
    for row, make in makers.items():
        said = _say(lab, f"{name}/{row}", images, make)
        found[row] = {paper.ACC: metrics.accuracy(said["clean"], labels)}
        if isinstance(goal, Backdoor):
            wanted = goal.wanted(labels)
            other = labels != wanted
            found[row][paper.ASR] = metrics.success_rate(said["triggered"], labels, wanted)
            found[row][paper.PACC] = metrics.accuracy(said["triggered"][other], labels[other])
        for part, title in (("clean", FALSE_ALARMS), ("triggered", DETECTED)):
            if f"flagged {part}" in said:
                found[row][title] = float(said[f"flagged {part}"].double().mean())
    return found


def table1(lab: Lab, setting: Setting) -> list[Part]:
    """Six attacks and none, seven defenses and none, over seeds."""
    numbers: dict[str, dict[str, dict[str, float]]] = {}
    columns = (*setting.attacks, paper.NO_ATTACK)
    # Seed by seed, so that a run which is cut short has something of every attack
    cases_of = [{attack: _case(lab, setting, attack, number) for attack in columns} for number in range(setting.seeds)]
    for attack in columns:
        cases = [each[attack] for each in cases_of]
        for row in cases[0]:
            for measure in cases[0][row]:
                values = [case[row][measure] for case in cases]
                numbers.setdefault(measure, {}).setdefault(row, {})[attack] = mean(values)
                if len(values) > 1:
                    title = measure + paper.DEVIATION
                    numbers.setdefault(title, {}).setdefault(row, {})[attack] = pstdev(values)
    measures = (paper.PACC, paper.ASR, paper.ACC, FALSE_ALARMS, DETECTED)
    titles = [title + spread for title in measures for spread in ("", paper.DEVIATION)]
    return [Part(title, dict.fromkeys(columns, "share"), numbers[title]) for title in titles if title in numbers]


@dataclass(frozen=True, eq=False)
class _Skewed:
    """A training set of a class prior, the classifiers trained on it, and what they say of the test images."""

    lab: Lab
    setting: Setting
    prior: str | None
    epochs: int

    def say(self, row: str, weight: float | None = None) -> Tensor:
        """What the classifier of a row predicts of the test images."""
        shown = _Shown.of(self.lab, self.setting)
        makers = {
            paper.CE: self.plain,
            paper.MIXUP: lambda: self.trained(paper.MIXUP, Mixup()),
            paper.GCL: lambda: self.trained(paper.GCL, GCL()),
            paper.MMOM: lambda: self.bounded(self.plain(), self._mmom(weight), shown.clean),
            paper.MMOM_GCL: lambda: self.bounded(self.trained(paper.GCL, GCL()), self._mmom(weight), shown.clean),
            "MMAC": lambda: self.bounded(self.plain(), MMAC(iterations=self.setting.iterations), shown.clean),
        }
        part = row if weight is None else f"{row}-{weight:g}"
        return _say(self.lab, f"{self.name}/{part}", {"clean": shown.rest.images}, makers[row])["clean"]

    def _mmom(self, weight: float | None) -> MMOM:
        method = MMOM(iterations=self.setting.iterations)
        return method if weight is None else replace(method, weight=weight)

    @property
    def data(self) -> ImageDataset:
        data = self.lab.train
        skewed = PRIORS[self.prior](data, key=self.lab.key.child("prior")) if self.prior else data
        return skewed.to(self.lab.test.device)

    @property
    def recipe(self) -> Recipe:
        return replace(self.lab.recipe, epochs=self.epochs)

    @property
    def name(self) -> str:
        return f"{self.prior or 'balanced'}/epochs-{self.epochs:04d}"

    def plain(self) -> nn.Module:
        return _network(self.lab, self.name, self.data, self.recipe, self.lab.key.child("train"))

    def trained(self, row: str, method: Any) -> nn.Module:
        """By a method of training, whose journal holds the network it ends with."""
        with self.lab.journal(f"{self.name}/{row}") as journal:
            return method(self.data, self.recipe, key=self.lab.key.child(row), journal=journal)  # type: ignore[no-any-return]

    def bounded(self, model: nn.Module, method: Any, clean: ImageDataset) -> nn.Module:
        network: nn.Module = method(model, clean, key=self.lab.key.child("bounds"))
        return network

    def accuracy(self, row: str, weight: float | None = None) -> float:
        return metrics.accuracy(self.say(row, weight), self._labels())

    def by_class(self, row: str, weight: float | None = None) -> dict[str, float]:
        """Accuracy over all classes, and of each."""
        said, labels = self.say(row, weight), self._labels()
        each = {name: labels == label for label, name in enumerate(self.lab.test.classes)}
        own = {name: metrics.accuracy(said[mine], labels[mine]) for name, mine in each.items()}
        return {paper.ALL: metrics.accuracy(said, labels), **own}

    def _labels(self) -> Tensor:
        return _Shown.of(self.lab, self.setting).rest.labels.cpu()


def _title(lab: Lab) -> str:
    """What the data are called, by how many classes there are where it is not one of the paper's."""
    asked = lab.run.manifest.get("plan", {}).get("data", "")
    return _TITLES.get(asked, f"{asked or 'data'}, {lab.test.num_classes} classes")


def _by_prior(lab: Lab, setting: Setting, rows: Sequence[str]) -> Part:
    numbers: dict[str, dict[str, float]] = {row: {} for row in rows}
    for prior, column in paper.PRIORS.items():
        skewed = _Skewed(lab, setting, prior, lab.recipe.epochs)
        for row in rows:
            numbers[row][column] = skewed.accuracy(row)
    return paper.priors(_title(lab), numbers)


def table2(lab: Lab, setting: Setting) -> list[Part]:
    """Four class priors, five methods."""
    return [_by_prior(lab, setting, (paper.CE, paper.MIXUP, paper.GCL, paper.MMOM, paper.MMOM_GCL))]


def table3(lab: Lab, setting: Setting) -> list[Part]:
    """MMOM by λ."""
    skewed = _Skewed(lab, setting, "lt-100", lab.recipe.epochs)
    return [paper.weights({paper.weight(value): skewed.accuracy(paper.MMOM, value) for value in setting.weights})]


def table4(lab: Lab, setting: Setting) -> list[Part]:
    """MMAC against unbalanced classes, which it is not for."""
    return [_by_prior(lab, setting, (paper.CE, "MMAC"))]


def table5(lab: Lab, setting: Setting) -> list[Part]:
    """MMOM where there is nothing to mend."""
    level = _Skewed(lab, setting, None, lab.recipe.epochs)
    return [paper.balanced(_title(lab), {row: level.accuracy(row) for row in (paper.CE, paper.MMOM)})]


def figure1(lab: Lab, setting: Setting) -> list[Part]:
    """How many rows each class has, and how well it is classified before and after MMOM."""
    parts = []
    for prior, title in paper.PRIORS.items():
        skewed = _Skewed(lab, setting, prior, lab.recipe.epochs)
        counts = torch.bincount(skewed.data.labels, minlength=lab.test.num_classes).tolist()
        found = {row: skewed.by_class(row) for row in (paper.CE, paper.MMOM)}
        parts.append(paper.classes(f"{title}, by class", found, lab.test.classes))
        rows = {"rows": dict(zip(lab.test.classes, map(float, counts), strict=True))}
        parts.append(Part(f"{title}, training rows", dict.fromkeys(lab.test.classes, "number"), rows))
    return parts


def figure2(lab: Lab, setting: Setting) -> list[Part]:
    """Over-training on the long tail: by class, before and after MMOM, and by λ."""
    once, longer = (_Skewed(lab, setting, "lt-100", lab.recipe.epochs * times) for times in (1, setting.longer))
    trained = ((paper.ONCE, once), (paper.LONGER, longer))
    found = {f"{row}, {when}": each.by_class(row) for row in (paper.CE, paper.MMOM) for when, each in trained}
    by_weight = {paper.weight(value): once.by_class(paper.MMOM, value) for value in setting.weights}
    return [
        paper.classes(paper.FIGURE2[0].title, found, lab.test.classes),
        paper.classes("MMOM by λ, by class", by_weight, lab.test.classes),
    ]


def _plan1(setting: Setting, rows: int) -> list[Training]:
    """The networks of the attacks; what makes a trigger, and the rivals' training on a few images, come on top."""
    return [Training((len(setting.attacks) + 1) * setting.seeds, rows, setting.recipe)]


def _rows(prior: str, rows: int) -> int:
    return sum(PRIORS[prior].counts(rows // 10, 10))


def _plan_priors(setting: Setting, rows: int, trainings: int = 1) -> list[Training]:
    return [Training(trainings, _rows(prior, rows), setting.recipe) for prior in PRIORS]


def _plan_tail(setting: Setting, rows: int) -> list[Training]:
    return [Training(1, _rows("lt-100", rows), setting.recipe)]


def _plan_longer(setting: Setting, rows: int) -> list[Training]:
    longer = replace(setting.recipe, epochs=setting.recipe.epochs * setting.longer)
    return [*_plan_tail(setting, rows), Training(1, _rows("lt-100", rows), longer)]


def _plan_level(setting: Setting, rows: int) -> list[Training]:
    return [Training(1, rows, setting.recipe)]


_ENTRIES: dict[str, tuple[str, Sequence[Part], Callable[..., Any], Callable[..., Any]]] = {
    "table1": ("seven defenses after training against six backdoors", paper.TABLE1, table1, _plan1),
    "table2": (
        "MMOM, mixup and GCL against unbalanced classes",
        paper.TABLE2,
        table2,
        partial(_plan_priors, trainings=3),
    ),
    "table3": ("MMOM by λ on a long tail", paper.TABLE3, table3, _plan_tail),
    "table4": ("MMAC against unbalanced classes", paper.TABLE4, table4, _plan_priors),
    "table5": ("MMOM on balanced data", paper.TABLE5, table5, _plan_level),
    "figure1": ("unbalanced classes one by one, before and after MMOM", [], figure1, _plan_priors),
    "figure2": ("over-training on a long tail, class by class", paper.FIGURE2, figure2, _plan_longer),
}
MMAC_PAPER: dict[str, Reproduction] = {
    f"mmac/{name}": Reproduction(summary, paper.SOURCE, parts, SCALES, run, plan)
    for name, (summary, parts, run, plan) in _ENTRIES.items()
}
