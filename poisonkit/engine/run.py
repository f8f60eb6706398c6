"""A run directory: a manifest of what was asked, and artefacts that are whole or not there.

    manifest.json           configuration, data digests, environment
    <name>.safetensors      an artefact; <name>.json beside it holds its SHA-256
    digests.json            the SHA-256 of every artefact, written when the run is complete

An artefact exists once its record does, and the record is written last, so a run killed at any point
and started again repeats at most the step it was in. On a CPU it ends with the same digests.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from poisonkit.errors import RunError, require
from poisonkit.train.checkpoints import load_tensors, save_tensors, sweep, write_atomic


class Run:
    """One run directory, new or resumed."""

    def __init__(self, directory: str | Path, manifest: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Create ``directory``, or resume what is there if its manifest says the same.

        Raises RunError if the directory holds another configuration, other data, or was made in
        another environment, or holds something that is no run; ``overwrite=True`` starts afresh, but
        never deletes a folder that is no run.
        """
        self.directory = Path(directory)
        path = self.directory / "manifest.json"
        if self.directory.exists() and any(self.directory.iterdir()):
            require(
                path.is_file(),
                "run directory",
                "new, empty or a run of poisonkit",
                self.directory,
                "choose another",
                RunError,
            )
            if overwrite:
                shutil.rmtree(self.directory)
            else:
                self._check(_manifest(path), json.loads(json.dumps(manifest)))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.manifest = dict(manifest)
        write_atomic(path, _json(manifest))

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The artefact ``name``: loaded if it is there and whole, else computed and saved."""
        path = self.path(f"{name}.safetensors")
        if not self.done(name):
            save_tensors(path, compute())
            write_atomic(path.with_suffix(".json"), _json({"sha256": _sha256(path)}))
        return load_tensors(path)

    def done(self, name: str) -> bool:
        """Whether the artefact ``name`` is there and its bytes are those that were written."""
        path = self.path(f"{name}.safetensors")
        record = path.with_suffix(".json")
        return record.is_file() and path.is_file() and json.loads(record.read_text())["sha256"] == _sha256(path)

    def path(self, name: str) -> Path:
        """A path below the run directory, its folder made."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a report, figure or table, whole or not at all."""
        path = self.path(name)
        write_atomic(path, content.encode() if isinstance(content, str) else content)
        return path

    def finish(self) -> dict[str, str]:
        """Write ``digests.json``, the SHA-256 of every artefact by name; clear what killed writers left behind."""
        for folder in {path.parent for path in self.directory.rglob(".*.tmp")}:
            sweep(folder)
        digests = {
            path.relative_to(self.directory).with_suffix("").as_posix(): _sha256(path)
            for path in sorted(self.directory.rglob("*.safetensors"))
            if path.with_suffix(".json").is_file()
        }
        self.write("digests.json", json.dumps(digests, indent=2) + "\n")
        return digests

    def _check(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        for part in sorted(old.keys() | new.keys()):
            for name, before, now in _differences(old.get(part), new.get(part), part):
                require(
                    False,
                    f"{name} of the run in {self.directory}",
                    f"{before}, as it was started",
                    now,
                    "give another --out, or --overwrite to start afresh",
                    RunError,
                )


def _differences(old: Any, new: Any, name: str) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [item for key in keys for item in _differences(old.get(key), new.get(key), f"{name}.{key}")]
    return [] if old == new else [(name, old, new)]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise RunError(f"{path} must be the JSON of a run, got {error}; give another --out") from error


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()
