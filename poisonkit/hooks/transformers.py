"""EPIC, or another method that drops rows, as a callback of Hugging Face's Trainer (``poisonkit[transformers]``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from poisonkit.errors import fail, require
from poisonkit.hooks.sampler import SubsetSampler
from poisonkit.train.checkpoints import load_tensors, save_tensors

FILE = "dropped_rows.safetensors"


class DropRows(TrainerCallback):  # type: ignore[misc]
    """Drops rows before an epoch begins: ``Trainer(..., callbacks=[DropRows(sampler)])``.

    It puts ``sampler`` into the Trainer's own loader. The Trainer fixes the steps of an epoch before it begins, and
    finds its place in a checkpoint by them, so the sampler must ``fill`` its epochs: dropping saves no time here.
    Which rows are gone is kept in every checkpoint and taken up with it. Of one process.
    """

    def __init__(self, sampler: SubsetSampler) -> None:
        self.sampler = sampler

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader[Any] | None = None,
        **rest: object,
    ) -> None:
        require(args.world_size == 1, "world_size", "1", args.world_size, "train in one process")
        require(self.sampler.fill, "fill", "True: the Trainer counts on epochs of one length", False)
        batches = getattr(train_dataloader, "batch_sampler", None)
        if not isinstance(batches, BatchSampler):
            fail("train_dataset", "one with a length, in batches of a fixed size", type(batches).__name__)
        batches.sampler = self.sampler
        if state.global_step:
            kept = Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
            self.sampler.load_state_dict(load_tensors(kept))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **rest: object
    ) -> None:
        self.sampler.start(int(state.epoch or 0), model)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: object) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        save_tensors(folder / FILE, self.sampler.state_dict())
