"""Tables 1 to 5 and Lemma 4.1 of Zheng and Li, RDM-DC, at three scales.

One run holds the condensations of all tables on a data set: what Table 2 condenses, Tables 1 and 3 read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from statistics import fmean, pstdev

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.attacks import Direct, DMPoison, DMUntargeted, GradientMatching
from poisonkit.data.augment import Augment
from poisonkit.data.siamese import Siamese
from poisonkit.defenses.condense import DM, Calibrated, Mean, Median, RdmDc, RobustMean, Trimmed, Truncated
from poisonkit.defenses.condense.matching import random_rows
from poisonkit.experiments.condensed import EVALUATION, answers
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import rdm_dc_paper as paper
from poisonkit.experiments.reproduce.registry import Kind, Part, Reproduction, Training, slope
from poisonkit.experiments.reproduce.sizes import SHAPES
from poisonkit.models import ConvNet
from poisonkit.perturb import embedded
from poisonkit.random import Key
from poisonkit.train import Recipe, Step
from poisonkit.types import Budget, ImageDataset, Poison, Victims


@dataclass(frozen=True)
class Setting:
    """A scale of a data set.

    data       its name; ``digits-32`` is the digits enlarged to 3×32×32
    recipe     of the networks that are trained on synthetic images
    limit      use so many training and test rows, spread evenly; None for all
    dm         the condensation, whose ``rate`` is the attacker's, too
    poisoning  DM poisoning; the target class is drawn for each target
    matching   gradient matching, likewise
    untargeted the attack that has no target
    eps        bounds of the attacks; Tables 2 to 4 have the first
    targets    images that are attacked, each on its own
    runs       condensations for each
    networks   trained on each synthetic set
    looks      random networks of the figure
    seed       of everything random
    """

    data: str
    recipe: Recipe = EVALUATION
    limit: int | None = None
    dm: DM = field(default_factory=DM)
    poisoning: DMPoison = field(default_factory=DMPoison)
    matching: GradientMatching = field(
        default_factory=lambda: GradientMatching(rate=1.0, networks=16, surrogate=_surrogate(ConvNet(), 40))
    )
    untargeted: DMUntargeted = field(default_factory=DMUntargeted)
    eps: tuple[float, ...] = (64.0, 128.0, 32.0)
    targets: int = 5
    runs: int = 5
    networks: int = 1
    looks: int = 8
    seed: int = 0


def _surrogate(model: ConvNet, epochs: int) -> Recipe:
    """As Geiping et al. train such networks, arXiv 2009.02276."""
    schedule = Step(0.01, (0.375, 0.625, 0.875))
    return Recipe(model=model, epochs=epochs, batch_size=128, schedule=schedule, nesterov=True, augment=Augment())


_DIGITS = Siamese(("color", "crop", "cutout", "scale", "rotate"))
_TINY, _SMALL, _SMALL_64 = ConvNet(2, 8), ConvNet(3, 32), ConvNet(4, 32)
_DEEPER = ConvNet(4)  # images of twice the side are halved once more
SCALES = {
    "smoke": Setting(
        "digits-32",
        recipe=replace(EVALUATION, model=_TINY, epochs=30, schedule=Step(0.05, (0.5,))),
        limit=500,
        dm=DM(images=2, iterations=20, batch_size=32, rate=0.02, model=_TINY, augment=_DIGITS),
        poisoning=DMPoison(steps=10, restarts=1, model=_TINY, augment=_DIGITS),
        untargeted=DMUntargeted(steps=10, batch_size=8, model=_TINY, augment=_DIGITS),
        matching=GradientMatching(rate=1.0, steps=4, restarts=1, augment=None, surrogate=_surrogate(_TINY, 2)),
        targets=2,
        runs=1,
        looks=2,
    ),
    "small": Setting(
        "cifar10",
        recipe=replace(EVALUATION, model=_SMALL, epochs=300, schedule=Step(0.03, (0.5,))),
        limit=10_000,
        # A hundredth of the paper's iterations, so longer steps
        dm=DM(images=10, iterations=200, batch_size=64, learning_rate=20.0, model=_SMALL),
        poisoning=DMPoison(steps=500, restarts=1, model=_SMALL),
        untargeted=DMUntargeted(model=_SMALL),
        matching=GradientMatching(rate=1.0, steps=50, restarts=1, networks=2, surrogate=_surrogate(_SMALL, 6)),
        runs=1,
        networks=2,
    ),
    "paper": Setting("cifar10"),
}
# A tenth of a class, as on CIFAR-10. The paper says 1 % of all rows, which would be twice a class of its 200.
_RATE = 0.002
TINY_SCALES = {
    "smoke": SCALES["smoke"],
    "small": replace(
        SCALES["small"],
        data="tiny-imagenet-50",
        dm=replace(SCALES["small"].dm, images=5, iterations=60, batch_size=64, model=_SMALL_64, rate=_RATE),
        poisoning=replace(SCALES["small"].poisoning, model=_SMALL_64),
        recipe=replace(SCALES["small"].recipe, model=_SMALL_64),
        targets=3,
    ),
    "paper": replace(
        SCALES["paper"],
        data="tiny-imagenet-50",
        dm=DM(rate=_RATE, model=_DEEPER),
        poisoning=DMPoison(model=_DEEPER),
        recipe=replace(EVALUATION, model=_DEEPER),
    ),
}
MEANS: dict[str, RobustMean] = {
    paper.DM: Mean(),
    paper.MEDIAN: Median(),
    paper.TRIMMED: Trimmed(),
    paper.TRUNCATED: Truncated(),
    paper.RDM_DC: Calibrated(),
}
BOTH = (paper.DM, paper.RDM_DC)


def _poison(lab: Lab, setting: Setting, attack: str, eps: float, target: int) -> Poison:
    """The poison for a target, kept in the run; the image and its wrong class are those of the key."""
    key, data = lab.key.child("target", target), lab.train.to(lab.test.device)
    wanted, budget = key.child("class").integer() % data.num_classes, Budget(setting.dm.rate)
    name = f"{_slug(attack, eps)}/target-{target}"
    if attack == paper.DIRECT:
        return Direct(target=wanted)(data, budget, key=key, victims=lab.test)
    attacker = setting.poisoning if attack == paper.POISONING else setting.matching
    attacker = replace(attacker, target=wanted, eps=eps)

    def crafted() -> Mapping[str, Tensor]:
        with lab.journal(f"{name}/craft") as journal:
            return attacker.craft(data, budget, key=key, victims=lab.test, journal=journal)

    state = lab.run.tensors(f"{name}/poison", crafted)
    return attacker(data, budget, key=key, victims=lab.test, state=state)


def _slug(attack: str, eps: float) -> str:
    return attack.replace(" ", "-") + ("" if attack == paper.DIRECT else f"-{eps:g}")


@dataclass(frozen=True)
class _Scores:
    """Of every target, condensation and network; and how often rows of the target class were left out."""

    accuracy: list[float]
    success: list[float]
    poisoned: list[float]
    clean: list[float]

    def cells(self) -> dict[str, float]:
        found = {"accuracy": self.accuracy, "attack success": self.success}
        return {
            f"{name}{sign}": number
            for name, values in found.items()
            if values
            for sign, number in (("", fmean(values)), (" ±", pstdev(values)))
        }


def _scores(lab: Lab, setting: Setting, method: str, attack: str, eps: float) -> _Scores:
    scores = _Scores([], [], [], [])
    for target in range(setting.targets):
        poison = _poison(lab, setting, attack, eps, target)
        for run in range(setting.runs):
            name = f"{_slug(attack, eps)}/target-{target}/{_name(method)}/run-{run}"
            said = _asked(lab, setting, method, poison, name, lab.key.child("run", target, run))
            _add(scores, said, lab, setting, poison)
    return scores


def _name(method: str) -> str:
    return method.lower().replace(" + ", "-")


def _asked(lab: Lab, setting: Setting, method: str, poison: Poison | None, name: str, key: Key) -> dict[str, Tensor]:
    """What networks trained on the synthetic set say, and how often each row was left out; kept in the run."""

    def said() -> dict[str, Tensor]:
        data = lab.train.to(lab.test.device)
        values = {each.name: getattr(setting.dm, each.name) for each in fields(DM) if each.name != "mean"}
        condense = RdmDc(**values) if method == paper.RDM_DC else DM(**values, mean=MEANS[method])
        with lab.journal(name) as journal:
            synthetic = condense(poison.apply(data) if poison else data, key=key.child("condense"), journal=journal)
        lab.run.save(f"{name}/synthetic", {"images": synthetic.images, "labels": synthetic.labels})
        return {**_trained(lab, setting, synthetic, poison, key), "drop_share": journal.notes["drop_share"].cpu()}

    return lab.run.tensors(f"{name}/said", said)


def _trained(lab: Lab, setting: Setting, data: ImageDataset, poison: Poison | None, key: Key) -> dict[str, Tensor]:
    asked = {"clean": lab.test.images}
    if poison and isinstance(poison.goal, Victims):
        asked["victims"] = poison.goal.images
    found = {}
    for i in range(setting.networks):
        said = answers(data, lab.recipe, asked, siamese=setting.dm.augment, key=key.child("network", i))
        found.update({f"{part}-{i}": prediction for part, prediction in said.items()})
    return found


def _add(scores: _Scores, said: Mapping[str, Tensor], lab: Lab, setting: Setting, poison: Poison | None) -> None:
    for i in range(setting.networks):
        scores.accuracy.append(metrics.accuracy(said[f"clean-{i}"], lab.test.labels.cpu()))
        if poison and isinstance(poison.goal, Victims):
            scores.success.append(metrics.accuracy(said[f"victims-{i}"], poison.goal.labels.cpu()))
    if poison:
        labels, poisoned = lab.train.labels.cpu(), torch.zeros(len(lab.train), dtype=torch.bool)
        poisoned[poison.rows.cpu()] = True
        others = (labels == labels[poison.rows.cpu()[0]]) & ~poisoned
        scores.poisoned.append(float(said["drop_share"][poisoned].mean()))
        scores.clean.append(float(said["drop_share"][others].mean()))


def table1(lab: Lab, setting: Setting) -> list[Part]:
    """Both attacks on DM."""
    numbers = {
        paper.attack(attack, eps): _scores(lab, setting, paper.DM, attack, eps).cells()
        for eps in setting.eps
        for attack in (paper.MATCHING, paper.POISONING)
    }
    return paper.scores(paper.ATTACKS, numbers)


def _defended(lab: Lab, setting: Setting, title: str, attack: str, methods: Sequence[str]) -> list[Part]:
    found = {method: _scores(lab, setting, method, attack, setting.eps[0]) for method in methods}
    left_out = {
        method: {"poisoned rows": fmean(each.poisoned), "clean rows of their class": fmean(each.clean)}
        for method, each in found.items()
        if MEANS[method].drops and method != paper.TRIMMED
    }
    return [
        *paper.scores(title, {method: each.cells() for method, each in found.items()}),
        Part(f"{title}: left out of a mean", dict.fromkeys(next(iter(left_out.values())), "share"), left_out),
    ]


def table2(lab: Lab, setting: Setting) -> list[Part]:
    """DM poisoning on every mean; the same on clean data, beside as many random rows; and the untargeted attack."""
    attacked = _defended(lab, setting, paper.DEFENSES, paper.POISONING, list(MEANS))
    clean: dict[str, dict[str, float]] = {}
    for method in ("random rows", *BOTH):
        scores = _Scores([], [], [], [])
        for run in range(setting.runs):
            key, name = lab.key.child("clean", run), f"clean/{_name(method)}/run-{run}"
            if method in MEANS:
                said = _asked(lab, setting, method, None, name, key)
            else:
                rows = random_rows(lab.train, setting.dm.images, key.child("rows")).to(lab.test.device)
                said = lab.run.tensors(f"{name}/said", partial(_trained, lab, setting, rows, None, key))
            _add(scores, said, lab, setting, None)
        clean[method] = scores.cells()
    untargeted = {}
    for method in BOTH:
        scores = _Scores([], [], [], [])
        for run in range(setting.runs):
            key = lab.key.child("untargeted", run)
            said = _asked(lab, setting, method, _untargeted(lab, setting), f"untargeted/{_name(method)}/run-{run}", key)
            _add(scores, said, lab, setting, None)
        untargeted[method] = scores.cells()
    kinds = {column: kind for column, kind in paper.KINDS.items() if "accuracy" in column}
    return [*attacked, Part("On clean data", kinds, clean), Part("Untargeted attack", kinds, untargeted)]


def _untargeted(lab: Lab, setting: Setting) -> Poison:
    """Poison of all classes, kept in the run."""
    key, data, budget = lab.key.child("untargeted"), lab.train.to(lab.test.device), Budget(setting.dm.rate)
    attacker = replace(setting.untargeted, eps=setting.eps[0])

    def crafted() -> Mapping[str, Tensor]:
        with lab.journal("untargeted/craft") as journal:
            return attacker.craft(data, budget, key=key, journal=journal)

    return attacker(data, budget, key=key, state=lab.run.tensors("untargeted/poison", crafted))


def table3(lab: Lab, setting: Setting) -> list[Part]:
    """Gradient matching."""
    return _defended(lab, setting, paper.AGAINST_MATCHING, paper.MATCHING, BOTH)


def table4(lab: Lab, setting: Setting) -> list[Part]:
    """DM poisoning on Tiny ImageNet."""
    return _defended(lab, setting, paper.TINY, paper.POISONING, BOTH)


def table5(lab: Lab, setting: Setting) -> list[Part]:
    """The direct attack."""
    return _defended(lab, setting, paper.AGAINST_DIRECT, paper.DIRECT, BOTH)


SHARES, BOUNDS = (1, 2, 5, 10, 20, 30), (8, 16, 32, 64, 128, 255)  # percent of a class; pixel steps
_LOOKED: dict[str, RobustMean] = {paper.PLAIN: Mean(), "truncated mean": Truncated(), paper.CALIBRATED: Calibrated()}


def lemma(lab: Lab, setting: Setting) -> list[Part]:
    """How far a poisoned mean is from that of the clean rows, by the share of poisoned rows and by their bound."""
    by_share = {share: _deviations(lab, setting, share, 255) for share in SHARES}
    by_bound = {bound: _deviations(lab, setting, 10, bound) for bound in BOUNDS}
    kinds: dict[str, Kind] = dict.fromkeys(_LOOKED, "number")
    definition: dict[str, Kind] = {f"{name}, Definition 4.1": "number" for name in _LOOKED}
    # whole rows are poisoned, which of few is not exactly the share
    shares = [numbers["share"] for numbers in by_share.values()]
    exponents = {
        where: {name: slope(shares, [numbers[name + suffix] for numbers in by_share.values()]) for name in names}
        for where, suffix, names in (
            (paper.DIRECT, "", tuple(_LOOKED)),
            # what is calibrated may leave no poisoned row, and then has no exponent
            ("poisoned deviation", ", Definition 4.1", (paper.PLAIN,)),
        )
    }
    return [
        Part("Distance of the means, by percent of copies of one image", kinds, _rows(by_share, _LOOKED)),
        Part("Distance of the means, by the bound of a tenth of the rows", kinds, _rows(by_bound, _LOOKED)),
        Part(
            "Poisoned deviation, by percent of copies of one image",
            definition,
            _rows(by_share, definition),
        ),
        Part(paper.EXPONENTS, kinds, exponents),
    ]


def _rows(found: Mapping[int, Mapping[str, float]], columns: Mapping[str, object]) -> dict[str, dict[str, float]]:
    return {str(row): {column: numbers[column] for column in columns} for row, numbers in found.items()}


@torch.no_grad()
def _deviations(lab: Lab, setting: Setting, share: int, bound: int) -> dict[str, float]:
    """Means over targets and random networks: rows of a class, of which ``share`` percent are moved to an image.

    How far each mean is from that of the rows as they were, and its poisoned deviation.
    """
    found: dict[str, list[float]] = {}
    count, size = min(256, int(torch.bincount(lab.train.labels).min())), lab.train.shape
    poisoned = torch.arange(count, device=lab.test.device) < max(1, round(count * share / 100))
    drop = -(-3 * share * count // 100)

    def features(network: nn.Module, images: Tensor) -> Tensor:
        return torch.cat([embedded(network, part) for part in torch.split(images, 32)])

    for target in range(setting.targets):
        key = lab.key.child("target", target)
        wanted = key.child("class").integer() % lab.train.num_classes
        own = (lab.train.labels == wanted).nonzero()[:, 0]
        rows = own[key.child("looked").permutation(len(own)).to(own.device)[:count]]
        others = lab.test.images[lab.test.labels != wanted]
        victim = others[key.child("victim").integer() % len(others)].float()
        images = lab.train.images[rows].to(lab.test.device).float()
        moved = images + (victim - images).clamp(-bound, bound) * poisoned[:, None, None, None]
        for look in range(setting.looks):
            network = setting.dm.model.build(size, lab.train.num_classes, lab.key.child("look", look)).to(moved.device)
            r, clean = features(network, moved), features(network, images).mean(0)
            for name, mean in _LOOKED.items():
                middle, dropped = mean(r[None], [drop], key=lab.key.child("mean"))
                away = float((middle[0] - clean).norm())
                found.setdefault(name, []).append(away)
                deviation = metrics.poisoned_deviation(r, poisoned, ~dropped[0])
                found.setdefault(f"{name}, Definition 4.1", []).append(deviation)
    return {name: fmean(values) for name, values in found.items()} | {"share": float(poisoned.double().mean())}


def _condensations(setting: Setting, count: int) -> list[Training]:
    """Condensations as trainings, an epoch an iteration: a training takes an image three times the arithmetic forward.

    Here a real one takes it once and a synthetic one twice, since the weights need no gradient.
    """
    classes = SHAPES[setting.data][1]
    rows = classes * (setting.dm.batch_size + 2 * setting.dm.images) / 3
    recipe = replace(setting.recipe, model=setting.dm.model, epochs=setting.dm.iterations)
    evaluated = Training(count * setting.networks, classes * setting.dm.images, setting.recipe)
    return [Training(count, rows, recipe), evaluated]


def _plan(condensed: int, *, extra: int = 0, matching: int = 0) -> Callable[[Setting, int], list[Training]]:
    """So many condensations for every target, ``extra`` on clean data, surrogates of ``matching`` attacks a target."""

    def plan(setting: Setting, rows: int) -> list[Training]:
        count = (condensed * setting.targets + extra) * setting.runs
        networks = matching * setting.targets * setting.matching.networks
        return [*_condensations(setting, count), Training(networks, rows, setting.matching.surrogate)]

    return plan


RDM_DC_PAPER = {
    "rdm-dc/table1": Reproduction(
        "attacks on dataset condensation", paper.SOURCE, paper.TABLE1, SCALES, table1, _plan(6, matching=3)
    ),
    "rdm-dc/table2": Reproduction(
        "means of the real features against DM poisoning", paper.SOURCE, paper.TABLE2, SCALES, table2, _plan(5, extra=5)
    ),
    "rdm-dc/table3": Reproduction(
        "RDM-DC against gradient matching", paper.SOURCE, paper.TABLE3, SCALES, table3, _plan(2, matching=1)
    ),
    "rdm-dc/table4": Reproduction(
        "RDM-DC against DM poisoning on Tiny ImageNet", paper.SOURCE, paper.TABLE4, TINY_SCALES, table4, _plan(2)
    ),
    "rdm-dc/table5": Reproduction(
        "RDM-DC against copies of the target image", paper.SOURCE, paper.TABLE5, SCALES, table5, _plan(2)
    ),
    "rdm-dc/lemma4.1": Reproduction(
        "deviation of a mean by the share of poisoned rows, before and after calibration",
        paper.SOURCE,
        paper.LEMMA,
        SCALES,
        lemma,
        lambda setting, rows: [],
        figure=("percent of the rows of a class; bound in pixel steps", "distance"),
    ),
}
