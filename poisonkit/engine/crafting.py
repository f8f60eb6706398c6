"""What a network makes for an attack, made once: kept in a folder under the digest of all it is a function of."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from poisonkit.attacks.crafting import CraftedAttack, CraftedPoison, State
from poisonkit.config import to_dict
from poisonkit.engine.environment import environment
from poisonkit.engine.locks import hold
from poisonkit.engine.progress import Progress
from poisonkit.random import Key
from poisonkit.train import Journal, Procedure, Recipe, fit, new_model
from poisonkit.train.checkpoints import load_tensors, save_tensors
from poisonkit.types import Attack, Budget, ImageDataset, Poison

FOLDER = "runs/triggers"


@dataclass(frozen=True)
class Ready:
    """An attack like ``attack``, whose trigger or poison, where a network makes it, is kept below ``folder``."""

    source: ClassVar[str] = ""

    attack: Attack
    folder: Path
    progress: Progress

    @property
    def needs_victims(self) -> bool:
        """Whether the call takes ``victims``, a pool of images as of the test set."""
        return getattr(self.attack, "needs_victims", False)

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, **given: ImageDataset) -> Poison:
        attack: Any = self.attack
        if isinstance(attack, CraftedPoison):
            state = poison(attack, data, budget, self.folder, key, self.progress, **given)
            return attack(data, budget, key=key, state=state, **given)
        if isinstance(attack, CraftedAttack):
            return attack(data, budget, key=key, state=crafted(attack, data, self.folder, key, self.progress))
        found: Poison = attack(data, budget, key=key, **given)
        return found


def crafted(attack: CraftedAttack, data: ImageDataset, folder: Path, key: Key, progress: Progress) -> State:
    """What ``attack.craft`` gives for ``data`` and ``key``: from ``folder``, or made and put there.

    A killed craft goes on with the epoch it was in.
    """
    return _crafted(attack, kept_at(attack, data, folder, key), progress, data, key=key)


def poison(
    attack: CraftedPoison,
    data: ImageDataset,
    budget: Budget,
    folder: Path,
    key: Key,
    progress: Progress,
    **given: ImageDataset,
) -> State:
    """What ``attack.craft`` gives for a budget, and for the ``victims`` given: from ``folder``, or made and put there.

    A killed craft goes on with the restart it was in.
    """
    made_of = {"data": data.digest(), "budget": to_dict(budget), "key": repr(key), "on": _on(data)}
    made_of |= {part: pool.digest() for part, pool in given.items()}
    path = _place(folder, type(attack).__name__, attack=to_dict(attack), **made_of)
    return _crafted(attack, path, progress, data, budget, key=key, **given)


def kept_at(attack: CraftedAttack, data: ImageDataset, folder: Path, key: Key) -> Path:
    """Where the trigger of ``attack`` is kept."""
    return _place(
        folder, type(attack).__name__, attack=to_dict(attack), data=data.digest(), key=repr(key), on=_on(data)
    )


@dataclass(frozen=True)
class Surrogates:
    """:func:`poisonkit.train.fit`, of which each network is trained once; a killed training goes on where it was."""

    folder: Path
    progress: Progress

    def __call__(
        self, data: ImageDataset, recipe: Recipe, *, key: Key, procedure: Procedure | None = None
    ) -> nn.Module:
        path = _place(
            self.folder,
            "surrogate",
            recipe=to_dict(recipe),
            procedure=repr(procedure),
            data=data.digest(),
            key=repr(key),
            on=_on(data),
        )
        unfinished = path.with_suffix("")

        def make() -> State:
            unfinished.mkdir(exist_ok=True)
            on_epoch = lambda epoch: self.progress.status(f"surrogate: {epoch}")  # noqa: E731
            network = fit(data, recipe, key=key, procedure=procedure, directory=unfinished, on_epoch=on_epoch)
            return network.state_dict()

        model = new_model(recipe, data, key)
        model.load_state_dict(_once(path, make, self.progress))
        shutil.rmtree(unfinished, ignore_errors=True)
        return model.eval()


def _crafted(attack: CraftedAttack | CraftedPoison, path: Path, progress: Progress, *of: Any, **given: Any) -> State:
    """What ``attack.craft`` gives, kept at ``path``; of ``fit`` and ``journal`` it is given what it names."""
    name, unfinished = type(attack).__name__, path.with_suffix("")
    tell = lambda what: progress.status(f"{name}: {what}")  # noqa: E731
    offered = {"fit": Surrogates(path.parent, progress), "journal": Journal(unfinished, tell, tell)}
    taken = {each: offered[each] for each in signature(attack.craft).parameters if each in offered}

    def make() -> State:
        progress.line(f"{name}: making its {'trigger' if isinstance(attack, CraftedAttack) else 'poison'}")
        return attack.craft(*of, **taken, **given)

    state = _once(path, make, progress)
    shutil.rmtree(unfinished, ignore_errors=True)
    return state


def _once(path: Path, make: Callable[[], State], progress: Progress) -> State:
    """The tensors of ``path``, made if there are none, by one process."""
    lock = path.parent / ".locks" / f"{path.stem}.lock"
    with hold(lock, tell=progress.waits(path.stem)):
        if not path.exists():
            save_tensors(path, make())
            progress.line(f"kept as {path}")
    return load_tensors(path)


def _on(data: ImageDataset) -> dict[str, str | int]:
    """Where it is made: another machine, version or device makes another one."""
    return environment(data.device)


def _place(folder: Path, kind: str, **of: Any) -> Path:
    text = json.dumps({"format": "poisonkit crafting, version 1", **of}, sort_keys=True)
    return folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
