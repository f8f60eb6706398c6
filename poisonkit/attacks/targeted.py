"""What the targeted attacks share: whom they are after, which rows they change, and what is kept of their work.

- The attacker knows the images that are to be misclassified. The call is given a pool of them, ``victims`` (the test
  set, as a rule), of which ``count`` are picked by the key: of class ``victim_class``, or of any class but ``target``.
- The rows are of the class ``target`` and keep their label. Which ones the key decides, unless ``rows`` names them.
- No pixel changes by more than ``eps``; bounds are whole pixel steps, so that rounding to bytes stays inside.
- The poison carries the budget it was made for, with that ``eps`` and clean labels in it: ``Poison.apply`` checks both.
- A state is the whole poison: rows, images, the victims, and the loss of every restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from poisonkit.attacks.crafting import Fit, State, surrogate
from poisonkit.attacks.poisoning import choose
from poisonkit.errors import fail, require
from poisonkit.perturb import box
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe, Step, fit
from poisonkit.train.loop import deterministic
from poisonkit.types import Budget, ImageDataset, Poison, Victims

# The step of the optimiser falls tenfold at these fractions of its steps (Geiping et al., arXiv 2009.02276)
MILESTONES = (0.375, 0.625, 0.875)


class Aim(Protocol):
    """The fields of every attack whose rows keep their label."""

    @property
    def target(self) -> int: ...
    @property
    def victim_class(self) -> int | None: ...
    @property
    def eps(self) -> float | None: ...


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be solved.

    victims  uint8 [V, C, H, W], which are to be classified as ``wanted``, int64 [V]
    rows     int64 [P], of the class ``target``
    base     uint8 [P, C, H, W], their images
    labels   int64 [P], their labels
    low      float [P, C, H, W], the least value of each pixel; ``high`` the greatest
    """

    victims: Tensor
    wanted: Tensor
    rows: Tensor
    base: Tensor
    labels: Tensor
    low: Tensor
    high: Tensor

    def random(self, eps: float, key: Key) -> Tensor:
        """The images and normal noise of deviation ``eps``, within the bounds."""
        noise = torch.randn(self.base.shape, generator=key.generator()).to(self.base.device)
        return (self.base + eps * noise).clamp(self.low, self.high)

    def state(self, pixels: Tensor, losses: list[float]) -> dict[str, Tensor]:
        """What is kept, of the float pixels [P, C, H, W] that were found."""
        images, kept = pixels.round().to(torch.uint8), torch.tensor(losses, dtype=torch.float64)
        return {"rows": self.rows, "images": images, "victims": self.victims, "loss": kept}


@dataclass(frozen=True)
class KnownImages:
    """What every attack on known images has and does; one of them says how its case is solved.

    target        the class the attacker wants, of which the poisoned rows are
    victim_class  of the images to be misclassified; None for any but the target
    count         how many of them
    """

    source: ClassVar[str]
    needs_victims: ClassVar[bool] = True

    target: int = 0
    victim_class: int | None = None
    count: int = 1

    @property
    def eps(self) -> float | None:
        """Largest change of a pixel; None where there is no bound."""
        return None

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        """The state of the poison that was found."""
        raise NotImplementedError

    def craft(
        self,
        data: ImageDataset,
        budget: Budget,
        *,
        key: Key,
        victims: ImageDataset | None = None,
        rows: Tensor | None = None,
        fit: Fit = fit,
        journal: Journal | None = None,
    ) -> State:
        """The poison, as tensors."""
        what = case(self, data, budget, victims, key, rows)
        return self.solve(what, data, budget, key, fit, journal or Journal())

    def __call__(
        self,
        data: ImageDataset,
        budget: Budget,
        *,
        key: Key,
        victims: ImageDataset | None = None,
        rows: Tensor | None = None,
        state: State | None = None,
    ) -> Poison:
        """Poison as many rows as ``budget`` allows, or ``rows``."""
        state = state or self.craft(data, budget, key=key, victims=victims, rows=rows)
        return poisoned(data, budget, state, self)


