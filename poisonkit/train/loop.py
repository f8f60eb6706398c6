"""The training loop. The weights are a function of the rows (in their order), the recipe and the key.

Nothing else reaches them: no global random state, no clock, no environment, no other rows. On one
machine with one number of threads a run repeated, or killed and resumed, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from poisonkit.errors import DivergedError, PoisonkitError, RunError, fail, out_of_memory, require
from poisonkit.random import Key
from poisonkit.train.checkpoints import digest, load, save_tensors, sweep
from poisonkit.train.procedure import Batch, Procedure
from poisonkit.train.recipe import Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training did.

    number    1 for the first, ``total`` for the last
    lr        learning rate of its last step
    loss      mean over the rows of all steps as they were trained on
    accuracy  share of them classified right as they were trained on, augmented and in training mode
    rows      how many it was trained on
    """

    number: int
    total: int
    lr: float
    loss: float
    accuracy: float
    rows: int

    def __str__(self) -> str:
        return f"epoch {self.number}/{self.total}: loss {self.loss:.4f}, accuracy {self.accuracy:.4f}, lr {self.lr:.4g}"


#: What is called after every epoch
OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True, eq=False)
class Job:
    """One network to train: a function of ``data.take(rows)``, ``recipe`` and ``key`` alone.

    id    which base model of an ensemble; votes are keyed by it, never by the order of files or of training
    rows  int64 row indices into ``data``, in training order
    """

    id: int
    data: ImageDataset
    rows: Tensor
    recipe: Recipe
    key: Key


def fit_job(job: Job, *, directory: Path | None = None, on_epoch: OnEpoch | None = None) -> nn.Module:
    """:func:`fit` on the rows of a job."""
    everything = torch.equal(job.rows.cpu(), torch.arange(len(job.data)))  # may be mapped, and larger than memory
    data = job.data if everything else job.data.take(job.rows)
    return fit(data, job.recipe, key=job.key, directory=directory, on_epoch=on_epoch)


