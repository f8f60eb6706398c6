"""The numbers of Yang, Liu and Mirzasoleiman, "Not All Poisons are Created Equal", ICML 2022, arXiv 2210.09671.

Tables 1 to 4 as printed: CIFAR-10 with ResNet-18, Table 3 Tiny ImageNet with VGG-16; times on one NVIDIA A40. Of the
figures only what the text says of the first, and of the sixth what Table 2 says.
"""

from __future__ import annotations

from poisonkit.experiments.reproduce.registry import Kind, Part, relative, table

SOURCE = "Yang, Liu and Mirzasoleiman 2022, arXiv 2210.09671"

UNDEFENDED = "undefended"
SUCCESS, ACCURACY, TIME = "attack success", "test accuracy", "time"
KINDS: dict[str, Kind] = {SUCCESS: "share", ACCURACY: "share", TIME: "seconds"}

# Table 1
ATTACKS = {
    "gm": "gradient matching, from scratch",
    "sa": "sleeper agent, from scratch",
    "bp": "bullseye polytope, transfer",
    "fc": "feature collision, transfer",
    "bp-tuned": "bullseye polytope, fine-tuning",
}
BOTH = tuple(f"{column}, {who}" for who in (UNDEFENDED, "EPIC") for column in (SUCCESS, ACCURACY))
TABLE1 = [
    Part(
        "Attacks without and with EPIC",
        dict.fromkeys(BOTH, "share"),
        table(
            """
            gradient matching, from scratch | 45    94.95 1     90.26
            sleeper agent, from scratch     | 78.54 94.42 11.55 88.28
            bullseye polytope, transfer     | 86    94.69 1     94.80
            feature collision, transfer     | 40    94.68 0     94.81
            bullseye polytope, fine-tuning  | 80    92.24 0     92.38
            """,
            BOTH,
            0.01,
        ),
    )
]


def epic(medoids: float) -> str:
    """The name of a row."""
    return f"EPIC-{medoids:g}"


def ap(share: float) -> str:
    """The name of a row."""
    return f"adversarial poisoning {share:g}"


KNN, SPECTRAL, CLUSTERING, SHAPING = "deep k-NN", "spectral signatures", "activation clustering", "DP-SGD"


def _timed(text: str) -> dict[str, dict[str, float]]:
    """Percent, percent, minutes."""
    units = {SUCCESS: 0.01, ACCURACY: 0.01, TIME: 60.0}
    found = table(text, tuple(KINDS))
    return {row: {name: value * units[name] for name, value in numbers.items()} for row, numbers in found.items()}


SHORT, LONG = "Short training (40 epochs in the paper)", "Long training (200 epochs in the paper)"
_SHORT = _timed(
    """
    undefended                 | 25  92.48 15
    deep k-NN                  | 21  91.86 145
    spectral signatures        | 17  90.13 40
    activation clustering      | 9   84.20 31
    DP-SGD                     | 2   70.34 16
    adversarial poisoning 0.25 | 4   91.48 113
    adversarial poisoning 0.5  | 1   90.67 122
    adversarial poisoning 0.75 | 0   87.97 146
    EPIC-0.1                   | 2.7 90.92 22
    EPIC-0.2                   | 1.3 88.95 19
    EPIC-0.3                   | 1.0 87.03 17
    """
)
_LONG = _timed(
    """
    undefended            | 45  94.95 78
    spectral signatures   | 10  92.99 202
    activation clustering | 11  90.88 153
    DP-SGD                | 2   80.71 83
    EPIC-0.1              | 2.3 92.50 110
    EPIC-0.2              | 1.0 89.71 95
    EPIC-0.3              | 0.7 87.05 88
    """
)
TABLE2 = [Part(SHORT, KINDS, _SHORT), Part(LONG, KINDS, _LONG)]
TABLE3 = [
    Part(
        "Bullseye polytope, from scratch",
        KINDS,
        _timed(
            """
            undefended                | 40 61.80 60
            adversarial poisoning 0.5 | 0  53.54 420
            EPIC-0.2                  | 0  57.50 60
            """
        ),
    )
]
TABLE4 = [
    Part(
        "Gradient matching with twice the change of a pixel (ε = 16 in the paper)",
        KINDS,
        _timed(
            """
            undefended                 | 90 92.01 –
            adversarial poisoning 0.25 | 35 91.21 –
            adversarial poisoning 0.5  | 10 90.58 –
            adversarial poisoning 0.75 | 0  87.97 –
            EPIC-0.1                   | 10 91.15 –
            EPIC-0.2                   | 0  89.07 –
            """
        ),
    )
]

EFFECTIVE = "effective poisons"
FIGURE1 = [
    Part(
        "Share of the poisons that are effective",
        {EFFECTIVE: "share"},
        {ATTACKS["gm"]: {EFFECTIVE: 0.08}, ATTACKS["bp"]: {EFFECTIVE: 0.9}},
    )
]
TIMES = "time over that undefended"
FIGURE6 = [
    Part(
        "Attack success against running time",
        {SUCCESS: "share", TIMES: "ratio"},
        {
            row: {SUCCESS: numbers[SUCCESS], TIMES: relative(_SHORT, UNDEFENDED)[row][TIME]}
            for row, numbers in _SHORT.items()
        },
    )
]
