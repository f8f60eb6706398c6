"""Attacks: a training set and a budget in, a Poison out. One module per paper; ``poisoning`` says how all poison."""

from poisonkit.attacks.badnets import BadNetsAllToAll, BadNetsPattern, BadNetsRandom, BadNetsWhite
from poisonkit.attacks.batt import Batt
from poisonkit.attacks.blended import Blended, BlendedPatch
from poisonkit.attacks.centre_patch import CentrePatch
from poisonkit.attacks.chessboard import ChessboardGlobal, ChessboardStatic
from poisonkit.attacks.l0_inv import L0Invisible
from poisonkit.attacks.l2_inv import L2Invisible
from poisonkit.attacks.label_consistent import LabelConsistent
from poisonkit.attacks.sig import Sig, SigWrapped
from poisonkit.attacks.smooth import Smooth
from poisonkit.attacks.trojan import TrojanSquare, TrojanWatermark
from poisonkit.attacks.wanet import WaNet
from poisonkit.types import Attack

ATTACKS: dict[str, type[Attack]] = {
    "centre_patch": CentrePatch,
    "badnets_white": BadNetsWhite,
    "badnets_pattern": BadNetsPattern,
    "badnets_random": BadNetsRandom,
    "badnets_all_to_all": BadNetsAllToAll,
    "blended": Blended,
    "blended_patch": BlendedPatch,
    "sig": Sig,
    "sig_wrapped": SigWrapped,
    "chessboard": ChessboardGlobal,
    "chessboard_static": ChessboardStatic,
    "smooth": Smooth,
    "l0_inv": L0Invisible,
    "l2_inv": L2Invisible,
    "trojan_sq": TrojanSquare,
    "trojan_wm": TrojanWatermark,
    "wanet": WaNet,
    "batt": Batt,
    "label_consistent": LabelConsistent,
}

__all__ = [
    "ATTACKS",
    "BadNetsAllToAll",
    "BadNetsPattern",
    "BadNetsRandom",
    "BadNetsWhite",
    "Batt",
    "Blended",
    "BlendedPatch",
    "CentrePatch",
    "ChessboardGlobal",
    "ChessboardStatic",
    "L0Invisible",
    "L2Invisible",
    "LabelConsistent",
    "Sig",
    "SigWrapped",
    "Smooth",
    "TrojanSquare",
    "TrojanWatermark",
    "WaNet",
]
