"""Filters of training rows, against cases worked by hand and the libraries a user would take instead."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from poisonkit.defenses.filters import FILTERS
from poisonkit.defenses.filters.activation_clustering import ActivationClustering, silhouette, two_means
from poisonkit.defenses.filters.classes import principal
from poisonkit.defenses.filters.deep_knn import DeepKNN
from poisonkit.defenses.filters.spectral_signatures import SpectralSignatures
from poisonkit.errors import ArgumentError
from poisonkit.random import key

EVERY = [
    SpectralSignatures(),
    ActivationClustering(),
    ActivationClustering("silhouette", "pca"),
    ActivationClustering("smaller", "none"),
    DeepKNN(),
    DeepKNN(vote="majority", balanced=False),
]


def clouds(sizes: list[int], d: int = 12, apart: float = 6.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A normal cloud of each size, around centres that are ``apart``; the labels are shuffled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = apart * torch.randn(len(sizes), d, generator=generator)
    return centres[labels] + torch.randn(len(labels), d, generator=generator), labels


def planted(sizes: list[int], count: int, d: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Clouds of which ``count`` rows of class 0 lie together elsewhere, and which rows those are."""
    features, labels = clouds(sizes, d)
    bad = torch.zeros(len(labels), dtype=torch.bool)
    bad[(labels == 0).nonzero()[:count, 0]] = True
    features[bad] += 8 * torch.nn.functional.normalize(torch.ones(d), dim=0)
    return features, labels, bad


# ------------------------------------------------------------------------------------------------- by hand


def test_spectral_signatures_by_hand() -> None:
    """Class 0 lies on the line (3, 4) at -1, -1, -1, 3 about its mean: squares of 25 times those."""
    line = torch.tensor([3.0, 4.0])
    features = torch.stack([line * t for t in (0, 0, 0, 4)] + [torch.tensor([0.0, t]) for t in (1, 5, 2)])
    labels = torch.tensor([2, 2, 2, 2, 0, 0, 0])
    found = SpectralSignatures(rate=0.25, multiple=1)(features, labels, key=key(0))
    middle = 8 / 3
    expected = [25.0, 25.0, 25.0, 225.0, *((t - middle) ** 2 for t in (1, 5, 2))]
    torch.testing.assert_close(found.score, torch.tensor(expected, dtype=torch.float64))
    assert found.flagged.tolist() == [False, False, False, True, False, False, False]  # a quarter of 3 rows is none
    assert found.p_value is None
    two = SpectralSignatures(rate=0.25, multiple=2)(features, labels, key=key(0)).flagged
    assert two[:3].sum() == 1  # of three that are equal but for rounding
    assert two[3:].tolist() == [True, False, True, False]


def test_deep_knn_by_hand() -> None:
    """On a line: three of class 0, one of class 1 among them, three of class 1."""
    features = torch.tensor([[0.0], [1.0], [1.6], [2.5], [10.0], [11.1], [12.3]])
    labels = torch.tensor([0, 0, 1, 0, 1, 1, 1])
    found = DeepKNN(share=2 / 7, balanced=False)(features, labels, key=key(0))
    # the two nearest: 1 and 1.6; 1.6 and 0; 1 and 2.5; 1.6 and 1; 11.1 and 12.3; 10 and 12.3; 11.1 and 10
    assert found.score.tolist() == [0.5, 0.5, 1.0, 0.5, 0.0, 0.0, 0.0]
    assert found.flagged.tolist() == [False, False, True, False, False, False, False]  # a tie keeps the row
    balanced = DeepKNN(share=2 / 7)(features, labels, key=key(0))
    # a vote of class 0 counts a third, one of class 1 a quarter: 4 to 3
    torch.testing.assert_close(balanced.score[:4], torch.tensor([3 / 7, 3 / 7, 1.0, 3 / 7], dtype=torch.float64))
    assert DeepKNN(share=2 / 7, vote="majority")(features, labels, key=key(0)).flagged.sum() == 1


def test_small_classes_are_not_outvoted_for_being_small() -> None:
    features, labels = clouds([300, 20, 300], apart=8)
    assert not DeepKNN(share=0.2)(features, labels, key=key(0)).flagged.any()
    plain = DeepKNN(share=0.2, balanced=False)(features, labels, key=key(0))
    assert torch.equal(plain.flagged, labels == 1)


