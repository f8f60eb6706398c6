"""The kernels, usable on their own: tensors in, tensors out. Integers are exact, and the same on every processor."""

from poisonkit.ops.calibrated_mean import (
    CalibratedMean,
    TopDirection,
    calibrate,
    calibrated_mean,
    calibration_drop,
    top_direction,
)
from poisonkit.ops.clipped_relu import clipped_relu, clipped_relu_backward
from poisonkit.ops.facility_location import Medoids, facility_location, greedy_medoids
from poisonkit.ops.native import build_info, isa, isas
from poisonkit.ops.registry import OPS
from poisonkit.ops.run_off_radius import run_off_radius
from poisonkit.ops.vote_radius import vote_radius
from poisonkit.ops.weighted_sum_hash import HASH_PRIME, hash_weights, weighted_sum_hash

__all__ = [
    "HASH_PRIME",
    "OPS",
    "CalibratedMean",
    "Medoids",
    "TopDirection",
    "build_info",
    "calibrate",
    "calibrated_mean",
    "calibration_drop",
    "clipped_relu",
    "clipped_relu_backward",
    "facility_location",
    "greedy_medoids",
    "hash_weights",
    "isa",
    "isas",
    "run_off_radius",
    "top_direction",
    "vote_radius",
    "weighted_sum_hash",
]
