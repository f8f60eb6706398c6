"""The numbers of Wang, Miller and Kesidis, "Post-Training Overfitting Mitigation in DNN Classifiers".

arXiv 2309.16827, 2023 (first "Maximum Margin Based Activation Clipping for Post-Training Overfitting Mitigation in DNN
Classifiers"), Tables 1 to 5 as printed: CIFAR-10 and CIFAR-100, ResNet-32, one RTX 3090. Its figures are bars without
numbers; of Figure 2 the text gives the accuracy over all classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from poisonkit.experiments.reproduce.registry import Part, table

SOURCE = "Wang, Miller and Kesidis 2023, arXiv 2309.16827"

ATTACKS = ("chessboard", "BadNet", "blend", "WaNet", "Input-aware", "Clean-Label")
NO_ATTACK = "no attack"
UNDEFENDED = "without defense"
# the measures of Table 1 by the name of their part
PACC, ASR, ACC = (
    "Accuracy on triggered images (PACC)",
    "Attack success (ASR)",
    "Accuracy on clean images (ACC)",
)
DEVIATION = ", standard deviation"

_TABLE1 = {
    PACC: """
    without defense | 0.59 0.57 4.67 3.48 5.50 5.72 –
    NC              | 31.98 62.03 25.84 0.30 11.24 83.85 –
    NAD             | 79.88 81.31 86.43 65.33 72.07 76.11 –
    FP              | 19.25 10.91 14.47 83.03 86.04 74.60 –
    I-BAU           | 84.59 85.49 82.45 81.95 80.59 56.95 –
    MM-BM           | 14.19 86.53 86.92 78.23 79.75 85.79 –
    MMAC            | 52.12 83.57 85.18 84.20 81.86 85.76 –
    MMDF            | 67.35 86.01 86.92 85.02 80.81 86.81 –
    """,
    PACC + DEVIATION: """
    without defense | 0.84 0.76 7.45 1.83 3.30 5.36 –
    NC              | 24.44 17.80 33.09 0.38 9.38 1.81 –
    NAD             | 1.92 3.47 0.63 12.62 4.24 5.83 –
    FP              | 16.53 14.41 13.19 6.40 1.96 8.91 –
    I-BAU           | 3.97 3.32 8.53 5.63 4.27 18.51 –
    MM-BM           | 21.55 1.19 3.96 9.35 1.47 1.56 –
    MMAC            | 32.08 3.06 2.64 1.75 2.23 1.26 –
    MMDF            | 15.72 1.50 1.63 2.37 2.53 1.63 –
    """,
    ASR: """
    without defense | 99.26 99.41 95.08 96.25 94.26 94.13 –
    NC              | 63.72 28.13 71.01 99.64 86.10 20.72 –
    NAD             | 2.92 5.52 1.92 18.03 5.96 10.54 –
    FP              | 55.53 86.49 84.44 0.37 4.09 13.81 –
    I-BAU           | 3.16 2.45 6.61 4.62 1.62 35.59 –
    MM-BM           | 81.77 1.49 3.45 9.85 1.57 1.79 –
    MMAC            | 26.19 2.21 4.00 4.24 1.70 1.74 –
    MMDF            | 0.45 0.09 1.24 2.66 3.37 0.01 –
    """,
    ASR + DEVIATION: """
    without defense | 1.14 0.76 7.79 1.94 3.45 5.56 –
    NC              | 27.20 19.43 36.94 0.45 11.73 13.84 –
    NAD             | 1.56 2.94 0.70 14.46 7.37 9.17 –
    FP              | 37.34 17.35 14.02 0.23 2.71 11.50 –
    I-BAU           | 3.10 3.74 8.78 5.64 1.06 21.93 –
    MM-BM           | 25.58 0.87 1.73 11.33 1.16 0.9 –
    MMAC            | 36.49 1.84 2.51 2.32 1.04 0.99 –
    MMDF            | 0.64 0.14 1.18 1.31 2.40 0.01 –
    """,
    ACC: """
    without defense | 91.26 91.63 91.57 90.94 90.65 88.68 91.41
    NC              | 88.49 87.86 87.10 72.25 81.81 68.37 91.41
    NAD             | 81.28 86.52 87.07 82.39 79.92 82.76 88.87
    FP              | 90.73 91.83 92.78 90.71 90.71 84.57 90.61
    I-BAU           | 89.62 89.74 87.87 87.93 89.37 86.69 89.30
    MM-BM           | 88.48 89.12 88.67 86.24 86.08 86.16 88.70
    MMAC            | 87.92 88.42 88.23 88.00 88.98 86.21 87.47
    MMDF            | 89.12 89.42 90.04 87.02 89.22 86.79 88.99
    """,
    ACC + DEVIATION: """
    without defense | 0.35 0.35 0.39 0.30 0.34 1.26 0.16
    NC              | 1.66 1.70 2.59 10.60 1.25 10.04 0.16
    NAD             | 1.75 1.53 1.30 8.81 4.02 1.39 0.51
    FP              | 0.60 0.77 0.66 0.78 1.17 1.42 0.77
    I-BAU           | 0.45 0.57 1.11 2.40 0.71 1.85 0.43
    MM-BM           | 0.61 0.77 0.36 9.36 1.41 1.10 0.44
    MMAC            | 0.97 0.79 0.68 0.95 0.64 1.16 0.94
    MMDF            | 0.44 0.41 0.40 0.65 0.44 1.41 0.45
    """,
}
TABLE1 = [
    Part(title, dict.fromkeys((*ATTACKS, NO_ATTACK), "share"), table(text, (*ATTACKS, NO_ATTACK), 0.01))
    for title, text in _TABLE1.items()
]

PRIORS = {"lt-100": "LT-100", "lt-10": "LT-10", "step-100": "step-100", "step-10": "step-10"}
CE, MIXUP, GCL, MMOM, MMOM_GCL = "CE", "mixup", "GCL", "MMOM", "MMOM + GCL"
TEN, HUNDRED = "CIFAR-10", "CIFAR-100"


def priors(title: str, numbers: Mapping[str, Mapping[str, float]]) -> Part:
    """Accuracy by method and class prior."""
    return Part(f"Accuracy, {title}", dict.fromkeys(PRIORS.values(), "share"), numbers)


_TABLE2 = {
    TEN: """
    CE         | 73.36 87.80 67.86 86.12
    mixup      | 74.92 88.19 66.35 86.16
    GCL        | 82.51 89.59 81.85 88.63
    MMOM       | 80.98 88.43 77.37 88.21
    MMOM + GCL | 82.04 89.45 81.71 88.41
    """,
    HUNDRED: """
    CE         | 40.91 59.16 39.18 53.08
    mixup      | 41.72 59.24 39.19 53.62
    GCL        | 46.85 60.34 46.50 58.76
    MMOM       | 41.42 59.60 37.08 54.46
    MMOM + GCL | 46.34 59.88 44.21 57.45
    """,
}
_TABLE4 = {
    TEN: """
    CE   | 73.36 87.80 67.86 86.12
    MMAC | 72.63 87.78 67.62 86.13
    """,
    HUNDRED: """
    CE   | 40.91 59.16 39.18 53.08
    MMAC | 40.39 58.87 39.08 52.70
    """,
}
TABLE2 = [priors(title, table(text, tuple(PRIORS.values()), 0.01)) for title, text in _TABLE2.items()]
TABLE4 = [priors(title, table(text, tuple(PRIORS.values()), 0.01)) for title, text in _TABLE4.items()]

WEIGHTS = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
ALL = "over all classes"


def weight(value: float) -> str:
    """The name of a row."""
    return f"λ = {value:g}"


def weights(numbers: Mapping[str, float]) -> Part:
    return Part(
        "Accuracy of MMOM on LT-100 by λ", {ALL: "share"}, {row: {ALL: value} for row, value in numbers.items()}
    )


TABLE3 = [
    weights(dict(zip(map(weight, WEIGHTS), (0.8009, 0.8080, 0.8057, 0.8077, 0.8041, 0.7250), strict=True))),
]


def balanced(title: str, numbers: Mapping[str, float]) -> Part:
    return Part(f"Accuracy, balanced {title}", {ALL: "share"}, {row: {ALL: value} for row, value in numbers.items()})


TABLE5 = [balanced(TEN, {CE: 0.9320, MMOM: 0.9308}), balanced(HUNDRED, {CE: 0.6964, MMOM: 0.6941})]

ONCE, LONGER = "trained as in Table 2", "over-trained"


def classes(title: str, numbers: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> Part:
    """A row a method, a column a class, the commonest first."""
    return Part(title, {ALL: "share", **dict.fromkeys(names, "share")}, numbers)


# 200 and 1000 epochs
FIGURE2 = [
    Part(
        "Over-training on LT-100",
        {ALL: "share"},
        {f"{CE}, {ONCE}": {ALL: 0.7343}, f"{CE}, {LONGER}": {ALL: 0.7514}, f"{MMOM}, {ONCE}": {ALL: 0.8098}}
        | {f"{MMOM}, {LONGER}": {ALL: 0.8284}},
    )
]
