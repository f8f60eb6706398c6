"""The calibrated mean: by hand, against an eigendecomposition, and the ways groups reach it."""

import os
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import poisonkit as pk
from poisonkit import ops
from poisonkit.errors import ArgumentError

module = sys.modules["poisonkit.ops.calibrated_mean"]  # the package's attribute of this name is the function
PATHS = [isa for isa in ops.isas() if isa in ("reference", "scalar", "avx2")]
EVERY_PATH = pytest.mark.parametrize("isa", PATHS)


@pytest.fixture
def gram(request, monkeypatch):
    """Whether all groups are iterated in Gram space, whatever their sizes."""
    monkeypatch.setattr(module, "in_gram_space", lambda rows, dim, iterations: request.param)
    return request.param


BOTH_SPACES = pytest.mark.parametrize("gram", [False, True], ids=["matrix-free", "gram"], indirect=True)


def planted(B=4, N=128, d=96, share=0.1, shift=1.5, seed=0):
    """White features, the last rows of each group shifted alike by ``shift`` sqrt(d) / 2. Returns them and the mask."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(B, N, d, generator=generator) + 5
    poisoned = torch.arange(N) >= N - round(share * N)
    directions = torch.randn(B, 1, d, generator=generator)
    x[:, poisoned] += shift * d**0.5 / 2 * directions / directions.norm(dim=2, keepdim=True)
    return x, poisoned


def exact(rows, drop):
    """Algorithm 4 in float64 with the covariance and its eigenvector: dropped, scores."""
    x = rows.double() - rows.double().mean(0)
    v = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
    scores = (x @ v).abs()
    dropped = torch.zeros(len(rows), dtype=torch.bool)
    dropped[scores.topk(drop).indices] = True
    return dropped, scores


@EVERY_PATH
@BOTH_SPACES
def test_by_hand(isa, gram):
    # Mean (1, 1). Centred: (-1, 0), (0, 1), (0, -1), (4, 0), (-3, 0); the covariance is diagonal, 26/4 and 2/4.
    r = torch.tensor([[[0.0, 1.0], [1.0, 2.0], [1.0, 0.0], [5.0, 1.0], [-2.0, 1.0]]])
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrated_mean(r, 2)
    assert dropped.tolist() == [[False, False, False, True, True]]
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.0, 0.0, 4.0, 3.0]]))
    torch.testing.assert_close(mean, torch.tensor([[2 / 3, 1.0]]))


@EVERY_PATH
def test_one_iteration_by_hand(isa):
    # Centred (3, 0), (-3, 0), (0, 1), (0, -1): X'X = diag(18, 2), and from (1, 3) one step gives (18, 6) / sqrt(360).
    r = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrate(r, torch.tensor([1.0, 3.0]), [0, 4], [1], 1, 0.0)
    torch.testing.assert_close(scores * 360**0.5, torch.tensor([54.0, 54.0, 6.0, 6.0]))
    assert dropped.tolist() == [True, False, False, False]
    torch.testing.assert_close(mean, torch.tensor([[-1.0, 0.0]]))


@EVERY_PATH
@BOTH_SPACES
def test_ties_go_to_the_smaller_index(isa, gram):
    r = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]])
    with ops.isa(isa):
        for drop in range(5):
            assert ops.calibrated_mean(r, drop).dropped[0].tolist() == [i < drop for i in range(5)]


@BOTH_SPACES
@pytest.mark.parametrize("isa", [isa for isa in PATHS if isa != "reference"])
def test_equal_rows_tie_wherever_they_lie(isa, gram):
    x, _ = planted(B=1, N=61, d=37)
    order = torch.arange(61) % 7
    with ops.isa(isa):
        scores = ops.calibrated_mean(x[:, order], 0).scores[0]
    assert all(len(set(scores[order == row].tolist())) == 1 for row in range(7))


@EVERY_PATH
@BOTH_SPACES
@pytest.mark.parametrize("value", [0.0, 0.1, -1e30])
def test_without_variance_it_is_the_plain_mean(isa, gram, value):
    r = torch.full((2, 11, 5), value)
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrated_mean(r, 3)
    assert torch.equal(mean, r[:, 0])
    assert scores.count_nonzero() == 0
    assert dropped.tolist() == [[i < 3 for i in range(11)]] * 2


@EVERY_PATH
def test_one_row(isa):
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrated_mean(torch.tensor([[[2.0, 3.0]]]), 0)
    assert (mean.tolist(), dropped.tolist(), scores.tolist()) == ([[2.0, 3.0]], [[False]], [[0.0]])


@EVERY_PATH
@BOTH_SPACES
def test_equals_an_eigendecomposition_where_a_shift_is_planted(isa, gram):
    r, poisoned = planted()
    drop = ops.calibration_drop(0.1, 128)
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrated_mean(r, drop, iterations=60)
    for g in range(len(r)):
        exact_dropped, exact_scores = exact(r[g], drop)
        torch.testing.assert_close(scores[g].double(), exact_scores, rtol=1e-3, atol=1e-3)
        assert (dropped[g] & exact_dropped).sum() >= drop - 1  # two scores may lie within rounding
        assert dropped[g][poisoned].all()
        clean = r[g][~poisoned].mean(0)
        assert (mean[g] - clean).norm() < (r[g].mean(0) - clean).norm()
        torch.testing.assert_close(mean[g].double(), r[g][~dropped[g]].double().mean(0), rtol=1e-6, atol=1e-6)


def test_a_natural_direction_is_dropped_too():
    """What the docstring warns of: with one strong natural direction, poison elsewhere stays and clean rows go."""
    r, poisoned = planted(B=1, shift=0.5)
    natural = torch.randn(128, 1, generator=torch.Generator().manual_seed(1)) * torch.eye(96)[0]
    result = ops.calibrated_mean(r + 6 * natural, 38)
    assert result.dropped[0][poisoned].float().mean() < 0.6
    assert ops.top_direction(r + 6 * natural).share > 2 * ops.top_direction(r).share


@pytest.mark.parametrize("iterations", [1, 2, 3, 10, 40])
@EVERY_PATH
def test_both_spaces_give_the_same_sequence(isa, iterations, monkeypatch):
    r, _ = planted(B=3, N=50, d=40)
    results = []
    for in_gram_space in (False, True):
        monkeypatch.setattr(module, "in_gram_space", lambda *_, answer=in_gram_space: answer)
        with ops.isa(isa):
            results.append(ops.calibrated_mean(r, 15, iterations=iterations))
    torch.testing.assert_close(*(result.scores for result in results), rtol=1e-5, atol=1e-4)
    assert torch.equal(*(result.dropped for result in results))


def test_the_rule_is_of_shapes_alone():
    assert (module.in_gram_space(256, 2048, 10), module.in_gram_space(256, 2048, 50)) == (False, True)
    assert not module.in_gram_space(5000, 2048, 50)
    assert not module.in_gram_space(256, 256, 1000)  # an iteration costs as much there as here


@EVERY_PATH
@BOTH_SPACES
def test_it_stops_when_the_scores_no_longer_turn(isa, gram):
    r, _ = planted(shift=4.0)
    with ops.isa(isa):
        one, two, many = (ops.calibrated_mean(r, 38, iterations=n).scores for n in (1, 2, 200))
        stopped = ops.calibrated_mean(r, 38, iterations=200, tolerance=1e-3).scores
        at_once = ops.calibrated_mean(r, 38, iterations=200, tolerance=2.0).scores
    torch.testing.assert_close(stopped, many, rtol=1e-2, atol=1e-2)
    assert not torch.equal(stopped, many)
    torch.testing.assert_close(at_once, one)  # unit vectors are never further apart than 2
    assert (one - two).abs().max() > 1e-2


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    d=st.integers(1, 70),
    iterations=st.integers(1, 8),
    data=st.data(),
)
def test_ragged_groups_are_what_each_gives_alone(sizes, d, iterations, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    rows = torch.randn(sum(sizes), d, generator=generator)
    drop = [data.draw(st.integers(0, n - 1)) for n in sizes]
    offsets = [sum(sizes[:g]) for g in range(len(sizes) + 1)]
    together = ops.calibrated_mean(rows, drop, offsets, iterations)
    for g, (a, b) in enumerate(pairwise(offsets)):
        alone = ops.calibrated_mean(rows[None, a:b], drop[g], iterations=iterations)
        assert torch.equal(together.mean[g], alone.mean[0])
        assert torch.equal(together.scores[a:b], alone.scores[0])
        assert torch.equal(together.dropped[a:b], alone.dropped[0])


def test_offsets_and_drops_may_be_tensors():
    r, _ = planted(B=2, N=20)
    dense = ops.calibrated_mean(r, [3, 5])
    ragged = ops.calibrated_mean(r.flatten(0, 1), torch.tensor([3, 5]), torch.tensor([0, 20, 40]))
    assert torch.equal(dense.mean, ragged.mean)
    assert torch.equal(dense.dropped.flatten(), ragged.dropped)
    assert dense.dropped.shape == dense.scores.shape == (2, 20)
    assert dense.dropped.sum(1).tolist() == [3, 5]


def test_the_key_decides_the_first_direction():
    r, _ = planted(B=1)
    default, again, other = (
        ops.calibrated_mean(r, 9, iterations=1, key=key).scores for key in (None, None, pk.key(7).child("v"))
    )
    assert torch.equal(default, again)
    assert not torch.equal(default, other)


@EVERY_PATH
def test_gradient(isa):
    r, _ = planted(B=2, N=10, d=6)
    r.requires_grad_()
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrated_mean(r, [3, 0])
    assert not dropped.requires_grad
    assert not scores.requires_grad
    weights = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    (mean * weights).sum().backward()
    kept = (~dropped).float() / torch.tensor([[7.0], [10.0]])
    torch.testing.assert_close(r.grad, kept[..., None] * weights[:, None])
    assert not ops.calibrated_mean(r.detach(), 3).mean.requires_grad


@EVERY_PATH
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_group_that_is_not_finite_says_so(isa, bad):
    r, _ = planted(B=3, N=9, d=4)
    r[1, 5:, 2] = bad
    r[1, :5, 2] = -bad
    with ops.isa(isa):
        mean, dropped, scores = ops.calibrated_mean(r, 2)
        for result in (mean, scores):
            assert result.isfinite().flatten(1).all(1).tolist() == [True, False, True]
            assert result[1].isnan().all()
        assert dropped.sum(1).tolist() == [2, 2, 2]


@EVERY_PATH
@BOTH_SPACES
@pytest.mark.parametrize("scale", [2.0**-110, 2.0**110])
def test_very_small_and_very_large_numbers(isa, gram, scale):
    r, _ = planted()
    with ops.isa(isa):
        plain, scaled = ops.calibrated_mean(r, 38), ops.calibrated_mean(r * scale, 38)
    torch.testing.assert_close(scaled.scores / scale, plain.scores, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scaled.mean / scale, plain.mean)


def test_a_dropped_row_leaves_nothing_behind():
    r, _ = planted(B=1)
    r[0, 7] = 1e20
    mean, dropped, _ = ops.calibrated_mean(r, 1)
    assert dropped[0].nonzero().flatten().tolist() == [7]
    torch.testing.assert_close(mean[0], torch.cat([r[0, :7], r[0, 8:]]).double().mean(0).float())


@EVERY_PATH
def test_one_thread_and_two_agree(isa):
    r, _ = planted(B=7, N=33, d=65)
    with ops.isa(isa):
        one = ops.calibrated_mean(r, 5)
        torch.set_num_threads(2)
        two = ops.calibrated_mean(r, 5)
    if isa != "reference":  # torch's own sums may depend on the threads
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


FORK = """
import os, signal, torch
from poisonkit import ops
torch.set_num_threads(2)
r = torch.randn(4, 64, 200, generator=torch.Generator().manual_seed(0))
expected = ops.calibrated_mean(r, 5).mean  # starts the parent's OpenMP threads
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if torch.equal(ops.calibrated_mean(r, 5).mean, expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)


