"""Pickles are read as data: the shipped layouts load, and anything else is refused before it acts."""

from __future__ import annotations

import codecs
import contextlib
import os
import pickle
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from poisonkit.data.restricted import read_pickle
from poisonkit.errors import DataError

BATCH = {"data": np.arange(24, dtype=np.uint8).reshape(2, 12), "labels": [1, 1000], "batch_label": "one of two"}


class Attack:
    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.reduce = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduce


def read(folder: Path, content: bytes) -> dict[str, object]:
    path = folder / "batch"
    path.write_bytes(content)
    return read_pickle(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">i8", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_of_any_protocol_reads_as_written(tmp_path: Path, protocol: int, dtype: str, order: str) -> None:
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    found = read(tmp_path, pickle.dumps(BATCH | {"more": array}, protocol))
    assert found["labels"] == [1, 1000]
    assert found["batch_label"] == "one of two"
    np.testing.assert_array_equal(found["data"], BATCH["data"])
    assert found["more"].dtype == array.dtype
    np.testing.assert_array_equal(found["more"], array)


def test_a_batch_that_python_2_wrote_reads_as_written(
    tmp_path: Path, python2_pickle: Callable[[dict[str, object]], bytes]
) -> None:
    content = python2_pickle(BATCH)
    np.testing.assert_array_equal(pickle.loads(content, encoding="bytes")[b"data"], BATCH["data"])
    found = read(tmp_path, content)
    assert list(found) == list(BATCH)
    np.testing.assert_array_equal(found["data"], BATCH["data"])


def test_keys_of_bytes_become_text(tmp_path: Path) -> None:
    assert read(tmp_path, pickle.dumps({b"labels": [3]}, 3)) == {"labels": [3]}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["value", "array", "whole"])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int, place: str) -> None:
    made = tmp_path / "made"
    attack = Attack(os.mkdir, str(made))
    content = {"value": {"data": attack}, "array": {"data": np.array([attack], dtype=object)}, "whole": attack}
    with pytest.raises(DataError, match=r"batch: .* must be .*, got"):
        read(tmp_path, pickle.dumps(content[place], protocol))
    assert not made.exists()
    pickle.loads(pickle.dumps(content[place], protocol))
    assert made.exists()  # it was a real one


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"data": Attack(np.ndarray, (1 << 40,))}, 2),
        pickle.dumps({"data": Attack(np.dtype, "O")}, 2),
        pickle.dumps({"data": Attack(np.dtype, "V1000000000")}, 4),
        pickle.dumps({"data": Attack(codecs.encode, "x", "zlib")}, 2),
        pickle.dumps({"data": Attack(codecs.encode, "x", "utf-8")}, 2),
        pickle.dumps({"data": Attack(getattr, "x", "y")}, 4),
        pickle.dumps({"data": {1, 2}}, 4),
        b"\x80\x02cnumpy\nfromfile\n.",
        b"\x80\x02cnumpy\ncore.multiarray._reconstruct\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0elib.npyio.load\x93.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85\x81.",  # an object of another kind than a picture
        b"\x80\x02cPIL.Image\nopen\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x02cPIL.Image\nImage\nX\x01\x00\x00\x00x\x85\x81.",  # a picture made of something
        b"\x80\x02cPIL.Image\nImage\n)\x81.",  # a picture of nothing
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x02U\x01xQ.",  # persistent id
        b"\x80\x05\x97.",  # out-of-band buffer
    ],
)
def test_names_and_instructions_outside_the_list_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"batch(:| must be) "):
        read(tmp_path, content)


def nested_tuples(levels: int, between: bytes = b"") -> bytes:
    """A key that takes 2 to the power of ``levels`` steps to hash; ``between`` a tuple and its memo entry."""
    pairs = [b"h%ch%c\x86%bq%c" % (i, i, between, i + 1) for i in range(levels)]
    return b"\x80\x02})q\x00" + b"".join(pairs) + b"K\x01s."


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04}\x8c\x04data\x8e" + struct.pack("<Q", 1 << 40) + b"xs.",  # a string said to be of 1 TiB
        *(b"\x80\x04}\x8c\x04data\x8e" + struct.pack("<Q", length) + b"xs." for length in (2**63 - 1, 2**64 - 1)),
        b"\x80\x02T" + struct.pack("<i", -5) + b".",  # a string that ends before it begins, at this instruction
        b"\x80\x05}\x8c\x04data\x96" + struct.pack("<Q", 1 << 40) + b"xs.",
        b"\x80\x02}r" + struct.pack("<I", 1 << 29) + b".",  # a memo index that would fill 8 GiB
        nested_tuples(60),
        nested_tuples(60, b"\x80\x02"),
        nested_tuples(60, b"(u"),
        nested_tuples(60).replace(b")q\x00", b"U\x01xq\x000)q\x00"),
        b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b".",
    ],
)
def test_bombs_take_neither_memory_nor_time(tmp_path: Path, content: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"batch(:| must be) "):
        read(tmp_path, content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_every_truncation_is_refused(tmp_path: Path, python2_pickle: Callable[[dict[str, object]], bytes]) -> None:
    for content in (pickle.dumps(BATCH, 2), pickle.dumps(BATCH, 5), python2_pickle(BATCH)):
        for length in range(len(content)):
            with pytest.raises(DataError, match=r"batch(:| must be) "):
                read(tmp_path, content[:length])


def test_every_flipped_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    content = pickle.dumps(BATCH, 2)
    for i in range(len(content)):
        with contextlib.suppress(DataError):  # and no other error
            read(tmp_path, content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :])


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (pickle.dumps([1, 2], 2), "a pickled dictionary"),
        (pickle.dumps({1 << 100_000: 2}, 2), "names for keys"),
        (pickle.dumps(BATCH, 2) + b"x", "the whole file"),
        (b"", "one whole pickled dictionary"),
        (b"\x89PNG\r\n", "built of data only"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read(tmp_path, content)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none must be a readable file, got FileNotFoundError"):
        read_pickle(tmp_path / "none")
