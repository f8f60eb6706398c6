"""Facility location: against greedies that look at everything, other libraries, and its promises about ties."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import key, ops
from poisonkit.errors import ArgumentError

EVERY_ISA = pytest.mark.parametrize("isa", [isa for isa in ops.isas() if isa in ("reference", "scalar", "avx2")])
SIMILARITIES = ["l2", "exp_l2", "sq_l2"]


def gradients(n, classes, seed=0, confidence=2.0):
    """p - y of one class, as a network in training has them."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(0, 1.5, (6, classes))
    centres[:, 0] += confidence
    logits = torch.from_numpy(centres[generator.integers(6, size=n)] + generator.normal(size=(n, classes)))
    rows = logits.softmax(1)
    rows[:, 0] -= 1
    return rows.float()


def similarities(x, similarity, scale=1.0):
    """Float64 [n, n]."""
    x = x.double().numpy()
    distances = np.sqrt(((x[:, None] - x) ** 2).sum(-1))
    if similarity == "exp_l2":
        return np.exp(-distances / scale)
    power = distances if similarity == "l2" else distances**2
    return power.max() - power


def naive_greedy(s, k):
    """The medoids by looking at every pair for every pick; of equal ones the smallest."""
    best, picks = np.zeros(len(s)), []
    for _ in range(k):
        gains = np.maximum(s - best[:, None], 0).sum(0)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        best = np.maximum(best, s[:, picks[-1]])
    return picks


def objective(s, picks):
    return s[:, list(picks)].max(1).sum()


def alone(medoids):
    """What EPIC drops."""
    return set(medoids.rows[medoids.sizes == 1].tolist())


def alone_in(s, picks):
    sizes = np.bincount(s[:, picks].argmax(1), minlength=len(picks))
    return {pick for pick, size in zip(picks, sizes, strict=True) if size == 1}


def one_group(x, k, *args, **options):
    return ops.facility_location(x, [0, len(x)], [k], *args, **options)


@EVERY_ISA
def test_by_hand(isa):
    # 0 . 2 3 . . . . . . 10: row 1 (at 2) costs 2 + 0 + 1 + 8; then only the far row gains 8, then row 0 gains 2.
    x = torch.tensor([[0.0], [2.0], [3.0], [10.0]])
    with ops.isa(isa):
        medoids = one_group(x, 4)
    assert medoids.rows.tolist() == [1, 3, 0, 2]
    assert medoids.sizes.tolist() == [1, 1, 1, 1]
    assert medoids.gains[1:].tolist() == [8, 2, 1]
    with ops.isa(isa):
        medoids = one_group(x, 2)
    assert medoids.nearest.tolist() == [0, 0, 0, 1]
    assert medoids.sizes.tolist() == [3, 1]


@EVERY_ISA
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("n", "d", "k"), [(300, 10, 90), (200, 3, 20), (150, 40, 60)])
def test_equals_a_naive_greedy_in_float64(isa, similarity, n, d, k):
    x = gradients(n, d)
    s = similarities(x, similarity, d)
    with ops.isa(isa):
        medoids = one_group(x, k, similarity)
    naive = naive_greedy(s, k)
    # Mutual neighbours tie but for rounding, so float64 may pick them in another order or pick the other one.
    assert objective(s, medoids.rows) == pytest.approx(objective(s, naive), rel=1e-7)
    ours, theirs = alone(medoids), alone_in(s, naive)
    assert len(ours & theirs) >= 0.97 * len(ours | theirs)
    assert medoids.gains[1:].numpy() == pytest.approx(
        np.diff([objective(s, naive[: t + 1]) for t in range(k)]), abs=1e-4
    )


def test_the_fallback_takes_one_thread(monkeypatch):
    seen, x = [], torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    module = sys.modules["poisonkit.ops.facility_location"]
    summed = module._Costs.summed
    monkeypatch.setattr(module._Costs, "summed", lambda *args: seen.append(torch.get_num_threads()) or summed(*args))
    torch.set_num_threads(3)
    with ops.isa("reference"):
        ops.facility_location(x, [0, 20], [5])
    assert seen
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3


