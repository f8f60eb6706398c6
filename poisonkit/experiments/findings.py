"""What a defense noted on its way, as small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.report import percent
from poisonkit.types import ImageDataset, Poison


@dataclass(frozen=True)
class Finding:
    """A small table."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[object]]


def findings(said: Mapping[str, Tensor], dirty: ImageDataset, poison: Poison | None) -> tuple[Finding, ...]:
    """The tables of what is noted in ``said``: rows dropped or flagged, classes flagged, images flagged."""
    found = []
    poisons = torch.zeros(len(dirty), dtype=torch.bool)
    if poison:
        poisons[poison.rows.cpu()] = True
    if "note dropped_at" in said:
        found.append(_dropped(said["note dropped_at"], poisons))
    if "note flagged" in said:
        flagged = said["note flagged"]
        rows = len(flagged) == len(dirty)
        found.append(_rows(flagged, poisons) if rows else _classes(said, dirty.classes))
    if "flagged clean" in said:
        parts = [part for part in ("clean", "triggered", "victims") if f"flagged {part}" in said]
        share = [percent(float(said[f"flagged {part}"].double().mean())) for part in parts]
        found.append(Finding("Images held for triggered", parts, [share]))
    return tuple(found)


def _dropped(dropped_at: Tensor, poisons: Tensor) -> Finding:
    """``dropped_at`` int64 [N]: the epoch in which a row was dropped, -1 for those that were kept."""
    epochs = sorted(set(dropped_at[dropped_at >= 0].tolist()))
    rows = []
    for epoch in epochs:
        gone = dropped_at == epoch
        rows.append([epoch + 1, int(gone.sum()), int((gone & poisons).sum())])
    kept = dropped_at < 0
    rows.append(["kept", int(kept.sum()), int((kept & poisons).sum())])
    return Finding("Rows dropped", ["before epoch", "rows", "poisoned rows among them"], rows)


def _rows(flagged: Tensor, poisons: Tensor) -> Finding:
    hit, total, poisoned = int((flagged & poisons).sum()), int(flagged.sum()), int(poisons.sum())
    headers = ["rows", "poisoned rows among them", "of all poisoned rows"]
    return Finding("Rows held for poisoned", headers, [[total, hit, percent(hit / poisoned) if poisoned else "–"]])


def _classes(said: Mapping[str, Tensor], classes: Sequence[str]) -> Finding:
    flagged, score, p_value = (said.get(f"note {name}") for name in ("flagged", "score", "p_value"))
    assert flagged is not None
    assert score is not None
    rows: list[list[object]] = []
    for i, name in enumerate(classes):
        p = "–" if p_value is None else f"{float(p_value[i]):.3g}"
        rows.append([name, f"{float(score[i]):.3g}", p, "target of a backdoor" if flagged[i] else ""])
    return Finding("Classes", ["class", "score", "p-value", ""], rows)
