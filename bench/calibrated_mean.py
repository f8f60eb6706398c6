"""The calibrated mean on one core: against the covariance, the best that torch does, and a condensation step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor, nn

from bench.measure import Times, interleave, row, speedup, wall_seconds
from bench.rows import Row
from poisonkit import key, ops

N, D = 256, 2048  # a batch of one class, and ConvNet-3's features of 32 x 32 pixels
CLASSES = (10, 200)
DROP = ops.calibration_drop(0.1, N)
ROUNDS = 9
OTHERS = 20  # classes that what is slower than the op is timed on at most
EIGH = 2  # classes that an eigendecomposition is timed on


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread unless the row says otherwise."""
    for B in CLASSES:
        r = features(B)
        for iterations in (10, 50):
            yield from against_others(r, iterations)
        yield from against_eigh(r)
    yield from against_a_step(r[:10])
    yield from scaling(r[:10])


def features(B: int) -> Tensor:
    """Classes of which the first tenth of the rows is shifted: what a few iterations agree on."""
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(B, N, D, generator=generator) + 2
    r[:, : N // 10] += torch.randn(B, 1, D, generator=generator)
    return r


def against_others(r: Tensor, iterations: int) -> Iterator[Row]:
    """The paper's way, per class with an explicit covariance, and four forms in torch that do without."""
    B = len(r)
    v0 = start()
    some = r[:OTHERS]
    found = ops.calibrated_mean(some, DROP, iterations=iterations, key=key(0))
    for other, run in OTHER_FORMS.items():
        means, scores = run(some, v0, iterations)
        torch.testing.assert_close(scores, found.scores, rtol=1e-3, atol=1e-3, msg=f"{other} computes something else")
        torch.testing.assert_close(means, found.mean, rtol=1e-3, atol=1e-2, msg=f"{other} computes something else")
    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: ops.calibrated_mean(r, DROP, iterations=iterations, key=key(0))
    }
    candidates |= {other: lambda run=run: run(some, v0, iterations) for other, run in OTHER_FORMS.items()}
    times = interleave(candidates, ROUNDS)
    name, note = f"calibrated_mean/{isa()}/{B}x{N}x{D}/{iterations}", f"per class; {B} classes against {len(some)}"
    yield row(f"{name}/per_class", median(times["ours"]) / B * 1e3, "ms", ROUNDS, better="lower")
    for other in OTHER_FORMS:
        yield row(f"{name}/over_{other}", per_class(times, other, B, len(some)), "ratio", ROUNDS, note)
    best = min((other for other in OTHER_FORMS if other != "covariance"), key=lambda other: median(times[other]))
    ratio = per_class(times, best, B, len(some))
    yield row(f"{name}/over_best_torch", ratio, "ratio", ROUNDS, f"{note}; the best is {best}")


def against_eigh(r: Tensor) -> Iterator[Row]:
    """At the default number of iterations, against the exact eigenvector of the covariance."""
    B, v0 = len(r), start()
    some = r[:EIGH]
    _, exact = eigh(some, v0, 0)
    scores = ops.calibrated_mean(some, DROP, key=key(0)).scores
    torch.testing.assert_close(scores, exact, rtol=1e-2, atol=1e-2)
    times = interleave({"ours": lambda: ops.calibrated_mean(r, DROP), "eigh": lambda: eigh(some, v0, 0)}, 3)
    note = f"per class; {B} classes against {EIGH}"
    yield row(f"calibrated_mean/{isa()}/{B}x{N}x{D}/50/over_eigh", per_class(times, "eigh", B, EIGH), "ratio", 3, note)


def against_a_step(r: Tensor) -> Iterator[Row]:
    """The share of a step of distribution matching in float32, timed apart, that calibrating its ten means takes.

    The step, class by class: features of 256 real images without a graph, of 50 synthetic ones with, and the gradient
    of the squared distance of their means with respect to the synthetic pixels.
    """
    net = convnet()
    real, synthetic = torch.randn(N, 3, 32, 32), torch.randn(50, 3, 32, 32, requires_grad=True)

    def step() -> None:
        for _ in range(len(r)):
            with torch.no_grad():
                target = net(real).mean(0)
            torch.autograd.grad(((net(synthetic).mean(0) - target) ** 2).sum(), synthetic)

    assert net(real[:1]).shape == (1, D)
    rounds = 3
    times = interleave({"step": step, "ours": lambda: ops.calibrated_mean(r, DROP)}, rounds)
    share = median(ours / (step + ours) for ours, step in zip(times["ours"], times["step"], strict=True))
    name = f"calibrated_mean/{isa()}/{len(r)}x{N}x{D}/50/of_condensation_step"
    note = f"of {median(times['step']):.3g} s: ConvNet-3 of width 128, 10 x (256 real + 50 synthetic) images"
    yield row(name, share, "share", rounds, note, better="lower")


