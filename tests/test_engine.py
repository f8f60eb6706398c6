"""Run directories: whole artefacts or none, refusals with a remedy, and runs killed at random that end the same."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from socket import gethostname

import pytest
import torch

from poisonkit.__main__ import main
from poisonkit.data.files import sha256
from poisonkit.defenses import CERTIFIED
from poisonkit.engine import Local, Progress, Run, environment, units
from poisonkit.errors import RunError
from poisonkit.experiments import stacking
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Job, Recipe
from poisonkit.train.checkpoints import save_tensors
from poisonkit.types import ImageDataset

MANIFEST = {"plan": {"seed": 0, "rate": 0.01}, "environment": environment()}


def artefact(value: float) -> dict[str, torch.Tensor]:
    return {"x": torch.full((3,), value)}


def test_artefacts_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", MANIFEST)
    first = run.tensors("a/b", lambda: artefact(1.0))
    again = Run(tmp_path / "run", MANIFEST).tensors("a/b", lambda: artefact(2.0))
    assert torch.equal(first["x"], again["x"])
    digests = run.finish()
    assert list(digests) == ["a/b"]
    assert json.loads((tmp_path / "run" / "digests.json").read_text()) == digests


def test_a_damaged_artefact_is_computed_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", MANIFEST)
    run.tensors("a", lambda: artefact(1.0))
    path = run.path("a.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    run = Run(tmp_path / "run", MANIFEST)
    assert not run.done("a")
    assert run.tensors("a", lambda: artefact(2.0))["x"].tolist() == [2.0] * 3


def test_an_artefact_without_its_record_is_not_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", MANIFEST)
    run.tensors("a", lambda: artefact(1.0))
    run.path("a.json").unlink()
    assert Run(tmp_path / "run", MANIFEST).tensors("a", lambda: artefact(2.0))["x"].tolist() == [2.0] * 3


def test_nothing_is_kept_of_a_step_that_failed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", MANIFEST)
    with pytest.raises(ZeroDivisionError):
        run.tensors("a", lambda: artefact(1 / 0))
    assert not run.done("a")


@pytest.mark.parametrize(
    ("part", "name", "value"), [("plan", "seed", 1), ("environment", "threads", 99), ("environment", "torch", "2.0")]
)
def test_another_run_is_refused(tmp_path: Path, part: str, name: str, value: object) -> None:
    Run(tmp_path / "run", MANIFEST).tensors("a", lambda: artefact(1.0))
    other = {**MANIFEST, part: {**MANIFEST[part], name: value}}
    with pytest.raises(RunError, match=rf"{part}.{name} of the run in .* must be .*, got {value}; .*--overwrite"):
        Run(tmp_path / "run", other)
    assert not Run(tmp_path / "run", other, overwrite=True).done("a")


def test_a_folder_that_is_no_run_is_never_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="run directory must be new, empty or a run of poisonkit"):
            Run(tmp_path, MANIFEST, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("content", ["{", "[1]", "null", '{"name": "a browser extension", "manifest_version": 3}'])
def test_a_manifest_of_something_else_is_never_touched(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    (tmp_path / "thesis.tex").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(RunError, match="run directory must be new, empty or a run of poisonkit"):
            Run(tmp_path, MANIFEST, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "years"
    assert (tmp_path / "manifest.json").read_text() == content


def test_what_a_killed_start_leaves_behind_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".manifest.json.0123.tmp").write_text("{")
    run = Run(tmp_path, MANIFEST)
    run.path("dpa/.model.safetensors.4567.tmp").write_text("half")
    run.finish()
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(left) == ["digests.json", "manifest.json"]


def test_places_where_no_run_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunError, match="run directory must be one that can be written"):
            Run(place, MANIFEST)


def test_a_damaged_record_means_not_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", MANIFEST)
    run.tensors("a", lambda: artefact(1.0))
    for content in ("{", "[1]", "{}"):
        run.path("a.json").write_text(content)
        assert not Run(tmp_path / "run", MANIFEST).done("a")


def test_an_artefact_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(tmp_path / "run", MANIFEST).tensors("a", lambda: artefact(1.0))
    hashed: list[object] = []
    monkeypatch.setattr("poisonkit.engine.run.sha256", lambda path: hashed.append(path) or sha256(path))
    monkeypatch.setattr("poisonkit.train.checkpoints.digest", lambda *of: hashed.append(of))
    run = Run(tmp_path / "run", MANIFEST)
    assert run.done("a")
    assert run.tensors("a", lambda: artefact(2.0))["x"].tolist() == [1.0] * 3
    run.finish()
    assert len(hashed) == 1


def test_what_was_not_trained_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"base-0003/model in .* must be there and whole"):
        Run(tmp_path / "run", MANIFEST).load("base-0003/model")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"stack": 2}, "stack of .* must be 4, as it was started, got 2; give --stack 4, or --overwrite"),
        ({"environment": {**MANIFEST["environment"], "threads": 7}}, "environment.threads .* give --threads 1, or"),
        ({"environment": {**MANIFEST["environment"], "device": "Z80"}}, "environment.device .* got Z80; give another"),
    ],
)
def test_a_remedy_names_the_option(tmp_path: Path, change: dict[str, object], remedy: str) -> None:
    manifest = {**MANIFEST, "stack": 4, "environment": {**MANIFEST["environment"], "threads": 1}}
    Run(tmp_path / "run", manifest)
    with pytest.raises(RunError, match=remedy):
        Run(tmp_path / "run", {**manifest, **change})


HOLDER = """
import sys, time
from pathlib import Path
from poisonkit.engine.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the unit dpa/base-0001 of the run in ``tmp_path``."""
    path = tmp_path / ".locks" / "dpa" / "base-0001.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_says_who_holds_it_and_ends_with_them(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    run = Run(tmp_path, MANIFEST)
    who = f"process {holder.pid} on {gethostname()}"
    with run.lock("dpa/base-0001", wait=False) as held:
        assert held == who
    with run.lock("dpa/base-0002", wait=False) as held:
        assert held is None
    told: list[str] = []
    threading.Timer(0.2, holder.kill).start()  # SIGKILL: nothing of the holder's own code runs
    with run.lock("dpa/base-0001", tell=told.append) as held:
        assert held is None
    assert told == [who]


def test_a_run_that_others_work_on_is_not_overwritten(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    Run(tmp_path, MANIFEST).tensors("a", lambda: artefact(1.0))
    with pytest.raises(RunError, match=f"at rest .*base-0001 is held, got process {holder.pid} on .*; stop that first"):
        Run(tmp_path, MANIFEST, overwrite=True)
    holder.kill()
    holder.wait()
    assert not Run(tmp_path, MANIFEST, overwrite=True).done("a")


def test_an_artefact_is_computed_by_one_of_many(tmp_path: Path) -> None:
    computed: list[int] = []

    def work(number: int) -> None:
        def compute() -> dict[str, torch.Tensor]:
            computed.append(number)
            time.sleep(0.05)
            return artefact(1.0)

        Run(tmp_path / "run", MANIFEST).tensors("a", compute)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1


def jobs(count: int, epochs: int = 3) -> list[Job]:
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=key(1).generator())
    data = ImageDataset(images, torch.arange(24) % 3, ("a", "b", "c"))
    recipe = Recipe(ResNet(8, 4, stem="small"), epochs=epochs, batch_size=8, augment=None)
    return [Job(i, data, torch.arange(i, 24, count), recipe, key(0).child(i)) for i in range(count)]


def test_jobs_are_cut_into_stacks() -> None:
    cut = units.stacks("dpa", jobs(5), 2)
    assert [unit.name for unit in cut] == ["dpa/stack-0000", "dpa/stack-0001", "dpa/base-0004"]
    assert [job.id for unit in cut for job in unit.jobs] == [0, 1, 2, 3, 4]
    assert cut[1].models == ("dpa/base-0002/model", "dpa/base-0003/model")
    assert [unit.name for unit in units.stacks("dpa", jobs(2), 1)] == ["dpa/base-0000", "dpa/base-0001"]


@pytest.mark.parametrize("name", CERTIFIED)
def test_units_are_counted_before_the_data_are_split(name: str) -> None:
    data, recipe = jobs(1)[0].data, jobs(1)[0].recipe
    defense = CERTIFIED[name]()
    count = len(defense.jobs(data, recipe, key=key(0)))
    for size, units_wanted in {1: count, 3: -(-count // 3), 1000: 1}.items():
        found = stacking(data, defense=defense, recipe=recipe, key=key(0), device="cpu", size=size)
        assert found == (size, units_wanted)
    size, number = stacking(data, defense=defense, recipe=recipe, key=key(0), device="cpu", size=None)
    assert number == -(-count // size)


@pytest.mark.parametrize("size", [1, 2])
def test_every_epoch_is_in_the_log_once(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether training stops before, in, or after the writing of a checkpoint."""
    [unit] = units.stacks("dpa", jobs(size), size)
    straight = Run(tmp_path / "straight", MANIFEST)
    Local()(straight, [unit], Progress())
    saves = 0

    def save(path: Path, *rest: object) -> None:
        nonlocal saves
        saves += 1
        if saves in (2, 3, 5):  # before the second, the second again, and the network itself
            raise KeyboardInterrupt
        save_tensors(path, *rest)

    monkeypatch.setattr("poisonkit.train.loop.save_tensors", save)
    monkeypatch.setattr("poisonkit.engine.run.save_tensors", save)
    stops = 0
    while not units.done(Run(tmp_path / "run", MANIFEST), unit):
        with suppress(KeyboardInterrupt):
            stops += 1
            Local()(Run(tmp_path / "run", MANIFEST), [unit], Progress())
    assert stops == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / unit.name / "metrics.jsonl").read_text().splitlines()]
    assert [(line["number"], line["id"]) for line in lines] == [(n, i) for n in (1, 2, 3) for i in range(size)]
    assert Run(tmp_path / "run", MANIFEST).finish() == straight.finish()
    assert not list(tmp_path.rglob("checkpoint*"))


