"""The numbers of Li, "Using Interleaved Ensemble Unlearning to Keep Backdoors at Bay for Finetuning Vision
Transformers", arXiv 2410.01128, 2024, CIFAR-10 with ViT-S on one A100.

The tables by attack are not at hand: what follows are averages over eleven attacks. Attack success counts test images
of the target class, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from poisonkit.experiments.reproduce.registry import Kind, Part, table

SOURCE = "Li 2024, arXiv 2410.01128"
ATTACKS = (
    "badnets_white",
    "badnets_pattern",
    "blended",
    "l0_inv",
    "l2_inv",
    "smooth",
    "trojan_sq",
    "trojan_wm",
    "sig",
    "issba",
    "batt",
)
AVERAGE = "average"
ACC, ASR, ASR_ALL, PACC = "accuracy", "attack success", "attack success, all images", "poison accuracy"
MISSES, ALARMS = "misses", "false alarms"
MEASURES: Mapping[str, Kind] = dict.fromkeys((ACC, ASR, ASR_ALL, PACC), "share")
GATE: Mapping[str, Kind] = dict.fromkeys((MISSES, ALARMS), "share")
DIVERGED = "diverged"

THRESHOLDS = (0.9, 0.95, 0.99)
DEPTHS = (1, 2, 3)
RATES = (0.02, 0.05, 0.1, 0.15, 0.2)
CONSTANTS = (1.0, 2.0, 4.0)
NOISE = (0.1, 2.0)
ISOLATED = (0.01, 0.05, 0.1)
NONE, ABL_, IBAU_, ATTN, IEU_ = "none", "ABL", "I-BAU", "AttnBlock", "IEU"


def row(attack: str, defense: str) -> str:
    """The name of a row."""
    return f"{attack}, {defense}"


TABLE1 = [
    Part(
        "Attacks and defenses",
        MEASURES,
        {
            **{
                row(AVERAGE, name): columns
                for name, columns in table(
                    """
                    I-BAU | –     31.63
                    ABL   | –     58.20
                    IEU   | 97.23 0.17
                    """,
                    (ACC, ASR_ALL),
                    0.01,
                ).items()
            },
        },
    )
]
