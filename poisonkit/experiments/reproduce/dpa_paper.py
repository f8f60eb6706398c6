"""The numbers of Wang and Feizi, "On Practical Aspects of Aggregation Defenses against Data Poisoning Attacks".

arXiv 2306.16415, 2023, Tables 2 to 6, as printed: ImageNet64, ResNet-50, one RTX A4000. Of Figure 1 only what
the text says.
"""

from __future__ import annotations

from poisonkit.experiments.reproduce.registry import Part, relative, table
from poisonkit.types import Budget

SOURCE = "Wang and Feizi 2023, arXiv 2306.16415"
GUESSES = (1, 3, 5, 10, 20, 50, 100)
PARTITIONS = (3, 4, 7, 9, 16)
# of the rows; the table prints them in percent, and 32, 64, 128, 384, 1281 and 3843 rows
RATES = (0.000025, 0.00005, 0.0001, 0.0003, 0.001, 0.003)

BASELINE = "one model"
TRAINING = ("training, all", "training, each")
INFERENCE = ("batches of 128", "batches of 512")
ACCURACIES = tuple(f"acc@{n}" for n in GUESSES)


def dpa(k: int) -> str:
    """The name of a row."""
    return f"DPA, k = {k}"


def base(k: int) -> str:
    """The name of a row."""
    return f"one base model, 1/{k} of the data"


def budget(rate: float, rows: int) -> str:
    """The name of a column: a share of ``rows``, and how many those are. Both decide what an attack can do."""
    return f"{100 * rate:.6g} % ({Budget(rate).rows(rows):,} rows)"


_TRAINING = table(
    """
    one model   | 5.3 5.3
    DPA, k = 3  | 3.7 1.2
    DPA, k = 4  | 3.3 0.8
    DPA, k = 7  | 3.0 0.4
    DPA, k = 9  | 2.9 0.3
    DPA, k = 16 | 2.9 0.2
    """,
    TRAINING,
    3600,
)
_INFERENCE = table(
    """
    one model   | 14.8 13.6
    DPA, k = 3  | 28.9 26.6
    DPA, k = 4  | 32.1 29.9
    DPA, k = 7  | 47.2 44.7
    DPA, k = 9  | 58.9 56.0
    DPA, k = 16 | 119.4 77.9
    """,
    INFERENCE,
)


def times(training: dict[str, dict[str, float]], inference: dict[str, dict[str, float]]) -> list[Part]:
    """Table 2: seconds, and how often those of the single model."""
    return [
        Part("Training time", dict.fromkeys(TRAINING, "seconds"), training),
        Part("Training time over that of one model", dict.fromkeys(TRAINING, "ratio"), relative(training, BASELINE)),
        Part("Inference time, all test images", dict.fromkeys(INFERENCE, "seconds"), inference),
        Part("Inference time over that of one model", dict.fromkeys(INFERENCE, "ratio"), relative(inference, BASELINE)),
    ]


TABLE2 = times(_TRAINING, _INFERENCE)

HALF, WHOLE, DOUBLE = "half the width", "the width", "twice the width"
_WIDTHS = table(
    """
    half the width  | 50.72 68.72 75.00 82.25 88.21 93.67 96.64
    the width       | 52.53 70.27 76.57 83.71 89.14 94.35 97.03
    twice the width | 53.52 71.42 77.32 84.17 89.39 94.38 97.08
    """,
    ACCURACIES,
    0.01,
)


def widths(seconds: dict[str, dict[str, float]], accuracies: dict[str, dict[str, float]]) -> list[Part]:
    """Table 3: the single model at three widths."""
    return [
        Part("Training time", {"training": "seconds"}, seconds),
        Part("Training time over that at the width", {"training": "ratio"}, relative(seconds, WHOLE)),
        Part("Accuracy", dict.fromkeys(ACCURACIES, "share"), accuracies),
    ]


