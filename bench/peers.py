"""Against what one would take instead, in one run: the same work, compared first, timed in turns; a CSV and a page.

Each pair is an op or a pipeline of this package beside another library's, or torch's own, on one thread. A peer that is
not installed is left out and named. What a peer pays for that ours does not is said in the row's note.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.gpu import batched, calibrated
from bench.gradients import gradients
from bench.measure import cpu_seconds, interleave, peak_memory, row, speedup
from bench.rows import ROOT, Row
from bench.torch_hash import torch_int64
from poisonkit import key, ops, report
from poisonkit.data import load
from poisonkit.defenses import DPA
from poisonkit.defenses.filters import ActivationClustering, SpectralSignatures
from poisonkit.defenses.training.dp_sgd import DPSGD, ShapedPerSample
from poisonkit.models import ConvNet, ResNet, predict
from poisonkit.random import Key
from poisonkit.train import Batch, Cosine, Recipe, fit_stack

ROUNDS = 5
Run = Callable[[], Any]


@dataclass(frozen=True)
class Contest:
    """One piece of work, ours and others'.

    name   of the work, with its size
    ours   does it
    peers  do the same
    same   raises where a peer's result is not ours; it takes the peer's name, its result and ours
    note   what the comparison is of
    clocks  seconds of a run, of those of which not all counts
    """

    name: str
    ours: Run
    peers: Mapping[str, Run]
    same: Callable[[str, Any, Any], object]
    note: str
    clocks: Mapping[str, Callable[[], float]] = field(default_factory=dict)


def bench(small: bool = False) -> Iterator[Row]:
    """Every row of this bench, one thread, and their page; ``small``: of a size for tests, not compiled, no page."""
    found: list[Row] = []
    threads = importlib.import_module("threadpoolctl").threadpool_limits(1)
    with threads, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers'
        for make in (hashing, clipping, calibrating, medoids, signatures, clusters, private, partitions):
            try:
                for each in measured(make(small), 1 if small else ROUNDS):
                    found.append(each)
                    yield each
            except ModuleNotFoundError as error:
                print(f"{make.__name__}: {error.name} is not installed", file=sys.stderr)
    if found and not small:
        print(publish(ROOT / "runs" / "bench", found))


def measured(contest: Contest, rounds: int) -> Iterator[Row]:
    """Compare, then time in turns: seconds and memory of each, and how many times as long a peer takes."""
    found = contest.ours()
    for peer, run in contest.peers.items():
        contest.same(peer, run(), found)
    runs: dict[str, Run] = {"ours": contest.ours, **contest.peers}
    clocks = {who: contest.clocks.get(who, partial(cpu_seconds, run)) for who, run in runs.items()}
    times = interleave(clocks, rounds, lambda clock: clock())
    name = f"peers/{contest.name}"
    for who, run in runs.items():
        yield row(f"{name}/{who}/time", median(times[who]), "s", rounds, contest.note, "lower")
        yield row(f"{name}/{who}/memory", peak_memory(run), "MB", 1, contest.note, "lower")
        if who != "ours":
            yield row(f"{name}/{who}/ratio", speedup(times, "ours", over=who), "ratio", rounds, contest.note)


def equal(peer: str, theirs: Any, ours: Any) -> None:
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3, msg=lambda text: f"{peer}: {text}")


def compiled(function: Callable[..., Any], small: bool) -> Callable[..., Any]:
    return function if small else torch.compile(function, dynamic=False)


def hashing(small: bool) -> Contest:
    import blake3
    import xxhash

    count, D = (20, 96) if small else (2000, 3072)
    x = torch.randint(256, (count, D), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    weights = ops.hash_weights(D)

    def same(peer: str, theirs: Any, ours: Tensor) -> None:
        if isinstance(theirs, Tensor):
            assert torch.equal(theirs, ours), peer
        assert len(theirs) == len(ours)

    peers: dict[str, Run] = {
        "xxh3_128": lambda: [xxhash.xxh3_128_intdigest(image) for image in x.numpy()],
        "blake3": lambda: [blake3.blake3(image).digest() for image in x.numpy()],
        "torch": partial(ops.OPS["weighted_sum_hash"].reference, x, weights),
        "torch.compile": partial(compiled(torch_int64, small), x, weights),
    }
    note = "a hash of every row; digests are another function for the same purpose"
    return Contest(f"weighted_sum_hash/{count}x{D}", partial(ops.weighted_sum_hash, x, weights), peers, same, note)


def clipping(small: bool) -> Contest:
    from bench.clipped_relu import formula

    size = (2, 3, 4, 4) if small else (64, 64, 16, 16)
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(size, generator=generator) for _ in range(2))
    learnt = [x.requires_grad_(), (torch.rand(size[1], generator=generator) + 0.5).requires_grad_()]

    def graded(function: Callable[..., Tensor]) -> Run:
        return lambda: torch.autograd.grad(function(*learnt), learnt, grad)

    peers = {"torch": graded(formula), "torch.compile": graded(compiled(formula, small))}
    name = f"clipped_relu/{'x'.join(map(str, size))}"
    return Contest(name, graded(ops.clipped_relu), peers, equal, "forward and backward")


def calibrating(small: bool) -> Contest:
    groups, n, d = (2, 16, 32) if small else (10, 256, 512)
    generator = torch.Generator().manual_seed(0)
    r = torch.randn(groups, n, d, generator=generator) + 2
    r[:, : n // 10] += torch.randn(groups, 1, d, generator=generator)  # a direction that all agree on
    drop, start = ops.calibration_drop(0.1, n), torch.randn(d, generator=key(0).generator())
    peers = {
        "torch": partial(batched, r, start, drop, 50),
        "torch.compile": partial(compiled(batched, small), r, start, drop, 50),
    }
    name = f"calibrated_mean/{groups}x{n}x{d}"
    return Contest(name, partial(calibrated, r, drop, 50), peers, equal, "50 iterations; torch's by batched products")


def medoids(small: bool) -> Contest:
    from bench.facility_location import apricot_greedy, similarity, submodlib_greedy

    n, k = (60, 6) if small else (2000, 400)
    x = gradients(n, 10)

    def clock(greedy: Callable[[np.ndarray, int], tuple[float, list[int]]]) -> float:
        found: list[np.ndarray] = []
        distances = cpu_seconds(lambda: found.append(similarity(x.double())))
        return distances + greedy(found[0], k)[0]

    def ours() -> list[int]:
        return ops.facility_location(x, [0, n], [k]).rows.tolist()

    def same(peer: str, theirs: Any, ours: list[int]) -> None:
        s = similarity(x.double())
        worth = [s[:, list(picks)].max(1).sum() for picks in (theirs, ours)]
        assert abs(worth[0] / worth[1] - 1) < 1e-6, peer

    greedies = {"apricot": apricot_greedy, "submodlib": submodlib_greedy}
    peers = {who: lambda greedy=greedy: greedy(similarity(x.double()), k)[1] for who, greedy in greedies.items()}
    clocks = {who: partial(clock, greedy) for who, greedy in greedies.items()}
    note = "from the rows to the picks, with scikit-learn's distances; without what apricot compiles in every call"
    return Contest(f"facility_location/{n}x10/{k}", ours, peers, same, note, clocks)


def clouds(small: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Features float32 [N, d] of ten classes, their labels, and which rows lie apart: a tenth of every class."""
    each, d = (60, 16) if small else (500, 512)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(each)
    apart = torch.arange(len(labels)) % 10 == 0
    features = torch.randn(len(labels), d, generator=generator) + 3 * torch.randn(10, d, generator=generator)[labels]
    return features + 4 * apart[:, None] * torch.randn(1, d, generator=generator), labels, apart


