"""Dirty data in, a small synthetic data set out."""

from poisonkit.defenses.condense.dm import DM
from poisonkit.defenses.condense.means import Calibrated, Mean, Median, RobustMean, Trimmed, Truncated
from poisonkit.defenses.condense.rdm_dc import RdmDc
from poisonkit.defenses.families import Condense

#: Every defense of this family, by the name that ``poisonkit run --defense`` and ``poisonkit condense`` take
CONDENSE: dict[str, type[Condense]] = {"dm": DM, "rdm_dc": RdmDc}

__all__ = ["CONDENSE", "DM", "Calibrated", "Mean", "Median", "RdmDc", "RobustMean", "Trimmed", "Truncated"]
