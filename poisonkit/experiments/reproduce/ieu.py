"""The results and ablations of Interleaved Ensemble Unlearning, arXiv 2410.01128, at three scales.

The paper fine-tunes a network that was pretrained on ImageNet without labels. Here it is pretrained on a clean share
of the training set, which is then left out: all the tables say so, and share that network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.attacks import ATTACKS
from poisonkit.data.augment import Augment
from poisonkit.data.views import Views
from poisonkit.defenses.guards import AttnBlock
from poisonkit.defenses.repair import IBAU
from poisonkit.defenses.training import ABL, IEU
from poisonkit.defenses.training.interleaved import UnlearningRate
from poisonkit.engine.crafting import Ready
from poisonkit.errors import DivergedError
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import ieu_paper as paper
from poisonkit.experiments.reproduce.registry import Kind, Part, Reproduction, Training
from poisonkit.models import VGG, ViT, predict
from poisonkit.train import Cosine, Recipe
from poisonkit.train.finetuning import FineTuning, fine_tune
from poisonkit.train.pretraining import Pretrained, clean_split, pretrain
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison

Said = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """A scale of the whole paper.

    data         its data set
    recipe       of fine-tuning
    pretraining  of the network that is fine-tuned, on ``share`` of the rows
    ieu, abl     as they are run
    attacks      by name; the first is that of the ablations
    rate         share of the rows to poison; of the target class for ``sig`` all
    asked        test images that are asked, spread evenly
    limit        use so many training and test rows, spread evenly; None for all
    seed         of everything random
    """

    data: str
    recipe: Recipe
    pretraining: Recipe
    ieu: IEU
    abl: ABL
    share: float = 0.5
    attacks: tuple[str, ...] = paper.ATTACKS
    rate: float = 0.1
    asked: int | None = None
    limit: int | None = None
    seed: int = 0


def _adamw(model: ViT, epochs: int, rate: float, end: float, batch_size: int = 64, decay: float = 0.05) -> Recipe:
    schedule, augment = Cosine(rate, end, warmup=0.1), Augment()
    return Recipe(
        model, epochs, batch_size, "adamw", schedule, weight_decay=decay, augment=augment, channels_last=False
    )


def _poisoned(epochs: int, rate: float, batch_size: int = 64) -> Recipe:
    return replace(_adamw(ViT(depth=1), epochs, rate, rate, batch_size, decay=0.0), augment=None)


_SMOKE, _SMALL = ViT(3, 48, 4, patch=2), ViT(4, 96, 3, patch=4)
_DIGITS = Augment(crop=1, flip=False)
_PAPER = ViT(patch=16, resize=224, head="sit", drop_path=0.1)
# In so few steps of such small networks the dynamic rate, up to six times the learning rate, unlearns too much
_CONSTANT = UnlearningRate("constant")
SCALES = {
    "smoke": Setting(
        "digits",
        replace(_adamw(_SMOKE, 8, 1e-4, 1e-6, 16), augment=_DIGITS),
        replace(_adamw(_SMOKE, 24, 2e-3, 1e-5, 16), augment=_DIGITS),
        IEU(poisoned=_poisoned(3, 1e-3, 16), rate=_CONSTANT, views=None),
        ABL(isolation_epochs=4, isolation_rate=1e-4, ratio=0.05, unlearn_epochs=1, unlearn_rate=1e-4),
        share=0.6,
        attacks=("badnets_white", "blended"),
    ),
    "small": Setting(
        "cifar10",
        # as the convolutional networks of docs/attacks.md need it to learn so quickly; not compared on this one
        replace(_adamw(_SMALL, 6, 5e-4, 1e-6), augment=None),
        _adamw(_SMALL, 10, 1e-3, 1e-5),
        IEU(poisoned=_poisoned(5, 5e-4), rate=_CONSTANT, views=None),
        ABL(isolation_epochs=2, isolation_rate=2e-4, unlearn_epochs=4, unlearn_rate=2e-5),
        attacks=("badnets_white", "blended", "batt", "wanet"),
        asked=1000,
        limit=20_000,
    ),
    "paper": Setting(
        "cifar10",
        _adamw(_PAPER, 10, 5e-6, 1e-6),
        _adamw(_PAPER, 100, 5e-4, 1e-6, 256),
        IEU(views=Views()),
        ABL(isolation_epochs=10, isolation_rate=5e-6, unlearn_epochs=4, unlearn_rate=1e-6),
    ),
}


@dataclass(frozen=True, eq=False)
class _Bench:
    """What every table starts from: the pretrained network, rows that it never saw, and test images."""

    pretrained: Pretrained
    start: nn.Module
    data: ImageDataset
    test: ImageDataset
    under: str


def _bench(lab: Lab, setting: Setting, under: str = "") -> _Bench:
    """What lies below ``under`` in the run, if not in the run itself."""
    rows, rest = clean_split(len(lab.train), setting.share, lab.key.child("pretrain"))
    with lab.journal(f"{under}pretraining") as journal:
        pretrained = pretrain(
            lab.train.to(lab.test.device),
            rows,
            setting.pretraining,
            source=f"{setting.data}'s training set",
            key=lab.key.child("pretrain"),
            journal=journal,
        )
    lab.progress.line(f"the network that is fine-tuned was {pretrained}; {len(rest):,} are left")
    count = min(setting.asked or len(lab.test), len(lab.test))
    test = lab.test.take(torch.arange(count) * len(lab.test) // count)
    start = pretrained.begin(lab.train.num_classes, lab.key.child("head"))
    return _Bench(pretrained, start, lab.train.take(rest).to(lab.test.device), test, under)


def _poison(lab: Lab, bench: _Bench, attack: str, rate: float) -> Poison:
    # SIG poisons all of its target class, which is class 1 everywhere in the paper
    budget = Budget(1.0, per_class=True) if attack == "sig" else Budget(rate)
    options = {"noise": 0} if attack == "wanet" else {}  # the authors' WaNet has no rows of noise
    kind: Any = ATTACKS[attack]
    ready = Ready(kind(target=1, **options), lab.run.directory / "crafting", lab.progress)
    return ready(bench.data, budget, key=lab.key.child("attack"))


def _asked(model: Any, bench: _Bench, poison: Poison) -> dict[str, Tensor]:
    """What ``model`` says of clean and of triggered test images."""
    assert isinstance(poison.goal, Backdoor)
    images = {"clean": bench.test.images, "triggered": poison.goal.trigger(bench.test.images)}
    return {name: predict(model, pixels).cpu() for name, pixels in images.items()}


Method = Callable[[Setting, _Bench, Poison, Lab, str], Mapping[str, Tensor]]


def _undefended(setting: Setting, bench: _Bench, poison: Poison, lab: Lab, name: str) -> nn.Module:
    """Fine-tuned as stage 2 of IEU is, but for the gate."""
    ieu, data = setting.ieu, poison.apply(bench.data)
    own = {"views": ieu.views, "clip": ieu.clip, "decay": ieu.decay}
    procedure = FineTuning(setting.recipe, len(data), key=lab.key.child("defense"), **own)  # type: ignore[arg-type]
    with lab.journal(f"{name}/none") as journal:
        return fine_tune(data, procedure, model=bench.start, journal=journal)


def _none(setting: Setting, bench: _Bench, poison: Poison, lab: Lab, name: str) -> Said:
    return _asked(_undefended(setting, bench, poison, lab, name), bench, poison)


def _attn_block(setting: Setting, bench: _Bench, poison: Poison, lab: Lab, name: str) -> Said:
    guarded = AttnBlock()(_undefended(setting, bench, poison, lab, name), None, key=lab.key)
    return _asked(guarded, bench, poison)


def _i_bau(setting: Setting, bench: _Bench, poison: Poison, lab: Lab, name: str) -> Said:
    """With as many clean rows as a tenth of those that are fine-tuned on, of those that were pretrained on."""
    rows = bench.pretrained.rows[: max(64, len(bench.data) // 10)]
    model = _undefended(setting, bench, poison, lab, name)
    clean = lab.train.take(rows).to(bench.test.device)
    with lab.journal(f"{name}/i_bau") as journal:
        return _asked(IBAU()(model, clean, key=lab.key.child("defense"), journal=journal), bench, poison)


def _trained(defense: ABL | IEU, tag: str) -> Method:
    def run(setting: Setting, bench: _Bench, poison: Poison, lab: Lab, name: str) -> Said:
        data, key = poison.apply(bench.data), lab.key.child("defense")
        with lab.journal(f"{name}/{tag}") as journal:
            if isinstance(defense, ABL):
                model = defense(data, setting.recipe, key=key, model=bench.start, journal=journal)
            else:
                seen = _seen(defense, setting, bench, data, lab, name)
                model = defense.interleave(data, setting.recipe, seen, key=key, model=bench.start, journal=journal)
        return {**_asked(model, bench, poison), "flagged": journal.notes["flagged"]}

    return run


def _seen(defense: IEU, setting: Setting, bench: _Bench, data: ImageDataset, lab: Lab, name: str) -> Said:
    """Stage 1, once for all options of stage 2."""
    stage = replace(setting.ieu, depth=defense.depth, shape=defense.shape, gamma=defense.gamma, noise=defense.noise)
    name = f"{name}/gate-{stage.depth}-{stage.shape}-{stage.gamma}-{stage.noise}"

    def gate() -> Said:
        key = lab.key.child("defense")
        with lab.journal(name) as journal:
            return stage.gate(data, setting.recipe, key=key, model=bench.start, journal=journal)

    return lab.run.tensors(f"{name}/seen", gate)


def _measured(said: Said, bench: _Bench, poison: Poison) -> dict[str, float]:
    """Rates of a classifier; of one with a gate, how many poisoned rows it missed and how many others it flagged."""
    assert isinstance(poison.goal, Backdoor)
    if paper.DIVERGED in said:
        return {paper.DIVERGED: 1.0}
    labels = bench.test.labels.cpu()
    wanted, clean, triggered = poison.goal.wanted(labels), said["clean"], said["triggered"]
    other = labels != wanted
    found = {
        paper.ACC: metrics.accuracy(clean, labels),
        paper.ASR: metrics.success_rate(triggered, labels, wanted),
        paper.ASR_ALL: metrics.success_rate(triggered, labels, wanted, include_target=True),
        paper.PACC: metrics.accuracy(triggered[other], labels[other]),
    }
    if "flagged" in said:
        poisoned = torch.zeros(len(bench.data), dtype=torch.bool)
        poisoned[poison.rows.cpu()] = True
        flagged = said["flagged"]
        if poisoned.any():
            found[paper.MISSES] = float((~flagged[poisoned]).double().mean())
        found[paper.ALARMS] = float(flagged[~poisoned].double().mean())
    return found


def _run(lab: Lab, setting: Setting, bench: _Bench, attack: str, rate: float, methods: Mapping[str, Method]) -> Any:
    """row of ``methods`` -> measure -> number."""
    poison, name = _poison(lab, bench, attack, rate), f"{bench.under}{attack}-{rate:g}"
    found = {}
    for row, method in methods.items():
        tag = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in row.lower())
        said = lab.run.tensors(f"{name}/said/{tag}", partial(method, setting, bench, poison, lab, name))
        found[row] = _measured(said, bench, poison)
        lab.progress.line(f"{name}, {row}: {', '.join(f'{k} {v:.3f}' for k, v in found[row].items())}")
    return found


def _methods(setting: Setting) -> dict[str, Method]:
    return {
        paper.NONE: _none,
        paper.ABL_: _trained(setting.abl, "abl"),
        paper.IBAU_: _i_bau,
        paper.ATTN: _attn_block,
        paper.IEU_: _trained(setting.ieu, "ieu"),
    }


def table1(lab: Lab, setting: Setting) -> list[Part]:
    """Attacks against defenses, and their averages."""
    bench, rows = _bench(lab, setting), dict[str, dict[str, float]]()
    by_attack = {
        attack: _run(lab, setting, bench, attack, setting.rate, _methods(setting)) for attack in setting.attacks
    }
    for attack, found in by_attack.items():
        rows |= {paper.row(attack, defense): numbers for defense, numbers in found.items()}
    for defense in _methods(setting):
        each = [found[defense] for found in by_attack.values()]
        rows[paper.row(paper.AVERAGE, defense)] = {name: sum(n[name] for n in each) / len(each) for name in each[0]}
    return [_part(paper.TABLE1[0].title, rows)]


def _part(title: str, rows: Mapping[str, Mapping[str, float]]) -> Part:
    kinds: dict[str, Kind] = {**paper.MEASURES, **paper.GATE}
    return Part(title, kinds, rows)


Variants = Callable[[IEU], Mapping[str, IEU]]


def _ablation(title: str, variants: Variants) -> Callable[[Lab, Setting], list[Part]]:
    def run(lab: Lab, setting: Setting) -> list[Part]:
        bench, own = _bench(lab, setting), variants(setting.ieu)
        methods = {row: _trained(ieu, f"ieu-{title}-{i}".replace(" ", "-")) for i, (row, ieu) in enumerate(own.items())}
        return [_part(title, _run(lab, setting, bench, setting.attacks[0], setting.rate, methods))]

    return run


def thresholds(ieu: IEU) -> dict[str, IEU]:
    return {f"threshold {value:g}": replace(ieu, threshold=value) for value in paper.THRESHOLDS}


def depths(ieu: IEU) -> dict[str, IEU]:
    return {f"{depth} blocks": replace(ieu, depth=depth) for depth in paper.DEPTHS}


def unlearning_rates(ieu: IEU) -> dict[str, IEU]:
    rates = {
        "dynamic": UnlearningRate(),
        "dynamic, each epoch anew": UnlearningRate(restart=True),
        "of the running mean": UnlearningRate("average"),
        **{f"{value:g} times": UnlearningRate("constant", constant=value) for value in paper.CONSTANTS},
    }
    return {row: replace(ieu, rate=rate) for row, rate in rates.items()}


def designs(ieu: IEU) -> dict[str, IEU]:
    return {
        "as it is": ieu,
        "no mask": replace(ieu, mask=False),
        **{f"noise {value:g}": replace(ieu, noise=value) for value in paper.NOISE},
        **{f"{value:.0%} isolated": replace(ieu, isolate=value) for value in paper.ISOLATED},
        "local gradient ascent": replace(ieu, shape="lga", gamma=1.5),
        "flooding": replace(ieu, shape="flooding", gamma=1.5),
    }


def rates(lab: Lab, setting: Setting) -> list[Part]:
    """IEU and no defense by how much is poisoned, and with nothing poisoned."""
    bench, attack = _bench(lab, setting), setting.attacks[0]
    methods = {name: method for name, method in _methods(setting).items() if name in (paper.NONE, paper.IEU_)}
    rows = {
        f"{rate:.0%} poisoned, {name}": numbers
        for rate in (0.0, *paper.RATES)
        for name, numbers in _run(lab, setting, bench, attack, rate, methods).items()
    }
    return [_part("Poison rate", rows)]


def _of_vgg(setting: Setting) -> Setting:
    """The same scale for a VGG-11 as wide as the transformer is, one view and the attack that the paper names."""
    model = setting.recipe.model
    assert isinstance(model, ViT)
    vgg = VGG(11, max(1, model.width // 6), batch_norm=False, stem="small")
    poisoned = replace(setting.ieu.poisoned, model=replace(model, depth=1, drop_path=0.0))
    return replace(
        setting,
        recipe=replace(setting.recipe, model=vgg),
        pretraining=replace(setting.pretraining, model=vgg),
        ieu=replace(setting.ieu, poisoned=poisoned, views=None),
        attacks=("smooth",),
    )


def _or_diverged(method: Method) -> Method:
    def run(setting: Setting, bench: _Bench, poison: Poison, lab: Lab, name: str) -> Said:
        try:
            return method(setting, bench, poison, lab, name)
        except DivergedError as error:
            lab.progress.line(f"{name}: {error}")
            return {paper.DIVERGED: torch.tensor(True)}

    return run


def stability(lab: Lab, setting: Setting) -> list[Part]:
    """IEU of a VGG-11 against Smooth by unlearning rate, where the paper met losses that are no numbers."""
    setting = _of_vgg(setting)
    bench = _bench(lab, setting, "vgg11/")
    methods = {paper.NONE: _or_diverged(_none)}
    for i, (row, ieu) in enumerate(unlearning_rates(setting.ieu).items()):
        methods[row] = _or_diverged(_trained(ieu, f"ieu-{i}"))
    found = _run(lab, setting, bench, setting.attacks[0], setting.rate, methods)
    part = _part("VGG-11 against Smooth", {row: {paper.DIVERGED: 0.0, **numbers} for row, numbers in found.items()})
    return [replace(part, kinds={paper.DIVERGED: "share", **part.kinds})]


def _plan_stability(setting: Setting, rows: int) -> Sequence[Training]:
    setting, left = _of_vgg(setting), rows * (1 - setting.share)
    runs = 1 + len(unlearning_rates(setting.ieu))
    return [
        Training(1, rows * setting.share, setting.pretraining),
        Training(1, left, setting.ieu.poisoned),
        Training(runs, left, setting.recipe),
    ]


def _plan(runs: int, gates: int = 1) -> Callable[[Setting, int], Sequence[Training]]:
    """Pretraining, ``runs`` fine-tunings, and so many poisoned modules."""

    def plan(setting: Setting, rows: int) -> Sequence[Training]:
        left = rows * (1 - setting.share)
        model = setting.recipe.model
        assert isinstance(model, ViT)
        module = replace(setting.ieu.poisoned, model=replace(model, depth=setting.ieu.depth or 1))
        return [
            Training(1, rows * setting.share, setting.pretraining),
            Training(gates, left, module),
            Training(runs, left, setting.recipe),
        ]

    return plan


def _plan_table1(setting: Setting, rows: int) -> Sequence[Training]:
    """Undefended, the middle training of ABL, IEU; what the others add is less."""
    return _plan(3 * len(setting.attacks), len(setting.attacks))(setting, rows)


def _entry(
    summary: str, run: Callable[[Lab, Setting], list[Part]], plan: Any, parts: Sequence[Part] = ()
) -> Reproduction:
    about = f"{summary}; IEU, of a network pretrained on a clean share of the data"
    return Reproduction(about, paper.SOURCE, parts, SCALES, run, plan)


IEU_PAPER = {
    "ieu/table1": _entry("attacks against ABL, I-BAU, AttnBlock and IEU", table1, _plan_table1, paper.TABLE1),
    "ieu/table2": _entry("the gate's threshold", _ablation("Threshold of the gate", thresholds), _plan(3)),
    "ieu/table3": _entry(
        "depth of the poisoned module", _ablation("Depth of the poisoned module", depths), _plan(3, 3)
    ),
    "ieu/table4": _entry("poison rates", rates, _plan(10, 5)),
    "ieu/table5": _entry("unlearning rates", _ablation("Unlearning rate", unlearning_rates), _plan(6)),
    "ieu/table6": _entry(
        "no mask, noise on the gate, a fixed unlearn set, LGA and flooding", _ablation("Design", designs), _plan(9, 5)
    ),
    "ieu/table7": _entry("VGG-11 against Smooth, by unlearning rate", stability, _plan_stability),
}