@EVERY_ISA
@pytest.mark.parametrize("seed", range(5))
def test_brute_force(isa, seed):
    """Of all sets of k of 12 rows the best is at most e / (e - 1) better, and one medoid is the best of all."""
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(12, 2))).float()
    s = similarities(x, "l2")
    for k in (1, 2, 3, 4):
        with ops.isa(isa):
            found = objective(s, one_group(x, k).rows)
        most = max(objective(s, picks) for picks in itertools.combinations(range(12), k))
        assert found >= (1 - 1 / math.e) * most
        assert k > 1 or found == pytest.approx(most)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_groups_equal_exact_integers(data):
    """Whole numbers on a line: distances are exact, so that ties are ties, and go to the smaller row."""
    sizes = data.draw(st.lists(st.integers(0, 80), min_size=1, max_size=4))
    k = [data.draw(st.integers(0, size)) for size in sizes]
    rows = data.draw(st.lists(st.integers(-20, 20), min_size=sum(sizes), max_size=sum(sizes)))
    x = torch.tensor(rows, dtype=torch.float32)[:, None]
    offsets = [0, *itertools.accumulate(sizes)]
    expected = []
    for start, end, count in zip(offsets, offsets[1:], k, strict=False):
        if count:
            mine = np.array(rows[start:end])
            expected += [start + pick for pick in naive_greedy(64.0 - abs(mine[:, None] - mine), count)]
    for isa in ops.isas():
        with ops.isa(isa):
            medoids = ops.facility_location(x, offsets, torch.tensor(k))
        assert medoids.rows.tolist() == expected
        assert medoids.sizes.sum() == sum(size for size, count in zip(sizes, k, strict=True) if count)


@EVERY_ISA
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_duplicates_and_more_medoids_than_distinct_rows(isa, similarity):
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [1.0, 0.0]])
    with ops.isa(isa):
        medoids = one_group(x, 5, similarity)
    assert medoids.rows.tolist() == [0, 3, 1, 2, 4]  # the rest gains nothing and comes by its index
    assert medoids.sizes.tolist() == [3, 1, 1, 0, 0]
    assert medoids.gains[3:].tolist() == [0, 0]
    assert medoids.nearest.tolist() == [0, 2, 0, 1, 0]


@EVERY_ISA
def test_one_row_no_row_and_no_medoid(isa):
    x = torch.tensor([[3.0], [1.0], [2.0]])
    with ops.isa(isa):
        medoids = ops.facility_location(x, torch.tensor([0, 0, 1, 3]), torch.tensor([0, 1, 0]))
        nothing = ops.facility_location(torch.zeros(0, 4), [0], [])
    assert [field.tolist() for field in medoids[:3]] == [[0], [1], [0, -1, -1]]
    assert [len(field) for field in nothing] == [0, 0, 0, 0]


@EVERY_ISA
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("factor", [2.0**-100, 2.0**-20, 2.0**60])
def test_picks_do_not_depend_on_the_size_of_the_features(isa, similarity, factor):
    x = gradients(100, 6)
    with ops.isa(isa):
        small = one_group(x, 40, similarity, *([0.7] if similarity == "exp_l2" else []))
        large = one_group(x * factor, 40, similarity, *([0.7 * factor] if similarity == "exp_l2" else []))
    assert all(torch.equal(a, b) for a, b in zip(small[:3], large[:3], strict=True))
    unit = {"l2": factor, "sq_l2": factor**2, "exp_l2": 1.0}[similarity]
    assert torch.equal(large.gains, small.gains * unit)


@EVERY_ISA
def test_the_order_of_rows_changes_nothing_but_ties(isa):
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(200, 4))).float()
    order = torch.randperm(199, generator=torch.Generator().manual_seed(0)) + 1
    order = torch.cat([torch.zeros(1, dtype=torch.int64), order])  # the lattice hangs on the first row
    with ops.isa(isa):
        medoids, moved = one_group(x, 30), one_group(x[order], 30)
    assert torch.equal(order[moved.rows], medoids.rows)
    assert torch.equal(moved.gains, medoids.gains)


def test_groups_do_not_see_one_another():
    x = gradients(300, 10)
    together = ops.facility_location(x, [0, 100, 300], [30, 50])
    first, second = one_group(x[:100], 30), one_group(x[100:], 50)
    assert torch.equal(together.rows, torch.cat([first.rows, second.rows + 100]))
    assert torch.equal(together.sizes, torch.cat([first.sizes, second.sizes]))
    assert torch.equal(together.nearest, torch.cat([first.nearest, second.nearest + 30]))
    assert torch.equal(together.gains, torch.cat([first.gains, second.gains]))
    assert torch.equal(together.sizes, torch.bincount(together.nearest, minlength=80))


