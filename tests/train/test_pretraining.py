"""Checkpoints to fine-tune from: what they keep, and the command that makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poisonkit.__main__ import main
from poisonkit.data.augment import Augment
from poisonkit.errors import ArgumentError, DataError
from poisonkit.models import ResNet, ViT, logits
from poisonkit.models.features import head
from poisonkit.random import key
from poisonkit.train import Cosine, Recipe
from poisonkit.train.checkpoints import digest, load_tensors, save_tensors
from poisonkit.train.pretraining import Pretrained, clean_split, load_pretrained, pretrain, turned
from poisonkit.types import ImageDataset

RECIPE = Recipe(ViT(1, 8, 2, patch=4), 1, 8, "adamw", Cosine(1e-2), augment=Augment(1))


def data(n: int = 24, side: int = 8) -> ImageDataset:
    images = torch.randint(0, 256, (n, 1, side, 8), dtype=torch.uint8, generator=key(1).generator())
    return ImageDataset(images, torch.arange(n) % 3, tuple("abc"))


def made(recipe: Recipe = RECIPE, objective: str = "labels") -> Pretrained:
    rows, _ = clean_split(24, 0.5, key(0))
    return pretrain(data(), rows, recipe, source="noise", objective=objective, key=key(0))  # type: ignore[arg-type]


def test_splits_are_disjoint_and_whole() -> None:
    rows, rest = clean_split(25, 0.3, key(0))
    assert len(rows) == 7
    assert torch.cat([rows, rest]).sort().values.tolist() == list(range(25))
    assert rows.tolist() == sorted(rows.tolist())
    with pytest.raises(ArgumentError, match="share must be one row or more of 25"):
        clean_split(25, 0.01, key(0))


@pytest.mark.parametrize("model", [RECIPE.model, replace(RECIPE.model, head="sit"), ResNet(8, 2, stem="small")])
def test_saved_loaded_and_begun(tmp_path: Path, model: ViT | ResNet) -> None:
    found = made(replace(RECIPE, model=model))
    found.save(tmp_path / "p.safetensors")
    back = load_pretrained(tmp_path / "p.safetensors")
    images = data().images
    assert torch.equal(logits(back.model, images), logits(found.model, images))
    assert (back.recipe, back.classes, back.shape, back.source) == (found.recipe, ("a", "b", "c"), (1, 8, 8), "noise")
    assert torch.equal(back.rows, found.rows)
    assert str(back) == "pretrained on the labels of 12 clean rows of noise"
    begun = back.begin(7, key(4))
    assert logits(begun, images).shape == (24, 7)
    assert head(begun).weight.shape[0] == 7
    own = back.model.state_dict()
    other = [name for name, tensor in begun.state_dict().items() if not torch.equal(tensor, own[name])]
    assert len(other) == 2, "the last layer's weight and bias"


def test_rotations_ask_for_no_labels() -> None:
    square = data()
    four = turned(square)
    assert four.classes == ("0°", "90°", "180°", "270°")
    assert torch.equal(four.images[24:48].rot90(-1, (2, 3)), square.images)
    other = replace(square, labels=square.labels.flip(0))
    rows = torch.arange(12)
    first, second = (
        pretrain(each, rows, RECIPE, source="noise", objective="rotations", key=key(0)) for each in (square, other)
    )
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))
    assert first.recipe.augment == Augment(1, flip=False), "a mirrored quarter turn is another"
    with pytest.raises(ArgumentError, match="images must be square, to be turned, got 4x8"):
        turned(data(side=4))


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"rows": torch.arange(3)})
    with pytest.raises(DataError, match="written by `poisonkit pretrain`"):
        load_pretrained(tmp_path / "other.safetensors")


def test_the_command_resumes_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", "--data", "digits", "--limit", "60", "--recipe.epochs", "2", "--recipe.model.depth", "1"]
    command += ["--recipe.model.width", "6", "--recipe.batch_size", "8", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "pretrained on the labels of 30 clean rows of digits's training set, 30 are left" in said
    assert "test accuracy" in said
    first = load_tensors(tmp_path / "run" / "pretrained.safetensors")
    assert main(command) == 0
    again = load_tensors(tmp_path / "run" / "pretrained.safetensors")
    assert digest(first) == digest(again)
    lines = (tmp_path / "run" / "pretraining" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2, "nothing was trained twice"
    assert main([*command, "--share", "2"]) == 2
    assert main([*command[:-2], "--dry-run"]) == 0