def test_activation_clustering_by_hand() -> None:
    """Class 0 is two heaps on a line, of 3 and 9 rows; class 1 is one of two halves."""
    heaps = [0.0, 0.1, 0.2] + [5 + 0.1 * i for i in range(9)]
    halves = [0.0, 0.1, 0.2, 0.3, 0.4, 9.0, 9.1, 9.2, 9.3, 9.4]
    features = torch.tensor(heaps + halves)[:, None]
    labels = torch.tensor([0] * 12 + [1] * 10)
    for method in (ActivationClustering(dims=1), ActivationClustering("smaller", "none", dims=1)):
        found = method(features, labels, key=key(0))
        assert found.flagged.tolist() == [True] * 3 + [False] * 19
        assert found.score.tolist() == [0.75] * 3 + [0.25] * 9 + [0.5] * 10
    assert not ActivationClustering(dims=1, size=0.25)(features, labels, key=key(0)).flagged.any()
    few = ActivationClustering(dims=5)(features, labels, key=key(0))  # 10 rows are too few for 5 dimensions
    assert few.score[12:].tolist() == [0.0] * 10


def test_silhouette_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    second = torch.tensor([False, False, True])
    # 0: a = 1, b = 4; 1: a = 1, b = 3; 4 is alone
    assert silhouette(points, second) == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)


# --------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize(("n", "d"), [(40, 7), (7, 40)])
def test_principal_components_against_scikit_learn(n: int, d: int) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    theirs = decomposition.PCA(3, svd_solver="full").fit_transform(features.numpy())
    found = principal(features - features.mean(0), 3)
    np.testing.assert_allclose(found.abs().numpy(), np.abs(theirs), atol=1e-9)


def test_deep_knn_against_scikit_learn() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors", reason="scikit-learn is not installed")
    features, labels = clouds([150, 60, 90], apart=0.4)
    near = neighbors.NearestNeighbors(algorithm="brute").fit(features.numpy()).kneighbors(n_neighbors=15)[1]
    agree = (labels[torch.from_numpy(near)] == labels[:, None]).double().mean(1)
    counts = torch.nn.functional.one_hot(labels[torch.from_numpy(near)], 3).sum(1)
    found = DeepKNN(share=0.05, balanced=False)(features, labels, key=key(0))
    torch.testing.assert_close(found.score, 1 - agree)
    assert torch.equal(found.flagged, counts.amax(1) > counts[torch.arange(300), labels])
    assert 50 < found.flagged.sum() < 250


@pytest.mark.parametrize("seed", range(4))
def test_two_means_against_scikit_learn(seed: int) -> None:
    cluster = pytest.importorskip("sklearn.cluster", reason="scikit-learn is not installed")
    points = clouds([40, 25, 10], d=3, apart=1.0, seed=seed)[0].double()
    points -= points.mean(0)
    theirs = cluster.KMeans(2, n_init=20, random_state=0).fit(points.numpy())
    mine = two_means(points, key(seed))
    within = sum(float((part - part.mean(0)).square().sum()) for part in (points[mine], points[~mine]))
    assert within <= theirs.inertia_ * (1 + 1e-9)
    agree = float((mine == torch.from_numpy(theirs.labels_).bool()).double().mean())
    assert max(agree, 1 - agree) == 1.0
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    assert silhouette(points, mine) == pytest.approx(metrics.silhouette_score(points.numpy(), mine.numpy()))


def test_whitened_components_lie_as_independent_ones() -> None:
    """ICA turns the whitened principal components, so that their distances, all that k-means sees, are its own."""
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is not installed")
    generator = torch.Generator().manual_seed(0)
    sources = torch.rand(400, 4, generator=generator, dtype=torch.float64) ** 3
    features = sources @ torch.randn(4, 9, generator=generator, dtype=torch.float64)
    features += 0.01 * torch.randn(400, 9, generator=generator, dtype=torch.float64)
    mine = ActivationClustering(dims=4)._reduced(features - features.mean(0))
    ica = decomposition.FastICA(4, whiten="unit-variance", max_iter=2000, random_state=0)
    theirs = torch.from_numpy(ica.fit_transform(features.numpy()))
    torch.testing.assert_close(torch.cdist(mine, mine), torch.cdist(theirs, theirs), rtol=1e-5, atol=1e-5)
    assert float((mine - theirs).abs().max()) > 0.1


def test_spectral_signatures_against_art() -> None:
    art = pytest.importorskip(
        "art.defences.detector.poison", reason="adversarial-robustness-toolbox is not installed", exc_type=ImportError
    )
    features, labels = clouds([50, 30], apart=0.0)
    found = SpectralSignatures()(features, labels, key=key(0))
    for label in (0, 1):
        own = features[labels == label].double()
        # its projections are not about the mean, as those of the paper are: it is given features that are
        theirs = art.SpectralSignatureDefense.spectral_signature_scores((own - own.mean(0)).numpy())[:, 0]
        np.testing.assert_allclose(found.score[labels == label].sqrt().numpy(), theirs, rtol=1e-6)


