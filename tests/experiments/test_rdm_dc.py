"""RDM-DC's tables: the numbers as printed, all of them at a tiny scale, what they would cost, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from poisonkit.__main__ import main
from poisonkit.data import load
from poisonkit.data.siamese import Siamese
from poisonkit.experiments.condensed import Augmented, answers, rounded
from poisonkit.experiments.reproduce import REPRODUCTIONS, SCALES
from poisonkit.experiments.reproduce import rdm_dc as study
from poisonkit.experiments.reproduce import rdm_dc_paper as paper
from poisonkit.experiments.reproduce.results import read
from poisonkit.experiments.reproduce.sizes import SHAPES, size
from poisonkit.models import ConvNet
from poisonkit.random import key
from poisonkit.train import Batch
from poisonkit.types import ImageDataset

NAMES = [*(f"rdm-dc/table{n}" for n in range(1, 6)), "rdm-dc/lemma4.1"]


def test_names_and_scales() -> None:
    assert [name for name in REPRODUCTIONS if name.startswith("rdm-dc/")] == NAMES
    assert all(list(REPRODUCTIONS[name].scales) == list(SCALES) for name in NAMES)


def test_the_paper_as_printed() -> None:
    tables = [paper.TABLE1, paper.TABLE2, paper.TABLE3, paper.TABLE4, paper.TABLE5]
    rows = {name: row for [each] in tables[1:2] for name, row in each.numbers.items()}
    assert rows["RDM-DC"] == {
        "accuracy": pytest.approx(0.5765),
        "accuracy ±": pytest.approx(0.0044),
        "attack success": 0,
        "attack success ±": 0,
    }
    # what two tables say of the same thing is the same
    [first], [second], [third] = tables[:3]
    assert first.numbers["DM poisoning, 64/255"] == second.numbers["DM"]
    assert first.numbers["gradient matching, 64/255"] == third.numbers["DM"]
    # three successes of five, one of five: the deviation of zeros and ones, over 25 runs
    for part in (first, second, third):
        for row in part.numbers.values():
            rate = row["attack success"]
            assert row["attack success ±"] == pytest.approx((rate * (1 - rate)) ** 0.5, abs=1e-3)


def test_the_setting_of_the_paper() -> None:
    setting = REPRODUCTIONS["rdm-dc/table2"].scales["paper"]
    assert (setting.dm.images, setting.dm.iterations, setting.dm.batch_size, setting.dm.rate) == (50, 20_000, 256, 0.01)
    assert (setting.targets, setting.runs, setting.eps) == (5, 5, (64.0, 128.0, 32.0))
    assert (setting.poisoning.rate, setting.matching.rate, setting.matching.networks) == (1.0, 1.0, 16)
    assert setting.recipe.epochs == 1000
    tiny = REPRODUCTIONS["rdm-dc/table4"].scales["paper"]
    assert {each.model for each in (tiny.dm, tiny.poisoning, tiny.recipe)} == {ConvNet(4)}
    # a condensation of CIFAR-10: 7.2e15 operations, two a multiply-add, and a network on its images 0.15e15
    condensation, network = study._condensations(setting, 1)
    shape, classes, _ = SHAPES["cifar10"]
    assert 2 * size([condensation], shape, classes, 50_000).multiply_adds == pytest.approx(7.2e15, rel=0.05)
    assert 2 * size([network], shape, classes, 50_000).multiply_adds == pytest.approx(0.15e15, rel=0.05)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    smoke = study.SCALES["smoke"]
    model = ConvNet(1, 4)
    setting = replace(
        smoke,
        limit=500,
        recipe=replace(smoke.recipe, epochs=2, model=model),
        dm=replace(smoke.dm, images=1, iterations=2, batch_size=8, model=model),
        poisoning=replace(smoke.poisoning, steps=1, model=model),
        untargeted=replace(smoke.untargeted, steps=1, model=model),
        matching=replace(smoke.matching, steps=1, surrogate=replace(smoke.matching.surrogate, model=model, epochs=1)),
        targets=1,
        looks=1,
    )
    for scales in (study.SCALES, study.TINY_SCALES):
        monkeypatch.setitem(scales, "smoke", setting)


@pytest.mark.usefixtures("tiny")
def test_all_of_the_paper(tmp_path: Path) -> None:
    assert main(["reproduce", "rdm-dc", "--threads", "1", "--out", str(tmp_path)]) == 0
    results = read(tmp_path, NAMES, SCALES)
    assert {name for name, _ in results} == set(NAMES)
    two = {(row["part"], row["row"], row["column"]): row for row in results["rdm-dc/table2", "smoke"].rows}
    for method in study.MEANS:
        accuracy, success = (two[paper.DEFENSES, method, column] for column in ("accuracy", "attack success"))
        assert accuracy["paper"] > 0.4
        assert 0 <= accuracy["ours"] <= 1
        assert success["ours"] in (0, 1)
    assert two["On clean data", "random rows", "accuracy"]["ours"] is not None
    assert two[f"{paper.DEFENSES}: left out of a mean", "RDM-DC", "poisoned rows"]["ours"] is not None
    condensations = len(list(tmp_path.rglob("synthetic.safetensors")))
    # five means against DM poisoning, DM and RDM-DC against the others, the other bounds, clean data, untargeted
    assert condensations == 5 + 2 + 2 + 2 + 2 + 2 + 2
    assert two["Untargeted attack", "RDM-DC", "accuracy"]["ours"] is not None
    exponents = {
        row["column"]: row["ours"] for row in results["rdm-dc/lemma4.1", "smoke"].rows if row["row"] == "direct attack"
    }
    assert exponents["mean"] == pytest.approx(1, abs=0.2)
    page = (tmp_path / "report.html").read_text()
    assert "percent of the rows of a class" in page
    assert main(["reproduce", "rdm-dc/table5", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("synthetic.safetensors"))) == condensations  # nothing is condensed again


def test_evaluation_augments_alike_in_a_step_and_each_image_by_itself() -> None:
    class Spy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.flatten(1)[:, :2]

    seen: list[torch.Tensor] = []
    images = 255 * torch.rand(1, 3, 16, 16, generator=key(0).generator()).expand(20, -1, -1, -1)
    for step in range(8):
        batch = Batch(images, torch.zeros(20, dtype=torch.int64), torch.arange(20), step, 0, key(step))
        Augmented(Siamese()).loss(Spy(), batch)
    assert all(len(each.flatten(1).unique(dim=0)) > 1 for each in seen)
    cut = Augmented(Siamese(("cutout",)))
    cut.loss(Spy(), batch)
    grey = (seen[-1] == 127.5).all(1).flatten(1)
    assert (grey.sum(1) >= 16).all()
    assert len(grey.unique(dim=0)) > 5
    assert repr(cut) == "Augmented(Siamese(changes=('cutout',)))"


def test_a_network_learns_a_synthetic_set() -> None:
    train, test = load("digits")
    rows = torch.cat([(train.labels == c).nonzero()[:6, 0] for c in range(10)])
    few = replace(train.take(rows), images=train.images[rows].float())
    recipe = replace(study.SCALES["smoke"].recipe, model=ConvNet(1, 8), epochs=25)
    said = answers(few, recipe, {"clean": test.images[:200]}, siamese=Siamese(("crop",)), key=key(0))
    assert float((said["clean"] == test.labels[:200]).double().mean()) > 0.5


def test_rounding_cuts_off() -> None:
    images = torch.tensor([-3.0, 0.4, 254.6, 300.0]).view(1, 1, 2, 2)
    data = ImageDataset(images, torch.tensor([0]), ("a",))
    assert rounded(data).images.flatten().tolist() == [0, 0, 255, 255]
    assert rounded(data).images.dtype == torch.uint8


QUICK = ["--condense.images", "2", "--condense.iterations", "12", "--condense.batch_size", "16", "--networks", "2"]
QUICK += ["--condense.model.depth", "1", "--condense.model.width", "4", "--recipe.model.depth", "1"]
QUICK += ["--recipe.model.width", "4", "--recipe.epochs", "3", "--limit", "300", "--threads", "1"]


@pytest.mark.parametrize("method", ["dm", "rdm_dc"])
def test_the_command(method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["condense", "--data", "digits", "--method", method, *QUICK, "--out", str(out)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("condensed ", "condensed as bytes", "random rows"))
    train, test = load("synthetic", out)
    assert train.images.shape == (20, 1, 8, 8)
    assert len(test) == 300
    results = json.loads((out / "results.json").read_text())
    assert {len(values) for values in results["accuracies"].values()} == {2}
    page = (out / "report.html").read_text()
    assert ("top direction of variance" in page) == (method == "rdm_dc")
    assert page.count("data:image/png") == 2
    assert (out / "figures" / "synthetic.png").is_file()
    before = json.loads((out / "digests.json").read_text())
    assert main(command) == 0  # takes up what is there
    assert json.loads((out / "digests.json").read_text()) == before


@pytest.mark.usefixtures("capsys")
def test_a_run_reads_what_it_wrote(tmp_path: Path) -> None:
    assert main(["condense", "--data", "digits", *QUICK, "--out", str(tmp_path / "made")]) == 0
    run: list[Any] = ["run", "--data", "synthetic", "--root", tmp_path / "made" / "synthetic.safetensors"]
    run += ["--attack", "none", "--defense.partitions", "2", "--recipe.epochs", "1", "--recipe.batch_size", "4"]
    run += ["--recipe.model.width", "4", "--recipe.model.stem", "small", "--threads", "1", "--out", tmp_path / "run"]
    assert main(list(map(str, run))) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert main([*map(str, run), "--attack", "badnets_white", "--overwrite"]) == 2  # its pixels are no bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "0"], "--networks must be 1 or more"),
        (["--condense.start", "real"], "start must be 'noise' for data that may be poisoned"),
        (["--condense.speed", "3"], "an option below --condense must be one of"),
        (["--method", "dc"], "invalid choice: 'dc'"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["condense", "--data", "digits", *arguments, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
