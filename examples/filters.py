"""Filters on photographs of CIFAR-10: which of a backdoor's rows they find, and what is left of it after training anew.

    python examples/filters.py badnets_random --rate 0.05 --root data/ --retrain spectral_signatures

prints the undefended network, then a line a filter. docs/rivals.md says what was found.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import nn

from poisonkit import metrics, report
from poisonkit.attacks import ATTACKS
from poisonkit.commands.options import loaded
from poisonkit.defenses.filters import ActivationClustering, DeepKNN, SpectralSignatures
from poisonkit.experiments import RECIPES
from poisonkit.models.features import features
from poisonkit.random import key
from poisonkit.train import fit
from poisonkit.types import Budget

METHODS = {
    "spectral_signatures": SpectralSignatures(),
    "spectral_signatures, rate 0.35": SpectralSignatures(rate=0.35),
    "activation_clustering": ActivationClustering(),
    "activation_clustering, size 0.4": ActivationClustering(size=0.4),
    "activation_clustering, silhouette": ActivationClustering("silhouette"),
    "activation_clustering, size, none": ActivationClustering("size", "none"),
    "activation_clustering, smaller, none": ActivationClustering("smaller", "none"),
    "deep_knn": DeepKNN(),
    "deep_knn, majority, not balanced": DeepKNN(vote="majority", balanced=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attack", choices=list(ATTACKS))
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--root", default="data/")
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--retrain", choices=list(METHODS), nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)

    train, test = loaded("cifar10", given.root, given.limit)
    root, recipe = key(0), replace(RECIPES["cifar10"], epochs=given.epochs)
    poison = ATTACKS[given.attack]()(train, Budget(given.rate), key=root.child("attack"))
    dirty = poison.apply(train)
    bad = torch.zeros(len(dirty), dtype=torch.bool)
    bad[poison.rows] = True

    def measured(network: nn.Module) -> list[str]:
        rates = metrics.clean_accuracy(network, test), metrics.attack_success_rate(network, test, poison.goal)
        return [report.percent(rate) for rate in rates]

    network = fit(dirty, recipe, key=root.child("train"))
    found, _ = features(network, dirty.images)
    rows = [["undefended", "", "", "", *measured(network)]]
    for name, method in METHODS.items():
        flagged = method(found, dirty.labels, key=root.child("defense")).flagged
        hit, total = int((flagged & bad).sum()), int(flagged.sum())
        kept = dirty.take((~flagged).nonzero()[:, 0])
        again = measured(fit(kept, recipe, key=root.child("train"))) if name in given.retrain else ["", ""]
        shares = report.percent(hit / int(bad.sum())), report.percent(hit / max(1, total))
        rows.append([name, str(total), *shares, *again])
    headers = ["filter", "rows left out", "recall", "precision", "clean accuracy", "attack success"]
    print(report.text_table(headers, rows))


if __name__ == "__main__":
    main()
