"""The Ray engine on a real Ray: the bits of the local engine, also where a worker is killed, and clear refusals."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from poisonkit import mapped
from poisonkit.__main__ import main
from poisonkit.engine import Local, Progress, Ray, Run, environment, units
from poisonkit.engine.ray import _bare, _Packed, _resident
from poisonkit.errors import DataError, MissingError, PoisonkitError, RunError
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Job, OneCycle, Recipe
from poisonkit.types import ImageDataset

SMALL = [
    *["run", "--data", "digits", "--attack", "badnets_white", "--attack.size", "1", "--rate", "0.05"],
    *["--defense", "dpa", "--defense.partitions", "4", "--limit", "160", "--seed", "3", "--threads", "1"],
    *["--stack", "2", "--recipe.model.width", "8", "--recipe.epochs", "20"],
]
RECIPE = Recipe(ResNet(8, 4, stem="small"), epochs=1, batch_size=8, schedule=OneCycle(0.01, 0.1), augment=None)
PIXELS = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=key(1).generator())
LABELS = torch.arange(24) % 3


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, with room for two workers."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def cut(images: torch.Tensor, recipe: Recipe = RECIPE, count: int = 2) -> list[units.Unit]:
    data = ImageDataset(images, LABELS, ("a", "b", "c"))
    jobs = [Job(i, data, torch.arange(i, 24, count), recipe, key(0).child(i)) for i in range(count)]
    return units.stacks("dpa", jobs, 1)


def run_in(directory: Path, **changes: Any) -> Run:
    return Run(directory, {"environment": {**environment(), **changes}})


def kill_in_the_middle(out: Path, unit: str, killed: list[int]) -> None:
    """SIGKILL the worker that trains ``unit`` once it has written a checkpoint or two; append how far it was."""
    log, lock = out / unit / "metrics.jsonl", out / ".locks" / f"{unit}.lock"
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        time.sleep(0.01)
    worker = int(lock.read_text().split()[1])
    assert worker != os.getpid()
    os.kill(worker, signal.SIGKILL)
    killed.append(json.loads(log.read_text().splitlines()[-1])["number"])


def test_a_killed_worker_loses_nothing(ray: Any, tmp_path: Path) -> None:
    local, other = tmp_path / "local", tmp_path / "ray"
    killed: list[int] = []
    thread = threading.Thread(target=kill_in_the_middle, args=(other, "dpa/stack-0001", killed), daemon=True)
    thread.start()
    assert main([*SMALL, "--engine", "ray", "--out", str(other)]) == 0
    thread.join(1)
    assert killed
    assert killed[0] < 20, "the unit was done before its worker was killed"
    assert main([*SMALL, "--out", str(local)]) == 0
    assert (local / "digests.json").read_text() == (other / "digests.json").read_text()
    lines = [json.loads(line) for line in (other / "dpa" / "stack-0001" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["number"], line["id"]) for line in lines] == [(n, i) for n in range(1, 21) for i in (2, 3)]
    assert not list(other.rglob("checkpoint*"))


def test_a_mapped_file_is_mapped_by_the_workers(ray: Any, tmp_path: Path) -> None:
    """With what was written into the mapping since; the local engine reads the same pixels from memory."""
    file = tmp_path / "images"
    file.write_bytes(b"header" + PIXELS.numpy().tobytes())
    poisoned = PIXELS.clone()
    images = mapped.copy(mapped.read(file, PIXELS.shape, offset=6))
    for each in (poisoned, images):
        each[[3, 20]] = 255
    assert isinstance(_Packed.of(cut(images)[0].data).images, mapped.Source)
    assert not isinstance(_Packed.of(cut(poisoned)[0].data).images, mapped.Source)
    one, other = run_in(tmp_path / "ray"), run_in(tmp_path / "local")
    Ray()(one, cut(images), Progress())
    Local()(other, cut(poisoned), Progress())
    assert one.finish() == other.finish() != {}


def test_only_what_is_needed_travels(tmp_path: Path) -> None:
    file = tmp_path / "images"
    file.write_bytes(bytes(10_000_000))
    images = mapped.read(file, (1_000, 1, 100, 100))
    images[17, 0, 3] = 9
    data = ImageDataset(images, torch.arange(1_000) % 3, ("a", "b", "c"))
    packed = pickle.dumps(_Packed.of(data))
    assert len(packed) < 50_000
    there = pickle.loads(packed).unpacked()
    assert torch.equal(there.images, images)
    assert torch.equal(there.labels, data.labels)
    rows = torch.arange(1_000_000)
    [unit] = units.stacks("dpa", [Job(0, data, rows[:1000], RECIPE, key(0))], 1)
    assert len(pickle.dumps(_bare(unit))) < 20_000
    time.sleep(0.01)
    file.write_bytes(bytes(10_000_000))
    with pytest.raises(DataError, match="the file that it was before, got another"):
        pickle.loads(packed).unpacked()


def test_on_a_gpu_a_worker_has_its_own_rows_only() -> None:
    """Here on the CPU: the same pixels in the same order, whatever they are a part of."""
    data = ImageDataset(PIXELS, LABELS, ("a", "b", "c"))
    rows = torch.tensor([[20, 3, 7], [3, 11, 20]])
    [unit] = units.stacks("dpa", [Job(i, data, rows[i], RECIPE, key(0).child(i)) for i in range(2)], 2)
    own = _resident(unit, torch.device("cpu"))
    assert len(own.data) == 4
    assert all(job.data is own.data for job in own.jobs)
    for job, before in zip(own.jobs, unit.jobs, strict=True):
        assert torch.equal(job.data.images[job.rows], PIXELS[before.rows])
        assert torch.equal(job.data.labels[job.rows], LABELS[before.rows])


def test_a_worker_that_differs_is_refused(ray: Any, tmp_path: Path) -> None:
    run = run_in(tmp_path, cpu_capability="AVX1024")
    with pytest.raises(RunError, match=r"environment.cpu_capability of the worker on .* must be AVX1024, as the run"):
        Ray()(run, cut(PIXELS), Progress())
    assert not run.done("dpa/base-0000/model")


def test_an_error_in_a_worker_is_the_error(ray: Any, tmp_path: Path) -> None:
    recipe = replace(RECIPE, schedule=OneCycle(1e30, 1e30))
    with pytest.raises(PoisonkitError, match="must be finite") as caught:
        Ray()(run_in(tmp_path), cut(PIXELS, recipe), Progress())
    assert "Traceback" not in str(caught.value)


def test_a_unit_that_fits_nowhere_is_refused(ray: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"Ray cluster must be one with a node of 1 CPUs and 0.5 GPUs"):
        Ray(gpus=0.5)(run_in(tmp_path), cut(PIXELS), Progress())


def test_without_ray_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("poisonkit.engine.ray.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install"):
        Ray()
    assert main([*SMALL, "--engine", "ray"]) == 2
    assert "ray must be installed for --engine ray, got no module" in capsys.readouterr().err


@pytest.mark.slow
def test_ray_is_started_where_there_is_none(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    small = [*SMALL, "--recipe.epochs", "1"]
    command = [sys.executable, "-m", "poisonkit", *small, "--engine", "ray", "--out", str(tmp_path / "ray")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    assert main([*small, "--out", str(tmp_path / "local")]) == 0
    one, other = ((tmp_path / name / "digests.json").read_text() for name in ("ray", "local"))
    assert one == other


CLUSTER = """
import sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from poisonkit.__main__ import main

out = Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)

def kill():
    # once both nodes are in the middle of a unit
    while len([log for log in out.rglob("metrics.jsonl") if len(log.read_text().splitlines()) > 2]) < 2:
        time.sleep(0.01)
    cluster.remove_node(node, allow_graceful=False)
    print("a node was killed", flush=True)

threading.Thread(target=kill, daemon=True).start()
sys.exit(main([*sys.argv[2:], "--engine", "ray", "--ray.address", cluster.address, "--out", str(out)]))
"""


@pytest.mark.slow
def test_a_killed_node_of_a_cluster_loses_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    command = [sys.executable, "-c", CLUSTER, str(tmp_path / "ray"), *SMALL]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "a node was killed" in ran.stdout
    assert main([*SMALL, "--out", str(tmp_path / "local")]) == 0
    one, other = ((tmp_path / name / "digests.json").read_text() for name in ("ray", "local"))
    assert one == other
