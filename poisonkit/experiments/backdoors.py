"""Every backdoor against an undefended network: does it succeed at its paper's rate, at this size of data and network?

A run for each attack and seed, so that any of them may be left out, added later or made elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

from poisonkit.attacks import ATTACKS
from poisonkit.experiments.comparison import baseline, poisoned, undefended
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.runs import Line, shown
from poisonkit.types import Budget, Poison

# From here on an attack counts as shown: clean accuracy, attack success with dirty and with clean labels, seeds
ACCURACY, DIRTY, CLEAN, SEEDS = 0.65, 0.8, 0.5, 3

_TENTH, _CLASS = Budget(0.1), Budget(1.0, per_class=True)

# What each paper changes of its training set, rows of noise included; where it tries several rates, the one that is
# usual on CIFAR-10: a tenth of all rows, or with clean labels every row of the target class
BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        "centre_patch": Budget(0.01),  # between the 0.25 % and the 30 % of arXiv 2306.16415, Table 6
        "badnets_white": _TENTH,
        "badnets_pattern": _TENTH,
        "badnets_random": _TENTH,
        "badnets_all_to_all": _TENTH,
        "blended": _TENTH,
        "blended_patch": _TENTH,
        "sig": _CLASS,
        "sig_wrapped": _CLASS,
        "chessboard": _TENTH,
        "chessboard_static": _TENTH,
        "smooth": _TENTH,
        "l0_inv": _TENTH,
        "l2_inv": _TENTH,
        "trojan_sq": _TENTH,
        "trojan_wm": _TENTH,
        "wanet": Budget(0.3),  # a tenth with the warp, two tenths with another
        "batt": _TENTH,
        "issba": _TENTH,
        "input_aware": Budget(0.2),  # a tenth with their own patch, a tenth with another's
        "label_consistent": _CLASS,
    }
)


def trial(lab: Lab, poison: Poison) -> None:
    """Train on everything, ``poison`` included, measure, and leave results.json, as the run of a defense does."""
    unit = undefended(poisoned(lab.run, lab.train, poison, lab.progress), lab.recipe, lab.key)
    lab.engine(lab.run, [unit], lab.progress)
    row = baseline(lab.run, lab.test, unit, poison)
    lab.run.write("results.json", json.dumps([asdict(row)], indent=2) + "\n")
    lab.run.finish()


def table(lines: Sequence[Line]) -> tuple[list[str], list[list[object]]]:
    """Headers and cells: every attack in the order of the listing, and whether it is shown to work."""
    headers = ["attack", "rate", "label", "seeds", "clean accuracy", "attack success", "chance level", ""]
    cells: list[list[object]] = []
    for name, budget in BUDGETS.items():
        rate = f"{budget.rate:.0%} of the {'target class' if budget.per_class else 'rows'}"
        clean = getattr(ATTACKS[name](), "rows", "any") == "target"
        label = "clean" if clean else "dirty"
        mine = [line for line in lines if line.attack.split()[0] == name]
        cells += [[name, rate, label, 0, "–", "–", "–", "not run"]] * (not mine)
        for line in mine:
            rates = [shown(line.rate(each)) for each in ("clean_accuracy", "attack_success_rate", "chance_level")]
            verdict = "shown" if reached(line, clean=clean) else "not reached"
            cells.append([line.attack, rate, label, len(line.rows), *rates, verdict])
    return headers, cells


def reached(line: Line, *, clean: bool) -> bool:
    """Whether enough seeds have, in the mean, an accurate network and an attack that succeeds."""
    accuracy, success = line.rate("clean_accuracy"), line.rate("attack_success_rate")
    if accuracy is None or success is None or len(line.rows) < SEEDS:
        return False
    return accuracy.rate >= ACCURACY and success.rate >= (CLEAN if clean else DIRTY)
