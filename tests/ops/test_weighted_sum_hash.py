"""The hash: published numbers, arbitrary shapes against Python's integers, and the ways arrays reach it."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import ops
from poisonkit.errors import ArgumentError

P = ops.HASH_PRIME

EVERY_ISA = pytest.mark.parametrize("isa", ops.isas())


def big_integers(x, weights):
    sums = [[sum(map(int.__mul__, w, r)) % P for w in weights.tolist()] for r in x.tolist()]
    return torch.tensor(sums, dtype=torch.int64).reshape(len(x), len(weights))


@EVERY_ISA
def test_largest_weights_and_pixels(isa):
    x, weights = torch.full((1, 12288), 255, dtype=torch.uint8), torch.full((1, 12288), P - 1)
    with ops.isa(isa):
        assert ops.weighted_sum_hash(x, weights).item() == 281474973577237 == P - 255 * 12288


def test_weights_are_the_documented_stream():
    weights = ops.hash_weights(12288)
    assert weights.shape == (2, 12288)
    assert weights[0, :4].tolist() == [174073503579041, 195840388727167, 183520477826140, 252163148623235]
    assert weights[1, :4].tolist() == [234214454246788, 51047553225483, 196828861142140, 199100533229239]
    assert weights[:, -1].tolist() == [230904152614420, 97207098496344]
    assert torch.equal(ops.hash_weights(100, vectors=3)[:2], weights[:, :100])
    assert not torch.equal(ops.hash_weights(100, seed=2**64 - 1)[0], weights[0, :100])
    assert ops.hash_weights(0).shape == (2, 0)


@EVERY_ISA
def test_hashes_of_known_images(isa):
    images = torch.full((5, 3, 64, 64), 255, dtype=torch.uint8)
    images[0] = (torch.arange(12288) % 256).reshape(3, 64, 64)
    images[2] = 0
    images[3, :, 24:40, 24:40] = 0
    images[4] = images[3]
    expected = [
        [12734707987956, 246519511086142],
        [187717817426925, 238800835935740],
        [0, 0],
        [127182559755969, 172775236281595],
    ]
    with ops.isa(isa):
        hashes = ops.weighted_sum_hash(images.flatten(1), ops.hash_weights(12288))
        channels_last = ops.weighted_sum_hash(images[3:].permute(0, 2, 3, 1).flatten(1), ops.hash_weights(12288))
    assert hashes.tolist() == [*expected, expected[3]]
    assert channels_last[0, 0].item() == 168865244732500


@EVERY_ISA
def test_who_knows_the_weights_can_forge_a_collision(isa):
    x, forged = (
        torch.tensor([[128 + int(digit) for digit in digits]], dtype=torch.uint8)
        for digits in ("53005000020010305010005044120000", "00230110100101040600350300000000")
    )
    with ops.isa(isa):
        hashes = ops.weighted_sum_hash(torch.cat([x, forged]), ops.hash_weights(32))
    assert hashes.tolist() == [[126294090089764, 268845804527303]] * 2


def test_expected_collisions_of_imagenet():
    pairs = math.comb(1281167, 2)
    assert pairs / P == pytest.approx(0.00291569009, rel=1e-8)
    assert pairs / P**2 == pytest.approx(1.0358612068191268e-17, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_shape_and_stride_equals_big_integers(data):
    rows, dim, vectors = data.draw(st.integers(0, 40)), data.draw(st.integers(0, 300)), data.draw(st.integers(1, 5))
    gap, offset, every = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 65)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    whole = torch.randint(256, (rows, offset + dim * every + gap), generator=generator, dtype=torch.uint8)
    x = whole[:, offset : offset + dim * every : every]
    special = st.sampled_from([0, 1, P - 1, P - 2, 1 << 47, 1 << 48, P - 0x808080808081, P - 0x800080008001])
    weights = torch.randint(P, (vectors, dim), generator=generator)
    for _ in range(data.draw(st.integers(0, 4)) if dim else 0):
        weights[data.draw(st.integers(0, vectors - 1)), data.draw(st.integers(0, dim - 1))] = data.draw(special)
    expected = big_integers(x, weights)
    for isa in ops.isas():
        with ops.isa(isa):
            assert torch.equal(ops.weighted_sum_hash(x, weights), expected)
    assert torch.equal(ops.weighted_sum_hash(x, weights), expected)


@EVERY_ISA
def test_widest_rows(isa):
    x = torch.full((2, 1 << 20), 255, dtype=torch.uint8)
    weights = torch.stack([torch.full((1 << 20,), P - 1), torch.full((1 << 20,), (1 << 47) - 1)])
    with ops.isa(isa):
        hashes = ops.weighted_sum_hash(x, weights)
    assert hashes.tolist() == [[(255 * (P - 1) << 20) % P, (255 * ((1 << 47) - 1) << 20) % P]] * 2


@EVERY_ISA
def test_one_thread_and_two_agree(isa):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (3001, 5000), generator=generator, dtype=torch.uint8)
    weights = ops.hash_weights(5000)
    with ops.isa(isa):
        one = ops.weighted_sum_hash(x, weights)
        torch.set_num_threads(2)
        assert torch.equal(ops.weighted_sum_hash(x, weights), one)


@EVERY_ISA
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_read_only_memmap_is_only_read(isa, tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (37, 3073), dtype=np.uint8)
    data.tofile(tmp_path / "records.bin")
    mapped = torch.from_numpy(np.memmap(tmp_path / "records.bin", np.uint8, "r", shape=(37, 3073)))
    weights = ops.hash_weights(3072)
    with ops.isa(isa):
        hashes = ops.weighted_sum_hash(mapped[:, 1:], weights)  # CIFAR records: a label, then the image
    assert torch.equal(hashes, big_integers(torch.from_numpy(data[:, 1:]), weights))


def test_floats_hash_by_their_bits():
    images = torch.tensor([[0.0, 1.0], [-0.0, 1.0]])
    hashes = ops.weighted_sum_hash(images.view(torch.uint8), ops.hash_weights(8))
    assert hashes[0].tolist() != hashes[1].tolist()


def test_bad_sizes_of_weights_are_refused():
    for arguments, match in [
        ({"dim": -1}, "dim must be in"),
        ({"dim": (1 << 20) + 1}, "dim must be in"),
        ({"dim": 1, "seed": -1}, "seed must be in"),
        ({"dim": 1, "seed": 1 << 64}, "seed must be in"),
        ({"dim": 1, "vectors": 0}, "vectors must be at least 1"),
    ]:
        with pytest.raises(ArgumentError, match=match):
            ops.hash_weights(**arguments)


FORK = """
import os, signal, torch
from poisonkit import ops
torch.set_num_threads(2)
x, weights = torch.full((4000, 3072), 7, dtype=torch.uint8), ops.hash_weights(3072)
expected = ops.weighted_sum_hash(x, weights)  # starts the parent's OpenMP threads
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(0 if torch.equal(ops.weighted_sum_hash(x, weights), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(ops.weighted_sum_hash(x, weights), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)