def test_a_unit_that_another_process_trains_comes_last(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    class Told(io.StringIO):
        def write(self, text: str) -> int:
            if "waiting" in text:
                holder.kill()
            return super().write(text)

    run, told, cut = Run(tmp_path, MANIFEST), Told(), units.stacks("dpa", jobs(3, epochs=1), 1)
    Local()(run, cut, Progress(told))
    assert f"dpa/base-0001 is with process {holder.pid} on {gethostname()}; waiting for it" in told.getvalue()
    ages = [run.path(f"{unit.name}/model.json").stat().st_mtime_ns for unit in cut]
    assert ages[0] < ages[2] < ages[1]


SMALL = [
    *["run", "--data", "digits", "--attack", "badnets_white", "--attack.size", "1", "--rate", "0.05"],
    *["--defense", "dpa", "--defense.partitions", "5", "--limit", "160", "--seed", "3", "--threads", "1"],
    *["--stack", "2"],  # two stacks of two base models, and one of one
    *["--recipe.model.width", "8", "--recipe.model.dropout", "0.1", "--recipe.epochs", "3"],
]


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "poisonkit", *arguments], stdout=subprocess.DEVNULL)


def digests(run: Path) -> dict[str, str]:
    return json.loads((run / "digests.json").read_text())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of a run of SMALL that nothing happens to."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert main([*SMALL, "--out", str(out)]) == 0
    # poison, the undefended model, the split, 5 base models, two sets of votes each
    assert len(digests(out)) == 1 + 1 + 1 + 5 + 4
    return digests(out)


