"""Defenses that watch a trained network while it predicts."""

from poisonkit.defenses.families import Guard
from poisonkit.defenses.guards.attn_block import AttnBlock
from poisonkit.defenses.guards.mmdf import MMDF

#: Every defense of this family, by the name that ``poisonkit run --defense`` takes
GUARDS: dict[str, type[Guard]] = {
    "attn_block": AttnBlock,
    "mmdf": MMDF,
}

__all__ = ["GUARDS", "MMDF", "AttnBlock"]
