"""Defenses of every family in one table, by stand-ins whose effect is known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from poisonkit.__main__ import main
from poisonkit.commands.run import DEFENSES, Plan
from poisonkit.data import load
from poisonkit.defenses import FAMILIES
from poisonkit.engine import load_ensemble
from poisonkit.errors import ArgumentError, RunError
from poisonkit.experiments import set_aside
from poisonkit.experiments.findings import findings
from poisonkit.random import key
from poisonkit.train import Journal, fit
from poisonkit.train.checkpoints import load_tensors
from poisonkit.train.loop import Checkpoint
from poisonkit.types import Backdoor, Budget, Detection, ImageDataset, Poison

SMALL = ["--data", "digits", "--limit", "200", "--recipe.model.width", "4", "--recipe.epochs", "1", "--threads", "1"]


@dataclass(frozen=True)
class Retrain:
    """Trains on the even rows."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, data: ImageDataset, recipe: Any, *, key: Any, model: Any = None, journal: Journal) -> nn.Module:
        even = torch.arange(0, len(data), 2)
        journal.notes["dropped_at"] = torch.arange(len(data)) % 2 - 1
        return fit(data.take(even), recipe, key=key, directory=journal.directory, on_epoch=journal.on_epoch)


@dataclass(frozen=True)
class LeaveOut:
    """Leaves out the rows of class 0."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, features: Tensor, labels: Tensor, *, key: Any) -> Detection:
        return Detection(labels == 0, (labels == 0).double())


@dataclass(frozen=True)
class Constant:
    """A network that says the class of which it was given most, which is all the same: the first."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Any, journal: Journal) -> nn.Module:
        assert torch.bincount(clean.labels).tolist() == [3] * 10
        found = deepcopy(model)
        nn.init.zeros_(found.fc.weight)
        nn.init.zeros_(found.fc.bias)
        return found


@dataclass(frozen=True)
class Accuse:
    """Accuses class 1."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Any, journal: Journal) -> Detection:
        score = torch.arange(10).eq(1).double()
        return Detection(score > 0, score, 1 - score)


@dataclass(frozen=True)
class Watch:
    """Holds bright corners for triggers and says 9."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Any, journal: Journal) -> Watch:
        return self

    def flagged(self, images: Tensor) -> Tensor:
        return images[:, 0, -1, -1] == 255

    def predict(self, images: Tensor) -> Tensor:
        return torch.full((len(images),), 9)


@dataclass(frozen=True)
class Few:
    """The first twenty rows, brighter than pixels can be."""

    source: ClassVar[str] = "nobody 2026"

    def __call__(self, data: ImageDataset, *, key: Any, journal: Journal) -> ImageDataset:
        few = data.take(torch.arange(20))
        return ImageDataset(few.images.float() * 2, few.labels, few.classes)


STAND_INS = {
    "training": Retrain,
    "filters": LeaveOut,
    "repair": Constant,
    "detectors": Accuse,
    "guards": Watch,
    "condense": Few,
}


