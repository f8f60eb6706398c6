"""Callbacks in the real Lightning and the real Hugging Face Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sampler import EPOCHS, blobs, network, sampler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from poisonkit.errors import ArgumentError
from poisonkit.hooks import SubsetSampler

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]  # their warnings, their seconds to import


def dropped(rows: SubsetSampler, epoch: int) -> int:
    return int(((rows.dropped_at >= 0) & (rows.dropped_at <= epoch)).sum())


class TestLightning:
    @pytest.fixture(autouse=True)
    def _lightning(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("lightning", reason="lightning is not installed")

    def fit(self, folder: Path, rows: SubsetSampler, epochs: int, checkpoint: Path | None = None) -> Any:
        import lightning.pytorch as pl

        from poisonkit.hooks.lightning import DropRows

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.network, self.seen = network(), [0] * EPOCHS
                self.network[2] = nn.Identity()  # Lightning keeps no generator for dropout

            def forward(self, x: Tensor) -> Tensor:
                return self.network(x)

            def training_step(self, batch: list[Tensor], index: int) -> Tensor:
                self.seen[self.current_epoch] += len(batch[0])
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[DropRows(rows), pl.callbacks.ModelCheckpoint(folder, filename="last")],
        )
        module = Module()
        loader = DataLoader(rows.stored, batch_size=8, sampler=rows)
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=False)
        return module

    def test_rows_go(self, tmp_path: Path) -> None:
        rows = sampler(blobs())
        module = self.fit(tmp_path, rows, EPOCHS)
        assert module.seen == [60 - dropped(rows, epoch) for epoch in range(EPOCHS)]
        assert module.seen[0] == 60 > module.seen[1] > module.seen[3] > module.seen[5]

    def test_a_checkpoint_carries_them(self, tmp_path: Path) -> None:
        whole, first, second = sampler(blobs()), sampler(blobs()), sampler(blobs())
        expected = self.fit(tmp_path / "whole", whole, EPOCHS)
        self.fit(tmp_path / "first", first, 3)
        module = self.fit(tmp_path / "second", second, EPOCHS, tmp_path / "first" / "last.ckpt")
        assert torch.equal(second.dropped_at, whole.dropped_at)
        assert module.seen[3:] == expected.seen[3:]
        assert all(map(torch.equal, module.state_dict().values(), expected.state_dict().values()))


class Said:
    """What a Hugging Face model returns, as far as it is looked at."""

    def __init__(self, loss: Tensor, logits: Tensor) -> None:
        self.loss, self.logits = loss, logits

    def __getitem__(self, name: object) -> Tensor:
        return self.loss if name in ("loss", 0) else self.logits


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"values": self.data[row][0], "labels": self.data[row][1]}


class TestTransformers:
    @pytest.fixture(autouse=True)
    def _transformers(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("transformers", reason="transformers is not installed")
            pytest.importorskip("accelerate", reason="transformers is not installed")

    def fit(self, folder: Path, rows: SubsetSampler, stop: int = 0, resume: bool = False) -> Any:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        from poisonkit.hooks.transformers import DropRows

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network, self.seen = network(), []
                self.network[2] = nn.Identity()

            def forward(self, values: Tensor, labels: Tensor | None = None) -> Said:
                logits = self.network(values)
                if self.training:
                    self.seen.append(values)
                return Said(nn.functional.cross_entropy(logits, labels) if labels is not None else logits, logits)

        class Stop(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                control.should_training_stop = state.global_step == stop

        model = Model()
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=8,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=2,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            learning_rate=0.01,
        )
        callbacks = [DropRows(rows), *([Stop()] if stop else [])]
        trainer = Trainer(model, arguments, train_dataset=rows.stored, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume or None)
        return model

    def test_rows_go_and_a_checkpoint_carries_them(self, tmp_path: Path) -> None:
        whole, first, second = (sampler(Rows(blobs()), fill=True) for _ in range(3))
        expected = self.fit(tmp_path / "whole", whole)
        assert len(expected.seen) == 8 * EPOCHS
        assert 0 < dropped(whole, 1) < dropped(whole, 3) < dropped(whole, 5)
        for epoch in range(EPOCHS):
            taken = torch.cat(expected.seen[8 * epoch : 8 * epoch + 8])
            assert len(taken.unique(dim=0)) == 60 - dropped(whole, epoch)
        self.fit(tmp_path / "parts", first, stop=3 * 8 + 4)  # within an epoch before which it looked
        model = self.fit(tmp_path / "parts", second, resume=True)
        assert torch.equal(second.dropped_at, whole.dropped_at)
        assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))

    def test_epochs_must_be_filled(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match="fill must be True"):
            self.fit(tmp_path, sampler(Rows(blobs())))