def new_model(recipe: Recipe, data: ImageDataset, key: Key, device: torch.device | None = None) -> nn.Module:
    """The network :func:`fit` starts from, in the recipe's memory layout."""
    model = recipe.model.build(data.shape, data.num_classes, key.child("init")).to(device or data.device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def fit(
    data: ImageDataset,
    recipe: Recipe,
    *,
    key: Key,
    model: nn.Module | None = None,
    procedure: Procedure | None = None,
    directory: Path | None = None,
    on_epoch: OnEpoch | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """A network trained on ``data``, in evaluation mode, on ``device`` (by default that of the data).

    With a ``model``, a copy of it is trained further, those parameters that have ``requires_grad``; ``procedure`` is
    what a method does otherwise. With a ``directory``, each epoch ends with ``checkpoint.safetensors`` written there
    atomically; the same call continues from it, to the same bits on the CPU. The caller deletes it when it has saved
    the network. ``on_epoch`` is called after each epoch, before its checkpoint is written, so that a log
    kept by it lacks none: an epoch whose checkpoint was lost is done, and reported, again. No rows at
    all give the initialised network.

    Raises DivergedError where the loss is not finite; PoisonkitError where a batch does not fit in memory; RunError
    where the checkpoint is of another recipe, key, procedure, start or data; DataError where it is damaged (training
    never goes on from such a file, nor silently starts over).
    """
    home = torch.device(device) if device is not None else data.device
    procedure = procedure or Procedure()
    training = {"recipe": repr(recipe), "key": repr(key), "procedure": repr(procedure), "start": "new"}
    if model is None:
        model = new_model(recipe, data, key, home)
    else:
        training["start"] = digest(model.state_dict()) if directory else ""
        model = deepcopy(model).to(home)
    optimizer = new_optimizer(model, recipe)
    checkpoint = Checkpoint(directory, {**training, "data": data.digest()}) if directory else None
    done = 0
    if checkpoint and (found := checkpoint.restore()):
        tensors, done = found
        load_state(model, optimizer, procedure, tensors)
    data = _resident(data, home)
    with deterministic(home):
        for epoch in range(done, recipe.epochs if len(data) else 0):
            chosen = procedure.rows(model, data, epoch, key)
            report = train_epoch(model, optimizer, data, recipe, key=key, epoch=epoch, rows=chosen, procedure=procedure)
            if on_epoch:
                on_epoch(report)
            if checkpoint:
                checkpoint.save(state_of(model, optimizer, procedure), epoch + 1)
    return model.eval()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic kernels on CUDA, without which a base model is no function of its rows and nothing is certified.

    Torch raises there unless CUBLAS_WORKSPACE_CONFIG=:4096:8 was set before CUDA started; the command line sets it.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def new_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of a recipe; the schedule sets its learning rate at every step."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            free, lr=0.0, betas=(recipe.momentum, 0.999), weight_decay=recipe.weight_decay, fused=True
        )
    return torch.optim.SGD(
        free,
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def batches(count: int, batch_size: int, key: Key, epoch: int, device: torch.device) -> Tensor:
    """What the steps of an epoch take: positions int64 [steps, batch_size], each in [0, count).

    A permutation of all positions, filled up from its own front: every step is of one size, which is
    what lets networks with other numbers of rows be trained in step with each other, and what batch
    normalisation is used to. Only the last step repeats a row, or every step where count < batch_size.
    """
    order = key.child("order", epoch).permutation(count, device)
    steps = -(-count // batch_size)
    return order[torch.arange(steps * batch_size, device=device) % count].view(steps, batch_size)


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: ImageDataset,
    recipe: Recipe,
    *,
    key: Key,
    epoch: int,
    rows: Tensor | None = None,
    procedure: Procedure | None = None,
) -> Epoch:
    """One pass over ``rows`` (int64 [n], by default all) of ``data``; ``epoch`` counts from 0.

    A row's augmentation depends on its position in ``data``. The steps are those of :func:`batches`.
    Raises DivergedError where the loss or a weight is not finite; PoisonkitError where a batch does not fit in memory.
    """
    device = next(model.parameters()).device
    rows = torch.arange(len(data), device=data.device) if rows is None else rows.to(data.device)
    require(len(rows) > 0, "rows", "1 or more", 0)
    steps = rows[batches(len(rows), recipe.batch_size, key, epoch, data.device)]
    total = recipe.epochs * len(steps)
    procedure = procedure or Procedure()
    augment = key.child("augment", epoch)
    drops = any(isinstance(module, nn.Dropout) for module in model.modules())
    settings = optimizer.param_groups[0]
    # Both stay on the device until the epoch ends: to look at them would stop it at every step
    losses, hits = torch.zeros(2, len(steps), device=device)
    model.train()
    for index, batch in enumerate(steps):
        step = epoch * len(steps) + index
        settings["lr"] = recipe.schedule.lr(step, total)
        momentum = recipe.schedule.momentum(step, total)
        momentum = recipe.momentum if momentum is None else momentum
        settings.update({"momentum": momentum} if "momentum" in settings else {"betas": (momentum, 0.999)})
        images, labels = data.images[batch].to(device), data.labels[batch].to(device)
        if recipe.augment:
            images = recipe.augment(images, batch.to(device), augment)
        taken = Batch(images, labels, batch, step, epoch, key.child("step", epoch, index), recipe.label_smoothing)
        with fitting(recipe.batch_size, device):
            with (
                key.child("dropout", step).ambient((device,)) if drops else nullcontext(),
                torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"),
            ):
                loss, logits = procedure.loss(model, taken)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            procedure.gradients(model, taken)
            optimizer.step()
            procedure.stepped(model, taken)
        losses[index] = loss.detach()
        hits[index] = (logits.detach().argmax(1) == labels).float().mean()
    check_finite(dict(model.named_parameters()), losses, epoch)
    return Epoch(epoch + 1, recipe.epochs, settings["lr"], float(losses.mean()), float(hits.mean()), len(rows))


@contextmanager
def fitting(rows: int, device: torch.device) -> Iterator[None]:
    """Raise PoisonkitError where a step on ``rows`` rows does not fit in the memory of ``device``.

    A smaller batch would train another network, so a step is never cut into smaller ones in silence.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        remedy = "a smaller batch_size is another recipe, and so is a smaller model"
        got = f"{rows} rows at a time: {' '.join(str(error).split())}"
        fail("a step", f"one that fits in the memory of {device}", got, remedy, PoisonkitError)


def check_finite(parameters: Mapping[str, Tensor], losses: Tensor, epoch: int, whose: str = "") -> None:
    """Raise DivergedError where a loss of an epoch's steps [steps], or a parameter after them, is not finite."""
    bad = (~losses.isfinite()).nonzero()
    remedy = "lower the learning rate, or look for extreme pixels"
    if len(bad):
        step = int(bad[0])
        where = f"{float(losses[step])} at epoch {epoch + 1}, step {step + 1} of {len(losses)}"
        fail(f"loss{whose}", "finite", where, remedy, DivergedError)
    for name, parameter in parameters.items():
        if not parameter.isfinite().all():
            where = f"inf or nan in {name} at epoch {epoch + 1}, step {len(losses)} of {len(losses)}"
            fail(f"weights{whose}", "finite", where, remedy, DivergedError)


def _resident(data: ImageDataset, device: torch.device) -> ImageDataset:
    """``data`` on ``device`` where it fits beside the training; else as it is, to be moved batch by batch."""
    if device.type == "cuda" and data.images.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return data
    return data.to(device)


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, procedure: Procedure) -> dict[str, Tensor]:
    """The network, what the optimiser and the procedure remember, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"procedure.{name}": tensor for name, tensor in procedure.state().items()}
    return tensors | {f"optimizer.{name}": tensor for name, tensor in optimizer_state(optimizer, model).items()}


def optimizer_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """What ``optimizer`` remembers of the parameters of ``model``, by slot and name."""
    return {
        f"{slot}.{name}": tensor
        for name, parameter in model.named_parameters()
        for slot, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give ``optimizer`` what :func:`optimizer_state` read."""
    parameters = dict(model.named_parameters())
    for slot_and_name, tensor in state.items():
        slot, _, name = slot_and_name.partition(".")
        parameter = parameters[name]
        # On the parameter's device and in its own memory format, as the optimiser would have made it
        like = torch.empty_like(parameter if tensor.shape == parameter.shape else tensor, device=parameter.device)
        optimizer.state[parameter][slot] = like.copy_(tensor).detach()


def load_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, procedure: Procedure, tensors: Mapping[str, Tensor]
) -> None:
    """Take up what :func:`state_of` gave."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(below("model."))
    procedure.load(below("procedure."))
    load_optimizer(optimizer, model, below("optimizer."))


class Checkpoint:
    """Where training stands, in ``directory/checkpoint.safetensors``, and of which ``training`` it is."""

    def __init__(self, directory: Path, training: Mapping[str, str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "checkpoint.safetensors"
        self.training = training

    def save(self, tensors: Mapping[str, Tensor], epochs: int) -> None:
        save_tensors(self.path, tensors, {**self.training, "epochs": str(epochs)})

    def restore(self) -> tuple[dict[str, Tensor], int] | None:
        """The tensors of the last epoch done and its number, or None; RunError where they are of another training."""
        sweep(self.path)
        if not self.path.exists():
            return None
        tensors, metadata = load(self.path)
        for name, value in self.training.items():
            require(
                metadata.get(name) == value,
                f"the {name} of {self.path}",
                value,
                metadata.get(name),
                "delete the checkpoint to train anew, or choose another directory",
                RunError,
            )
        return tensors, int(metadata["epochs"])
