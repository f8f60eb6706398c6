"""Processes that share the run of a study: nothing is computed twice, and who is waited for is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from os import getpid
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import pytest
import torch
from torch import Tensor

from poisonkit.__main__ import main
from poisonkit.data import load
from poisonkit.engine import Local, Progress, Run
from poisonkit.engine.locks import hold
from poisonkit.experiments.lab import Lab
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe

RECIPE = Recipe(ResNet(8, 2, stem="small"), epochs=3, batch_size=16)
# locks are of open files, so a thread stands in for a process
WAITING = f"is with process {getpid()} on "


@pytest.fixture
def new_lab(tmp_path: Path) -> Callable[[], Lab]:
    """The run of one study, as each process opens it."""
    train, test = (part.take(torch.arange(40)) for part in load("digits"))
    return lambda: Lab(Run(tmp_path / "run", {}), train, test, RECIPE, key(0), Local(), Progress())


def said(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """What was said on stderr, once it has ``text``."""
    found, end = "", monotonic() + 20
    while text not in found and monotonic() < end:
        sleep(0.01)
        found += capsys.readouterr().err
    assert text in found
    return found


def test_work_in_a_journal_is_done_once(new_lab: Callable[[], Lab], capsys: pytest.CaptureFixture[str]) -> None:
    begun, go_on = Event(), Event()

    def work(first: bool) -> dict[str, Tensor]:
        lab = new_lab()
        with lab.journal("method") as journal:
            if first:
                begun.set()
                assert go_on.wait(20)
            return journal.fit(lab.train, RECIPE, key=lab.key).state_dict()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(work, True)
        assert begun.wait(20)
        two = pool.submit(work, False)
        said(capsys, f"method/journal in {new_lab().run.directory} {WAITING}")
        go_on.set()
        assert all(torch.equal(tensor, two.result()[name]) for name, tensor in one.result().items())
    log = new_lab().run.directory / "method" / "metrics.jsonl"
    assert [json.loads(line)["number"] for line in log.read_text().splitlines()] == [1, 2, 3]


SMALL = ["--data", "digits", "--limit", "120", "--recipe.epochs", "1", "--recipe.model.width", "4", "--threads", "1"]


@pytest.mark.parametrize(
    ("command", "run"),
    [
        (["backdoors", "--seed", "0"], "blended-0"),
        (["matrix", "--defense", "mixup", "--clean", "1"], "blended"),
    ],
)
def test_a_study_waits_for_the_process_that_is_at_it(
    command: list[str], run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*command, "--attack", "blended", *SMALL, "--out", str(tmp_path)]
    with ThreadPoolExecutor(1) as pool:
        with hold(tmp_path / run / ".locks" / "report.lock"):
            done = pool.submit(main, arguments)
            said(capsys, f"report in {tmp_path / run} {WAITING}")
            assert not list(tmp_path.rglob("*.safetensors"))
            assert main([*arguments, "--overwrite"]) == 2
            assert "at rest to be overwritten, and report is held, got process" in capsys.readouterr().err
        assert done.result() == 0
    assert list(tmp_path.rglob("model.safetensors"))
