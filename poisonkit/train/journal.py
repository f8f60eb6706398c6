"""Where long work keeps its place and says how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from poisonkit.random import Key
from poisonkit.train.checkpoints import load_tensors, save_tensors
from poisonkit.train.loop import Checkpoint, OnEpoch, fit, load_state, state_of
from poisonkit.train.procedure import Procedure
from poisonkit.train.recipe import Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True, eq=False)
class Journal:
    """What a method that works for long is given to resume, to report, and to note what it finds.

    directory  what it keeps goes here; None: work that is killed starts over
    on_epoch   told of every epoch of training
    say        told in a few words how far other work is
    notes      tensors worth keeping beside the result, by name: rows dropped, p-values
    """

    directory: Path | None = None
    on_epoch: OnEpoch | None = None
    say: Callable[[str], None] = lambda text: None
    notes: dict[str, Tensor] = field(default_factory=dict)

    def stage(self, name: str) -> Journal:
        """The journal of a part of the work, which keeps its place below ``name``; the notes are the same."""
        return replace(self, directory=self.directory and self.directory / name)

    def once(self, name: str, compute: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What ``compute`` gives, kept as ``name``, so that a killed run does not compute it again."""
        if self.directory is None:
            return compute()
        path = self.directory / f"{name}.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, compute())
        return load_tensors(path)

    def fit(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        procedure: Procedure | None = None,
        device: torch.device | None = None,
    ) -> nn.Module:
        """:func:`poisonkit.train.fit`, which keeps its place here and tells of its epochs."""
        return fit(
            data,
            recipe,
            key=key,
            model=model,
            procedure=procedure,
            directory=self.directory,
            on_epoch=self.on_epoch,
            device=device,
        )

    def checkpoint(self, **training: object) -> Checkpoint | None:
        """Where a loop that is not :func:`poisonkit.train.fit` keeps its place, and what it is a function of."""
        if self.directory is None:
            return None
        return Checkpoint(self.directory, {name: _said(value) for name, value in training.items()})

    def epochs(
        self, total: int, network: nn.Module, optimizer: torch.optim.Optimizer, **training: object
    ) -> Iterator[int]:
        """The epochs, from 0, that a loop which is not :func:`poisonkit.train.fit` has left of ``total``.

        ``network``, in training mode, and ``optimizer`` are all that its body changes; they are as they were after the
        last epoch that is kept, and are kept after each. ``training`` is what they are a function of.
        """
        checkpoint, done = self.checkpoint(**training), 0
        if checkpoint and (found := checkpoint.restore()):
            tensors, done = found
            load_state(network, optimizer, Procedure(), tensors)
        for epoch in range(done, total):
            yield epoch
            if checkpoint:
                checkpoint.save(state_of(network, optimizer, Procedure()), epoch + 1)


def _said(value: object) -> str:
    """A value that training is a function of, as a checkpoint says it."""
    return value.digest() if isinstance(value, ImageDataset) else value if isinstance(value, str) else repr(value)
