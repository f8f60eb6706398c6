"""Tables 1 to 4 and Figures 1 to 6 of Yang, Liu and Mirzasoleiman, arXiv 2210.09671, at three scales.

One run holds the poisoned training sets and the trainings of all of them; of Table 3, which is of other data, another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from poisonkit.attacks.bullseye_polytope import BullseyePolytope
from poisonkit.attacks.feature_collision import FeatureCollision
from poisonkit.attacks.gradient_matching import GradientMatching
from poisonkit.attacks.sleeper_agent import SleeperAgent
from poisonkit.data.augment import Augment
from poisonkit.defenses import EPIC
from poisonkit.defenses.filters import ActivationClustering, DeepKNN, SpectralSignatures
from poisonkit.defenses.training import DPSGD, AdversarialPoisoning, HighestLoss, LowestConfidence, RandomSubset
from poisonkit.experiments.epic.dynamics import (
    SIZES,
    Moment,
    Watched,
    column,
    distances,
    gradient_error,
    shares_by_size,
    similarities,
    theorem,
)
from poisonkit.experiments.epic.effective import Effective
from poisonkit.experiments.epic.trials import UNDEFENDED, Outcome, Scenario, Trial, poisoned
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import epic_paper as paper
from poisonkit.experiments.reproduce.registry import Kind, Part, Reproduction, Training, relative
from poisonkit.models import VGG, ResNet
from poisonkit.train import OneCycle, Recipe, Step
from poisonkit.types import Victims


@dataclass(frozen=True)
class Setting:
    """A scale of the paper.

    data      its data set; ``digits-32`` is the digits enlarged to 3×32×32
    recipe    of the short training, which is that of transfer learning too
    limit     use so many training and test rows, spread evenly; None for all
    long      epochs of the long training; where the rate is cut, it is after a half and three quarters
    tuned     learning rate of fine-tuning
    trials    poisoned training sets of each attack
    rate      share of the rows that are poisoned
    eps       largest change of a pixel; twice as much in Table 4, and for the sleeper agent
    steps     of the optimisation of poisons from scratch; ``transfer_steps``: in transfer learning
    step      of gradient matching and the sleeper agent, in pixel steps
    restarts  of gradient matching
    medoids   of EPIC, where several are compared; ``one``: where one is shown
    mode      of EPIC
    tries     trainings that the search for the effective poisons may take
    seed      of everything random
    """

    data: str
    recipe: Recipe
    limit: int | None = None
    long: int = 200
    tuned: float = 1e-4
    trials: int = 100
    rate: float = 0.01
    eps: float = 8.0
    steps: int = 250
    step: float = 4.0
    transfer_steps: int = 1200
    restarts: int = 8
    medoids: tuple[float, ...] = (0.1, 0.2, 0.3)
    one: float = 0.2
    mode: Literal["paper", "reference"] = "paper"
    tries: int = 200
    seed: int = 0


def _schedule(rate: float) -> Step:
    return Step(rate, (0.625, 0.875))


PAPER = Recipe(ResNet(18, stem="small"), epochs=40, batch_size=128, schedule=_schedule(0.1), nesterov=True)
# Few rows, not augmented and changed a lot: what gradient matching takes to succeed in minutes on a CPU
SMALL = replace(
    PAPER,
    model=ResNet(8, 32, stem="imagenet"),
    epochs=8,
    batch_size=64,
    schedule=OneCycle(0.02, 0.2),
    nesterov=False,
    augment=None,
)
SMOKE = Recipe(
    ResNet(8, 8, stem="imagenet"),
    epochs=5,
    batch_size=32,
    schedule=_schedule(0.05),
    augment=Augment(crop=2, flip=False),
)
_SMOKE = Setting(
    "digits-32",
    SMOKE,
    limit=400,
    long=6,
    tuned=0.01,
    trials=1,
    rate=0.05,
    eps=64.0,
    steps=20,
    transfer_steps=40,
    restarts=1,
    tries=8,
)
_SMALL = Setting(
    "cifar10",
    SMALL,
    limit=2_500,
    long=16,
    tuned=0.001,
    trials=10,
    rate=0.02,
    eps=32.0,
    steps=80,
    step=8.0,
    transfer_steps=150,
    restarts=1,
    medoids=(0.1, 0.2, 0.3, 0.6),
    one=0.6,
    mode="reference",
    tries=40,
)

SCALES = {"smoke": _SMOKE, "small": _SMALL, "paper": Setting("cifar10", PAPER)}
TINY_SCALES = {
    "smoke": _SMOKE,
    # classes of 200 rows, a quarter of one of them poisoned
    "small": replace(
        _SMALL,
        data="tiny-imagenet-50",
        recipe=replace(SMALL, model=VGG(11, 8, stem="small")),
        limit=10_000,
        rate=0.005,
        trials=5,
    ),
    "paper": replace(
        SCALES["paper"], data="tiny-imagenet", recipe=replace(PAPER, model=VGG(16, stem="small"), epochs=200), trials=10
    ),
}


def _attack(setting: Setting, kind: str) -> tuple[Any, Scenario]:
    """An attack by the name it is kept by, and where it is tried."""
    own, eps = setting.recipe, setting.eps
    matching = GradientMatching(
        eps=eps,
        steps=setting.steps,
        rate=setting.step,
        restarts=setting.restarts,
        augment=own.augment,
        surrogate=own,
    )
    polytope = BullseyePolytope(eps=eps, steps=setting.transfer_steps, surrogate=own)
    known: dict[str, tuple[Any, Scenario]] = {
        "gm": (matching, "scratch"),
        "gm-strong": (replace(matching, eps=2 * eps), "scratch"),
        "sa": (
            SleeperAgent(eps=2 * eps, steps=setting.steps, rate=setting.step, augment=own.augment, surrogate=own),
            "scratch",
        ),
        "bp": (polytope, "transfer"),
        "bp-tuned": (polytope, "tuned"),
        "bp-scratch": (polytope, "scratch"),
        "fc": (FeatureCollision(eps=None, surrogate=own), "transfer"),
    }
    return known[kind]


def _trial(lab: Lab, setting: Setting, kind: str, number: int) -> Trial:
    attack, scenario = _attack(setting, kind)
    recipe = setting.recipe
    if scenario == "tuned":
        recipe = replace(recipe, schedule=Step(setting.tuned, (0.75,)))
    return poisoned(lab, kind, attack, setting.rate, scenario, recipe, number)


def _epic(setting: Setting, scenario: Scenario, medoids: float) -> EPIC:
    """EPIC as the paper and, where it says nothing, the released code run it."""
    if scenario == "scratch":
        return EPIC(medoids, mode=setting.mode)
    if scenario == "transfer":
        return EPIC(medoids, mode=setting.mode, every=1)
    return EPIC(0.6, mode="reference", warmup=setting.recipe.epochs // 8, every=1)


def _mean(outcomes: Sequence[Outcome], seconds: bool = True) -> dict[str, float]:
    """The means over trials, by column."""
    count = len(outcomes)
    found = {
        paper.SUCCESS: sum(each.success for each in outcomes) / count,
        paper.ACCURACY: sum(each.accuracy for each in outcomes) / count,
        paper.TIME: sum(each.seconds for each in outcomes) / count,
    }
    return found if seconds else {name: found[name] for name in (paper.SUCCESS, paper.ACCURACY)}


def _compared(
    lab: Lab, setting: Setting, kind: str, defenses: Mapping[str, Any], recipe: Recipe | None = None
) -> dict[str, dict[str, float]]:
    """Every defense over all trials of an attack, and none, by the name of its row."""
    trials = [_trial(lab, setting, kind, number) for number in range(setting.trials)]
    return {
        row: _mean([trial.outcome(row, defense, recipe) for trial in trials])
        for row, defense in {UNDEFENDED: None, **defenses}.items()
    }


def _aps(setting: Setting, eps: float) -> dict[str, Any]:
    return {paper.ap(share): AdversarialPoisoning(share=share, eps=eps) for share in (0.25, 0.5, 0.75)}


def _epics(setting: Setting, medoids: Sequence[float]) -> dict[str, Any]:
    return {paper.epic(share): _epic(setting, "scratch", share) for share in medoids}


# The rivals as Geiping et al. (arXiv 2102.13624) compare with them, from whom the paper has them
_CHEAP: dict[str, Any] = {
    paper.SPECTRAL: SpectralSignatures(rate=0.1, multiple=1.5),
    paper.CLUSTERING: ActivationClustering(judge="smaller", reduce="none"),
    paper.SHAPING: DPSGD(),
}


def _few(setting: Setting) -> dict[str, Any]:
    """The defenses of the long training."""
    return {**_CHEAP, **_epics(setting, setting.medoids)}


def _all(setting: Setting) -> dict[str, Any]:
    """The defenses of the short training."""
    knn = DeepKNN(share=0.02, vote="majority", balanced=False)
    return {paper.KNN: knn, **_CHEAP, **_aps(setting, setting.eps), **_epics(setting, setting.medoids)}


def _long(setting: Setting) -> Recipe:
    schedule = setting.recipe.schedule
    if isinstance(schedule, Step):
        schedule = replace(schedule, milestones=(0.5, 0.75))
    return replace(setting.recipe, epochs=setting.long, schedule=schedule)


def table1(lab: Lab, setting: Setting) -> list[Part]:
    """Five attacks without and with EPIC; from scratch by the long training."""
    numbers = {}
    for kind, row in paper.ATTACKS.items():
        recipe = _long(setting) if _attack(setting, kind)[1] == "scratch" else None
        method = _epic(setting, _attack(setting, kind)[1], setting.one)
        found = _compared(lab, setting, kind, {paper.epic(setting.one): method}, recipe)
        shown = zip((UNDEFENDED, "EPIC"), found.values(), strict=True)
        numbers[row] = {f"{name}, {who}": of[name] for who, of in shown for name in (paper.SUCCESS, paper.ACCURACY)}
    return [replace(paper.TABLE1[0], numbers=numbers)]


def table2(lab: Lab, setting: Setting) -> list[Part]:
    """All defenses against gradient matching, by the short and the long training."""
    short = _compared(lab, setting, "gm", _all(setting))
    long = _compared(lab, setting, "gm", _few(setting), _long(setting))
    return [Part(paper.SHORT, paper.KINDS, short), Part(paper.LONG, paper.KINDS, long)]


def table3(lab: Lab, setting: Setting) -> list[Part]:
    """Bullseye polytope from scratch."""
    defenses = {paper.ap(0.5): AdversarialPoisoning(share=0.5, eps=setting.eps), **_epics(setting, [0.2])}
    return [replace(paper.TABLE3[0], numbers=_compared(lab, setting, "bp-scratch", defenses))]


def table4(lab: Lab, setting: Setting) -> list[Part]:
    """Gradient matching that may change pixels by twice as much."""
    defenses = {**_aps(setting, 2 * setting.eps), **_epics(setting, (0.1, 0.2))}
    return [replace(paper.TABLE4[0], numbers=_compared(lab, setting, "gm-strong", defenses))]


def figure6(lab: Lab, setting: Setting) -> list[Part]:
    """Attack success against running time, in times of the undefended training."""
    found = _compared(lab, setting, "gm", _all(setting))
    times = relative(found, UNDEFENDED)
    numbers = {
        row: {paper.SUCCESS: of[paper.SUCCESS], paper.TIMES: times[row][paper.TIME]} for row, of in found.items()
    }
    return [replace(paper.FIGURE6[0], numbers=numbers)]


def _successful(lab: Lab, setting: Setting, kind: str) -> Trial:
    """The first trial whose attack succeeds undefended, or the first."""
    trials = [_trial(lab, setting, kind, number) for number in range(setting.trials)]
    return next((trial for trial in trials if trial.outcome(UNDEFENDED).success > 0.5), trials[0])


def _shown(lab: Lab, setting: Setting, kind: str) -> tuple[Trial, Effective | None, Tensor, str]:
    """A trial, its effective poisons, the rows that a figure is about, and what those are.

    Where the attack fails, or two poisons or fewer are effective, the figure is about all poisons.
    """
    trial = _successful(lab, setting, kind)
    found, poisons = trial.effective(setting.tries), trial.poison.rows.cpu()
    if found is None or len(found.poisons) < 2:
        why = "the attack fails" if found is None else f"{len(found.poisons)} effective"
        return trial, found, poisons, f"all {len(poisons)} poisons; {why}"
    return trial, found, found.poisons.cpu(), f"the {len(found.poisons)} effective of {len(poisons)} poisons"


def _goal(trial: Trial) -> Victims:
    goal = trial.poison.goal
    assert isinstance(goal, Victims)
    return Victims(goal.images.to(trial.dirty.device), goal.labels.to(trial.dirty.device))


def figure1(lab: Lab, setting: Setting) -> list[Part]:
    """How many poisons are effective, and how far from the victim all are in the gradients of the clean network."""
    shares: dict[str, dict[str, float]] = {}
    apart: dict[str, dict[str, float]] = {}
    for kind in ("gm", "bp"):
        trial, found, _, _ = _shown(lab, setting, kind)
        row, count = paper.ATTACKS[kind], len(trial.poison.rows)
        if found is None:
            continue
        effective = torch.isin(trial.poison.rows.cpu(), found.poisons.cpu())
        far = distances(trial.clean, trial.dirty, trial.poison.rows, _goal(trial)).cpu()
        shares[row] = {
            paper.EFFECTIVE: len(found.poisons) / count,
            "poisons": count,
            "trainings tried": found.tries,
            "none alone can go": float(found.minimal),
        }
        sides = {"effective": far[effective], "ineffective": far[~effective]}
        apart[row] = {name: float(each.mean()) for name, each in sides.items() if len(each)}
    kinds: dict[str, Kind] = {
        paper.EFFECTIVE: "share",
        "poisons": "number",
        "trainings tried": "number",
        "none alone can go": "number",
    }
    return [
        Part(paper.FIGURE1[0].title, kinds, shares),
        Part("Mean distance of gradients to the victim's", {"effective": "number", "ineffective": "number"}, apart),
    ]


def figure2(lab: Lab, setting: Setting) -> list[Part]:
    """What EPIC and other rules drop, of the effective poisons and of all rows, by the end of training."""
    parts = []
    for kind in ("gm", "bp"):
        trial, _, rows, which = _shown(lab, setting, kind)
        every = None if trial.scenario == "scratch" else 1
        rules = {
            paper.epic(setting.one): _epic(setting, trial.scenario, setting.one),
            **{f"confidence below {t:g}": LowestConfidence(threshold=t, every=every) for t in (0.25, 0.5)},
            **{f"loss above {t:g}": HighestLoss(threshold=t, every=every) for t in (1.0, 2.0)},
            "random rows": RandomSubset(every=every),
        }
        numbers = {}
        for row, rule in rules.items():
            gone = trial.outcome(row, rule).dropped_at >= 0
            numbers[row] = {"of these poisons": _share(gone[rows]), "of all rows": _share(gone)}
        kinds: dict[str, Kind] = {"of these poisons": "share", "of all rows": "share"}
        parts.append(Part(f"Share dropped, {paper.ATTACKS[kind]}: {which}", kinds, numbers))
    return parts


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


MUTUAL, TARGET = "cosine with each other", "cosine with the victim's"
NORMS = ("norm", "norm of the kept", "error of the kept", "error of random rows")
CLUSTERS = tuple(column(who, low) for who in ("clean", "poisons") for low in SIZES)


def _watch(lab: Lab, setting: Setting, kind: str) -> tuple[Trial, str, Tensor, Tensor, dict[str, Tensor]]:
    """A training with EPIC, measured before every epoch: the rows looked at, when each row was dropped, the numbers."""
    trial, _, rows, which = _shown(lab, setting, kind)
    method, epochs = _epic(setting, trial.scenario, setting.one), trial.recipe.epochs
    names, goal, key = [MUTUAL, TARGET, *NORMS, *CLUSTERS], _goal(trial), trial.key.child("watched")
    poisons = torch.zeros(len(trial.dirty), dtype=torch.bool).index_fill(0, rows, True)

    def measure(moment: Moment) -> dict[str, float]:
        mutual, target = similarities(moment.model, moment.data, rows, goal)
        found = {MUTUAL: mutual, TARGET: target, **gradient_error(moment, key.child(moment.epoch))}
        if moment.epoch in method.rounds(epochs):
            found |= shares_by_size(method, moment, poisons)
        return found

    def watched() -> Mapping[str, Tensor]:
        with lab.journal(f"{trial.name}/watched") as journal:
            subset = method.procedure(trial.dirty, trial.recipe, trial.key.child("network"), journal.say).subset
            procedure = Watched(subset, epochs, names, measure)
            trial.fit(trial.dirty, journal, procedure)
        return {"history": procedure.history, "dropped_at": subset.dropped_at}

    kept = lab.run.tensors(f"{trial.name}/watched/history", watched)
    return trial, which, rows, kept["dropped_at"], dict(zip(names, kept["history"].T, strict=True))


def _by_epoch(title: str, kind: Kind, columns: Mapping[str, Tensor]) -> Part:
    """A part whose rows are the epochs that are over: what is not measured is left out."""
    epochs = len(next(iter(columns.values())))
    numbers = {
        str(epoch): {name: float(values[epoch]) for name, values in columns.items() if not values[epoch].isnan()}
        for epoch in range(epochs)
    }
    return Part(title, dict.fromkeys(columns, kind), {row: of for row, of in numbers.items() if of})


def figure3(lab: Lab, setting: Setting) -> list[Part]:
    """A training with EPIC: the poisons' gradients, what is dropped, the gradient of what is kept, and ρ."""
    trial, which, rows, dropped_at, history = _watch(lab, setting, "gm")
    epochs = trial.recipe.epochs
    poisons = torch.zeros(len(trial.dirty), dtype=torch.bool).index_fill(0, trial.poison.rows.cpu(), True)

    def gone(mask: Tensor) -> Tensor:
        mine = dropped_at[mask]
        return torch.tensor([_share((mine >= 0) & (mine <= epoch)) for epoch in range(epochs)], dtype=torch.float64)

    these = torch.zeros_like(poisons).index_fill(0, rows, True)
    drops = {"of these poisons": gone(these), "of all poisons": gone(poisons), "of clean rows": gone(~poisons)}
    values = theorem(history["norm"], history["norm of the kept"])
    return [
        _by_epoch(f"Gradients of {which}", "number", {name: history[name] for name in (MUTUAL, TARGET)}),
        _by_epoch(f"Share dropped: {which}", "share", drops),
        _by_epoch("Mean gradient of the training set", "number", {name: history[name] for name in NORMS}),
        Part("Theorem 3.1", dict.fromkeys(values, "number"), {paper.epic(setting.one): values}),
    ]


