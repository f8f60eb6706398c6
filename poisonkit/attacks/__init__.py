"""Attacks: a training set and a budget in, a Poison out. One module per paper; ``poisoning`` says how all poison."""

from poisonkit.attacks.adaptive_matching import AdaptiveMatching
from poisonkit.attacks.badnets import BadNetsAllToAll, BadNetsPattern, BadNetsRandom, BadNetsWhite
from poisonkit.attacks.batt import Batt
from poisonkit.attacks.blended import Blended, BlendedPatch
from poisonkit.attacks.bullseye_polytope import BullseyePolytope
from poisonkit.attacks.centre_patch import CentrePatch
from poisonkit.attacks.chessboard import Chessboard, ChessboardStatic
from poisonkit.attacks.convex_polytope import ConvexPolytope
from poisonkit.attacks.direct import Direct
from poisonkit.attacks.dm_poison import DMPoison
from poisonkit.attacks.dm_untargeted import DMUntargeted
from poisonkit.attacks.feature_collision import FeatureCollision
from poisonkit.attacks.gradient_matching import GradientMatching
from poisonkit.attacks.input_aware import InputAware
from poisonkit.attacks.issba import Issba
from poisonkit.attacks.l0_inv import L0Invisible
from poisonkit.attacks.l2_inv import L2Invisible
from poisonkit.attacks.label_consistent import LabelConsistent
from poisonkit.attacks.meta_poison import MetaPoison
from poisonkit.attacks.sig import Sig, SigWrapped
from poisonkit.attacks.sleeper_agent import SleeperAgent
from poisonkit.attacks.smooth import Smooth
from poisonkit.attacks.trojan import TrojanSquare, TrojanWatermark
from poisonkit.attacks.wanet import WaNet
from poisonkit.types import Attack

#: Every attack, by the name that ``poisonkit run --attack`` takes
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
    "chessboard": Chessboard,
    "chessboard_static": ChessboardStatic,
    "smooth": Smooth,
    "l0_inv": L0Invisible,
    "l2_inv": L2Invisible,
    "trojan_sq": TrojanSquare,
    "trojan_wm": TrojanWatermark,
    "wanet": WaNet,
    "batt": Batt,
    "issba": Issba,
    "input_aware": InputAware,
    "label_consistent": LabelConsistent,
    "feature_collision": FeatureCollision,
    "convex_polytope": ConvexPolytope,
    "bullseye_polytope": BullseyePolytope,
    "gradient_matching": GradientMatching,
    "adaptive_matching": AdaptiveMatching,
    "meta_poison": MetaPoison,
    "sleeper_agent": SleeperAgent,
    "dm_poison": DMPoison,
    "dm_untargeted": DMUntargeted,
    "direct": Direct,
}

__all__ = [
    "ATTACKS",
    "AdaptiveMatching",
    "BadNetsAllToAll",
    "BadNetsPattern",
    "BadNetsRandom",
    "BadNetsWhite",
    "Batt",
    "Blended",
    "BlendedPatch",
    "BullseyePolytope",
    "CentrePatch",
    "Chessboard",
    "ChessboardStatic",
    "ConvexPolytope",
    "DMPoison",
    "DMUntargeted",
    "Direct",
    "FeatureCollision",
    "GradientMatching",
    "InputAware",
    "Issba",
    "L0Invisible",
    "L2Invisible",
    "LabelConsistent",
    "MetaPoison",
    "Sig",
    "SigWrapped",
    "SleeperAgent",
    "Smooth",
    "TrojanSquare",
    "TrojanWatermark",
    "WaNet",
]
