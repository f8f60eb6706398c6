"""Every kind of work, killed by SIGKILL anywhere and started again, ends with the bits of work that nobody stopped."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from children import in_child
from safetensors.torch import save_file

from poisonkit.__main__ import main
from poisonkit.data.files import sha256
from poisonkit.experiments.reproduce import dpa as reproduce_dpa
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train.checkpoints import digest, read

TINY = ["--data", "digits", "--limit", "120", "--threads", "1"]
RUN = [*TINY, "--recipe.model.width", "4", "--recipe.epochs", "4", "--recipe.batch_size", "32"]
BACKDOOR = ["run", *RUN, "--attack", "badnets_white", "--rate", "0.05"]

WORK = {
    "certified": [*BACKDOOR, "--defense", "dpa", "--defense.partitions", "4", "--stack", "2"],
    "epic": [*BACKDOOR, "--defense", "epic"],
    "ieu": [
        *[*BACKDOOR, "--defense", "ieu", "--defense.poisoned.model", "resnet", "--defense.poisoned.model.depth", "8"],
        *["--defense.poisoned.model.width", "4", "--defense.poisoned.epochs", "2"],
    ],
    "abl": [*BACKDOOR, "--defense", "abl"],
    "condensation": [
        *["condense", *TINY, "--networks", "1", "--condense.images", "1", "--condense.iterations", "6"],
        *["--condense.batch_size", "8", "--condense.model.width", "8", "--recipe.model.width", "8"],
        *["--recipe.epochs", "2"],
    ],
    "repair": ["repair", "{model}", "--arch", "resnet8:4", *TINY, "--clean", "3", "--method", "nad"],
    "matrix": [
        *["matrix", *RUN, "--attack", "badnets_white", "none", "--clean", "3"],
        *["--defense", "dpa", "random_subset", "spectral_signatures", "fine_pruning"],
    ],
    "reproduction": ["reproduce", "dpa/table4", "--threads", "1"],
}
POINTS = 3  # of each, at which it is killed


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = reproduce_dpa.SCALES["smoke"]
    recipe = replace(smoke.recipe, epochs=2, model=replace(smoke.recipe.model, width=4))
    setting = replace(smoke, limit=60, recipe=recipe, partitions=(3,), rates=(0.1,), widths=(2, 4))
    monkeypatch.setitem(reproduce_dpa.SCALES, "smoke", setting)


def attempt(command: list[str], count: Path, stop: tuple[int, float] | None = None) -> int:
    """Do ``command`` in a child, killed so many seconds after so many writes; how many it did is left in ``count``."""
    done = 0
    whole = os.replace

    def counted(*paths: object) -> None:
        nonlocal done
        whole(*paths)  # type: ignore[arg-type]
        done += 1
        if stop and done == stop[0]:
            threading.Timer(stop[1], os.kill, (os.getpid(), signal.SIGKILL)).start()

    def work() -> int:
        os.replace = counted
        status = main(command)
        count.write_text(str(done))
        while stop and done >= stop[0]:  # it ended before it was killed: as good a moment as any
            time.sleep(0.01)
        return status

    return in_child(work)


def bits(out: Path) -> dict[str, str]:
    """The SHA-256 of all tensors of every file, with their names, and of the lists of artefacts."""
    found = {path: digest(*read(path)) for path in out.rglob("*.safetensors")}
    found |= {path: sha256(path) for path in out.rglob("digests.json")}
    return {path.relative_to(out).as_posix(): value for path, value in found.items()}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("name", WORK)
def test_killed_at_random_points_it_ends_with_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where triggers and surrogates are kept
    model = tmp_path / "theirs.safetensors"
    save_file(ResNet(8, 4, stem="small").build((1, 8, 8), 10, key(3)).state_dict(), model)
    command = [word.format(model=model) for word in WORK[name]]
    straight, killed, count = tmp_path / "straight", tmp_path / "killed", tmp_path / "count"
    assert attempt([*command, "--out", str(straight)], count) == 0
    writes = int(count.read_text())
    assert writes > POINTS
    points = random.Random(name)
    kills = 0  # the first is certain; what is left after it may be less than the next one waits for
    for _ in range(POINTS):
        stop = points.randint(1, max(1, writes // POINTS)), points.uniform(0, 0.03)
        kills += attempt([*command, "--out", str(killed)], count, stop) == -signal.SIGKILL
    assert kills
    assert attempt([*command, "--out", str(killed)], count) == 0
    assert bits(killed) == bits(straight)
    assert bits(straight)
    assert not list(killed.rglob(".*.safetensors.*.tmp"))


def test_a_kill_is_a_kill(tmp_path: Path) -> None:
    """The harness itself: what is killed did not go on, and what is not ends well."""
    command = ["run", *RUN, "--attack", "none", "--defense.partitions", "2", "--out", str(tmp_path / "run")]
    assert attempt(command, tmp_path / "count", (1, 0.0)) == -signal.SIGKILL
    assert not (tmp_path / "count").exists()
    assert not (tmp_path / "run" / "digests.json").exists()
    assert torch.get_num_threads() == 1