def signatures(small: bool) -> Contest:
    from art.defences.detector.poison import SpectralSignatureDefense

    features, labels, _ = clouds(small)

    def theirs() -> Tensor:
        scores = torch.zeros(len(labels))
        for label in range(10):
            own = features[labels == label].numpy()
            # its projections are not about the mean, as those of the paper are: it is given features that are
            found = SpectralSignatureDefense.spectral_signature_scores(own - own.mean(0))[:, 0]
            scores[labels == label] = torch.from_numpy(found).float()
        return scores

    def ours() -> Tensor:
        return SpectralSignatures()(features, labels, key=key(0)).score.sqrt().float()

    name, note = "x".join(map(str, features.shape)), "scores of all rows; ours is in float64 and flags rows as well"
    return Contest(f"spectral_signatures/{name}", ours, {"art": theirs}, equal, note)


def clusters(small: bool) -> Contest:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    art = importlib.import_module("art.defences.detector.poison.activation_defence")
    analyzer = importlib.import_module("art.defences.detector.poison.clustering_analyzer").ClusteringAnalyzer()
    features, labels, apart = clouds(small)

    def flagged(cluster: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        found = torch.zeros(len(labels), dtype=torch.bool)
        for label in range(10):
            found[labels == label] = torch.from_numpy(cluster(features[labels == label].numpy()))
        return found

    def by_art(own: np.ndarray) -> np.ndarray:
        parts = art.cluster_activations([own], nb_clusters=2, nb_dims=10, reduce="PCA")[0]
        return parts[0] == int(analyzer.analyze_by_size(parts)[1][0].argmax())

    def by_sklearn(own: np.ndarray) -> np.ndarray:
        parts = KMeans(2, n_init=10, random_state=0).fit_predict(PCA(10).fit_transform(own))
        return parts == np.bincount(parts).argmin()

    def ours() -> Tensor:
        return ActivationClustering("smaller", "pca")(features, labels, key=key(0)).flagged

    def same(peer: str, theirs: Tensor, ours: Tensor) -> None:
        assert torch.equal(ours, apart), "not the rows that lie apart"
        assert torch.equal(theirs, ours), peer

    peers = {"art": partial(flagged, by_art), "scikit-learn": partial(flagged, by_sklearn)}
    name = "x".join(map(str, features.shape))
    note = "ten principal components, two means from ten starts; art has scikit-learn's means from one start"
    return Contest(f"activation_clustering/{name}", ours, peers, same, note)


def private(small: bool) -> Contest:
    """An epoch of DP-SGD with gradients of rows, against Opacus' engine and its loop."""
    opacus = importlib.import_module("opacus")
    digits, _ = load("digits")
    count, size, clip = (32, 16, 0.5) if small else (512, 64, 0.5)
    data = digits.take(torch.arange(count))
    config, shape = ConvNet(2, 16, "none"), digits.shape
    recipe = Recipe(config, 1, size, schedule=Cosine(0.05), weight_decay=0.0, augment=None, channels_last=False)

    def network() -> nn.Module:
        model = config.build(shape, 10, key(0)).train()
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # Opacus' hooks need it
        return model

    def engine(noise: float) -> tuple[nn.Module, Any, Any]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(data.images, data.labels), size)
        return opacus.PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=noise,
            max_grad_norm=clip,
            poisson_sampling=False,
        )

    def theirs() -> int:
        model, optimizer, loader = engine(0.01)
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
        return len(loader)

    def ours() -> int:
        DPSGD(clip, 0.01, "per_sample")(data, recipe, key=key(0), model=network())
        return -(-count // size)

    def same(peer: str, theirs: int, ours: int) -> None:
        """As many steps, and without noise the same gradient of a batch."""
        assert theirs == ours, peer
        images, labels = data.images[:size], data.labels[:size]
        mine, (model, optimizer, _) = network(), engine(0.0)
        batch = Batch(images, labels, torch.arange(size), 0, 0, Key(0))
        ShapedPerSample(clip, 0.0).gradients(mine, batch)
        cross_entropy(model(images), labels).backward()
        optimizer.pre_step()
        for a, b in zip(mine.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)

    name, note = f"dp_sgd/digits/{count}", f"an epoch in batches of {size} of {config}"
    return Contest(name, ours, {"opacus": theirs}, same, note)


def partitions(small: bool) -> Contest:
    """DPA by the sum of the pixels, which is the one hash that both have: partition, training, and votes."""
    classification = importlib.import_module("art.estimators.classification")
    train, test = load("digits")
    k, epochs, size = (4, 1, 16) if small else (16, 4, 16)
    train, test = (train.take(torch.arange(80)), test.take(torch.arange(40))) if small else (train, test)
    defense = DPA(k, hash="pixel_sum")
    wide = ResNet(8, 16, stem="small")
    recipe = Recipe(wide, epochs, size, schedule=Cosine(0.02), weight_decay=5e-4, augment=None)
    base, pixels, asked = wide.scaled(k), train.images.float().numpy(), test.images.float().numpy()

    def classifier() -> Any:
        model = base.build(train.shape, 10, key(0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
        return classification.PyTorchClassifier(
            model, nn.CrossEntropyLoss(), train.shape, 10, optimizer, device_type="cpu"
        )

    def ours() -> Tensor:
        split = defense.split(train, key(0))
        models = fit_stack(defense.jobs(train, recipe, key=key(0), split=split))
        return defense.gather(dict(enumerate(models)), 10, split).predict(test.images)

    def theirs() -> Tensor:
        ensemble = classification.DeepPartitionEnsemble(classifier(), ensemble_size=k, channels_first=True)
        ensemble.fit(pixels, np.eye(10, dtype=np.float32)[train.labels.numpy()], batch_size=size, nb_epochs=epochs)
        return torch.from_numpy(ensemble.predict(asked)).argmax(1)

    def same(peer: str, theirs: Tensor, ours: Tensor) -> None:
        """The same partition, and of the same weights the same votes: what was trained has other random numbers."""
        split = defense.split(train, key(0))
        sums = train.images.long().sum((1, 2, 3)) % k
        assert all(sorted(rows.tolist()) == (sums == i).nonzero()[:, 0].tolist() for i, rows in enumerate(split.rows))
        members = [classifier() for _ in range(k)]
        models = [base.build(train.shape, 10, key(i)).eval() for i in range(k)]
        for member, model in zip(members, models, strict=True):
            member.model.load_state_dict(model.state_dict())
        voted = classification.DeepPartitionEnsemble(members, ensemble_size=k, channels_first=True).predict(asked)
        expected = torch.stack([predict(model, test.images) for model in models])
        assert torch.equal(torch.from_numpy(voted).long(), nn.functional.one_hot(expected, 10).sum(0)), peer
        assert theirs.shape == ours.shape

    note = f"{k} base models of {base}, {epochs} epochs in batches of {size}, and the votes on the test images"
    return Contest(f"dpa/digits/{k}", ours, {"art": theirs}, same, note)


HEADERS = ("what", "who", "seconds", "ratio", "peak MB", "rounds", "machine", "load", "torch", "commit", "date", "note")


def table(rows: Iterable[Row]) -> list[list[object]]:
    """One line for every piece of work and whoever did it, under ``HEADERS``; ratio: how many times as long as ours."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for each in rows:
        kind, _, rest = each.name.partition("/")
        if kind == "peers":
            what, who, quantity = rest.rsplit("/", 2)
            found.setdefault((what, who), {})[quantity] = each
    lines: list[list[object]] = []
    for (what, who), quantities in found.items():
        taken, ratio = quantities["time"], quantities["ratio"].value if "ratio" in quantities else 1.0
        machine = f"{taken.machine.cpu}, {taken.machine.isa[-1]}, one thread"
        about = [machine, taken.machine.load, taken.machine.torch, taken.commit[:10], taken.date, taken.note]
        lines.append([what, who, taken.value, ratio, quantities["memory"].value, taken.samples, *about])
    return lines


def publish(folder: Path, rows: Iterable[Row]) -> Path:
    """``peers.csv`` and ``peers.html``, a page of bars, into ``folder``; the page."""
    lines = table(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.csv").write_text(report.csv_text(HEADERS, lines))
    sections = []
    for what in dict.fromkeys(str(line[0]) for line in lines):
        mine = [line for line in lines if line[0] == what]
        names = ["poisonkit" if line[1] == "ours" else str(line[1]) for line in mine]
        bars = [
            report.bar_chart(names, {label: [float(str(line[at])) * scale for line in mine]}, **about)
            for label, at, scale, about in (
                ("milliseconds", 2, 1e3, {"title": what, "y_label": "milliseconds", "percent": False}),
                ("peak MB", 4, 1.0, {"title": what, "y_label": "MB beyond what was held before", "percent": False}),
            )
        ]
        sections.append(report.Section(what, [str(mine[0][-1]), *(report.figure(bar, "") for bar in bars)]))
    sections.append(report.Section("Numbers", [report.html_table(HEADERS, lines, "Medians; one thread's CPU time")]))
    path = folder / "peers.html"
    subtitle = f"The same work, compared first, in turns on one thread of {lines[0][6]}"
    path.write_text(report.page("poisonkit against its peers", subtitle, sections))
    return path
