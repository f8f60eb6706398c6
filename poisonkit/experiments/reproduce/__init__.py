"""The papers' tables and figures by name. To add one: a :class:`Reproduction`, and its name below."""

from poisonkit.experiments.reproduce.dpa import DPA_PAPER
from poisonkit.experiments.reproduce.registry import SCALES, Part, Reproduction, Training
from poisonkit.experiments.reproduce.results import Result

REPRODUCTIONS: dict[str, Reproduction] = {**DPA_PAPER}

__all__ = ["REPRODUCTIONS", "SCALES", "Part", "Reproduction", "Result", "Training"]