THREADS = """
import torch
from poisonkit import ops
x = torch.randn(2000, 5, generator=torch.Generator().manual_seed(0))
arguments = x, list(range(0, 2001, 250)), [60] * 8
torch.set_num_threads(1)
one = ops.facility_location(*arguments)
torch.set_num_threads(3)
three = ops.facility_location(*arguments)
assert all(map(torch.equal, one, three))
"""


def test_one_thread_and_three_agree():
    subprocess.run([sys.executable, "-W", "error", "-c", THREADS], check=True, timeout=60)


@EVERY_ISA
def test_stochastic_greedy_is_keyed_and_falls_short(isa):
    x = gradients(400, 10)
    s = similarities(x, "l2")
    with ops.isa(isa):
        exact = one_group(x, 40)
        first, again, other = (one_group(x, 40, greedy="stochastic", key=key(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.rows, again.rows)
    assert not torch.equal(first.rows, other.rows)
    assert len(set(first.rows.tolist())) == 40
    assert 0.9 * objective(s, exact.rows) < objective(s, first.rows) < objective(s, exact.rows)


def test_stochastic_greedy_draws_by_the_formula(monkeypatch):
    module = sys.modules["poisonkit.ops.facility_location"]
    seen = []
    monkeypatch.setattr(module, "greedy_medoids", lambda *args: seen.append(args[5]) or torch.zeros(4, 0))
    ops.facility_location(
        torch.zeros(120, 1), [0, 100, 120], [10, 0], greedy="stochastic", epsilon=math.exp(-2), key=key(0)
    )
    assert seen == [[20, 40]]


def test_bad_options_are_refused():
    x = torch.zeros(3, 2)
    for options, match in [
        ({"similarity": "cosine"}, "similarity must be one of l2, exp_l2, sq_l2"),
        ({"scale": 2.0}, "scale must be None for l2"),
        ({"greedy": "lazy"}, "greedy must be exact or stochastic"),
        ({"greedy": "stochastic"}, "key must be given"),
        ({"greedy": "stochastic", "key": key(0), "epsilon": 1.0}, "epsilon must be in"),
    ]:
        with pytest.raises(ArgumentError, match=match):
            one_group(x, 1, **options)
    for offsets, k in [([0.0, 3.0], [1]), ([0, 3], [1.0]), ([[0, 3]], [1])]:
        with pytest.raises(ArgumentError, match="must be a list of integers"):
            ops.facility_location(x, torch.tensor(offsets), torch.tensor(k))


@pytest.mark.parametrize(("n", "d", "k"), [(400, 10, 40), (400, 10, 120), (150, 100, 15)])
@pytest.mark.filterwarnings("ignore")  # numba's
def test_objective_and_lone_medoids_equal_apricots(n, d, k):
    apricot = pytest.importorskip("apricot", reason="apricot is not installed")
    x = gradients(n, d)
    s = similarities(x, "l2")
    theirs = apricot.FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(s).ranking
    medoids = one_group(x, k)
    assert objective(s, medoids.rows) == pytest.approx(objective(s, theirs), rel=1e-7)
    assert alone(medoids) == alone_in(s, theirs)


@pytest.mark.parametrize("similarity", ["l2", "exp_l2"])
@pytest.mark.filterwarnings("ignore")  # submodlib's
def test_objective_and_lone_medoids_equal_submodlibs(similarity):
    submodlib = pytest.importorskip("submodlib", reason="submodlib is not installed")
    x = gradients(400, 10)
    s = similarities(x, similarity, 10)
    function = submodlib.FacilityLocationFunction(n=400, mode="dense", sijs=s, separate_rep=False)
    theirs = [row for row, _ in function.maximize(budget=120, optimizer="LazyGreedy", show_progress=False)]
    medoids = one_group(x, 120, similarity)
    assert objective(s, medoids.rows) == pytest.approx(objective(s, theirs), rel=1e-6)
    ours, others = alone(medoids), alone_in(s, theirs)
    assert len(ours & others) >= 0.97 * len(ours | others)
