"""A run directory: a manifest of what was asked, and artefacts that are whole or not there.

    manifest.json           configuration, data digests, environment
    <name>.safetensors      an artefact; <name>.json beside it holds its SHA-256
    digests.json            the SHA-256 of every artefact, written when the run is complete
    .locks/<name>.lock      locked by the process that works on <name>, and saying which that is

An artefact exists once its record does, and the record is written last, so a run killed at any point
and started again repeats at most the step it was in. On a CPU it ends with the same digests. Any number
of processes, on any machines that share the directory, may work on one run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from poisonkit.data.files import NOT_JSON, sha256
from poisonkit.engine.locks import hold
from poisonkit.engine.progress import Progress
from poisonkit.errors import RunError, fail, require
from poisonkit.train.checkpoints import read, save_tensors, sweep, write_atomic

FORMAT = "poisonkit run, version 1"
LOCKS = ".locks"
# What the command line calls parts of a manifest that are easily put right
OPTIONS = {"stack": "--stack", "environment.threads": "--threads"}


class Run:
    """One run directory, new or resumed."""

    def __init__(self, directory: str | Path, manifest: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Create ``directory``, or resume what is there if its manifest says the same.

        Raises RunError if the directory holds another configuration, other data, or was made in
        another environment, or holds something that is no run; ``overwrite=True`` starts afresh, but
        never deletes a folder that is no run, nor a run that others work on.
        """
        self.directory = Path(directory)
        self.manifest: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **manifest}))
        self._whole: set[str] = set()
        try:
            self._open(overwrite)
        except OSError as error:
            fail("run directory", "one that can be written", self.directory, f"{error}; choose another", RunError)

    def _open(self, overwrite: bool) -> None:
        path = self.directory / "manifest.json"
        if overwrite and path.exists():
            read_manifest(self.directory)
            self._require_at_rest()
            # aside first: a kill while deleting leaves no directory that is half a run
            whole = self.directory.resolve()
            aside = whole.with_name(f".{whole.name}.{uuid4().hex}.old")
            whole.rename(aside)
            shutil.rmtree(aside)
        here = list(self.directory.iterdir()) if self.directory.is_dir() else []
        # a start killed before its manifest was written leaves only a temporary file and locks
        foreign = [each for each in here if each.name != LOCKS and not each.match(".manifest.json.*.tmp")]
        rule = "new, empty or a run of poisonkit"
        # asked last, since another process may be starting the same run
        require(not foreign or path.exists(), "run directory", rule, self.directory, "choose another", RunError)
        self.directory.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with self.lock("manifest"):
                if not path.exists():
                    write_atomic(path, _json(self.manifest))
        for name, before, now in differences(read_manifest(self.directory), self.manifest):
            put_right = f"give {OPTIONS[name]} {before}" if name in OPTIONS else "give another --out"
            remedy = f"{put_right}, or --overwrite to start afresh"
            fail(f"{name} of the run in {self.directory}", f"{before}, as it was started", now, remedy, RunError)

    def _require_at_rest(self) -> None:
        for path in sorted((self.directory / LOCKS).rglob("*")):
            if path.is_file():
                with hold(path, wait=False) as holder:
                    rule = f"at rest to be overwritten, and {path.stem} is held"
                    require(holder is None, str(self.directory), rule, holder, "stop that first", RunError)

    def lock(
        self, name: str, *, wait: bool = True, tell: Callable[[str], None] = lambda holder: None
    ) -> AbstractContextManager[str | None]:
        """Hold ``name`` against every process that works on this run, as ``poisonkit.engine.locks.hold`` does."""
        return hold(self.directory / LOCKS / f"{name}.lock", wait=wait, tell=tell)

    def tensors(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The artefact ``name``: loaded if it is there and whole, else computed and saved, by one process of all."""
        if not self.done(name):
            with self.lock(name, tell=Progress().waits(name)):
                if not self.done(name):
                    self.save(name, compute())
        return self.load(name)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the artefact ``name``, and then its record; what a killed writer of it left is cleared."""
        path = self.path(f"{name}.safetensors")
        for each in (path, path.with_suffix(".json")):
            sweep(each)
        save_tensors(path, tensors)
        write_atomic(path.with_suffix(".json"), _json({"sha256": sha256(path)}))
        self._whole.add(name)

    def load(self, name: str) -> dict[str, Tensor]:
        """The artefact ``name``. Raises RunError where it is not there, or not whole."""
        require(self.done(name), f"{name} in {self.directory}", "there and whole", "neither", "train it", RunError)
        return read(self.path(f"{name}.safetensors"))[0]

    def done(self, name: str) -> bool:
        """Whether the artefact ``name`` is there and its bytes are those that were written; read only once."""
        path = self.path(f"{name}.safetensors")
        if name not in self._whole:
            try:
                if _record(path) == sha256(path):
                    self._whole.add(name)
            except (OSError, *NOT_JSON, LookupError, TypeError):
                return False
        return name in self._whole

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

    def sweep(self, name: str) -> None:
        """Remove what the work ``name`` kept to be taken up again, now that it is done: what has no record."""
        for path in sorted((self.directory / name).rglob("*"), reverse=True):  # files before their folders
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
            elif path.suffix == ".safetensors" and not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def finish(self) -> dict[str, str]:
        """Write ``digests.json``, the SHA-256 of every artefact by name; clear what killed writers left behind."""
        for temporary in self.directory.rglob(".*.tmp"):
            temporary.unlink(missing_ok=True)
        digests = {
            path.relative_to(self.directory).with_suffix("").as_posix(): _record(path)
            for path in sorted(self.directory.rglob("*.safetensors"))
            if path.with_suffix(".json").is_file()
        }
        self.write("digests.json", json.dumps(digests, indent=2) + "\n")
        return digests


def differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of what differs between two manifests, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}")
    elif old != new:
        yield name.removeprefix("."), old, new


def _record(artefact: Path) -> str:
    """The SHA-256 that was written down with an artefact."""
    return str(json.loads(artefact.with_suffix(".json").read_text())["sha256"])


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run of poisonkit, and of nothing else."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text())
    except (OSError, *NOT_JSON):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        fail("run directory", "new, empty or a run of poisonkit", directory, "choose another", RunError)
    return manifest


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