def case(
    aim: KnownImages,
    data: ImageDataset,
    budget: Budget,
    victims: ImageDataset | None,
    key: Key,
    rows: Tensor | None = None,
) -> Case:
    """Whom and with which rows; raises ArgumentError where there are not so many, or the budget forbids ``eps``."""
    classes = data.num_classes
    if victims is None:
        fail("victims", "a pool of images that the attacker knows, as the test set", None)
    require(victims.shape == data.shape, "victims", f"of shape {data.shape}, as the training images", victims.shape)
    known = aim.victim_class is None or (0 <= aim.victim_class < classes and aim.victim_class != aim.target)
    require(known, "victim_class", f"None, or a class in [0, {classes}) other than the target", aim.victim_class)
    rows = bases(data, budget, aim, key) if rows is None else rows.to(data.device)
    own = bool((data.labels[rows] == aim.target).all())
    require(own, "rows", f"of the target class {aim.target}, since labels stay", "others")
    right = victims.labels != aim.target if aim.victim_class is None else victims.labels == aim.victim_class
    pool = right.nonzero()[:, 0]
    require(1 <= aim.count <= len(pool), "count", f"from 1 to the {len(pool)} images to pick from", aim.count)
    picked = pool[key.child("victims").permutation(len(pool)).to(pool.device)[: aim.count]]
    base, images = data.images[rows], victims.images[picked].to(data.device)
    low, high = box(base, 255.0 if aim.eps is None else aim.eps)
    wanted = torch.full((aim.count,), aim.target, device=data.device)
    return Case(images, wanted, rows, base, data.labels[rows], low, high)


def bases(data: ImageDataset, budget: Budget, aim: Aim, key: Key) -> Tensor:
    """Random rows of the target class, int64 [P], as many as ``budget`` allows, which must allow the change as well."""
    eps, most = (255.0, "any") if aim.eps is None else (aim.eps, aim.eps)
    require(eps >= 1, "eps", "at least one pixel step", most)
    require(budget.eps is None or eps <= budget.eps, "eps", f"at most the budget's {budget.eps}", most, "lower it")
    rows = choose(data, aim.target, budget, key, "target")
    require(len(rows) > 0, "rate", "for at least one row", budget.rate)
    return rows


def networks(recipe: Recipe, data: ImageDataset, key: Key, count: int, fit: Fit) -> list[nn.Module]:
    """``count`` surrogates, in evaluation mode, the first of which is that of every attack with this key."""
    require(count >= 1, "networks", "1 or more", count)
    keys = [key, *(key.child("network", i) for i in range(1, count))]
    return [surrogate(recipe, data, each, fit).eval() for each in keys]


def best(
    what: Case, attempt: Callable[[int], tuple[Tensor, float]], restarts: int, data: ImageDataset, journal: Journal
) -> dict[str, Tensor]:
    """The poison of the least loss of ``restarts`` attempts, each of which the journal keeps.

    attempt  the number of a restart to its float pixels [P, C, H, W] and its loss
    """
    require(restarts >= 1, "restarts", "1 or more", restarts)

    def tried(i: int) -> State:
        with deterministic(data.device):
            pixels, loss = attempt(i)
        journal.say(f"restart {i + 1} of {restarts}: loss {loss:.4f}")
        return {"pixels": pixels, "loss": torch.tensor(loss, dtype=torch.float64)}

    found = [journal.once(f"restart-{i}", lambda i=i: tried(i)) for i in range(restarts)]  # type: ignore[misc]
    losses = [float(each["loss"]) for each in found]
    return what.state(found[losses.index(min(losses))]["pixels"], losses)


def falling(rate: float) -> Callable[[int, int], float]:
    """A step that falls tenfold at each of the milestones."""
    return Step(rate, MILESTONES).lr


def poisoned(data: ImageDataset, budget: Budget, state: State, aim: Aim) -> Poison:
    """The poison that a state is."""
    rows, victims = state["rows"], state["victims"]
    goal = Victims(victims, torch.full((len(victims),), aim.target, device=victims.device))
    labels = data.labels[rows.to(data.device)]
    return Poison(rows, state["images"], labels, goal, bound(budget, aim.eps))


def bound(budget: Budget, eps: float | None) -> Budget:
    """``budget`` with what the attack itself keeps to: clean labels, and ``eps`` where the budget has none."""
    return replace(budget, eps=eps if budget.eps is None else budget.eps, clean_label=True)
