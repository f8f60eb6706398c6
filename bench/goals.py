"""Every goal, in one table, wherever it can be measured; and how the rows stand against it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.rows import Row


@dataclass(frozen=True)
class Goal:
    value: float
    needs: str  # what a machine must have for the row to exist
    better: Literal["higher", "lower"] = "higher"

    def met(self, value: float) -> bool:
        return value >= self.value if self.better == "higher" else value <= self.value


_AMX = "a CPU with AMX int8"
_VNNI = "a CPU with AVX-512 VNNI"
_AVX2 = "a CPU with AVX2"
_ANY = "any CPU"
_TWO = "two idle cores"
_GPU = "a CUDA device"
_DISK = "35 GB of free disk"
_IMAGES = "CIFAR-10"
_MAPS = [f"{size}/{layout}" for size in ("128x64x32x32", "256x256x16x16") for layout in ("contiguous", "channels_last")]
# By side: the larger the images, the more of the time goes into fresh memory for them, which is the same for both
_TRIGGERS = {
    32: {"pattern": 1.3, "blend": 3, "sinusoid": 5, "chessboard": 8, "warp": 2, "rotation": 1.3},
    64: {"pattern": 1.3, "blend": 3, "sinusoid": 5, "chessboard": 5, "warp": 1.7, "rotation": 1.3},
}

GOALS: dict[str, Goal] = {
    # One core's bandwidth reading the same array, measured between the kernel's runs.
    "weighted_sum_hash/amx/12288/of_read": Goal(0.90, _AMX),
    "weighted_sum_hash/amx/3072/of_read": Goal(0.80, _AMX),
    "weighted_sum_hash/avx512_vnni/12288/of_read": Goal(0.75, _VNNI),
    "weighted_sum_hash/avx512_vnni/3072/of_read": Goal(0.60, _VNNI),
    "weighted_sum_hash/avx2/12288/of_read": Goal(0.50, _AVX2),
    "weighted_sum_hash/avx2/3072/of_read": Goal(0.40, _AVX2),
    "weighted_sum_hash/scalar/12288/of_read": Goal(0.07, _ANY),
    # What one would use instead, on the same rows and one core.
    "weighted_sum_hash/amx/12288/over_xxh3_128": Goal(1.2, _AMX),
    "weighted_sum_hash/amx/12288/over_blake3": Goal(5, _AMX),
    "weighted_sum_hash/amx/12288/over_sha256": Goal(10, _AMX),
    "weighted_sum_hash/amx/12288/over_torch_int_mm": Goal(4, _AMX),
    "weighted_sum_hash/amx/12288/over_torch_int64": Goal(100, _AMX),
    "weighted_sum_hash/amx/12288/over_python": Goal(1000, _AMX),
    # Run-time dispatch costs nothing against compiling everything for the machine at hand.
    "weighted_sum_hash/best/12288/over_march_native": Goal(0.95, _ANY),
    # ImageNet64 at full size against reading, or reading and writing, the same bytes; and in how many gigabytes.
    "imagenet64/convert/over_copy": Goal(2, _DISK, "lower"),
    "imagenet64/convert/peak_resident": Goal(2, _DISK, "lower"),
    "imagenet64/partition/cold/over_read": Goal(1.5, _DISK, "lower"),
    "imagenet64/partition/peak_resident": Goal(2, _DISK, "lower"),
    "imagenet64/poisoned/peak_anonymous": Goal(2, _DISK, "lower"),
    # 50,000 inputs, 1000 classes, k = 250 partitions: the wall clock on two cores, and gigabytes beyond the input.
    "certificates/dpa/2_threads/seconds": Goal(10, _TWO, "lower"),
    "certificates/fa/2_threads/seconds": Goal(10, _TWO, "lower"),
    "certificates/roe/2_threads/seconds": Goal(10, _TWO, "lower"),
    "certificates/dpa/memory_beyond_input": Goal(1, _ANY, "lower"),
    "certificates/fa/memory_beyond_input": Goal(1, _ANY, "lower"),
    "certificates/roe/memory_beyond_input": Goal(1, _ANY, "lower"),
    "certificates/fa/over_numpy": Goal(5, _ANY),
    # Forward and backward, with an allocator that keeps its memory, against ReLU and the formula in torch.
    **{f"clipped_relu/cpu/{maps}/of_relu": Goal(1.3, _ANY, "lower") for maps in _MAPS},
    **{f"clipped_relu/cpu/{maps}/over_eager": Goal(8, _ANY) for maps in _MAPS},
    **{
        f"clipped_relu/cpu/{maps}/over_compiled": Goal(1.1 if maps.endswith("contiguous") else 1.5, _ANY)
        for maps in _MAPS
    },
    **{f"clipped_relu/cuda/{maps}/of_copy": Goal(0.85, _GPU) for maps in _MAPS},
    # Per class of 256 x 2048 floats, on one core: the paper's way, the fastest of four forms in torch, the exact way.
    **{
        f"calibrated_mean/avx2/{classes}x256x2048/{iterations}/over_covariance": Goal(25, _AVX2)
        for classes in (10, 200)
        for iterations in (10, 50)
    },
    **{f"calibrated_mean/avx2/{classes}x256x2048/10/over_best_torch": Goal(2, _AVX2) for classes in (10, 200)},
    **{f"calibrated_mean/avx2/{classes}x256x2048/50/over_eigh": Goal(300, _AVX2) for classes in (10, 200)},
    "calibrated_mean/avx2/10x256x2048/50/of_condensation_step": Goal(0.01, _AVX2, "lower"),
    # A step of distribution matching against the loop over classes; of one of RDM-DC, what calibrating its means takes.
    "condense/cpu/10x256+50/w128/over_loop": Goal(1.2, _ANY),
    "condense/cpu/10x256+50/w128/calibration": Goal(0.01, _ANY, "lower"),
    # Medoids of rows, distances included, against the picks alone of others, and against all of theirs where d = 1000.
    "facility_location/cpu/5000x10/500/over_apricot": Goal(10, _ANY),
    "facility_location/cpu/5000x10/500/over_submodlib": Goal(40, _ANY),
    "facility_location/cpu/5000x10/1500/over_apricot": Goal(10, _ANY),
    "facility_location/cpu/5000x10/1500/over_submodlib": Goal(40, _ANY),
    "facility_location/cpu/20000x10/2000/over_apricot": Goal(10, _ANY),
    "facility_location/cpu/20000x10/2000/memory": Goal(10, _ANY, "lower"),  # MB
    "facility_location/cpu/1300x1000/130/over_best_peer": Goal(1, _ANY),
    "facility_location/cuda/10x5000x10/1500/time": Goal(20, _GPU, "lower"),  # ms: a round on CIFAR-10
    # The defense against the undefended training of the same images, and the picks' share of the defense.
    **{f"epic/cifar10/{medoids}/of_undefended": Goal(1, _IMAGES, "lower") for medoids in (0.1, 0.2, 0.3)},
    **{f"epic/cifar10/{medoids}/picks_of_run": Goal(0.02, _IMAGES, "lower") for medoids in (0.1, 0.2, 0.3)},
    # Base models trained together over the same one after the other: tiny ones; and all that the rule stacks.
    **{f"stacked/cpu/train/digits/w{w}/k{k}/over_alone": Goal(3, _ANY) for w in (4, 8) for k in (8, 16, 50)},
    **{f"stacked/cpu/train/digits/w16/k{k}/over_alone": Goal(0.95, _ANY) for k in (8, 16, 50)},
    **{f"stacked/cpu/train/32px/w{w}/k16/over_alone": Goal(0.95, _ANY) for w in (4, 8)},
    # Sixteen base models of a quarter of the width, in times of the one network.
    "stacked/cpu/predict/resnet50/k16/of_single": Goal(1.3, _ANY, "lower"),
    "stacked/cpu/predict/resnet18/k16/of_single": Goal(1.3, _ANY, "lower"),
    # The same at batch 512, of 1.5 times the network or 1.3 times the roofline, whichever is more; and training.
    "stacked/cuda/predict/resnet50/k16/of_allowed": Goal(1, _GPU, "lower"),
    "stacked/cuda/train/resnet50/k16/of_single": Goal(0.5, _GPU, "lower"),
    # After training, in shares of the paper's training of the same network: 200 epochs of 50,000 images.
    **{f"mmac/cpu/{network}/mmac/of_training": Goal(0.1, _ANY, "lower") for network in ("resnet32", "resnet8")},
    **{f"mmac/cpu/{network}/mmom/of_training": Goal(0.06, _ANY, "lower") for network in ("resnet32", "resnet8")},
    # Interleaved unlearning over fine-tuning on as many steps, views and rows.
    **{f"ieu/cpu/{views}/of_plain": Goal(1.25, _ANY, "lower") for views in ("one_view", "two_views")},
    # The same trigger, image by image in NumPy or Pillow.
    **{
        f"triggers/{name}/{side}/over_per_image": Goal(value, _ANY)
        for side, goals in _TRIGGERS.items()
        for name, value in goals.items()
    },
    # The device's own read bandwidth, and the op written in torch.
    "weighted_sum_hash/cuda/12288/of_read": Goal(0.85, _GPU),
    "weighted_sum_hash/cuda/12288/over_eager": Goal(10, _GPU),
}


@dataclass(frozen=True)
class Standing:
    """How one measured row, or none, stands against one goal."""

    name: str
    goal: Goal
    row: Row | None
    where: str

    @property
    def status(self) -> str:
        if self.row is None:
            return "not measured"
        return "met" if self.goal.met(self.row.value) else "unmet"


def standings(rows: Iterable[tuple[Path, Row]], goals: dict[str, Goal] = GOALS) -> Iterator[Standing]:
    """Each goal once per machine that measured it, by its latest row, or once as not measured."""
    measured: dict[str, dict[str, tuple[Path, Row]]] = {}
    for path, row in sorted(rows, key=lambda found: found[1].date):
        measured.setdefault(row.name, {})[row.machine.gpu or path.stem] = (path, row)
    for name, goal in goals.items():
        if name not in measured:
            yield Standing(name, goal, None, f"needs {goal.needs}")
        for path, row in measured.get(name, {}).values():
            yield Standing(name, goal, row, path.stem)