def scaling(r: Tensor) -> Iterator[Row]:
    """Two threads over one, by the wall clock: it needs two idle cores."""
    if len(os.sched_getaffinity(0)) < 2:
        return

    def threads(count: int) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(count)
            ops.calibrated_mean(r, DROP)

        return run

    times = interleave({"one": threads(1), "two": threads(2)}, ROUNDS, wall_seconds)
    torch.set_num_threads(1)
    name = f"calibrated_mean/{isa()}/{len(r)}x{N}x{D}/50/two_threads_over_one"
    yield row(name, speedup(times, "two", over="one"), "ratio", ROUNDS, "wall clock")


def isa() -> str:
    return "avx2" if "avx2" in ops.isas() else ops.isas()[-1]


def start() -> Tensor:
    """The first direction that calibrated_mean draws from key(0)."""
    return torch.randn(D, generator=key(0).generator())


def per_class(times: Times, other: str, B: int, others: int) -> float:
    return speedup(times, "ours", over=other) * B / others


def convnet() -> nn.Module:
    """ConvNet-3: instance norm (one group a channel), average pooling, features of 128 x 4 x 4; frozen."""
    blocks: list[nn.Module] = []
    for channels in (3, 128, 128):
        blocks += [nn.Conv2d(channels, 128, 3, padding=1), nn.GroupNorm(128, 128), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten()).requires_grad_(False)


Result = tuple[Tensor, Tensor]


def class_by_class(direction: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[Tensor, Tensor, int], Result]:
    """Calibration in torch from a function of one class's centred rows, that gives scores up to their signs."""

    def run(r: Tensor, v0: Tensor, iterations: int) -> Result:
        means, scores = [], []
        for rows in r:
            scores.append(direction(rows - rows.mean(0), v0, iterations).abs())
            means.append(kept_mean(rows, scores[-1]))
        return torch.stack(means), torch.stack(scores)

    return run


def kept_mean(rows: Tensor, scores: Tensor) -> Tensor:
    keep = torch.ones(N, dtype=torch.bool)
    keep[scores.topk(DROP).indices] = False
    return rows[keep].mean(0)


@class_by_class
def covariance(x: Tensor, v: Tensor, iterations: int) -> Tensor:
    sigma = x.T @ x / (N - 1)
    for _ in range(iterations):
        v = sigma @ v
        v = v / v.norm()
    return x @ v


@class_by_class
def gemv(x: Tensor, v: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        v = (x @ v) @ x
        v = v / v.norm()
    return x @ v


@class_by_class
def gram(x: Tensor, v: Tensor, iterations: int) -> Tensor:
    w, g = x @ v, x @ x.T
    for _ in range(iterations):
        image = g @ w
        w = image / (w @ image).sqrt()
    return w


@class_by_class
def eigh(x: Tensor, v: Tensor, iterations: int) -> Tensor:
    return x @ torch.linalg.eigh(x.T @ x / (N - 1)).eigenvectors[:, -1]


def bmm(r: Tensor, v: Tensor, iterations: int) -> Result:
    x = r - r.mean(1, keepdim=True)
    directions = v.expand(len(r), 1, -1).contiguous()
    for _ in range(iterations):
        directions = torch.bmm(torch.bmm(directions, x.mT), x)
        directions = directions / directions.norm(dim=2, keepdim=True)
    scores = torch.bmm(directions, x.mT)[:, 0].abs()
    return torch.stack([kept_mean(*pair) for pair in zip(r, scores, strict=True)]), scores


def bmm_gram(r: Tensor, v: Tensor, iterations: int) -> Result:
    x = r - r.mean(1, keepdim=True)
    w, g = (x @ v)[..., None], torch.bmm(x, x.mT)
    for _ in range(iterations):
        image = torch.bmm(g, w)
        w = image / (w * image).sum(1, keepdim=True).sqrt()
    scores = w[..., 0].abs()
    return torch.stack([kept_mean(*pair) for pair in zip(r, scores, strict=True)]), scores


OTHER_FORMS: dict[str, Callable[[Tensor, Tensor, int], Result]] = {
    "covariance": covariance,
    "torch_gemv": gemv,
    "torch_gram": gram,
    "torch_bmm": bmm,
    "torch_bmm_gram": bmm_gram,
}
