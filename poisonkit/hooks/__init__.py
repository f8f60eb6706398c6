"""Methods of this package in other people's training loops: PyTorch, Lightning, Hugging Face.

``lightning`` and ``transformers`` are imported by the modules of those names alone.
"""

from poisonkit.hooks.sampler import SubsetSampler

__all__ = ["SubsetSampler"]