def test_activation_clustering_against_art() -> None:
    art = pytest.importorskip(
        "art.defences.detector.poison", reason="adversarial-robustness-toolbox is not installed", exc_type=ImportError
    )
    features, labels, bad = planted([200, 150], 40)
    flagged = ActivationClustering("smaller", "pca")(features, labels, key=key(0)).flagged
    own = features[labels == 0].numpy()
    activation_defence = importlib.import_module("art.defences.detector.poison.activation_defence")
    parts = activation_defence.cluster_activations([own], nb_clusters=2, nb_dims=10, reduce="PCA")[0]
    poison = art.ClusteringAnalyzer().analyze_by_size(parts)[1][0]
    theirs = torch.from_numpy(parts[0] == int(poison.argmax()))
    assert torch.equal(theirs, flagged[labels == 0])
    assert torch.equal(theirs, bad[labels == 0])


# ---------------------------------------------------------------------------------------------- properties


@pytest.mark.parametrize(
    "method",
    [SpectralSignatures(), ActivationClustering(), ActivationClustering("silhouette"), DeepKNN(share=0.2)],
    ids=str,
)
def test_planted_rows_are_found(method: Any) -> None:
    features, labels, bad = planted([400, 60, 300], 40)
    if isinstance(method, DeepKNN):  # which looks for rows among those of another class
        labels[bad] = 2
    found = method(features, labels, key=key(0))
    assert found.flagged[bad].all()
    wrong = float((found.flagged & ~bad).double().mean())
    assert wrong < (0.15 if isinstance(method, SpectralSignatures) else 0.03)
    assert found.score[bad].min() > found.score[~bad & (labels == 0)].median()


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_detections_are_well_formed(method: Any) -> None:
    """Tiny, missing and equal classes too; and the same answer at any scale and for any names."""
    features, labels = clouds([120, 1, 0, 2, 70, 40])
    features[labels == 5] = 1.5
    found = method(features, labels, key=key(3))
    assert found.flagged.shape == found.score.shape == labels.shape
    assert found.flagged.dtype == torch.bool
    assert found.score.dtype == torch.float64
    assert found.score.isfinite().all()
    assert not found.flagged[labels == 1].any() or isinstance(method, DeepKNN)
    again = method(features * 4, labels, key=key(3))
    assert torch.equal(again.flagged, found.flagged)
    if not isinstance(method, ActivationClustering):  # which starts the clusters of a class by its name
        assert torch.equal(method(features, labels * 7, key=key(3)).flagged, found.flagged)


@pytest.mark.parametrize("method", EVERY, ids=str)
def test_no_rows(method: Any) -> None:
    found = method(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), key=key(0))
    assert found.flagged.shape == found.score.shape == (0,)


@pytest.mark.parametrize("method", EVERY[:5:2], ids=str)
@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.zeros(4), torch.zeros(4, dtype=torch.int64), "features must be of shape [N, d], got [4]"),
        (torch.zeros(4, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), "features must be floats"),
        (torch.zeros(4, 2), torch.zeros(4), "labels must be int64, got torch.float32"),
        (torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64), "labels must be of shape [4]"),
        (torch.zeros(4, 2), -torch.ones(4, dtype=torch.int64), "labels must be 0 or more, got negative ones"),
        (torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64), "features must be finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_training_set_is_refused(method: Any, features: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        method(features, labels, key=key(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectralSignatures(rate=1.5), "rate must be a share in [0, 1], got 1.5"),
        (lambda: SpectralSignatures(rate=0.5, multiple=2), "multiple must be 0 or more, and less than 1 / rate"),
        (lambda: DeepKNN(share=0), "share must be in (0, 1), got 0"),
        (lambda: DeepKNN(vote="most"), "vote must be plurality or majority, got most"),  # type: ignore[arg-type]
        (lambda: ActivationClustering(dims=0), "dims must be 1 or more, got 0"),
        (lambda: ActivationClustering("best"), "judge must be size, silhouette or smaller"),  # type: ignore[arg-type]
        (lambda: ActivationClustering(reduce="svd"), "reduce must be ica, pca or none"),  # type: ignore[arg-type]
        (
            lambda: DeepKNN(share=0.9)(torch.zeros(2, 1), torch.tensor([0, 1]), key=key(0)),
            "share must be for fewer neighbours than the other 1 rows, got 2 neighbours",
        ),
    ],
)
def test_options_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        make()


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds([150, 100], apart=0.3)
    whole = DeepKNN()(features, labels, key=key(0))
    apart = silhouette(features.double(), labels == 1)
    monkeypatch.setattr("poisonkit.defenses.filters.deep_knn._CHUNK", 1000)
    monkeypatch.setattr("poisonkit.defenses.filters.activation_clustering._CHUNK", 1000)
    parts = DeepKNN()(features, labels, key=key(0))
    torch.testing.assert_close(parts.score, whole.score)
    assert silhouette(features.double(), labels == 1) == pytest.approx(apart)


def test_they_are_listed() -> None:
    assert {SpectralSignatures, ActivationClustering, DeepKNN} <= set(FILTERS.values())
