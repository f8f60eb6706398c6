"""What a finished run left behind, brought back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from poisonkit.config import from_dict
from poisonkit.data.files import written_by
from poisonkit.defenses.certified import CERTIFIED, Ensemble, Split
from poisonkit.engine.run import read_manifest
from poisonkit.errors import RunError, require
from poisonkit.random import key
from poisonkit.train import Recipe, new_model
from poisonkit.train.checkpoints import load_tensors
from poisonkit.types import ImageDataset


def finished_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run of `poisonkit run` or `poisonkit demo`. Raises RunError for anything else."""
    rule = "of `poisonkit run` or `poisonkit demo`"
    require((directory / "manifest.json").is_file(), "run directory", rule, directory, error=RunError)
    manifest = read_manifest(directory)
    plan = manifest.get("plan")
    defended = isinstance(plan, dict) and isinstance(plan.get("defense"), dict) and "study" not in plan
    require(defended, "run directory", rule, f"{directory}, of something else", error=RunError)
    return manifest


def load_ensemble(directory: str | Path) -> Ensemble:
    """The ensemble that a finished run of a certified defense left in ``directory``, on the CPU.

    Raises RunError where a base model is missing, DataError where one is damaged.
    """
    directory = Path(directory)
    with written_by("`poisonkit run` or `poisonkit demo`", directory, error=RunError):
        return _ensemble(directory, finished_manifest(directory))


def _ensemble(directory: Path, manifest: dict[str, Any]) -> Ensemble:
    plan, about = manifest["plan"], manifest["data"]
    kinds = {kind.__name__: (name, kind) for name, kind in CERTIFIED.items()}
    asked = plan["defense"]["class"]
    require(asked in kinds, "run directory", "of a certified defense", f"{directory}, of {asked}", error=RunError)
    name, kind = kinds[asked]
    defense = from_dict(kind, plan["defense"])
    recipe = defense.base(from_dict(Recipe, plan["recipe"]))
    empty = ImageDataset(
        torch.zeros(0, *about["shape"], dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), tuple(about["classes"])
    )
    models = {}
    for path in sorted((directory / name).glob("base-*/model.safetensors")):
        model = new_model(recipe, empty, key(0))
        model.load_state_dict(load_tensors(path))
        models[int(path.parent.name.removeprefix("base-"))] = model.eval()
    require(len(models) > 0, "run", f"one with models below {name}/", directory, "run it to its end", RunError)
    split = Split.of(load_tensors(directory / name / "split.safetensors"))
    return defense.gather(models, empty.num_classes, split)
