"""What needs a GPU: ops against the device's bandwidth and against torch, and a defense from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench import measure
from bench.gradients import gradients
from bench.measure import interleave, speedup
from bench.rows import Row
from poisonkit import ops
from poisonkit.models import ResNet
from poisonkit.models.predict import ensemble_logits
from poisonkit.models.resnet import folded
from poisonkit.random import key
from poisonkit.train import Recipe, new_model, train_epoch
from poisonkit.train.loop import deterministic, new_optimizer
from poisonkit.types import ImageDataset

ROUNDS = 15


def bench_ops() -> Iterator[Row]:
    """The bandwidth, the hash and the clipped ReLU at full size, and every op against its reference in torch."""
    yield from copying()
    yield from hash_against_reading()
    yield from medoids()
    yield from clipped_relu_against_copying()
    for name, op in ops.OPS.items():
        if op.triton is not None:  # the others run their reference there
            yield from against_reference(name)


def copying() -> Iterator[Row]:
    source = torch.randint(256, (1 << 32,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, ROUNDS, seconds)
    moved = 2 * source.numel()
    yield row("copy/cuda/throughput", moved / median(times["copy"]) / 1e9, "GB/s", "bytes read and bytes written")


def hash_against_reading(D: int = 12288) -> Iterator[Row]:
    """All of ImageNet at 64x64, or a third of it where memory is short, and passes that only read it."""
    free, _ = torch.cuda.mem_get_info()
    rows = 1_281_167 if free > 1.25 * 1_281_167 * D else 400_000
    x, weights = hash_arguments(rows, D)
    some = torch.cat([torch.arange(500), torch.arange(rows - 500, rows)]).cuda()
    with ops.isa("reference"):
        expected = ops.weighted_sum_hash(x[some].cpu(), weights.cpu())
    assert torch.equal(ops.weighted_sum_hash(x, weights)[some].cpu(), expected), "wrong hashes"

    words = x.view(torch.int64)
    # Which reduction comes nearest to the bandwidth differs between devices: the fastest is the limit.
    reads = {"sum": words.sum, "max": words.amax, "float sum": x.view(torch.float32).sum}
    times = interleave({"hash": lambda: ops.weighted_sum_hash(x, weights), **reads}, ROUNDS, seconds)
    limit = min(reads, key=lambda name: median(times[name]))
    name, note = f"weighted_sum_hash/cuda/{D}", f"{rows} rows; the read is torch's {limit}"
    yield row(f"{name}/of_read", speedup(times, "hash", over=limit), "ratio", note)
    yield row(f"{name}/throughput", x.numel() / median(times["hash"]) / 1e9, "GB/s", note)
    yield row(f"{name}/read_throughput", x.numel() / median(times[limit]) / 1e9, "GB/s", note)


def clipped_relu_against_copying() -> Iterator[Row]:
    """Forward and backward against copies of as many bytes: two passes over the tensor, and three."""
    for size in ((128, 64, 32, 32), (256, 256, 16, 16)):
        for layout in ("contiguous", "channels_last"):
            for dtype in (torch.float32, torch.bfloat16):
                x, grad = (torch.randn(size, device="cuda").to(dtype, memory_format=FORMATS[layout]) for _ in range(2))
                bound = torch.rand(size[1], device="cuda") + 0.5
                copy = torch.empty_like(x)

                def both(x: Tensor = x, bound: Tensor = bound, grad: Tensor = grad) -> object:
                    return ops.clipped_relu_backward(grad, ops.clipped_relu(x, bound), bound, True, True)

                candidates = {"both": both, "copy": lambda copy=copy, x=x: copy.copy_(x)}
                times = interleave(candidates, ROUNDS, seconds)
                name = f"clipped_relu/cuda/{'x'.join(map(str, size))}/{layout}"
                name += "" if dtype == torch.float32 else f"/{str(dtype).removeprefix('torch.')}"
                yield row(f"{name}/of_copy", 2.5 * speedup(times, "both", over="copy"), "ratio", "forward and backward")


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def hash_arguments(rows: int, D: int = 12288) -> tuple[Tensor, Tensor]:
    x = torch.randint(256, (rows, D), dtype=torch.uint8, device="cuda")
    return x, ops.hash_weights(D).cuda()


def medoids() -> Iterator[Row]:
    """A round of EPIC on CIFAR-10 and one on ImageNet, each in one launch; picks are compared with the CPU's."""
    for groups, n, d, k in ((10, 5000, 10, 1500), (1000, 1300, 1000, 130)):
        x = torch.cat([gradients(n, d, seed=seed) for seed in range(10)]).cuda().repeat(groups // 10, 1)
        offsets, counts = [n * group for group in range(groups + 1)], [k] * groups
        expected = ops.facility_location(x[: 2 * n].cpu(), offsets[:3], counts[:2])
        found = ops.facility_location(x, offsets, counts)
        assert torch.equal(found.rows[: 2 * k].cpu(), expected.rows), "other medoids than on the CPU"
        times = interleave({"op": lambda: ops.facility_location(x, offsets, counts)}, ROUNDS, seconds)  # noqa: B023
        yield row(f"facility_location/cuda/{groups}x{n}x{d}/{k}/time", median(times["op"]) * 1e3, "ms", better="lower")


# Op -> a name for the size, and arguments whose reference still fits. An op without an entry takes its largest sample.
SIZES: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "weighted_sum_hash": ("12288", lambda: hash_arguments(65_536)),
    "clipped_relu": ("128x64x32x32", lambda: (torch.randn(128, 64, 32, 32, device="cuda"), torch.ones(64).cuda())),
}


