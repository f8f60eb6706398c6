"""The kernels, usable on their own: tensors in, tensors out, the same results on every device and processor."""

from poisonkit.ops.native import build_info, isa, isas
from poisonkit.ops.registry import OPS
from poisonkit.ops.weighted_sum_hash import HASH_PRIME, hash_weights, weighted_sum_hash

__all__ = ["HASH_PRIME", "OPS", "build_info", "hash_weights", "isa", "isas", "weighted_sum_hash"]
