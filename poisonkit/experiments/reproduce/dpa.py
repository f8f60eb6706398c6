"""Tables 2 to 6 and Figure 1 of Wang and Feizi, arXiv 2306.16415, at three scales.

One run holds the networks of all six: what Table 4 trains, Tables 2 and 5 read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.attacks import CentrePatch
from poisonkit.data.augment import Augment
from poisonkit.defenses import DPA
from poisonkit.defenses.certified import Ballots, Ensemble
from poisonkit.experiments.lab import Lab, Networks
from poisonkit.experiments.measures import apart, mean, measure
from poisonkit.experiments.presets import RECIPES
from poisonkit.experiments.reproduce import dpa_paper as paper
from poisonkit.experiments.reproduce.registry import Part, Reproduction, Training, slope
from poisonkit.models import ResNet
from poisonkit.models.predict import ensemble_logits
from poisonkit.random import Key
from poisonkit.train import Job, OneCycle, Recipe
from poisonkit.train.loop import new_optimizer, train_epoch
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison


@dataclass(frozen=True)
class Setting:
    """A scale of the whole paper.

    data        its data set; ``digits-32`` is the digits enlarged to 3×32×32
    limit       use so many training and test rows, spread evenly; None for all
    recipe      of the single model; base models have its width divided by √k
    partitions  k of every DPA
    patches     sides of the large and of the small square
    rates       shares of rows to poison
    ladder      the networks of Figure 1, one a width
    seed        of everything random
    """

    data: str
    recipe: Recipe
    limit: int | None = None
    partitions: tuple[int, ...] = paper.PARTITIONS
    patches: tuple[int, int] = (16, 1)
    rates: tuple[float, ...] = paper.RATES
    ladder: ResNet = field(default_factory=lambda: ResNet(18))
    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    seed: int = 0


SCALES = {
    "smoke": Setting(
        "digits-32",
        Recipe(
            model=ResNet(8, 16, stem="imagenet"),
            epochs=12,
            batch_size=32,
            schedule=OneCycle(0.02, 0.2, 0.0001),
            augment=Augment(crop=2, flip=False),
        ),
        limit=2000,
        patches=(8, 4),  # a digit's pixel is four by four
        rates=(0.03, 0.1),
        ladder=ResNet(8, stem="imagenet"),
        widths=(4, 8, 16, 32, 64),
    ),
    "small": Setting(
        "tiny-imagenet-50",
        Recipe(model=ResNet(18, 32), epochs=10, batch_size=64, schedule=OneCycle(0.02, 0.2)),
        rates=(0.0005, 0.002, 0.01),
    ),
    "paper": Setting("imagenet64", replace(RECIPES["imagenet64"], precision="bfloat16")),
}


@dataclass(frozen=True, eq=False)
class _Voted:
    """An ensemble, its training, and what it said of the test images."""

    ensemble: Ensemble
    networks: Networks
    ballots: dict[str, Ballots]


def _one(lab: Lab, name: str, recipe: Recipe, data: ImageDataset, poison: Poison | None = None) -> _Voted:
    """The single model."""
    job = Job(0, data, torch.arange(len(data)), recipe, lab.key.child("undefended"))
    networks = lab.networks(f"{name}/single", [job])
    ensemble = Ensemble(networks.models, data.num_classes)
    return _Voted(ensemble, networks, lab.ask(f"{name}/single", ensemble, poison))


def _dpa(lab: Lab, name: str, k: int, data: ImageDataset, poison: Poison | None = None) -> _Voted:
    defense, name = DPA(partitions=k), f"{name}/k-{k:02d}"
    split = lab.split(name, defense, data)
    networks = lab.networks(name, defense.jobs(data, lab.recipe, key=lab.key.child("defense"), split=split))
    ensemble = defense.gather(networks.models, data.num_classes, split)
    return _Voted(ensemble, networks, lab.ask(name, ensemble, poison))


def _clean(lab: Lab, setting: Setting) -> dict[str, _Voted]:
    """Single model and every DPA on clean data, by the name of their row."""
    data = lab.train.to(lab.test.device)
    found = {paper.BASELINE: _one(lab, "clean", lab.recipe, data)}
    return {**found, **{paper.dpa(k): _dpa(lab, "clean", k, data) for k in setting.partitions}}


def _accuracies(lab: Lab, voted: _Voted) -> dict[str, float]:
    row = measure("", voted.ensemble, voted.ballots, lab.test, None, 0.0, certify=False)
    return {f"acc@{n}": value for n, value in row.guesses.items()}


def _bases(lab: Lab, voted: _Voted) -> dict[str, float]:
    """Mean accuracies of the base models."""
    average = mean("", apart(voted.networks.models, voted.ballots, lab.test, None), 0.0)
    return {f"acc@{n}": value for n, value in average.guesses.items()}


def _inference(lab: Lab, voted: _Voted, name: str) -> dict[str, float]:
    """Seconds that all test images take, by size of batch, kept in the run."""
    models = list(voted.networks.models.values())

    def timed() -> dict[str, Tensor]:
        return {"seconds": torch.tensor([_passes(models, lab.test, size) for size in (128, 512)])}

    kept = lab.run.tensors(f"{name}/seconds", timed)["seconds"].tolist()
    return dict(zip(paper.INFERENCE, kept, strict=True))


def _passes(models: Sequence[nn.Module], test: ImageDataset, batch_size: int) -> float:
    """Seconds of a pass over the test images: the median of three, after one to warm up."""
    seconds = []
    for _ in range(4):
        _wait(test.device)
        start = perf_counter()
        for _ in ensemble_logits(models, test.images, batch_size):
            pass
        _wait(test.device)
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table2(lab: Lab, setting: Setting) -> list[Part]:
    """Training and inference time."""
    training, inference = {}, {}
    for row, voted in _clean(lab, setting).items():
        seconds, count = voted.networks.seconds, len(voted.networks.models)
        training[row] = dict(zip(paper.TRAINING, (seconds, seconds / count), strict=True))
        inference[row] = _inference(lab, voted, "clean/" + ("single" if count == 1 else f"k-{count:02d}"))
    return paper.times(training, inference)


def _around(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe at half, once and twice its width."""
    width = recipe.model.width
    wide = {paper.HALF: max(1, width // 2), paper.WHOLE: width, paper.DOUBLE: 2 * width}
    return {row: replace(recipe, model=replace(recipe.model, width=w)) for row, w in wide.items()}


def table3(lab: Lab, setting: Setting) -> list[Part]:
    """The single model at three widths."""
    data, seconds, accuracies = lab.train.to(lab.test.device), {}, {}
    for row, recipe in _around(lab.recipe).items():
        name = "clean" if row == paper.WHOLE else f"width-{recipe.model.width:03d}"
        voted = _one(lab, name, recipe, data)
        seconds[row], accuracies[row] = {"training": voted.networks.seconds}, _accuracies(lab, voted)
    return paper.widths(seconds, accuracies)


def table4(lab: Lab, setting: Setting) -> list[Part]:
    """acc@n of the single model and of DPA."""
    numbers = {row: _accuracies(lab, voted) for row, voted in _clean(lab, setting).items()}
    return [replace(paper.TABLE4[0], numbers=numbers)]


def table5(lab: Lab, setting: Setting) -> list[Part]:
    """acc@n of DPA beside the mean of its base models."""
    data, numbers = lab.train.to(lab.test.device), {}
    for k in setting.partitions:
        voted = _dpa(lab, "clean", k, data)
        numbers[paper.dpa(k)], numbers[paper.base(k)] = _accuracies(lab, voted), _bases(lab, voted)
    return [replace(paper.TABLE5[0], numbers=numbers)]


def table6(lab: Lab, setting: Setting) -> list[Part]:
    """Attack success by square, budget and k, over all test images as in the paper, and without the target's own.

    Processes that share the run take squares and budgets that no other is at, and wait for the rest at the end.
    """
    cases = [(patch, rate) for patch in setting.patches for rate in setting.rates]
    found: dict[tuple[int, float], dict[str, tuple[float, float]]] = {}
    for wait in (False, True):
        for patch, rate in cases:
            if (patch, rate) not in found:
                with lab.run.lock(_case(patch, rate), wait=wait) as holder:
                    if holder is None:
                        found[patch, rate] = _attacked(lab, setting, patch, rate)
    parts = []
    for title, patch in zip((paper.LARGE, paper.DOT), setting.patches, strict=True):
        columns = {rate: paper.budget(rate, len(lab.train)) for rate in setting.rates}
        for place, name in enumerate((paper.counted(title), paper.others(title))):
            numbers = {
                row: {column: found[patch, rate][row][place] for rate, column in columns.items()}
                for row in found[patch, setting.rates[0]]
            }
            parts.append(Part(name, dict.fromkeys(columns.values(), "share"), numbers))
    return parts


def _case(patch: int, rate: float) -> str:
    return f"square-{patch:02d}/rate-{rate:.6f}"


def _attacked(lab: Lab, setting: Setting, patch: int, rate: float) -> dict[str, tuple[float, float]]:
    """Attack success of every classifier, over all test images and over those of other classes."""
    # one order of the rows for all budgets and squares: the smaller poison is part of the larger
    poison = CentrePatch(size=patch)(lab.train, Budget(rate), key=lab.key.child("attack"))
    dirty, name = poison.apply(lab.train).to(lab.test.device), _case(patch, rate)
    voted = {paper.BASELINE: _one(lab, name, lab.recipe, dirty, poison)}
    voted |= {paper.dpa(k): _dpa(lab, name, k, dirty, poison) for k in setting.partitions}
    return {row: (_success(lab, each, poison, True), _success(lab, each, poison, False)) for row, each in voted.items()}


def _success(lab: Lab, voted: _Voted, poison: Poison, include: bool) -> float:
    assert isinstance(poison.goal, Backdoor)
    labels, prediction = lab.test.labels.cpu(), voted.ensemble.count(voted.ballots["triggered"]).prediction.cpu()
    return metrics.success_rate(prediction, labels, poison.goal.wanted(labels), include_target=include)


def figure1(lab: Lab, setting: Setting) -> list[Part]:
    """Seconds of an epoch of training, and of testing, by width, and the exponent at which they grow."""

    def timed(width: int) -> dict[str, Tensor]:
        recipe = replace(lab.recipe, model=replace(setting.ladder, width=width))
        model = recipe.model.build(lab.train.shape, lab.train.num_classes, Key(0)).to(lab.test.device)
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer, data = new_optimizer(model, recipe), lab.train.to(lab.test.device)
        train_epoch(model, optimizer, data, recipe, key=lab.key, epoch=0, rows=torch.arange(min(len(data), 512)))
        _wait(data.device)
        start = perf_counter()
        train_epoch(model, optimizer, data, recipe, key=lab.key, epoch=0)
        _wait(data.device)
        training = perf_counter() - start
        return {"seconds": torch.tensor([training, _passes([model], lab.test, 512)])}

    columns = paper.PASSES
    kept = {w: lab.run.tensors(f"figure1/width-{w:03d}", partial(timed, w))["seconds"].tolist() for w in setting.widths}
    numbers = {str(w): dict(zip(columns, seconds, strict=True)) for w, seconds in kept.items()}
    last = setting.widths[-3:]
    exponents = {column: slope(last, [kept[w][i] for w in last]) for i, column in enumerate(columns)}
    return [
        Part("Time by width", dict.fromkeys(columns, "seconds"), numbers),
        replace(paper.FIGURE1[0], numbers={paper.WIDEST: exponents}),
    ]


def _plan_one(recipe: Recipe, rows: float) -> list[Training]:
    return [Training(1, rows, recipe)]


def _plan_dpa(setting: Setting, rows: int) -> list[Training]:
    return [Training(k, rows / k, DPA(partitions=k).base(setting.recipe)) for k in setting.partitions]


def _plan_clean(setting: Setting, rows: int) -> list[Training]:
    return [*_plan_one(setting.recipe, rows), *_plan_dpa(setting, rows)]


def _plan_table6(setting: Setting, rows: int) -> list[Training]:
    return _plan_clean(setting, rows) * (len(setting.patches) * len(setting.rates))


def _plan_widths(setting: Setting, rows: int) -> list[Training]:
    return [Training(1, rows, recipe) for recipe in _around(setting.recipe).values()]


def _plan_figure1(setting: Setting, rows: int) -> list[Training]:
    models = (replace(setting.ladder, width=width) for width in setting.widths)
    return [Training(1, rows, replace(setting.recipe, model=model, epochs=1)) for model in models]


DPA_PAPER = {
    "dpa/table2": Reproduction(
        "training and inference time, one model against DPA", paper.SOURCE, paper.TABLE2, SCALES, table2, _plan_clean
    ),
    "dpa/table3": Reproduction(
        "one model at three widths: training time, accuracy within n guesses",
        paper.SOURCE,
        paper.TABLE3,
        SCALES,
        table3,
        _plan_widths,
    ),
    "dpa/table4": Reproduction(
        "accuracy within n guesses, one model against DPA", paper.SOURCE, paper.TABLE4, SCALES, table4, _plan_clean
    ),
    "dpa/table5": Reproduction(
        "accuracy within n guesses, DPA against one of its base models",
        paper.SOURCE,
        paper.TABLE5,
        SCALES,
        table5,
        _plan_dpa,
    ),
    "dpa/table6": Reproduction(
        "attack success by square (16×16 and 1×1 in the paper), budget and k",
        paper.SOURCE,
        paper.TABLE6,
        SCALES,
        table6,
        _plan_table6,
    ),
    "dpa/figure1": Reproduction(
        "time of an epoch against the width of a network (ResNet-18 in the paper)",
        paper.SOURCE,
        paper.FIGURE1,
        SCALES,
        figure1,
        _plan_figure1,
        figure=("base width", "seconds"),
    ),
}
