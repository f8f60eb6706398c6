"""``poisonkit gallery`` and ``poisonkit craft``, and a run that takes the trigger that was kept."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poisonkit.__main__ import main
from poisonkit.attacks import ATTACKS
from poisonkit.commands.gallery import sheet, tile
from poisonkit.train.checkpoints import load_tensors

SMALL = ["--attack.steps", "2", "--attack.surrogate.epochs", "1", "--attack.surrogate.model.width", "2"]


def test_a_tile_by_hand() -> None:
    clean = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    triggered = clean.clone()
    triggered[:, 5, 6] = torch.tensor([103, 98, 100], dtype=torch.uint8)
    made = tile("sig", clean, triggered)
    assert made.shape == (3, 20 + 96, 3 * 96 + 2 * 2)
    pictures = made[:, 20:]
    assert pictures[:, 0, 0].tolist() == [100] * 3
    assert pictures[:, 3 * 5, 98 + 3 * 6].tolist() == [103, 98, 100]
    # the largest change is 3, so differences are multiplied by 127 // 3
    assert pictures[:, 3 * 5, 196 + 3 * 6].tolist() == [128 + 42 * 3, 128 - 42 * 2, 128]
    assert pictures[:, 0, 196].tolist() == [128] * 3
    letters = (made[0, :14, : 6 * 2 * 7 : 2] == 32)[::2]
    assert letters[:, :5].int().tolist()[0] == [0, 1, 1, 1, 1]  # the head of an S


def test_tiles_lie_in_rows_of_four() -> None:
    tiles = [torch.full((3, 10, 20), level, dtype=torch.uint8) for level in range(6)]
    canvas = sheet(tiles)
    assert canvas.shape == (3, 14 + 2 * 24, 14 + 4 * 34)
    assert [int(canvas[0, 14 + 24 * (i // 4), 14 + 34 * (i % 4)]) for i in range(6)] == list(range(6))


def test_gallery(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gallery.png"
    names = ["badnets_white", "sig", "wanet", "badnets_all_to_all", "batt"]
    assert main(["gallery", "--data", "digits", "--attack", *names, "--out", str(out)]) == 0
    assert f"5 triggers in {out}" in capsys.readouterr().err
    picture = np.asarray(Image.open(io.BytesIO(out.read_bytes())))
    assert picture.shape == (14 + 2 * (20 + 96 + 14), 14 + 4 * (292 + 14), 3)
    assert main(["gallery", "--data", "digits", "--image", "360", "--out", str(out)]) == 2
    assert "--image must be in [0, 360), got 360" in capsys.readouterr().err


def test_craft_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "copy.safetensors"
    some = ["--data", "digits", "--limit", "60", "--seed", "3"]
    assert main(["craft", "trojan_wm", *some, *SMALL, "--out", str(copy)]) == 0
    shown = capsys.readouterr().out
    kept = tmp_path / re.search(r"kept as (\S+)", shown)[1]  # type: ignore[index]
    assert re.search(r"^with the trigger +-?\d+\.\d+ +\d+\.\d %", shown, re.MULTILINE)
    pattern = load_tensors(copy)["pattern"]
    assert torch.equal(pattern, load_tensors(kept)["pattern"])
    before = sorted(path.name for path in kept.parent.iterdir())
    run = ["run", *some, "--attack", "trojan_wm", *SMALL, "--rate", "0.5", "--per-class", "--defense.partitions", "1"]
    assert main([*run, "--recipe.epochs", "1", "--recipe.model.width", "2", "--out", "out"]) == 0
    assert sorted(path.name for path in kept.parent.iterdir()) == before
    page = (tmp_path / "out" / "report.html").read_text()
    assert "50.00% of the target class of 60 training images" in page


def test_craft_says_how_hard_label_consistent_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    some = ["--data", "digits", "--attack.eps", "60", "--attack.step", "15", "--attack.steps", "8"]
    some += ["--attack.train_steps", "1", "--attack.surrogate.augment", "none", "--attack.surrogate.model.width", "8"]
    assert main(["craft", "label_consistent", *some, "--attack.surrogate.epochs", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    clean, random, hard = (float(line.split()[-2]) for line in lines if line.endswith("%"))
    assert clean > 80
    assert hard < min(clean, random) - 20


def test_only_attacks_with_a_network_are_crafted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["craft", "sig", "--data", "digits"]) == 2
    error = capsys.readouterr().err
    assert "invalid choice: 'sig'" in error
    assert {name for name in ATTACKS if f"'{name}'" in error or f" {name}" in error} >= {"trojan_sq", "l2_inv"}


def test_a_rate_may_be_of_the_target_class(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["run", "--data", "digits", "--attack", "sig", "--rate", "0.3", "--dry-run"]
    assert main([*run, "--per-class"]) == 0
    assert '"per_class": true' in capsys.readouterr().out
