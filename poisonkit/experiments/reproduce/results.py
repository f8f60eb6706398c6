"""What a reproduction found, as JSON: every number beside the paper's, with what it was a function of and where."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import poisonkit
from poisonkit.data.files import written_by
from poisonkit.engine import environment
from poisonkit.experiments.reproduce.registry import Part, Reproduction
from poisonkit.train.checkpoints import write_atomic


@dataclass(frozen=True)
class Result:
    """One reproduction at one scale.

    about  name, scale, data, training_images, test_images, command, seeds, commit, machine, date, config
    rows   part, row, column, kind, ours and paper's number; one of the two may be None
    """

    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def beside(entry: Reproduction, measured: Sequence[Part]) -> list[dict[str, Any]]:
    """Rows of our numbers and the paper's: in the order of ours, and what only the paper has after them."""
    ours = {(part.title, row, column): number for part in measured for row, column, number in part.cells()}
    theirs = {(part.title, row, column): number for part in entry.paper for row, column, number in part.cells()}
    kinds = {(part.title, column): kind for part in (*entry.paper, *measured) for column, kind in part.kinds.items()}
    return [
        {
            "part": title,
            "row": row,
            "column": column,
            "kind": kinds[title, column],
            "ours": ours.get((title, row, column)),
            "paper": theirs.get((title, row, column)),
        }
        for title, row, column in {**ours, **theirs}
    ]


def where(device: torch.device) -> dict[str, str]:
    """The version of the code, the machine and the date of a result."""
    facts = environment(device)
    load = f", load {os.getloadavg()[0]:.1f}" if device.type == "cpu" else ""
    threads = f"{os.cpu_count()} cores, threads: {facts['threads']}{load}"
    return {
        "commit": _commit(),
        "machine": f"{facts['device']}, {threads}; torch {facts['torch']}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _commit() -> str:
    """The commit of the package's own tree, and whether the tree differs from it; else the package's version."""
    package = Path(poisonkit.__file__).parent
    version = f"poisonkit {environment()['poisonkit']}"
    if not (package.parent / ".git").exists():
        return version
    try:
        said = [
            subprocess.run(  # noqa: S603, fixed words
                ["git", "-C", str(package), *words],  # noqa: S607, whichever git is on the path
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--", "."])
        ]
    except (OSError, subprocess.CalledProcessError):
        return version
    return said[0] + (" + changes" if said[1] else "")


def write(folder: Path, result: Result) -> Path:
    """``folder``/SCALE/PAPER/NAME.json."""
    path: Path = folder / result.about["scale"] / f"{result.about['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in result.rows)
    about = json.dumps(dict(result.about), indent=2, ensure_ascii=False).removesuffix("\n}")
    write_atomic(path, f'{about},\n  "rows": [\n{rows}\n  ]\n}}\n'.encode())
    return path


def read(folder: Path, names: Sequence[str], scales: Sequence[str]) -> dict[tuple[str, str], Result]:
    """Every result below ``folder``, by name and scale. Raises DataError for a file that is none."""
    found = {}
    for name in names:
        for scale in scales:
            path = folder / scale / f"{name}.json"
            if path.is_file():
                with written_by("`poisonkit reproduce`", path, "delete it and run it again"):
                    content = json.loads(path.read_text())
                    rows = [dict(row) for row in content.pop("rows")]
                    found[name, scale] = Result(dict(content), rows)
    return found
