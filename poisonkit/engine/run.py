"""A run directory: a manifest of what was asked, and artefacts that are whole or not there.

    manifest.json           configuration, data digests, environment
    <name>.safetensors      an artefact; <name>.json beside it holds its SHA-256
    digests.json            the SHA-256 of every artefact, written when the run is complete

An artefact exists once its record does, and the record is written last, so a run killed at any point
and started again repeats at most the step it was in. On a CPU it ends with the same digests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from poisonkit.data.files import sha256
from poisonkit.errors import RunError, fail, require
from poisonkit.train.checkpoints import load_tensors, save_tensors, write_atomic

FORMAT = "poisonkit run, version 1"


class Run:
    """One run directory, new or resumed."""

    def __init__(self, directory: str | Path, manifest: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Create ``directory``, or resume what is there if its manifest says the same.

        Raises RunError if the directory holds another configuration, other data, or was made in
        another environment, or holds something that is no run; ``overwrite=True`` starts afresh, but
        never deletes a folder that is no run.
        """
        self.directory = Path(directory)
        self.manifest = {"format": FORMAT, **manifest}
        try:
            self._open(overwrite)
        except OSError as error:
            fail("run directory", "one that can be written", self.directory, f"{error}; choose another", RunError)

    def _open(self, overwrite: bool) -> None:
        path = self.directory / "manifest.json"
        here = list(self.directory.iterdir()) if self.directory.is_dir() else []
        if path in here:
            old = _manifest(path)
            if not overwrite:
                for name, before, now in _differences(old, json.loads(json.dumps(self.manifest))):
                    name = f"{name} of the run in {self.directory}"
                    remedy = "give another --out, or --overwrite to start afresh"
                    fail(name, f"{before}, as it was started", now, remedy, RunError)
            else:
                # aside first: a kill while deleting leaves no directory that is half a run
                aside = self.directory.resolve().with_name(f".{self.directory.resolve().name}.{uuid4().hex}.old")
                self.directory.resolve().rename(aside)
                shutil.rmtree(aside)
        else:
            # a start killed while it wrote its manifest leaves only a temporary file
            foreign = [each for each in here if not each.match(".manifest.json.*.tmp")]
            require(
                not foreign,
                "run directory",
                "new, empty or a run of poisonkit",
                self.directory,
                "choose another",
                RunError,
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _json(self.manifest))

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The artefact ``name``: loaded if it is there and whole, else computed and saved."""
        path = self.path(f"{name}.safetensors")
        if not self.done(name):
            save_tensors(path, compute())
            write_atomic(path.with_suffix(".json"), _json({"sha256": sha256(path)}))
        return load_tensors(path)

    def done(self, name: str) -> bool:
        """Whether the artefact ``name`` is there and its bytes are those that were written."""
        path = self.path(f"{name}.safetensors")
        try:
            record = json.loads(path.with_suffix(".json").read_text())
            return bool(record["sha256"] == sha256(path))
        except (OSError, ValueError, LookupError, TypeError):
            return False

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
        for temporary in self.directory.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        digests = {
            path.relative_to(self.directory).with_suffix("").as_posix(): sha256(path)
            for path in sorted(self.directory.rglob("*.safetensors"))
            if path.with_suffix(".json").is_file()
        }
        self.write("digests.json", json.dumps(digests, indent=2) + "\n")
        return digests


def _differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted names of what differs, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [item for key in keys for item in _differences(old.get(key), new.get(key), f"{name}.{key}")]
    return [] if old == new else [(name.removeprefix("."), old, new)]


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run of poisonkit, and of nothing else."""
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        fail("run directory", "new, empty or a run of poisonkit", path.parent, "choose another", RunError)
    return manifest


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