@pytest.mark.parametrize(
    ("eps", "n", "drop"),
    [(0, 1, 0), (0.1, 256, 77), (0.1, 10, 3), (0.05, 20, 3), (0.01, 256, 8), (0.3, 100, 90), (1e-05, 7, 1)],
)
def test_how_many_to_drop(eps, n, drop):
    assert ops.calibration_drop(eps, n) == drop
    assert ops.calibration_drop(Fraction(str(eps)), n) == drop


@pytest.mark.parametrize(("eps", "n", "match"), [
    (-0.1, 5, "eps must be in [0, 1]"),
    (1.1, 5, "eps must be in [0, 1]"),
    (float("nan"), 5, "eps must be in [0, 1]"),
    (0.1, 0, "n must be at least 1"),
    (0.1, 1, "n must be more than the 1 rows"),
    (0.34, 100, "n must be more than the 102 rows"),
])  # fmt: skip
def test_groups_too_small_are_refused(eps, n, match):
    with pytest.raises(ArgumentError) as caught:
        ops.calibration_drop(eps, n)
    assert match in str(caught.value)


def test_shapes_that_do_not_fit_are_refused():
    for arguments, match in [
        ((torch.zeros(4, 3), 1), "r must be of shape [B, N, d]"),
        ((torch.zeros(1, 4, 3), 1, [0, 4]), "r must be of shape [N, d] where there are offsets"),
        ((torch.zeros(1, 4, 3), 4), "drop must be at least 0 and less than the rows of its group"),
        ((torch.zeros(2, 4, 3), [1]), "drop must be one number for each of 2 groups"),
        ((torch.zeros(1, 4, 3).half(), 1), "r must be float32 or float64"),
    ]:
        with pytest.raises(ArgumentError) as caught:
            ops.calibrated_mean(*arguments)
        assert match in str(caught.value)


def test_top_direction_by_hand():
    # Eigenvalues 26 and 2 (see test_by_hand); a group of one row has none.
    rows = torch.tensor([[0.0, 1.0], [1.0, 2.0], [1.0, 0.0], [5.0, 1.0], [-2.0, 1.0], [9.0, 9.0]])
    share, gap = ops.top_direction(rows, [0, 5, 6])
    torch.testing.assert_close(share, torch.tensor([26 / 28, 0.0], dtype=torch.float64))
    torch.testing.assert_close(gap, torch.tensor([1 - 2 / 26, 0.0], dtype=torch.float64))
    dense = ops.top_direction(rows[None, :5])
    assert (dense.share.item(), dense.gap.item()) == (share[0].item(), gap[0].item())
