"""Targeted attacks on photographs of CIFAR-10, at a size for one thread: how often they succeed, and against EPIC.

    python examples/targeted_attacks.py transfer bullseye_polytope --root data/ --seeds 10 --epic 0.6:5:reference

prints a line of JSON a trial, and the rates. A trial is a seed: the target is class seed mod 10, the victim a test
image of one of the other nine, which go round. The attacker's network is one for all trials, kept with --keep. Networks
trained from scratch start from other weights than it does. docs/targeted.md says what was found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any, Literal

import torch
from torch import nn

from poisonkit import data
from poisonkit.attacks import ATTACKS
from poisonkit.defenses import EPIC
from poisonkit.defenses.training import RandomSubset
from poisonkit.models import ResNet, logits
from poisonkit.models.features import features
from poisonkit.random import key
from poisonkit.train import Journal, OneCycle, Recipe, fit
from poisonkit.types import Budget, ImageDataset

Scenario = Literal["scratch", "transfer"]
# Not augmented, so that few rows are fitted in few epochs
RECIPES: dict[str, Recipe] = {
    name: Recipe(model, epochs=8, batch_size=64, schedule=OneCycle(0.02, 0.2), augment=None)
    for name, model in (("scratch", ResNet(8, 32, stem="imagenet")), ("transfer", ResNet(8, 16, stem="small")))
}
# Rows that the attacker's network is trained on: those of the victim; in transfer learning others than the victim's
KNOWN = {"scratch": 2500, "transfer": 40_000}
# Of a linear layer, on what the network makes of the victim's rows
LAST = Recipe(epochs=40, batch_size=64, schedule=OneCycle(0.01, 0.1), augment=None, channels_last=False)
MATCHING = {"eps": 32.0, "steps": 80, "rate": 8.0, "restarts": 1, "augment": None}
NEAR = {"eps": 8.0, "steps": 150, "rate": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient_matching": MATCHING,
    "adaptive_matching": {**MATCHING, "stages": 2},
    "bullseye_polytope": NEAR,
    "convex_polytope": NEAR,
    "feature_collision": {"eps": 8.0},
}


def some(whole: ImageDataset, count: int) -> ImageDataset:
    """``count`` rows, spread evenly."""
    return whole.take(torch.arange(count) * len(whole) // count)


def epic(text: str) -> EPIC:
    """MEDOIDS, MEDOIDS:WARMUP or MEDOIDS:WARMUP:MODE."""
    medoids, warmup, mode = (*text.split(":"), None, None)[:3]
    return EPIC(float(medoids), warmup=int(warmup) if warmup else None, mode=mode or "paper")


def random(text: str) -> RandomSubset:
    """SHARE or SHARE:WARMUP: what dropping that many rows does by itself."""
    share, warmup = (*text.split(":"), None)[:2]
    return RandomSubset(share=float(share), warmup=int(warmup) if warmup else None)


def trials(
    root: Path,
    scenario: Scenario,
    name: str,
    *,
    seeds: range,
    rate: float,
    defenses: dict[str, EPIC | RandomSubset] | None = None,
    known: int | None = None,
    keep: Path | None = None,
    **changed: Any,
) -> Iterator[dict[str, Any]]:
    """What came of each trial, undefended and with each of ``defenses``; ``known`` rows of the attacker's network."""
    train, test = data.load("cifar10", root)
    pool, scratch, recipe = some(test, 1000), scenario == "scratch", RECIPES[scenario]
    mine = torch.arange(len(train)) % 5 == 0
    first = some(train if scratch else train.take((~mine).nonzero()[:, 0]), known or KNOWN[scenario])
    train = first if scratch else train.take(mine.nonzero()[:, 0])
    model = fit(first, recipe, key=key(999), directory=keep)
    # in transfer learning the victim trains a linear layer on what the network makes of an image, here once for all
    seen = (lambda images: images) if scratch else (lambda images: features(model, images)[0][:, :, None, None])

    def trained(dirty: ImageDataset, seed: int, defense: Any = fit, **kept: Any) -> nn.Module:
        own = key(seed).child("victim")
        if scratch:
            return defense(dirty, recipe, key=own, **kept)
        represented = ImageDataset(seen(dirty.images), dirty.labels, dirty.classes)
        with own.child("head").ambient():
            start = nn.Sequential(nn.Flatten(), nn.Linear(represented.shape[0], represented.num_classes))
        return defense(represented, LAST, key=own, model=start, **kept)

    clean = trained(train, 998)
    for seed in seeds:
        target, victim_class = seed % 10, (seed + 1 + seed // 10) % 10
        options = {**OPTIONS[name], "target": target, "victim_class": victim_class, "surrogate": recipe, **changed}
        attack: Any = ATTACKS[name](**options)
        given = {"key": key(seed), "victims": pool}
        began = process_time()
        state = attack.craft(train, Budget(rate), fit=lambda *_, **__: model, **given)
        crafted = process_time() - began
        poison = attack(train, Budget(rate), state=state, **given)
        dirty = poison.apply(train)
        networks, left = {"clean": clean, "undefended": trained(dirty, seed)}, {}
        for label, defense in (defenses or {}).items():
            # a look every epoch in transfer learning, as in the paper
            journal = Journal()
            networks[label] = trained(dirty, seed, defense if scratch else replace(defense, every=1), journal=journal)
            dropped = journal.notes["dropped_at"] >= 0
            left[label] = {"dropped": int(dropped.sum()), "poisons_dropped": int(dropped[poison.rows].sum())}
        found = {"seed": seed, "poisons": len(poison.rows), "loss": round(float(state["loss"].min()), 3)}
        for label, network in networks.items():
            probabilities = logits(network, seen(poison.goal.images)).softmax(1)[0]
            right = logits(network, seen(pool.images)).argmax(1) == pool.labels
            found[label] = {
                "success": bool(probabilities.argmax() == target),
                "probability": round(float(probabilities[target]), 3),
                "accuracy": round(float(right.double().mean()), 3),
                **left.get(label, {}),
            }
        yield {**found, "craft_seconds": round(crafted, 1), "seconds": round(process_time() - began, 1)}


def rates(found: list[dict[str, Any]]) -> dict[str, str]:
    """How often the attack succeeded, and the mean accuracy, by network."""
    labels = [label for label, value in found[0].items() if isinstance(value, dict)]
    return {
        label: f"{sum(each[label]['success'] for each in found)} of {len(found)}, "
        f"accuracy {sum(each[label]['accuracy'] for each in found) / len(found):.3f}"
        for label in labels
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["scratch", "transfer"])
    parser.add_argument("attack", choices=list(OPTIONS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--eps", type=float)
    parser.add_argument("--soft", action="store_true", help="no eps: feature collision's pull instead")
    parser.add_argument("--epic", nargs="+", default=[], metavar="MEDOIDS[:WARMUP[:MODE]]")
    parser.add_argument("--random", nargs="+", default=[], metavar="SHARE[:WARMUP]", help="rows dropped at each look")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    changed = {"eps": None} if arguments.soft else {"eps": arguments.eps} if arguments.eps else {}
    found = []
    for trial in trials(
        arguments.root,
        arguments.scenario,
        arguments.attack,
        seeds=range(arguments.first, arguments.first + arguments.seeds),
        rate=arguments.rate,
        defenses={
            **{f"EPIC {text}": epic(text) for text in arguments.epic},
            **{f"random {text}": random(text) for text in arguments.random},
        },
        keep=arguments.keep,
        **changed,
    ):
        found.append(trial)
        print(json.dumps(trial), flush=True)
    print(json.dumps(rates(found)))


if __name__ == "__main__":
    main()
