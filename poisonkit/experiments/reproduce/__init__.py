"""The papers' tables and figures by name. To add one: a :class:`Reproduction`, and its name below."""

from poisonkit.experiments.reproduce.dpa import DPA_PAPER
from poisonkit.experiments.reproduce.epic import EPIC_PAPER
from poisonkit.experiments.reproduce.ieu import IEU_PAPER
from poisonkit.experiments.reproduce.mmac import MMAC_PAPER
from poisonkit.experiments.reproduce.rdm_dc import RDM_DC_PAPER
from poisonkit.experiments.reproduce.registry import SCALES, Part, Reproduction, Training
from poisonkit.experiments.reproduce.results import Result

#: Every table and figure of a paper that ``poisonkit reproduce`` makes, as paper/table
REPRODUCTIONS: dict[str, Reproduction] = {**DPA_PAPER, **EPIC_PAPER, **IEU_PAPER, **MMAC_PAPER, **RDM_DC_PAPER}

__all__ = ["REPRODUCTIONS", "SCALES", "Part", "Reproduction", "Result", "Training"]
