"""``poisonkit repair``: a user's file or a run goes in, a repaired network and what changed come out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from poisonkit.__main__ import main
from poisonkit.data import load
from poisonkit.defenses.repair import REPAIR
from poisonkit.models import ResNet, predict
from poisonkit.models.clipping import ceilings, restored
from poisonkit.random import key
from poisonkit.train.checkpoints import load_tensors

ARCH = ResNet(8, 4, stem="small")
DATA = ["--data", "digits", "--limit", "120", "--clean", "2"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A checkpoint as somebody else writes it."""
    path = tmp_path / "theirs.safetensors"
    save_file(ARCH.build((1, 8, 8), 10, key(3)).state_dict(), path)
    return path


def test_a_file_of_somebody_elses(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["repair", str(file), "--arch", "resnet8:4", *DATA, "--method.iterations", "5", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"clean accuracy [\d.]+% -> [\d.]+%, on 100 images other than the 20 given", said)
    assert re.search(r"^layer3\.0\.relu +16 +\d+$", said, re.MULTILINE)
    change = json.loads((tmp_path / "out" / "change.json").read_text())
    assert sum(channels for _, channels, _ in change["relus"]) == 4 + 2 * (4 + 8 + 16)
    assert change["tensors"] == {}  # no weight was touched
    state = load_tensors(tmp_path / "out" / "repaired.safetensors")
    network = restored(ARCH.build((1, 8, 8), 10, key(0)), state)
    assert len(ceilings(network)) == 7
    images = load("digits")[1].images[:8]
    assert predict(network, images).shape == (8,)
    # again: nothing is done twice, the same is said; a repaired network goes through a repair of another kind
    assert main([*command, str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == said


def test_the_undefended_network_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ["--attack", "badnets_white", "--defense.partitions", "2", "--recipe.epochs", "1"]
    small += ["--recipe.model.width", "4", "--data", "digits", "--limit", "120"]
    assert main(["run", *small, "--out", str(run)]) == 0
    assert (
        main(["repair", str(run), *DATA, "--method", "mm_bm", "--method.epochs", "2", "--out", str(tmp_path / "o")])
        == 0
    )
    assert "bounds on" in capsys.readouterr().out
    whole, repaired = (
        load_tensors(path) for path in (run / "undefended/model.safetensors", tmp_path / "o/repaired.safetensors")
    )
    assert all(torch.equal(whole[name], repaired[name]) for name in whole)


@pytest.mark.parametrize("method", REPAIR)
def test_every_method_is_offered(method: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repair", str(file), "--arch", "resnet8:4", *DATA, "--method", method, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["method"]["class"] == REPAIR[method].__name__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{file}"], "--arch must be given for a file, such as resnet18:64, got None"),
        (["{file}", "--arch", "resnet9"], "--arch must be NAME or NAME:WIDTH, a name of resnet8, .* got 'resnet9'"),
        (["{file}", "--arch", "resnet8:8"], "MODEL must be a ResNet.depth=8, width=8.* got .*size mismatch"),
        (["missing", "--arch", "resnet8"], "MODEL must be a safetensors file, or a run with an undefended network"),
        (
            ["{file}", "--arch", "resnet8:4", "--clean", "13"],
            "clean images must be fewer than 6 of each class, as the smallest has, got 13",
        ),
        (["{file}", "--arch", "resnet8:4", "--clean", "0"], "clean images must be 1 or more of each class, got 0"),
        (["{file}", "--arch", "resnet8:4", "--method.speed", "1"], "an option below --method must be one of"),
    ],
)
def test_what_is_refused(
    arguments: list[str], message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [each.format(file=file) for each in arguments]
    where = [part for part in DATA if "--clean" not in given or part not in ("--clean", "2")]
    assert main(["repair", *given, *where, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
