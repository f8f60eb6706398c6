"""What needs a GPU: every op against the device's own limits and against torch, and each paper from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import papers
from bench.calibrated_mean import features
from bench.clipped_relu import LAYOUTS, formula
from bench.gradients import gradients
from bench.measure import speedup
from bench.place import Place, sections
from bench.rows import Row
from bench.torch_hash import torch_int_mm
from poisonkit import key, ops

Runs = dict[str, Callable[[], Any]]


def bench_ops(place: Place) -> Iterator[Row]:
    """What the device reaches, then every op against that, and against torch as it is and compiled."""
    yield from sections(place, (limits, hashes, medoids, bounds, means, radii))


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {"ops": bench_ops, **papers.PARTS}


def against(
    place: Place,
    name: str,
    ours: Callable[[], Any],
    peers: Runs,
    limits: Runs,
    note: str = "",
    same: Callable[[Any, Any], object] = torch.testing.assert_close,
) -> Iterator[Row]:
    """The time of ``ours``, how many times as long ``peers`` take that come to the ``same``, and of what ``limits`` do.

    A peer that torch cannot run is left out, and the note says which and why.
    """
    expected, able = ours(), {}
    for peer, run in peers.items():
        try:
            found = run()
        except RuntimeError as error:  # torch's compiler raises its own children of this one
            note = "; ".join(filter(None, [note, f"{peer}: {type(error).__name__}"]))
        else:
            same(found, expected)
            able[peer] = run
    times = place.interleave({"ours": ours, **able, **limits})
    yield place.row(f"{name}/time", median(times["ours"]) * 1e3, "ms", note, "lower")
    for peer in able:
        yield place.row(f"{name}/over_{peer}", speedup(times, "ours", over=peer), "ratio", note)
    for limit in limits:
        yield place.row(f"{name}/of_{limit}", speedup(times, "ours", over=limit), "ratio", note)


def limits(place: Place) -> Iterator[Row]:
    """The bandwidth, and the rate of a large matrix product by what it multiplies."""
    source = torch.randint(256, (place.of(1 << 32, 1 << 12),), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    times = place.interleave({"copy": lambda: target.copy_(source)})
    moved = 2 * source.numel()
    note = "bytes read and bytes written"
    yield place.row(f"copy/{place.name}/throughput", moved / median(times["copy"]) / 1e9, "GB/s", note)
    side = place.of(8192, 32)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        matrix = torch.ones(side, side, device=place.device).to(dtype)
        product = torch._int_mm if dtype == torch.int8 else torch.mm
        times = place.interleave({"product": partial(product, matrix, matrix.T)})
        rate = 2 * side**3 / median(times["product"]) / 1e12
        name = f"product/{place.name}/{str(dtype).removeprefix('torch.')}/rate"
        yield place.row(name, rate, "TFLOP/s", f"{side} x {side} x {side}, as torch has it")


def hashes(place: Place) -> Iterator[Row]:
    """All of ImageNet at 64x64, or a third of it where memory is short, against reading it; peers on fewer rows."""
    rows, D = place.of((1_281_167, 12288), (1200, 96))
    if not place.small and torch.cuda.mem_get_info(place.device)[0] < 1.25 * rows * D:
        rows = 400_000
    x = torch.randint(256, (rows, D), dtype=torch.uint8, device=place.device)
    weights = ops.hash_weights(D).to(place.device)
    some = torch.cat([torch.arange(500), torch.arange(rows - 500, rows)]).to(place.device)
    with ops.isa("reference"):
        expected = ops.weighted_sum_hash(x[some].cpu(), weights.cpu())
    assert torch.equal(ops.weighted_sum_hash(x, weights)[some].cpu(), expected), "wrong hashes"

    words = x.view(torch.int64)
    # Which reduction comes nearest to the bandwidth differs between devices: the fastest is the limit.
    reads = {"sum": words.sum, "max": words.amax, "float sum": x.view(torch.float32).sum}
    times = place.interleave({"hash": lambda: ops.weighted_sum_hash(x, weights), **reads})
    limit = min(reads, key=lambda name: median(times[name]))
    name, note = f"weighted_sum_hash/{place.name}/{D}", f"{rows} rows; the read is torch's {limit}"
    yield place.row(f"{name}/of_read", speedup(times, "hash", over=limit), "ratio", note)
    yield place.row(f"{name}/throughput", x.numel() / median(times["hash"]) / 1e9, "GB/s", note)
    yield place.row(f"{name}/read_throughput", x.numel() / median(times[limit]) / 1e9, "GB/s", note)

    few = x[: place.of(65_536, 64)]
    peers: Runs = {
        "eager": partial(ops.OPS["weighted_sum_hash"].reference, few, weights),
        "int_mm": partial(torch_int_mm, few, weights),
        "compiled": partial(place.compiled(torch_int_mm), few, weights),
    }
    note = f"{len(few)} rows; eager is in float64, int_mm one int8 product, which is what is compiled"
    yield from against(place, name, partial(ops.weighted_sum_hash, few, weights), peers, {}, note)


def medoids(place: Place) -> Iterator[Row]:
    """A round of EPIC on CIFAR-10 and one on ImageNet, each in one launch; picks are compared with the CPU's.

    Torch's greedy keeps all distances, and takes one group. The limit is a product of all rows of a group with each
    other, in which every distance is met once.
    """
    sizes = ((10, 5000, 10, 1500), (1000, 1300, 1000, 130))
    for groups, n, d, k in place.of(sizes, ((2, 40, 5, 8),)):
        different = min(groups, 10)
        x = torch.cat([gradients(n, d, seed=seed) for seed in range(different)])
        x = x.to(place.device).repeat(groups // different, 1)
        offsets, counts = [n * group for group in range(groups + 1)], [k] * groups
        expected = ops.facility_location(x[: 2 * n].cpu(), offsets[:3], counts[:2])
        found = ops.facility_location(x, offsets, counts)
        assert torch.equal(found.rows[: 2 * k].cpu(), expected.rows), "other medoids than on the CPU"

        stacked = x.view(groups, n, d)[: place.of(100, 2)]
        whole = partial(ops.facility_location, x, offsets, counts)
        product = partial(torch.bmm, stacked, stacked.mT)
        times = place.interleave({"op": whole, "product": product})
        name = f"facility_location/{place.name}/{groups}x{n}x{d}/{k}"
        yield place.row(f"{name}/time", median(times["op"]) * 1e3, "ms", better="lower")
        share = speedup(times, "op", over="product") * groups / len(stacked)
        yield place.row(f"{name}/of_product", share, "ratio", f"the product of {len(stacked)} groups, scaled to all")

        def same(theirs: Tensor, ours: Tensor, x: Tensor = x[:n]) -> None:
            worth = [torch.cdist(x, x[picks]).amin(1).sum() for picks in (theirs, ours)]
            torch.testing.assert_close(*worth, rtol=1e-3, atol=0.0)

        def one(x: Tensor = x[:n], k: int = k) -> Tensor:
            return ops.facility_location(x, [0, len(x)], [k]).rows

        peers: Runs = {
            "eager": partial(greedy, picked, x[:n], k),
            "compiled": partial(greedy, place.compiled(picked), x[:n], k),
        }
        about = f"facility_location/{place.name}/{n}x{d}/{k}"
        yield from against(place, about, one, peers, {}, "one group; torch's greedy on all its distances", same)


def greedy(step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, k: int) -> Tensor:
    """Medoids as one would write them in torch, without a wait of the host: int64 [k]."""
    distances = torch.cdist(x, x)
    best, picks = distances.amax().repeat(len(x)), []
    for _ in range(k):
        pick, best = step(distances, best)
        picks.append(pick)
    return torch.stack(picks)


def picked(distances: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
    """The row that lowers most the distances to the nearest medoid, ``best`` [n], and what they are then."""
    pick = (best[:, None] - distances).clamp(min=0).sum(0).argmax()
    return pick, torch.minimum(best, distances.index_select(1, pick[None])[:, 0])


def bounds(place: Place) -> Iterator[Row]:
    """Forward and backward against copies of as many bytes, two passes over the tensor and three, and against torch."""
    sizes = ((128, 64, 32, 32), (256, 256, 16, 16))
    for size in place.of(sizes, ((2, 3, 4, 4),)):
        for layout, memory in LAYOUTS.items():
            for dtype in (torch.float32, torch.bfloat16):
                x, grad = (torch.randn(size, device=place.device).to(dtype, memory_format=memory) for _ in range(2))
                bound = torch.rand(size[1], device=place.device) + 0.5
                copy = torch.empty_like(x)

                def both(x: Tensor = x, bound: Tensor = bound, grad: Tensor = grad) -> object:
                    return ops.clipped_relu_backward(grad, ops.clipped_relu(x, bound), bound, True, True)

                times = place.interleave({"both": both, "copy": partial(copy.copy_, x)})
                name = f"clipped_relu/{place.name}/{'x'.join(map(str, size))}/{layout}"
                name += "" if dtype == torch.float32 else f"/{str(dtype).removeprefix('torch.')}"
                share = 2.5 * speedup(times, "both", over="copy")
                yield place.row(f"{name}/of_copy", share, "ratio", "forward and backward")
                learnt = [x.clone().requires_grad_(), bound.clone().requires_grad_()]

                def graded(
                    function: Callable[..., Tensor], learnt: list[Tensor] = learnt, grad: Tensor = grad
                ) -> Callable[[], tuple[Tensor, ...]]:
                    return lambda: torch.autograd.grad(function(*learnt), learnt, grad)

                def same(theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...], dtype: torch.dtype = dtype) -> None:
                    if dtype == torch.float32:  # bfloat16 has ties, which torch splits
                        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-2)

                peers: Runs = {"eager": graded(formula), "compiled": graded(place.compiled(formula))}
                yield from against(place, name, graded(ops.clipped_relu), peers, {}, "with autograd", same)


def means(place: Place) -> Iterator[Row]:
    """Calibrated means of a condensation step: there is no kernel for the GPU, so the op is its reference in torch."""
    B, n, d = place.of((10, 256, 2048), (2, 16, 32))
    r = features(B)[:, :n, :d].to(place.device)
    drop, start = ops.calibration_drop(0.1, n), torch.randn(d, generator=key(0).generator()).to(place.device)
    for iterations in (10, 50):
        ours = partial(calibrated, r, drop, iterations)
        peers: Runs = {
            "eager": partial(batched, r, start, drop, iterations),
            "compiled": partial(place.compiled(batched), r, start, drop, iterations),
        }

        def same(theirs: Tensor, ours: Tensor) -> None:
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-2)

        name = f"calibrated_mean/{place.name}/{B}x{n}x{d}/{iterations}"
        yield from against(place, name, ours, peers, {"read": r.sum}, "the op is eager torch there", same)


def calibrated(r: Tensor, drop: int, iterations: int) -> Tensor:
    return ops.calibrated_mean(r, drop, iterations=iterations, key=key(0)).mean


def batched(r: Tensor, start: Tensor, drop: int, iterations: int) -> Tensor:
    """Calibrated means by power iterations in Gram space, without a wait of the host: [B, n, d] to [B, d]."""
    x = r - r.mean(1, keepdim=True)
    w, gram = (x @ start)[..., None], torch.bmm(x, x.mT)
    for _ in range(iterations):
        image = torch.bmm(gram, w)
        w = image / (w * image).sum(1, keepdim=True).sqrt()
    far = w[..., 0].abs().topk(drop, 1).indices
    kept = torch.ones_like(w[..., 0]).scatter(1, far, 0.0)
    return torch.bmm(kept[:, None], r)[:, 0] / (r.shape[1] - drop)


def radii(place: Place) -> Iterator[Row]:
    """Votes to radii: no kernel of the GPU's own, so against the CPU's, which takes the votes from the device."""
    models, inputs, classes = place.of((16, 10_000, 10), (4, 12, 3))
    votes = torch.randint(classes, (models, inputs), generator=torch.Generator().manual_seed(0))
    order = torch.arange(classes)
    top, there = votes.to(torch.uint8)[..., None].to(place.device), order.to(place.device)
    # A model prefers smaller classes, but for its first: all that a run-off asks of it is two bits a class
    above = torch.full((models, inputs, 2, -(-classes // 8)), 255, dtype=torch.uint8, device=place.device)
    size = f"{models}x{inputs}x{classes}"
    runs = {
        "vote_radius": lambda top, order, _: ops.vote_radius(top, order, None, [0], 1),
        "run_off_radius": lambda top, order, above: ops.run_off_radius(top[..., 0], above, order, [0]),
    }
    for op, run in runs.items():

        def on_the_cpu(run: Callable[..., tuple[Tensor, ...]] = run) -> tuple[Tensor, ...]:
            return run(top.cpu(), order, above.cpu())

        def same(theirs: tuple[Tensor, ...], ours: tuple[Tensor, ...]) -> None:
            torch.testing.assert_close(theirs, ours, check_device=False)

        yield from against(
            place,
            f"{op}/{place.name}/{size}",
            partial(run, top, there, above),
            {"cpu": on_the_cpu},
            {},
            "the op is eager torch there; the CPU's kernel is given the votes from the device",
            same,
        )
