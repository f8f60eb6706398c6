"""``poisonkit craft``: make the trigger of an attack that needs a network, keep it, and show what it does."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit import metrics, report
from poisonkit.attacks import ATTACKS, LabelConsistent
from poisonkit.attacks.crafting import CraftedAttack, below, rise, surrogate, twin
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.engine import Progress, crafting
from poisonkit.models import predict
from poisonkit.perturb import Score
from poisonkit.random import Key, key
from poisonkit.train import new_model
from poisonkit.train.checkpoints import save_tensors
from poisonkit.triggers import Additive, Corners, Encoded, Generated, Overlay
from poisonkit.types import Backdoor, ImageDataset, Trigger

CRAFTED = [name for name, kind in ATTACKS.items() if isinstance(kind(), CraftedAttack)]

TWINS = 5
PERTURBED = 500


def add(commands: Commands) -> None:
    craft = commands.add_parser(
        "craft",
        help="make the trigger of an attack that needs a network",
        description="Trains a surrogate on the clean data and makes the trigger; both are kept, and a run with the "
        "same data, seed and options takes them from there. Options of the attack follow: --attack.target 3",
    )
    craft.add_argument("attack", choices=CRAFTED)
    opt.add_data(craft)
    craft.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    craft.add_argument("--triggers", default=crafting.FOLDER, help="where it is kept (default: %(default)s)")
    craft.add_argument("--out", help="a copy of the trigger, a safetensors file")
    craft.set_defaults(command=_craft)


def _craft(arguments: argparse.Namespace, options: list[str]) -> None:
    attack: Any = opt.apply({"attack": ATTACKS[arguments.attack]()}, options)["attack"]
    train, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    folder, progress = Path(arguments.triggers), Progress()
    root = key(arguments.seed).child("attack")  # as a run has it
    state = crafting.crafted(attack, train, folder, root, progress)
    if arguments.out:
        save_tensors(Path(arguments.out), state)
    trigger = attack.trigger(state)
    print(f"kept as {crafting.kept_at(attack, train, folder, root)}")
    if isinstance(trigger, Additive | Overlay):
        model = surrogate(attack.surrogate, train, root, crafting.Surrogates(folder, progress))
        goal = Backdoor(trigger, attack.target)
        print(report.text_table(*proof(model, attack.score(model), test, goal, root.child("twin"))))
    elif isinstance(trigger, Generated):
        model = new_model(attack.surrogate, train, root)
        model.load_state_dict(below(state, "surrogate"))
        print(report.text_table(*proof_of_patches(model.eval(), trigger, test, attack.target)))
    elif isinstance(trigger, Corners):
        model = new_model(attack.surrogate, train, root)
        model.load_state_dict(state)
        images = test.images[test.labels == attack.target][:PERTURBED]
        print(report.text_table(*proof_of_perturbation(model.eval(), attack, images, root.child("twin"))))
    elif isinstance(trigger, Encoded):
        print(report.text_table(*proof_of_secret(trigger, lambda images: attack.read(state, images), test)))


def proof(
    model: nn.Module, score: Score, test: ImageDataset, goal: Backdoor, root: Key
) -> tuple[list[str], list[list[object]]]:
    """What the trigger does to the surrogate, which never saw it, beside random ones: headers and cells."""
    images = test.images[test.labels != goal.wanted(test.labels)]

    def row(name: str, triggers: list[Trigger]) -> list[object]:
        rates = [metrics.attack_success_rate(model, test, Backdoor(trigger, goal.target)) for trigger in triggers]
        rises = [rise(score, images, trigger) for trigger in triggers]
        return [name, f"{sum(rises) / len(rises):.3f}", report.percent(sum(rates) / len(rates))]

    random: list[Trigger] = [twin(goal.trigger, root.child(i)) for i in range(TWINS)]
    return ["test images of other classes", "rise of the score", "called the target"], [
        row("as they are", [lambda images: images]),
        row(f"with a random pattern of its mask and norm, mean of {TWINS}", random),
        row("with the trigger", [goal.trigger]),
    ]


def proof_of_patches(
    model: nn.Module, trigger: Generated, test: ImageDataset, target: int
) -> tuple[list[str], list[list[object]]]:
    """What an image's own patch and that of another do to the network that the patches were made with."""
    triggers: dict[str, Trigger] = {
        "as they are": lambda images: images,
        "with the patch of another image": lambda images: trigger.crossed(images, images.roll(1, 0)),
        "with their own patch": trigger,
    }
    return ["test images of other classes", "called the target"], [
        [name, report.percent(metrics.attack_success_rate(model, test, Backdoor(each, target)))]
        for name, each in triggers.items()
    ]


def proof_of_perturbation(
    model: nn.Module, attack: LabelConsistent, images: Tensor, root: Key
) -> tuple[list[str], list[list[object]]]:
    """How hard images of the target class are for the surrogate, which was trained on such ones, before and after."""
    labels = torch.full((len(images),), attack.target, device=images.device)
    noise = (torch.rand(images.shape, generator=root.generator()) > 0.5).to(images.device) * 2 * attack.eps - attack.eps
    given = {
        "as they are": images,
        f"changed by {attack.eps:g} steps at random": (images + noise).clamp(0, 255).round().to(torch.uint8),
        "with their perturbation": attack.perturbed(model, images, labels, root),
    }
    return ["test images of the target class", "called so"], [
        [name, report.percent(metrics.accuracy(predict(model, each), labels))] for name, each in given.items()
    ]


def proof_of_secret(
    trigger: Encoded, read: Callable[[Tensor], Tensor], test: ImageDataset
) -> tuple[list[str], list[list[object]]]:
    """Which share of the secret is read from test images with it and without, and by how much it changes them."""
    hidden = trigger(test.images)
    change = (hidden.double() - test.images.double()).square().mean().sqrt()
    return ["test images", "bits of the secret read", "mean square change, root"], [
        [name, report.percent(float((read(images) == trigger.secret).double().mean())), f"{each:.1f} steps"]
        for name, images, each in (("as they are", test.images, 0), ("with the secret", hidden, change))
    ]
