"""Run directories: whole artefacts or none, refusals with a remedy, and runs killed at random that end the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from poisonkit.engine import Run, environment
from poisonkit.errors import RunError

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
    assert not run.done("a")
    assert run.tensors("a", lambda: artefact(2.0))["x"].tolist() == [2.0] * 3


def test_an_artefact_without_its_record_is_not_there(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", MANIFEST)
    run.tensors("a", lambda: artefact(1.0))
    run.path("a.json").unlink()
    assert run.tensors("a", lambda: artefact(2.0))["x"].tolist() == [2.0] * 3


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
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["digests.json", "manifest.json"]


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
        assert not run.done("a")


DEMO = """
import sys
from poisonkit import __main__ as cli
from poisonkit.config import with_option
from poisonkit.experiments import EXPERIMENTS
from dataclasses import replace
demo = EXPERIMENTS["demo"]
recipe = replace(demo.recipe, epochs=3)
EXPERIMENTS["demo"] = replace(demo, recipe=replace(recipe, model=replace(recipe.model, width=16, dropout=0.1)))
sys.exit(cli.main(["demo", "--out", sys.argv[1]]))
"""


def start_demo(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DEMO, str(out)], stdout=subprocess.DEVNULL)


def test_a_demo_killed_at_random_ends_with_the_same_digests(tmp_path: Path) -> None:
    straight = start_demo(tmp_path / "straight")
    assert straight.wait() == 0
    moments = random.Random(0)
    for models in (0, 1, 6, 15):
        process = start_demo(tmp_path / "killed")
        while process.poll() is None and len(list((tmp_path / "killed").rglob("model.json"))) < models:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))  # anywhere in an epoch, a checkpoint, an artefact or a record
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the demo ended before it could be killed"
    last = start_demo(tmp_path / "killed")
    assert last.wait() == 0
    one, other = ((tmp_path / name / "digests.json").read_text() for name in ("straight", "killed"))
    assert one == other
    # poison, the undefended model, the split, 16 base models, two sets of votes
    assert len(json.loads(one)) == 1 + 1 + 1 + 16 + 2
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("checkpoint*"))
