"""Targeted attacks on photographs of CIFAR-10, at a size for one thread: how often they succeed, and against EPIC.

    python examples/targeted_attacks.py scratch gradient_matching --root data/ --seeds 10

prints a line of JSON a trial, and the rates. A trial is a seed: the target is class seed mod 10, the victim a test
image of one of the other nine, which go round. The attacker's network is one for all trials, kept with --keep. Networks
trained from scratch start from other weights than it does. docs/targeted.md says what was found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import nn

from poisonkit import data
from poisonkit.attacks import ATTACKS
from poisonkit.defenses.training.epic import EPIC
from poisonkit.models import ResNet, logits
from poisonkit.models.features import features
from poisonkit.random import key
from poisonkit.train import OneCycle, Recipe, fit
from poisonkit.types import Budget, ImageDataset

# Not augmented, so that so few rows are fitted in so few epochs
RECIPE = Recipe(ResNet(8, 32, stem="imagenet"), epochs=8, batch_size=64, schedule=OneCycle(0.02, 0.2), augment=None)
# Of a linear layer, on the features of rows that the network was not trained on
LAST = Recipe(epochs=40, batch_size=50, schedule=OneCycle(0.01, 0.1), augment=None, channels_last=False)
MATCHING = {"eps": 32.0, "steps": 80, "rate": 8.0, "restarts": 1, "augment": None}
NEAR = {"eps": 16.0, "steps": 150, "rate": 2.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "gradient_matching": MATCHING,
    "adaptive_matching": {**MATCHING, "stages": 2},
    "bullseye_polytope": NEAR,
    "convex_polytope": NEAR,
    "feature_collision": {"eps": 16.0},
}


def some(whole: ImageDataset, count: int, shift: int = 0) -> ImageDataset:
    """``count`` rows, spread evenly."""
    return whole.take(torch.arange(count) * len(whole) // count + shift)


def trials(
    root: Path,
    scenario: str,
    name: str,
    *,
    seeds: range,
    rate: float,
    medoids: float = 0.0,
    warmup: int | None = None,
    keep: Path | None = None,
    **changed: Any,
) -> Iterator[dict[str, Any]]:
    """What came of each trial; ``medoids`` of EPIC, 0 for none, and its ``warmup``."""
    train, test = data.load("cifar10", root)
    pool, first = some(test, 1000), some(train, 2500)
    model = fit(first, RECIPE, key=key(999), directory=keep)
    scratch = scenario == "scratch"
    train = first if scratch else some(train, 1000, 7)
    # in transfer learning the victim trains a linear layer on what the network makes of an image, here once for all
    seen = (lambda images: images) if scratch else (lambda images: features(model, images)[0][:, :, None, None])

    def trained(dirty: ImageDataset, seed: int, defense: Any = fit) -> nn.Module:
        own = key(seed).child("victim")
        if scratch:
            return defense(dirty, RECIPE, key=own)
        known = ImageDataset(seen(dirty.images), dirty.labels, dirty.classes)
        with own.child("head").ambient():
            start = nn.Sequential(nn.Flatten(), nn.Linear(known.shape[0], known.num_classes))
        return defense(known, LAST, key=own, model=start)

    clean = trained(train, 998)
    for seed in seeds:
        target, victim_class = seed % 10, (seed + 1 + seed // 10) % 10
        options = {**OPTIONS[name], "target": target, "victim_class": victim_class, "surrogate": RECIPE, **changed}
        attack: Any = ATTACKS[name](**options)
        given = {"key": key(seed), "victims": pool}
        began = process_time()
        state = attack.craft(train, Budget(rate), fit=lambda *_, **__: model, **given)
        crafted = process_time() - began
        poison = attack(train, Budget(rate), state=state, **given)
        dirty = poison.apply(train)
        networks = {"clean": clean, "undefended": trained(dirty, seed)}
        if medoids:
            networks["epic"] = trained(dirty, seed, EPIC(medoids, warmup=warmup, every=None if scratch else 1))
        found = {"seed": seed, "poisons": len(poison.rows), "loss": round(float(state["loss"].min()), 3)}
        for label, network in networks.items():
            probabilities = logits(network, seen(poison.goal.images)).softmax(1)[0]
            right = logits(network, seen(pool.images)).argmax(1) == pool.labels
            found[label] = {
                "success": bool(probabilities.argmax() == target),
                "probability": round(float(probabilities[target]), 3),
                "accuracy": round(float(right.double().mean()), 3),
            }
        yield {**found, "craft_seconds": round(crafted, 1), "seconds": round(process_time() - began, 1)}


def rates(found: list[dict[str, Any]]) -> dict[str, str]:
    """How often the attack succeeded, and the mean accuracy, by network."""
    labels = [label for label in ("clean", "undefended", "epic") if label in found[0]]
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
    parser.add_argument("--medoids", type=float, default=0.0)
    parser.add_argument("--warmup", type=int, help="epochs before EPIC's first look (default: its own rule)")
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
        medoids=arguments.medoids,
        warmup=arguments.warmup,
        keep=arguments.keep,
        **changed,
    ):
        found.append(trial)
        print(json.dumps(trial), flush=True)
    print(json.dumps(rates(found)))


if __name__ == "__main__":
    main()
