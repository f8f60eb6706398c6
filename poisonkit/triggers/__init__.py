"""Triggers: what a backdoor does to an image, uint8 in, uint8 out."""

from poisonkit.triggers.square import Square

__all__ = ["Square"]