def against_reference(name: str) -> Iterator[Row]:
    """An op against its own reference, eager and compiled, on the same arguments."""
    op = ops.OPS[name]
    size, make = SIZES.get(name, ("largest_sample", lambda: largest(op.samples())))
    arguments = make()
    run = getattr(ops, name)
    reference: dict[str, Callable[..., Tensor]] = {"eager": op.reference}
    note = ""
    try:
        compiled = torch.compile(op.reference, dynamic=False)
        compiled(*arguments)
        reference["compiled"] = compiled
    except RuntimeError as error:  # torch's compiler raises its own children of this one
        note = f"torch.compile of the reference: {type(error).__name__}"
    for which, function in reference.items():
        torch.testing.assert_close(
            run(*arguments), function(*arguments), msg=lambda text, which=which: f"{which}: {text}"
        )
    candidates = {"op": lambda: run(*arguments)}
    candidates |= {which: lambda function=function: function(*arguments) for which, function in reference.items()}
    times = interleave(candidates, ROUNDS, seconds)
    for which in reference:
        yield row(f"{name}/cuda/{size}/over_{which}", speedup(times, "op", over=which), "ratio", note)


def largest(samples: Iterator[tuple[Any, ...]]) -> tuple[Any, ...]:
    def move(argument: Any) -> Any:
        return argument.cuda() if isinstance(argument, Tensor) else argument

    def elements(arguments: tuple[Any, ...]) -> int:
        return sum(argument.numel() for argument in arguments if isinstance(argument, Tensor))

    return tuple(move(argument) for argument in max(samples, key=elements))


def bench_dpa() -> Iterator[Row]:
    """DPA with sixteen base models: asked, trained, and run to its report on CIFAR-10 where it is, else the digits."""
    yield from asking()
    yield from training()
    root = Path(os.environ.get("POISONKIT_DATA", ".data"))
    real = (root / "cifar10").is_dir() and all(map(find_spec, ("pyarrow", "PIL")))  # what its reader needs
    data = ["--data", "cifar10", "--root", str(root)] if real else ["--data", "digits"]
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "poisonkit", "run", *data, "--device", "cuda", "--out", f"{folder}/run"]
        run += [
            "--attack",
            "centre_patch",
            "--attack.size",
            "8" if real else "2",
            "--rate",
            "0.002" if real else "0.03",
        ]
        run += ["--defense", "dpa", "--defense.partitions", "16"]
        run += ["--recipe.epochs", "10", "--recipe.precision", "bfloat16"]
        start = time.perf_counter()
        subprocess.run(run, check=True)
        wall = time.perf_counter() - start
        results = json.loads(Path(folder, "run", "results.json").read_text())
    note = " ".join(["poisonkit", *run[3 : run.index("--out")], *run[run.index("--out") + 2 :]])
    note = note.replace(str(root), "DATA")
    name = f"dpa/cuda/{data[1]}"
    yield row(f"{name}/wall", wall, "s", note, "lower", 1)
    for result in results:
        which = f"{name}/{result['name'].split('(')[0].strip().replace(' ', '_')}"
        yield row(f"{which}/train", result["seconds"], "s", better="lower", samples=1)
        yield row(f"{which}/clean_accuracy", result["clean_accuracy"], "share", samples=1)
        yield row(f"{which}/attack_success_rate", result["attack_success_rate"], "share", better="lower", samples=1)