def epochs_done(run: Path) -> int:
    return sum(len(log.read_text().splitlines()) for log in run.rglob("metrics.jsonl"))


def test_a_run_killed_at_random_ends_with_the_same_digests(tmp_path: Path, straight: dict[str, str]) -> None:
    out = tmp_path / "killed"
    moments = random.Random(0)
    for epochs in (1, 4, 9):
        process = start(*SMALL, "--out", str(out))
        while process.poll() is None and epochs_done(out) < epochs:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.05))  # anywhere in an epoch, a checkpoint, an artefact or a record
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert main([*SMALL, "--out", str(out)]) == 0
    assert digests(out) == straight
    assert epochs_done(out) == 3 * 6
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("checkpoint*"))


def test_elements_of_an_array_make_the_same_run(
    tmp_path: Path, straight: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "array"
    elements = [start(*SMALL, "--out", str(out), "--only", only) for only in ("undefended,0", "0", "2")]
    assert [element.wait() for element in elements] == [0, 0, 0]
    assert not (out / "digests.json").exists()
    assert main([*SMALL, "--out", str(out), "--only", "2"]) == 0
    assert capsys.readouterr().out == f"{out}: --only 2 is trained; --only 1 is left to train\n"
    assert main([*SMALL, "--out", str(out), "--only", "0-1"]) == 0
    assert "all is trained; without --only it is measured" in capsys.readouterr().out
    before = epochs_done(out)
    assert main([*SMALL, "--out", str(out)]) == 0
    assert digests(out) == straight
    assert epochs_done(out) == before == 3 * 6


@pytest.mark.slow
def test_two_runs_share_the_work(tmp_path: Path, straight: dict[str, str]) -> None:
    out = tmp_path / "shared"
    both = [start(*SMALL, "--out", str(out)) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert digests(out) == straight
    holders = {path.read_text() for path in (out / ".locks").rglob("*.lock") if path.stem[:4] in ("base", "stac")}
    assert len(holders) == 2
