"""``poisonkit repair``: mend a trained network with a few clean images, and say what changed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poisonkit import config, report
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands
from poisonkit.data.files import written_by
from poisonkit.defenses.repair import REPAIR
from poisonkit.engine import Progress, Run, environment, journal
from poisonkit.engine.run import read_manifest
from poisonkit.errors import RunError, fail, require
from poisonkit.experiments.families import set_aside
from poisonkit.metrics import clean_accuracy
from poisonkit.models import MODELS, Model
from poisonkit.models.clipping import NAME, binding, ceilings, restored
from poisonkit.models.predict import check_weights
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.train.checkpoints import digest, load_tensors, read
from poisonkit.types import ImageDataset


def add(commands: Commands) -> None:
    repair = commands.add_parser(
        "repair",
        help="mend a trained network with a few clean images",
        description="Clean images of each class are taken out of the test set; accuracy is measured on the others. "
        "Options of the method follow its name: --method.weight 0.2.",
    )
    repair.add_argument("model", metavar="MODEL", help="a safetensors file, or a run, for its undefended network")
    repair.add_argument("--arch", metavar="NAME:WIDTH", help="what the file holds, such as resnet18:64; a run knows")
    opt.add_data(repair)
    repair.add_argument("--method", default="mmac", choices=list(REPAIR), help="(default: %(default)s)")
    repair.add_argument("--clean", type=int, default=50, help="clean images of each class (default: %(default)s)")
    repair.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    opt.add_running(repair, None, "runs/repair-MODEL-METHOD")
    repair.set_defaults(command=_repair)


@dataclass(frozen=True)
class Change:
    """What a repair did.

    before, after  accuracy on clean images that it was not given
    relus          for each ReLU with bounds: which, how many channels, how many reach their bound on the clean images
    tensors        by name, the norm of the change of each tensor that did, in norms of the tensor
    """

    before: float
    after: float
    relus: tuple[tuple[str, int, int], ...]
    tensors: Mapping[str, float]


def _repair(arguments: argparse.Namespace, options: list[str]) -> None:
    method = opt.apply({"method": REPAIR[arguments.method]()}, options)["method"]
    root, path = key(arguments.seed), Path(arguments.model)
    arch = _arch(path, arguments.arch)
    plan = {"method": config.to_dict(method), "arch": config.to_dict(arch), "data": arguments.data}
    plan |= {"limit": arguments.limit, "clean": arguments.clean, "seed": arguments.seed}
    if arguments.dry_run:
        print(json.dumps(plan, indent=2))
        return
    device = opt.device_of(arguments)
    _, test = opt.loaded(arguments.data, arguments.root, arguments.limit)
    clean, rest = (part.to(device) for part in set_aside(test, arguments.clean, root.child("clean")))
    tensors = _tensors(path / "undefended" / "model.safetensors" if path.is_dir() else path)
    model = _network(arch, tensors, test).to(device)
    check_weights(model, "MODEL")
    manifest = {"plan": {"repair": plan, "network": digest(tensors)}, "data": {"test": test.digest()}}
    out = arguments.out or f"runs/repair-{path.stem}-{arguments.method}"
    run = Run(out, {**manifest, "environment": environment(device)}, overwrite=arguments.overwrite)
    work = journal(run, "repair", Progress())

    def repaired() -> Mapping[str, Tensor]:
        network = method(model, clean, key=root.child("repair"), journal=work)
        return network.state_dict()  # type: ignore[no-any-return]

    state = run.tensors("repaired", repaired)
    network = _network(arch, state, test).to(device)
    change = Change(
        clean_accuracy(model, rest),
        clean_accuracy(network, rest),
        _relus(network, clean.images),
        _changes(tensors, state),
    )
    run.write("change.json", json.dumps(asdict(change), indent=2) + "\n")
    print(_said(change, len(clean), len(rest)))
    print(f"\n{run.directory / 'repaired.safetensors'}")


def _arch(path: Path, named: str | None) -> Model:
    """The network that is named, or the one of a run."""
    if named is None:
        require(path.is_dir(), "--arch", "given for a file, such as resnet18:64", named)
        with written_by("`poisonkit run`", path, error=RunError):
            return config.from_dict(Recipe, read_manifest(path)["plan"]["recipe"]).model
    name, _, width = named.partition(":")
    known = name in MODELS and (not width or width.isdecimal())
    require(known, "--arch", f"NAME or NAME:WIDTH, a name of {', '.join(MODELS)}", repr(named))
    return replace(MODELS[name], width=int(width)) if width else MODELS[name]


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, checked where it says by what."""
    require(path.is_file(), "MODEL", "a safetensors file, or a run with an undefended network", path)
    tensors, about = read(path)
    return load_tensors(path) if "sha256" in about else tensors


def _network(arch: Model, state: Mapping[str, Tensor], data: ImageDataset) -> nn.Module:
    """The network of ``arch`` with those weights, and bounds where they have them."""
    network: nn.Module = arch.build(data.shape, data.num_classes, key(0))
    if any(name.startswith(f"{NAME}.") for name in state):
        return restored(network, state)
    try:
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        fail("MODEL", f"a {arch} for {data.num_classes} classes", error, "name the network with --arch")
    return network.eval()


def _relus(network: nn.Module, images: Tensor) -> tuple[tuple[str, int, int], ...]:
    each = zip(ceilings(network), binding(network, images), strict=True)
    return tuple((bound.where, len(reached), int(reached.sum())) for bound, reached in each)


def _changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    found = {}
    for name, tensor in before.items():
        if name in after and not torch.equal(tensor, after[name].to(tensor)):
            norm = float(tensor.double().norm())
            found[name] = float((after[name].to(tensor).double() - tensor.double()).norm()) / (norm or 1.0)
    return found


def _said(change: Change, clean: int, rest: int) -> str:
    lines = [
        f"clean accuracy {change.before:.1%} -> {change.after:.1%}, on {rest:,} images other than the {clean} given"
    ]
    if change.relus:
        rows: list[list[Any]] = [[where, channels, reached] for where, channels, reached in change.relus]
        total = [sum(row[1] for row in rows), sum(row[2] for row in rows)]
        table = report.text_table(["bounds on", "channels", "reached by clean images"], [*rows, ["all", *total]])
        lines += ["", table]
    if change.tensors:
        moved = [[name, f"{share:.2%}"] for name, share in change.tensors.items()]
        lines += ["", report.text_table(["weights", "change"], moved)]
    return "\n".join(lines)