def asking(batch_size: int = 512, batches: int = 8, partitions: int = 16) -> Iterator[Row]:
    """All base models against the one of full width, and against what the device could do at best."""
    wide, shape = ResNet(50, 128), (3, 64, 64)
    narrow = wide.scaled(partitions)
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    base = [narrow.build(shape, 1000, key(i)).cuda() for i in range(partitions)]
    single = [wide.build(shape, 1000, key(0)).cuda()]
    images = torch.randint(256, (batch_size * batches, *shape), dtype=torch.uint8, device="cuda")
    best = partitions * batches * roofline(folded(base[0]), images[:batch_size])
    for name, compiled in (("", False), ("/compiled", True)):

        def ask(models: list[nn.Module], compiled: bool = compiled) -> list[Tensor]:
            return list(ensemble_logits(models, images, batch_size, compiled=compiled))

        times = interleave({"ensemble": lambda: ask(base), "single": lambda: ask(single)}, ROUNDS, seconds)
        ensemble, one = median(times["ensemble"]), median(times["single"])
        note = f"{batches} batches of {batch_size}, widths {narrow.width} and {wide.width}, TF32; roofline {best:.3g} s"
        about = f"stacked/cuda/predict/resnet50/k{partitions}{name}"
        yield row(f"{about}/of_single", ensemble / one, "ratio", note, "lower")
        yield row(f"{about}/of_roofline", ensemble / best, "ratio", note, "lower")
        yield row(f"{about}/of_allowed", ensemble / max(1.5 * one, 1.3 * best), "ratio", note, "lower")


def roofline(model: nn.Module, images: Tensor) -> float:
    """Seconds of ``model`` were every layer as fast as a large product, or as copying what it reads and writes."""
    matrix, source = torch.randn(8192, 8192, device="cuda"), torch.zeros(1 << 28, device="cuda")
    product, target = torch.empty_like(matrix), torch.empty_like(source)
    candidates = {"product": lambda: torch.mm(matrix, matrix, out=product), "copy": lambda: target.copy_(source)}
    times = interleave(candidates, ROUNDS, seconds)
    per_product = median(times["product"]) / len(matrix) ** 3
    per_byte = median(times["copy"]) / (2 * source.nbytes)
    total = 0.0

    def count(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += max(
            out.numel() * weight[0].numel() * per_product,
            (inputs[0].nbytes + weight.nbytes + out.nbytes) * per_byte,
        )

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        model(images)
    return total


def training(batch_size: int = 512, steps: int = 4) -> Iterator[Row]:
    """A step of a base model against one of the network of full width: each row is visited by one base model."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    images = torch.randint(256, (batch_size * steps, 3, 64, 64), dtype=torch.uint8, device="cuda")
    labels = torch.randint(1000, (len(images),), device="cuda")
    data = ImageDataset(images, labels, tuple(map(str, range(1000))))
    wide = ResNet(50, 128)
    candidates = {}
    for name, model in (("single", wide), ("base", wide.scaled(16))):
        recipe = Recipe(model, batch_size=batch_size, precision="bfloat16")
        network = new_model(recipe, data, key(0))
        optimizer = new_optimizer(network, recipe)
        candidates[name] = partial(train_epoch, network, optimizer, data, recipe, key=key(0), epoch=0)
    with deterministic(data.device):
        times = interleave(candidates, 5, seconds)
    note = f"batch {batch_size}, bfloat16, {steps} steps of one base model of width {wide.scaled(16).width}"
    ratio = 1 / speedup(times, "base", over="single")
    yield row("stacked/cuda/train/resnet50/k16/of_single", ratio, "ratio", note, "lower", 5)


PARTS: dict[str, Callable[[], Iterator[Row]]] = {"ops": bench_ops, "dpa": bench_dpa}


def seconds(run: Callable[[], object]) -> float:
    """Seconds on the device by events, with a cold L2.

    Reading another buffer first evicts what the last run left in the cache, and keeps the device busy while the host
    prepares the launch, which so does not count.
    """
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _cold().sum()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@cache
def _cold() -> Tensor:
    return torch.zeros(1 << 27, dtype=torch.int64, device="cuda")  # 1 GiB


def row(
    name: str, value: float, unit: str, note: str = "", better: measure.Better = "higher", samples: int = ROUNDS
) -> Row:
    return measure.row(name, value, unit, samples, note, better, gpu=torch.cuda.get_device_name())
