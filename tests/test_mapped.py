"""Tensors on files: what is written stays private, and a copy takes the memory of what was written, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from poisonkit import mapped

SHAPE = (40, 3, 32, 32)  # 30 pages
OFFSET = 128


@pytest.fixture
def content() -> Tensor:
    return torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path: Path, content: Tensor) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(OFFSET) + content.numpy().tobytes() + b"after")
    return path


@pytest.fixture(params=["the kernel tells", "it does not"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to learn which pages were written."""
    if request.param == "it does not":
        monkeypatch.setattr(mapped, "_private_pages", lambda first, count: np.ones(count, np.bool_))


def test_what_is_written_stays_private(path: Path, content: Tensor) -> None:
    before = path.read_bytes()
    x, other = (mapped.read(path, SHAPE, OFFSET) for _ in range(2))
    assert torch.equal(x, content)
    x[3] = 0
    assert not x[3].any()
    assert torch.equal(other, content)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("part", [lambda x: x, lambda x: x[7:31], lambda x: x.flatten(1), lambda x: x[39:]])
def test_a_copy_has_what_was_written_before_it_and_nothing_after(
    path: Path, content: Tensor, part: Callable[[Tensor], Tensor]
) -> None:
    x = mapped.read(path, SHAPE, OFFSET)
    for row, value in ((0, 1), (8, 2), (39, 3)):
        x[row] = content[row] = value
    first = mapped.copy(part(x))
    second = mapped.copy(first)
    x[8:] = 9
    first.zero_()
    assert torch.equal(second, part(content))
    assert second.shape == part(x).shape
    assert first.untyped_storage() in mapped._FILES


@pytest.mark.usefixtures("kernel")
def test_a_copy_is_right_when_the_file_is_gone_or_another_one(path: Path, content: Tensor) -> None:
    x = mapped.read(path, SHAPE, OFFSET)
    path.rename(path.with_name("old"))
    path.write_bytes(bytes(10))
    assert torch.equal(mapped.copy(x), content)
    path.with_name("old").unlink()
    assert torch.equal(mapped.copy(x), content)


@pytest.mark.parametrize(
    "part", [lambda x: x[::2], lambda x: x.view(torch.int16), lambda x: x[:1].expand(5, 3, 32, 32), lambda x: x[:0]]
)
def test_other_views_are_cloned(path: Path, part: Callable[[Tensor], Tensor]) -> None:
    x = part(mapped.read(path, SHAPE, OFFSET))
    copy = mapped.copy(x)
    assert torch.equal(copy, x)
    copy[:1] = 0
    assert not copy[1:].numel() or copy[1:].any()
    assert copy.untyped_storage() not in mapped._FILES


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [1, 4000, 50_000, 1 << 27])
def test_pieces_are_the_rows_in_order(path: Path, content: Tensor, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", size)
    x = mapped.read(path, SHAPE, OFFSET)
    x[20] = content[20] = 5
    for data in (x, content, x[::3], content[:0]):
        pieces = list(mapped.pieces(data))
        assert len(pieces) == max(1, -(-len(data) // max(1, size // 3072)))
        assert torch.equal(torch.cat(pieces), data)


def test_the_kernel_tells_which_pages_were_written(path: Path) -> None:
    x = mapped.read(path, SHAPE, OFFSET)
    pages = -(-(OFFSET + x.numel()) // os.sysconf("SC_PAGESIZE"))
    first = x.data_ptr() // os.sysconf("SC_PAGESIZE")
    x.sum()
    if not Path("/proc/self/pagemap").exists():
        assert mapped._private_pages(first, pages).all()
        return
    assert not mapped._private_pages(first, pages).any()
    x[0, 0, 0, 0] = 1
    x.view(-1)[5 * os.sysconf("SC_PAGESIZE") - OFFSET - 1] = 1
    assert np.flatnonzero(mapped._private_pages(first, pages)).tolist() == [0, 4]


def test_files_are_closed_with_their_tensors(path: Path) -> None:
    before = len(mapped._FILES)
    x = mapped.read(path, SHAPE, OFFSET)
    files = {mapped._FILES[x.untyped_storage()][0]}
    view, copy = x[3:], mapped.copy(x)
    files.add(mapped._FILES[copy.untyped_storage()][0])
    del x, copy
    assert len(mapped._FILES) == before + 1
    assert view.sum() > 0
    del view
    assert len(mapped._FILES) == before
    for file in files:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(file)


@pytest.mark.parametrize("shape", [(41, 3, 32, 32), (10**9,)])
def test_a_shorter_file_is_refused(path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="length"):
        mapped.read(path, shape, OFFSET)


MEASURED = """
import sys, torch
from pathlib import Path
from poisonkit import mapped

def memory(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) >> 10

mapped.PIECE = 16 << 20
torch.set_num_threads(1)
x = mapped.read(Path(sys.argv[1]), (200, 1 << 20))
x[7] = 1
anonymous, resident = memory("RssAnon"), memory("VmRSS")
copy = mapped.copy(x)
copy[:5] = 2
print(memory("RssAnon") - anonymous, end=" ")
assert [int(piece.max()) for piece in mapped.pieces(copy)] == [2, *[0] * 12]
print(memory("VmRSS") - resident, end=" ")
Path("/proc/self/clear_refs").write_text("5")
resident = memory("VmHWM")
assert max(int(piece.max()) for piece in mapped.pieces(copy)) == 2
print(memory("VmHWM") - resident)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_memory_is_that_of_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(200 << 20)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(mapped.__file__).parents[1]), *sys.path])}
    command = [sys.executable, "-c", MEASURED, path]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    copied, after, peak = map(int, done.stdout.split())
    assert 6 <= copied <= 12  # MiB: the row it had, and five new ones
    assert after <= 20
    assert peak <= 50  # a piece, and the one before it