def _figure45(kind: str) -> Callable[[Lab, Setting], list[Part]]:
    def figure(lab: Lab, setting: Setting) -> list[Part]:
        """How large the clusters are that poisons and clean rows lie in."""
        _, which, _, _, history = _watch(lab, setting, kind)
        columns = {name: history[name] for name in CLUSTERS}
        return [_by_epoch(f"Share of rows by size of cluster, {paper.ATTACKS[kind]}: {which}", "share", columns)]

    return figure


def _plan(trainings: Callable[[Setting], Sequence[Training]]) -> Callable[[Setting, int], list[Training]]:
    """The trainings of one trial for all of them, and the clean network; as if EPIC and filters left no row out."""

    def plan(setting: Setting, rows: int) -> list[Training]:
        each = [replace(t, count=t.count * setting.trials, rows=rows) for t in trainings(setting)]
        return [Training(1, rows, setting.recipe), *each]

    return plan


def _slow(recipe: Recipe, times: int) -> Recipe:
    """As many epochs as take ``times`` the arithmetic."""
    return replace(recipe, epochs=times * recipe.epochs)


# A step of adversarial poisoning has eleven passes over half the batch or more beside its own: 6 times, says the paper
def _plan2(setting: Setting) -> list[Training]:
    short, aps = len(_all(setting)) + 1 - 3, Training(3, 0, _slow(setting.recipe, 6))
    return [Training(short, 0, setting.recipe), aps, Training(len(_few(setting)) + 1, 0, _long(setting))]


