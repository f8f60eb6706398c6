"""New data for an old run: what changed is found from contents, and the result is that of a run from scratch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from poisonkit import report
from poisonkit.__main__ import main
from poisonkit.data import load
from poisonkit.data.files import sha256
from poisonkit.engine.run import FORMAT
from poisonkit.experiments.contents import digests
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Job, Recipe
from poisonkit.types import ImageDataset

RECIPE = ["--recipe.model.depth", "8", "--recipe.model.stem", "small", "--recipe.model.width", "4"]
RECIPE += ["--recipe.epochs", "1", "--recipe.batch_size", "8", "--threads", "1"]
METHODS = {
    "dpa": ["--defense", "dpa", "--defense.partitions", "4"],
    "dpa-stacks": ["--defense", "dpa", "--defense.partitions", "4", "--stack", "2"],
    "finite_aggregation": ["--defense", "finite_aggregation", "--defense.partitions", "3", "--defense.spread", "2"],
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits of three classes, 48 to train on and 12 to test on, as a folder of pictures."""
    root = tmp_path_factory.mktemp("pictures")
    for part, data, count in zip(("train", "test"), load("digits"), (48, 12), strict=True):
        rows = torch.nonzero(data.labels < 3)[:count, 0].tolist()
        for row in rows:
            path = root / part / str(int(data.labels[row])) / f"{row:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(report.png(data.images[row]))
    return root


def train(root: Path, out: Path, method: str) -> None:
    options = [*METHODS[method], *([] if "--stack" in METHODS[method] else ["--stack", "1"])]
    assert (
        main(["run", "--data", "folder", "--root", str(root), "--attack", "none", *options, *RECIPE, "--out", str(out)])
        == 0
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["added", "removed"])
def test_an_update_is_a_run_from_scratch(
    method: str, change: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, scratch, root = tmp_path / "old", tmp_path / "new", tmp_path / "scratch", tmp_path / "pictures"
    train(pictures, old, method)
    shutil.copytree(pictures, root)
    first = sorted((root / "train" / "1").iterdir())[0]
    if change == "removed":
        first.unlink()
    else:
        digits, _ = load("digits")
        row = torch.nonzero(digits.labels == 1)[-1, 0]
        first.with_name("new.png").write_bytes(report.png(digits.images[row]))
    capsys.readouterr()
    update = ["dpa", "update", str(old), "--data", "folder", "--root", str(root), "--threads", "1", "--out", str(new)]
    assert main([*update, "--dry-run"]) == 0
    said = capsys.readouterr().out
    hit, total, models = re.match(r"base models with other rows, (\d) of (\d): ([\d, ]+)\n", said).groups()  # type: ignore[union-attr]
    # a row is in one partition of DPA, and reaches d base models of Finite Aggregation
    assert (hit, total) == (("2", "6") if method == "finite_aggregation" else ("1", "4"))
    assert not new.exists()
    assert main(update) == 0
    assert capsys.readouterr().out.startswith(said)
    train(root, scratch, method)
    name = method.removesuffix("-stacks")
    found = {path.parent.name: sha256(path) for path in (new / name).glob("base-*/model.safetensors")}
    wanted = {path.parent.name: sha256(path) for path in (scratch / name).glob("base-*/model.safetensors")}
    before = {path.parent.name: sha256(path) for path in (old / name).glob("base-*/model.safetensors")}
    assert found == wanted
    changed = {model for model, digest in found.items() if digest != before[model]}
    assert changed == {f"base-{int(i):04d}" for i in models.split(", ")}
    # what was copied brought its log along, and only what is stale was trained: its log is of now
    logs = {path.parent.name: path.read_bytes() for path in (new / name).glob("*/metrics.jsonl")}
    same = {folder for folder, log in logs.items() if log == (old / name / folder / "metrics.jsonl").read_bytes()}
    assert len(logs) - len(same) == int(hit)
    rates = [json.loads((run / "results.json").read_text())[-1]["certified"] for run in (new, scratch)]
    assert rates[0] == rates[1]
    # `poisonkit run` takes the directory up, and adds the undefended network
    train(root, new, method)
    both = [json.loads((run / "digests.json").read_text()) for run in (new, scratch)]
    assert both[0] == both[1]


def test_an_update_with_the_same_data_trains_nothing(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(pictures, tmp_path / "old", "dpa")
    capsys.readouterr()
    update = ["dpa", "update", str(tmp_path / "old"), "--data", "folder", "--root", str(pictures), "--threads", "1"]
    assert main([*update, "--out", str(tmp_path / "new")]) == 0
    assert "units to train, 0 of 4: none\n" in capsys.readouterr().out
    assert main(["dpa", "update", str(tmp_path / "old"), "--data", "digits", "--out", str(tmp_path / "x")]) == 2
    assert "--data must be folder, as of" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    manifest["environment"]["torch"] = "1.0"
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert main([*update, "--out", str(tmp_path / "x")]) == 2
    assert re.search(r"torch of an update of .* must be 1.0, as there, got 2", capsys.readouterr().err)
    assert not (tmp_path / "x").exists()


def test_a_content_digest_sees_everything_that_a_network_is_a_function_of() -> None:
    data, _ = load("digits")
    data = data.take(torch.arange(20))
    recipe = Recipe(model=ResNet(8, 4, stem="small"), epochs=1)
    rows = torch.arange(5)
    job = Job(0, data, rows, recipe, key(0))
    relabelled = ImageDataset(data.images, data.labels.index_fill(0, torch.tensor([2]), 9), data.classes)
    pixels = data.images.clone()
    pixels[2, 0, 0, 0] ^= 1
    others = [
        Job(0, data, rows.flip(0), recipe, key(0)),
        Job(0, data, torch.arange(6), recipe, key(0)),
        Job(0, data, rows, Recipe(model=ResNet(8, 4, stem="small"), epochs=2), key(0)),
        Job(0, data, rows, recipe, key(1)),
        Job(0, relabelled, rows, recipe, key(0)),
        Job(0, ImageDataset(pixels, data.labels, data.classes), rows, recipe, key(0)),
        Job(0, ImageDataset(data.images, data.labels, (*data.classes, "ten")), rows, recipe, key(0)),
    ]
    found = {bytes(digests([each])[0].tolist()) for each in (job, *others)}
    assert len(found) == 1 + len(others)
    # the same rows, from elsewhere in another data set, under another id
    elsewhere = Job(3, data.take(torch.arange(19, -1, -1)), torch.arange(19, 14, -1), recipe, key(0))
    assert torch.equal(digests([job]), digests([elsewhere]))


def test_an_update_never_overwrites_what_it_reads(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    train(pictures, old, "dpa")
    digests_before = (old / "digests.json").read_bytes()
    same = ["dpa", "update", str(old), "--data", "folder", "--root", str(pictures), "--out", str(old), "--overwrite"]
    assert main(same) == 2
    assert "--out must be another directory than" in capsys.readouterr().err
    assert (old / "digests.json").read_bytes() == digests_before


@pytest.mark.parametrize("plan", [None, {"study": "scan"}, {"study": "family", "defense": {"class": "DPA"}}])
def test_what_is_no_run_of_a_defense_is_not_updated(
    plan: dict[str, object] | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if plan is not None:
        (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT, "plan": plan}))
    arguments = ["dpa", "update", str(tmp_path), "--data", "digits", "--out", str(tmp_path / "new")]
    assert main(arguments) == 2
    assert "run directory must be of `poisonkit run`" in capsys.readouterr().err
