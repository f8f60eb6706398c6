"""Where nothing can be written, a message says so, what was there stays whole, and the work goes on once it can."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from children import in_child

from poisonkit.__main__ import main
from poisonkit.data.files import sha256
from poisonkit.engine import Progress, Run, journal, seconds_of
from poisonkit.errors import RunError
from poisonkit.train import Epoch
from poisonkit.train.checkpoints import load_tensors, save_tensors, write_atomic

TINY = ["run", "--data", "digits", "--limit", "60", "--attack", "none", "--threads", "1"]
TINY += ["--recipe.model.width", "4", "--recipe.epochs", "2", "--recipe.batch_size", "32"]
CERTIFIED = [*TINY, "--defense.partitions", "2"]
LARGE = {"x": torch.zeros(100_000)}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def limited(size: int) -> None:
    """No file of this process grows beyond ``size`` bytes: as of a full disk, a write stops in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_write_that_stops_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": torch.ones(3)})

    def work() -> int:
        limited(4096)
        with pytest.raises(RunError, match=r"x.safetensors must be writable, got .*File too large; free space"):
            save_tensors(path, LARGE)
        return 0

    assert in_child(work) == 0
    assert load_tensors(path)["x"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (events.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    write_atomic(tmp_path / "x", b"content")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, and the folder that holds the name


def test_a_record_is_written_after_what_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, written = Run(tmp_path, {}), []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (written.append(Path(new).name), replace(old, new)))
    run.save("a", {"x": torch.ones(1)})
    assert written == ["a.safetensors", "a.json"]


@pytest.mark.parametrize("defense", [[], ["--defense", "random_subset"]], ids=["certified", "training"])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(defense: list[str], tmp_path: Path) -> None:
    command = [*(TINY if defense else CERTIFIED), *defense]
    straight, out = tmp_path / "straight", tmp_path / "out"
    assert in_child(lambda: main([*command, "--out", str(straight)])) == 0
    for size in (1_000, 5_000, 9_000):  # the manifest, a network, a log or a report do not fit
        said = tmp_path / f"said-{size}"

        def work(size: int = size) -> int:
            limited(size)
            return main([*command, "--out", str(out)])

        assert in_child(work, said) == 2
        last = said.read_text().splitlines()[-1]
        assert last.startswith(f"poisonkit: {out}")
        assert "must be writable, got [Errno 27] File too large; free space" in last
        assert "Traceback" not in said.read_text()
        assert not list(out.rglob("*.tmp"))
    assert in_child(lambda: main([*command, "--out", str(out)])) == 0
    assert (out / "digests.json").read_text() == (straight / "digests.json").read_text()
    for path in straight.rglob("*.safetensors"):
        assert sha256(out / path.relative_to(straight)) == sha256(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_is_one_line_whoever_writes(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code), "metrics.jsonl")

    monkeypatch.setattr("poisonkit.commands.listing.report.text_table", fail)
    assert main(["list"]) == 2
    assert (
        capsys.readouterr().err == f"poisonkit: metrics.jsonl must be writable, got {os.strerror(code)}; "
        "free space, start again\n"
    )


def test_half_a_line_of_a_log_is_left_out(tmp_path: Path) -> None:
    run = Run(tmp_path, {})
    log = tmp_path / "work" / "metrics.jsonl"
    journal(run, "work", Progress()).say("one")
    whole = log.read_bytes()
    for torn in (b'{"said": "tw', whole[:-1]):
        log.write_bytes(whole + torn)
        work = journal(run, "work", Progress())
        assert log.read_bytes() == whole
        assert work.on_epoch
        work.on_epoch(Epoch(1, 2, 0.1, 1.0, 0.5, 3))
        assert [json.loads(line).get("number") for line in log.read_text().splitlines()] == [None, 1]
        assert seconds_of(run, "work") >= 0
    log.write_bytes(b'{"said')
    journal(run, "work", Progress())
    assert log.read_bytes() == b""


def test_a_folder_that_may_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a file system that is mounted so; the superuser may write into any other folder."""
    run = Run(tmp_path, {})
    run.save("a", {"x": torch.ones(2)})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    whole, mkdir = Path.open, Path.mkdir

    def refuse(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(
        Path, "open", lambda p, mode="r", **o: refuse(p) if set(mode) & set("wax") else whole(p, mode, **o)
    )
    monkeypatch.setattr(Path, "mkdir", lambda p, *o, **named: mkdir(p, *o, **named) if p.is_dir() else refuse(p))
    again = Run(tmp_path, {})
    assert again.tensors("a", dict)["x"].tolist() == [1, 1]  # what is there can be read
    with pytest.raises(RunError, match=r"lock must be a file that can be written, got .*Read-only file system"):
        again.tensors("b", dict)
    with pytest.raises(RunError, match=r"must be writable, got .*Read-only file system"):
        again.finish()
    assert main([*CERTIFIED, "--out", str(tmp_path / "below")]) == 2
    assert "poisonkit: run directory must be one that can be written, got" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
