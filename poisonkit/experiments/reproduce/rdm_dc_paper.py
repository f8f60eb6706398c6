"""The numbers of Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching".

UAI 2023, PMLR 216, https://proceedings.mlr.press/v216/zheng23a.html, Tables 1 to 5, as printed: 1 % of the rows
poisoned, 50 synthetic images of every class, five targets with five condensations each; mean and deviation in percent.
"""

from __future__ import annotations

from poisonkit.experiments.reproduce.registry import Kind, Numbers, Part, table

SOURCE = "Zheng and Li 2023, https://proceedings.mlr.press/v216/zheng23a.html"
COLUMNS = ("accuracy", "accuracy ±", "attack success", "attack success ±")
KINDS: dict[str, Kind] = dict.fromkeys(COLUMNS, "share")

DM, MEDIAN, TRIMMED, TRUNCATED, RDM_DC = "DM", "DM + Median", "DM + Trim", "DM + Truncated", "RDM-DC"
MATCHING, POISONING, DIRECT = "gradient matching", "DM poisoning", "direct attack"


def attack(name: str, eps: float) -> str:
    """The name of a row."""
    return f"{name}, {eps:g}/255"


def scores(title: str, numbers: Numbers) -> list[Part]:
    """A table of accuracies and attack successes."""
    return [Part(title, KINDS, numbers)]


def _print(title: str, text: str) -> list[Part]:
    return scores(title, table(text, COLUMNS, 0.01))


ATTACKS, DEFENSES = "Attacks on DM", "Means of the real features, DM poisoning"
AGAINST_MATCHING, TINY, AGAINST_DIRECT = "Gradient matching", "DM poisoning, Tiny ImageNet", "Direct attack"

TABLE1 = _print(
    ATTACKS,
    """
    gradient matching, 64/255  | 59.59 0.38 20.00 40.00
    DM poisoning, 64/255       | 59.25 0.33 60.00 48.99
    gradient matching, 128/255 | 59.37 0.36 60.00 48.99
    DM poisoning, 128/255      | 59.23 0.40 100.00 0.00
    """,
)
TABLE2 = _print(
    DEFENSES,
    """
    DM             | 59.25 0.33 60.00 48.99
    DM + Median    | 44.08 0.57 60.00 48.99
    DM + Trim      | 51.14 0.73 60.00 48.99
    DM + Truncated | 57.04 0.45 44.00 49.64
    RDM-DC         | 57.65 0.44 0.00 0.00
    """,
)
TABLE3 = _print(
    AGAINST_MATCHING,
    """
    DM     | 59.59 0.38 20.00 40.00
    RDM-DC | 57.78 0.41 0.00 0.00
    """,
)
TABLE4 = _print(
    TINY,
    """
    DM     | 18.49 0.23 100.00 0.00
    RDM-DC | 17.68 0.34 0.00 0.00
    """,
)
TABLE5 = _print(
    AGAINST_DIRECT,
    """
    DM     | 59.29 0.38 100.00 0.00
    RDM-DC | 57.79 0.45 0.00 0.00
    """,
)
# Lemma 4.1: the deviation of a mean grows like the share of poisoned rows, after calibration like its square
EXPONENTS = "Exponent of the share of poisoned rows"
PLAIN, CALIBRATED = "mean", "calibrated mean"
LEMMA = [Part(EXPONENTS, dict.fromkeys((PLAIN, CALIBRATED), "number"), {DIRECT: {PLAIN: 1.0, CALIBRATED: 2.0}})]
