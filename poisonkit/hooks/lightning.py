"""EPIC, or another method that drops rows, as a callback of Lightning (``pip install poisonkit[lightning]``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from poisonkit.errors import require
from poisonkit.hooks.sampler import SubsetSampler


class DropRows(Callback):  # type: ignore[misc]
    """Drops rows before an epoch begins: ``Trainer(callbacks=[DropRows(sampler)])``.

    ``sampler`` is also that of the training DataLoader. The module's ``forward`` gives the logits. Lightning's
    checkpoints carry which rows are gone. Of one process; Lightning's own sampler for several would replace this one.
    """

    def __init__(self, sampler: SubsetSampler) -> None:
        self.sampler = sampler

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require(trainer.world_size == 1, "world_size", "1", trainer.world_size, "train in one process")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sampler.start(trainer.current_epoch, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.sampler.state_dict())

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        self.sampler.load_state_dict(state_dict)