def _plan_short(setting: Setting) -> list[Training]:
    return _plan2(setting)[:2]


def _plan1(setting: Setting) -> list[Training]:
    return [Training(4, 0, _long(setting)), Training(6, 0, setting.recipe)]


def _plan3(setting: Setting) -> list[Training]:
    return [Training(2, 0, setting.recipe), Training(1, 0, _slow(setting.recipe, 6))]


def _plan4(setting: Setting) -> list[Training]:
    return [Training(3, 0, setting.recipe), Training(3, 0, _slow(setting.recipe, 6))]


def _plan_figure(extra: int, kinds: int) -> Callable[[Setting, int], list[Training]]:
    def plan(setting: Setting, rows: int) -> list[Training]:
        return [Training(1 + kinds * (setting.trials + setting.tries + extra), rows, setting.recipe)]

    return plan


def _entry(
    summary: str,
    parts: Sequence[Part],
    run: Callable[[Lab, Any], Sequence[Part]],
    plan: Callable[[Any, int], Sequence[Training]],
    scales: Mapping[str, Setting] = SCALES,
) -> Reproduction:
    return Reproduction(summary, paper.SOURCE, parts, scales, run, plan)


EPIC_PAPER = {
    "epic/table1": _entry("targeted attacks without and with EPIC", paper.TABLE1, table1, _plan(_plan1)),
    "epic/table2": _entry(
        "gradient matching against EPIC and its rivals: attack success, accuracy, time",
        paper.TABLE2,
        table2,
        _plan(_plan2),
    ),
    "epic/table3": _entry(
        "bullseye polytope on Tiny ImageNet, from scratch", paper.TABLE3, table3, _plan(_plan3), TINY_SCALES
    ),
    "epic/table4": _entry(
        "gradient matching with larger changes, against EPIC and adversarial poisoning",
        paper.TABLE4,
        table4,
        _plan(_plan4),
    ),
    "epic/figure1": _entry(
        "how many poisons are effective, and where they lie", paper.FIGURE1, figure1, _plan_figure(0, 2)
    ),
    "epic/figure2": _entry("what EPIC drops, and rules by confidence and loss", [], figure2, _plan_figure(6, 2)),
    "epic/figure3": _entry(
        "gradients of poisons and of the rows kept while EPIC trains, and ρ", [], figure3, _plan_figure(3, 1)
    ),
    "epic/figure4": _entry("sizes of gradient clusters, from scratch", [], _figure45("gm"), _plan_figure(3, 1)),
    "epic/figure5": _entry("sizes of gradient clusters, transfer", [], _figure45("bp"), _plan_figure(3, 1)),
    "epic/figure6": _entry("attack success against running time", paper.FIGURE6, figure6, _plan(_plan_short)),
}
