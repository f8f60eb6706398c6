"""The rows that a method keeps, as a sampler for any PyTorch loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data import Subset as Rows

from poisonkit.defenses.training.dropping import Dropping, Outputs, Subset, gathered
from poisonkit.errors import require
from poisonkit.models.features import head, watched
from poisonkit.perturb import frozen
from poisonkit.random import Key


class SubsetSampler(Sampler[int]):
    """The rows that ``method`` (EPIC or another that drops rows) keeps, in an order drawn anew for every epoch.

    Give it to a ``DataLoader`` and call :meth:`start` before every epoch.

    stored      the training rows, in the order of the loader's, but as they are stored: not augmented. An item is
                (input, label), or a mapping with "labels" whose other entries are the model's arguments
    epochs      of the whole training
    fill        go through those left again until an epoch has as many rows as there were, for loops that count on it
    decay       the epoch (0 for the first) of the last cut of the learning rate, which EPIC's mode "reference" asks for
    batch_size, collate, workers  of the passes over ``stored``
    dropped_at  int64 [N]: before which epoch a row was dropped; -1: it is kept
    """

    def __init__(
        self,
        stored: Dataset[Any],
        method: Dropping,
        *,
        epochs: int,
        key: Key,
        fill: bool = False,
        decay: int | None = None,
        batch_size: int = 512,
        collate: Callable[[list[Any]], Any] | None = None,
        workers: int = 0,
    ) -> None:
        self.stored, self.key, self.fill, self.epoch = stored, key, fill, -1
        self.subset = Subset(method, len(stored), epochs, key.child("drop"), decay)  # type: ignore[arg-type]
        self._loading: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collate, "num_workers": workers}

    @property
    def dropped_at(self) -> Tensor:
        return self.subset.dropped_at

    def start(self, epoch: int, model: nn.Module) -> int:
        """Begin ``epoch`` (0 for the first) of the training of ``model``; how many rows were dropped just now.

        An epoch that had begun before a kill is gone on with.
        """
        begun, self.epoch = epoch <= self.epoch, epoch
        if begun or epoch not in self.subset.when:
            return 0
        rows = self.subset.method.candidates(self.dropped_at)
        return self.subset.drop(epoch, rows, self._look(model, rows.tolist()))

    def __iter__(self) -> Iterator[int]:
        kept, key = self.subset.kept(), self.key.child("order", self.epoch)
        rounds = -(-len(self) // len(kept))
        order = torch.cat([kept[key.child(i).permutation(len(kept))] for i in range(rounds)])
        yield from order[: len(self)].tolist()

    def __len__(self) -> int:
        left = len(self.subset.kept())
        return len(self.dropped_at) if self.fill and left else left

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"dropped_at": self.dropped_at, "epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state_dict` gave. Raises ArgumentError where it is of other rows."""
        dropped, count = state["dropped_at"], len(self.dropped_at)
        require(dropped.shape == (count,), "dropped_at", f"of shape [{count}]", list(dropped.shape))
        self.subset.dropped_at, self.epoch = dropped.clone(), int(state["epoch"])

    def _look(self, model: nn.Module, rows: Sequence[int]) -> Outputs:
        hidden: list[Tensor] = []
        logits: list[Tensor] = []
        labels: list[Tensor] = []
        device = head(model).weight.device
        with frozen(model), watched(model) as seen, torch.no_grad():
            for batch in DataLoader(Rows(self.stored, rows), **self._loading):
                said, own = _ask(model, batch, device)
                logits.append(said.float().cpu())
                hidden.append(seen[0].float().cpu())
                labels.append(own.cpu())
        return gathered(model, torch.cat(hidden), torch.cat(logits), torch.cat(labels))


def _ask(model: nn.Module, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """The logits and the labels of a batch."""
    if isinstance(batch, Mapping):
        said = model(**{name: value.to(device) for name, value in batch.items() if name != "labels"})
        return getattr(said, "logits", said), batch["labels"]
    inputs, labels = batch
    said = model(inputs.to(device))
    return getattr(said, "logits", said), labels
