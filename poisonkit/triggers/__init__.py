"""Triggers: what a backdoor does to an image, uint8 in, uint8 out.

Each is a function of one image at a time: the batch it comes in, its memory layout and the device change nothing.
"""

from poisonkit.triggers.additive import Additive
from poisonkit.triggers.blend import Blend, texture
from poisonkit.triggers.chessboard import Chessboard
from poisonkit.triggers.corners import Corners
from poisonkit.triggers.encoded import Decoder, Encoded, Encoder
from poisonkit.triggers.generated import Generated
from poisonkit.triggers.overlay import Overlay
from poisonkit.triggers.patch import Patch, pattern_patch, random_patch, side
from poisonkit.triggers.rotation import Rotation
from poisonkit.triggers.sinusoid import Sinusoid, wrapped_wave
from poisonkit.triggers.square import Square
from poisonkit.triggers.warp import Warp, elastic_grid, jittered

__all__ = [
    "Additive",
    "Blend",
    "Chessboard",
    "Corners",
    "Decoder",
    "Encoded",
    "Encoder",
    "Generated",
    "Overlay",
    "Patch",
    "Rotation",
    "Sinusoid",
    "Square",
    "Warp",
    "elastic_grid",
    "jittered",
    "pattern_patch",
    "random_patch",
    "side",
    "texture",
    "wrapped_wave",
]