@pytest.fixture(params=STAND_INS)
def family(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(FAMILIES[request.param], "stand_in", STAND_INS[request.param])
    monkeypatch.setitem(DEFENSES, "stand_in", STAND_INS[request.param])
    return str(request.param)


def test_a_run(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["run", *SMALL, "--attack", "badnets_white", "--rate", "0.1", "--defense", "stand_in", "--clean", "3"]
    command += ["--out", str(out)]
    assert main(command) == 0
    first = capsys.readouterr().out
    digests = json.loads((out / "digests.json").read_text())
    undefended, row = json.loads((out / "results.json").read_text())
    assert (undefended["name"], row["name"]) == ("undefended", "stand_in")
    assert row["certified"] is None
    given = family in ("repair", "detectors", "guards")
    share = {"repair": 0, "guards": 9}
    if family in share:
        _, test = load("digits")
        test = test.take(torch.arange(200) * len(test) // 200)
        _, rest = set_aside(test, 3, key(0).child("clean"))
        assert row["clean_accuracy"] == pytest.approx(float((rest.labels == share[family]).double().mean()))
    if family == "detectors":
        assert row["clean_accuracy"] == undefended["clean_accuracy"]
    plan = json.loads((out / "manifest.json").read_text())["plan"]
    assert plan["clean"] == (3 if given else None)
    assert {"training": "Rows dropped", "filters": "Rows held for poisoned", "detectors": "target of a backdoor"}.get(
        family, ""
    ) in first
    if family == "guards":
        assert "100.0 %" in first.split("Images held for triggered")[1]
    assert "stand_in" in (out / "report.html").read_text()
    assert row["seconds"] >= 0
    kept = {path.stem for path in (out / "stand_in").iterdir()}
    assert kept == {"said", "metrics"} | ({"model"} if family != "guards" else set())
    # taken up again, nothing is computed anew
    assert main(command) == 0
    assert capsys.readouterr().out == first
    assert json.loads((out / "digests.json").read_text()) == digests
    with pytest.raises(RunError, match="of a certified defense"):
        load_ensemble(out)


def test_a_filter_is_followed_by_training_on_what_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which goes on when it is killed; the report says how many rows went, and how many of them were poisoned."""
    out, save = tmp_path / "run", Checkpoint.save
    command = ["run", *SMALL, "--recipe.epochs", "3", "--attack", "badnets_white", "--rate", "0.1"]
    command += ["--defense", "spectral_signatures", "--out", str(out)]

    def killed(self: Checkpoint, tensors: Mapping[str, Tensor], epochs: int) -> None:
        if self.path.parent.name == "spectral_signatures" and epochs == 2:
            raise ZeroDivisionError
        save(self, tensors, epochs)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        with pytest.raises(ZeroDivisionError):
            main(command)
    assert not (out / "results.json").exists()
    assert main(command) == 0
    said, poison = (load_tensors(out / f"{name}.safetensors") for name in ("spectral_signatures/said", "poison"))
    flagged = said["note flagged"]
    plan, (clean, _) = Plan.of(json.loads((out / "manifest.json").read_text())["plan"]), load("digits")
    dirty = clean.take(torch.arange(200) * len(clean) // 200)
    dirty.images[poison["rows"]], dirty.labels[poison["rows"]] = poison["images"], poison["labels"]
    left = dirty.take((~flagged).nonzero()[:, 0])
    straight = fit(left, plan.recipe, key=key(0).child("undefended")).state_dict()
    kept = load_tensors(out / "spectral_signatures" / "model.safetensors")
    assert all(torch.equal(kept[name], straight[name]) for name in straight)
    log = [json.loads(line) for line in (out / "spectral_signatures" / "metrics.jsonl").read_text().splitlines()]
    # the second epoch, whose checkpoint was lost, was done again
    assert [line["number"] for line in log if "number" in line] == [1, 2, 2, 3]
    assert all(line["rows"] == len(left) < 200 for line in log if "rows" in line)
    hit, row = int(flagged[poison["rows"]].sum()), capsys.readouterr().out.split("Rows held for poisoned")[1]
    shown = [str(int(flagged.sum())), str(hit), f"{5 * hit:.1f} %"]  # of 20 poisoned rows
    assert re.search(r"\s+".join(map(re.escape, shown)), row)
    page = (out / "report.html").read_text().split("Rows held for poisoned")[1]
    assert all(f">{cell}<" in page for cell in shown)


def test_what_has_no_parts_is_not_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(FAMILIES["filters"], "stand_in", LeaveOut)
    monkeypatch.setitem(DEFENSES, "stand_in", LeaveOut)
    command = ["run", *SMALL, "--defense", "stand_in", "--dry-run"]
    for more in (["--only", "0"], ["--stack", "2"], ["--engine", "ray"]):
        assert main([*command, *more]) == 2
        assert "the run must be without --only, --print-job, --stack and --engine ray" in capsys.readouterr().err


def test_what_cannot_be_done_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for defense, rule in (
        (["attn_block"], "model must be"),
        (["dp_sgd", "--defense.mode", "per_sample"], "model must be"),
        (["ieu"], "patch must be a divisor"),
    ):
        assert main(["run", *SMALL, "--clean", "3", "--defense", *defense, "--out", str(tmp_path / "run")]) == 2
        assert rule in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_clean_images_are_balanced_and_apart() -> None:
    _, test = load("digits")
    clean, rest = set_aside(test, 5, key(0))
    assert torch.bincount(clean.labels).tolist() == [5] * 10
    assert len(clean) + len(rest) == len(test)
    pixels = lambda data: {image.numpy().tobytes() for image in data.images}  # noqa: E731
    assert not pixels(clean) & pixels(rest)
    with pytest.raises(ArgumentError, match="clean images must be fewer than"):
        set_aside(test, 1000, key(0))
    with pytest.raises(ArgumentError, match="clean images must be 1 or more"):
        set_aside(test, 0, key(0))


def test_findings_count_poisons() -> None:
    images = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
    dirty = ImageDataset(images, torch.zeros(6, dtype=torch.int64), ("a", "b"))
    goal = Backdoor(lambda images: images, 0)
    poison = Poison(torch.tensor([1, 4]), images[:2], dirty.labels[:2], goal, Budget(0.5))
    [dropped] = findings({"note dropped_at": torch.tensor([-1, 2, 2, 0, -1, -1])}, dirty, poison)
    assert list(map(list, dropped.rows)) == [[1, 1, 0], [3, 2, 1], ["kept", 3, 1]]
    [left] = findings({"note flagged": torch.tensor([True, True, False, False, False, False])}, dirty, poison)
    assert list(left.rows[0]) == [2, 1, "50.0 %"]