TABLE3 = widths(
    {HALF: {"training": 3.4 * 3600}, WHOLE: {"training": 5.3 * 3600}, DOUBLE: {"training": 12.8 * 3600}}, _WIDTHS
)

_DPA = table(
    """
    one model   | 52.53 70.27 76.57 83.71 89.14 94.35 97.03
    DPA, k = 3  | 35.92 53.08 60.40 69.78 78.12 87.13 92.70
    DPA, k = 4  | 32.06 48.89 56.45 66.79 75.95 86.17 91.95
    DPA, k = 7  | 25.96 41.64 49.20 59.61 69.35 81.10 88.72
    DPA, k = 9  | 23.57 38.36 45.62 55.66 66.21 78.97 86.85
    DPA, k = 16 | 18.29 31.28 38.11 48.42 59.18 73.46 83.17
    """,
    ACCURACIES,
    0.01,
)
TABLE4 = [Part("Accuracy", dict.fromkeys(ACCURACIES, "share"), _DPA)]

_BASES = table(
    """
    one base model, 1/3 of the data  | 32.88 49.02 56.28 65.82 74.70 84.76 90.92
    one base model, 1/4 of the data  | 24.02 38.41 45.44 55.25 65.19 77.58 85.71
    one base model, 1/7 of the data  | 18.56 30.90 37.64 47.25 57.48 71.38 81.20
    one base model, 1/9 of the data  | 15.40 26.16 32.37 41.75 52.07 66.48 77.33
    one base model, 1/16 of the data | 10.93 19.71 25.14 33.89 44.23 59.98 72.27
    """,
    ACCURACIES,
    0.01,
)
TABLE5 = [
    Part(
        "Accuracy",
        dict.fromkeys(ACCURACIES, "share"),
        {name: row for k in PARTITIONS for name, row in ((dpa(k), _DPA[dpa(k)]), (base(k), _BASES[base(k)]))},
    )
]

BUDGETS = tuple(budget(rate, 1_281_167) for rate in RATES)
_LARGE = table(
    """
    one model   | 70.27 85.22 95.04 98.27 99.49 99.76
    DPA, k = 3  | 54.20 82.23 90.78 97.56 99.06 99.62
    DPA, k = 4  | 56.86 78.34 92.21 96.45 99.08 99.66
    DPA, k = 7  | 47.36 75.21 89.70 97.34 99.03 99.61
    DPA, k = 9  | 50.64 64.57 88.70 97.24 98.92 99.61
    DPA, k = 16 | 22.51 56.71 83.50 97.25 99.00 99.61
    """,
    BUDGETS,
    0.01,
)
_DOT = table(
    """
    one model   | 0.12 0.13 0.12 0.52 67.36 80.89
    DPA, k = 3  | 0.20 0.20 0.25 0.39 15.45 75.04
    DPA, k = 4  | 0.21 0.25 0.25 0.37 4.48 66.90
    DPA, k = 7  | 0.24 0.27 0.27 0.39 1.91 29.08
    DPA, k = 9  | 0.26 0.25 0.27 0.27 0.96 16.93
    DPA, k = 16 | 0.24 0.22 0.23 0.20 0.35 2.13
    """,
    BUDGETS,
    0.01,
)
# 16×16 and 1×1 in the paper
LARGE, DOT = "large square", "small square"


def counted(square: str) -> str:
    """The title of a part."""
    return f"Attack success, {square}, over all test images"


def others(square: str) -> str:
    """The title of a part."""
    return f"Attack success, {square}, over test images of other classes"


TABLE6 = [
    Part(counted(LARGE), dict.fromkeys(BUDGETS, "share"), _LARGE),
    Part(counted(DOT), dict.fromkeys(BUDGETS, "share"), _DOT),
]

PASSES, WIDEST = ("epoch of training", "all test images"), "the widest three networks"
# "the quadratic dependency of computational overhead on the width of hidden layers"
FIGURE1 = [Part("Exponent of the width", dict.fromkeys(PASSES, "number"), {WIDEST: dict.fromkeys(PASSES, 2.0)})]
