"""The command line. Options of attacks, defenses, recipes and models are the fields of their dataclasses."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

import poisonkit
from poisonkit import config, ops, report
from poisonkit.attacks import ATTACKS
from poisonkit.data import DATASETS, imagenet64, load
from poisonkit.defenses import DEFENSES
from poisonkit.defenses.certified import CertifiedDefense
from poisonkit.engine import Progress, Run, environment
from poisonkit.errors import ArgumentError, DataError, PoisonkitError, fail, require
from poisonkit.experiments import EXPERIMENTS, RECIPES, compare, page, prepare
from poisonkit.models import MODELS
from poisonkit.ops.weighted_sum_hash import MAX_DIM
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import Attack, Budget, ImageDataset


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are one line and come as an ArgumentError."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit status: 0; 2 where an argument or a file is wrong; 130 if interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        arguments, options = _parser().parse_known_args(argv)
        arguments.shown = shlex.join(["poisonkit", *argv])
        arguments.command(arguments, options)
    except PoisonkitError as error:
        print(f"poisonkit: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("poisonkit: interrupted; a run takes up where it stopped, unless told to --overwrite", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> Parser:
    parser = Parser(prog="poisonkit", description=poisonkit.__doc__)
    parser.add_argument("--version", action="version", version=f"poisonkit {environment()['poisonkit']}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)

    demo = commands.add_parser("demo", help="the main job on real digits that come with the package, in a minute")
    demo.add_argument("--out", default="runs/demo", help="run directory (default: %(default)s)")
    demo.add_argument("--overwrite", action="store_true", help="start afresh instead of taking up an earlier run")
    demo.set_defaults(command=_demo)

    run = commands.add_parser(
        "run",
        help="poison a data set, train with and without a defense, measure, report",
        description="Options of the chosen parts follow their names: --attack.size 3 --defense.partitions 50 "
        "--recipe.epochs 10 --recipe.model.width 32; --options lists them with their values.",
    )
    run.add_argument(
        "--data", required=True, choices=sorted(DATASETS), help="data set; `poisonkit list` describes them"
    )
    run.add_argument("--root", help="folder that holds it")
    run.add_argument("--attack", default="centre_patch", choices=[*ATTACKS, "none"], help="(default: %(default)s)")
    run.add_argument("--rate", type=float, default=0.01, help="fraction of rows to poison (default: %(default)s)")
    run.add_argument("--defense", default="dpa", choices=list(DEFENSES), help="(default: %(default)s)")
    run.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    run.add_argument("--limit", type=int, metavar="N", help="use N training and N test rows only, spread evenly")
    run.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    run.add_argument("--threads", type=int, help="CPU threads (default: torch's); recorded, since results depend on it")
    run.add_argument("--out", help="run directory (default: runs/DATA-ATTACK-DEFENSE)")
    run.add_argument("--overwrite", action="store_true", help="start afresh instead of taking up an earlier run")
    run.add_argument("--options", action="store_true", help="list the options of the chosen parts, and stop")
    run.add_argument("--dry-run", action="store_true", help="check the arguments, print the configuration, and stop")
    run.set_defaults(command=_run)

    listing = commands.add_parser("list", help="every attack, defense, data set, model and experiment, with its source")
    listing.set_defaults(command=_list)
    info = commands.add_parser("info", help="what this installation was built with and what this machine offers")
    info.set_defaults(command=_info)

    hashing = commands.add_parser(
        "hash",
        help="weighted-sum hashes of files, or of the rows of a uint8 .npy file",
        description="Two hashes modulo 2^48+21 for each file, its size in bytes and its name; a .npy file of uint8 "
        "rows gives a line a row. Hashes have a collision bound where the seed is kept from whoever makes the files; "
        "they are no cryptographic digests.",
    )
    hashing.add_argument("files", nargs="+", metavar="FILE")
    hashing.add_argument("--seed", type=int, default=0, help="seed of the weights (default: %(default)s)")
    hashing.set_defaults(command=_hash)

    convert = commands.add_parser("convert", help="convert ImageNet64 batches once, to a memory-mapped folder")
    convert.add_argument("source", help="folder of train_data_batch_* and val_data, npz or pickled")
    convert.add_argument("destination", help="folder to write")
    convert.set_defaults(command=_convert)
    return parser


@dataclass(frozen=True)
class Plan:
    """Everything a run is a function of, besides the bytes of its data and its environment."""

    data: str
    limit: int | None
    attack: Attack | None
    rate: float
    defense: CertifiedDefense
    recipe: Recipe
    seed: int

    def manifest(self) -> dict[str, Any]:
        return {field.name: config.to_dict(getattr(self, field.name)) for field in fields(self)}


def _demo(arguments: argparse.Namespace, options: list[str]) -> None:
    _no_options(options)
    demo = EXPERIMENTS["demo"]
    plan = Plan(demo.data, None, demo.attack, demo.rate, demo.defense, demo.recipe, 0)
    train, test = load(demo.data)
    arguments.threads = 1  # tiny layers gain nothing from more, and lose a lot on a busy machine
    _execute(plan, train, test, "dpa", arguments)


def _run(arguments: argparse.Namespace, options: list[str]) -> None:
    parts: dict[str, Any] = {
        "attack": ATTACKS[arguments.attack]() if arguments.attack != "none" else None,
        "defense": DEFENSES[arguments.defense](),
        "recipe": RECIPES.get(arguments.data, Recipe()),
    }
    for option, text in _pairs(options):
        part, _, path = option.removeprefix("--").partition(".")
        require(
            part in parts and parts[part] is not None and path != "",
            "an option",
            "one of `poisonkit run --help` or below --attack, --defense or --recipe",
            option,
            "--options lists them",
        )
        if option == "--recipe.model" and text in MODELS:
            parts[part] = replace(parts[part], model=MODELS[text])
        else:
            parts[part] = config.with_option(parts[part], path, text, part)
    if arguments.options:
        rows = [leaf for part, value in parts.items() if value is not None for leaf in config.leaves(value, part)]
        print(report.text_table(["option", "value"], [[f"--{name}", str(value)] for name, value in rows]))
        return
    require(0 <= arguments.rate <= 1, "--rate", "a fraction in [0, 1]", arguments.rate)
    require(arguments.limit is None or arguments.limit >= 1, "--limit", "at least 1 row", arguments.limit)
    cores = os.cpu_count() or 1
    threads = arguments.threads
    require(threads is None or 1 <= threads <= cores, "--threads", f"from 1 to this machine's {cores}", threads)
    device = _device(arguments.device)
    key(arguments.seed)  # refuses a seed out of range
    plan = Plan(
        arguments.data,
        arguments.limit,
        parts["attack"],
        arguments.rate,
        parts["defense"],
        parts["recipe"],
        arguments.seed,
    )
    if arguments.dry_run:
        print(json.dumps(plan.manifest(), indent=2))
        return
    if device.type == "cuda":
        found = torch.cuda.device_count()
        require((device.index or 0) < found, "--device", f"one of {found} CUDA devices", device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic training needs it, and needs it now
    train, test = load(arguments.data, arguments.root)
    if arguments.limit:
        train, test = (_spread(part, arguments.limit) for part in (train, test))
    arguments.out = arguments.out or f"runs/{arguments.data}-{arguments.attack}-{arguments.defense}"
    _execute(plan, train.to(device), test.to(device), arguments.defense, arguments)


def _execute(plan: Plan, train: ImageDataset, test: ImageDataset, name: str, arguments: argparse.Namespace) -> None:
    """Run ``plan`` in its directory, write its page there, and print its table."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    root = key(plan.seed)
    # before the run directory is touched: what cannot be done must leave nothing behind
    poison = prepare(train, test, attack=plan.attack, budget=Budget(plan.rate), defense=plan.defense, key=root)
    data = {"shape": train.shape, "classes": train.classes, "train": train.digest(), "test": test.digest()}
    manifest = {"plan": plan.manifest(), "data": data, "environment": environment(train.device)}
    run = Run(arguments.out, manifest, overwrite=arguments.overwrite)
    comparison = compare(
        run,
        train,
        test,
        poison=poison,
        defense=plan.defense,
        name=name,
        recipe=plan.recipe,
        key=root,
        progress=Progress(),
    )
    attack = f"{plan.attack} on {plan.rate:.2%} of" if plan.attack else "no attack on"
    subtitle = f"{attack} {len(train):,} training images of {plan.data}; measured on {len(test):,} test images"
    page.write(run, comparison, title=f"poisonkit: {name} on {plan.data}", subtitle=subtitle, command=arguments.shown)
    print(report.text_table(*page.table(comparison.rows)))
    print("r=n: certified accuracy, right whatever an attacker does with n inserted or deleted training rows")
    print(f"\n{run.directory / 'report.html'}")


def _list(arguments: argparse.Namespace, options: list[str]) -> None:
    _no_options(options)
    _print_list("attacks", [(name, _summary(kind), kind.source) for name, kind in ATTACKS.items()])
    _print_list("defenses", [(name, _summary(kind), kind.source) for name, kind in DEFENSES.items()])
    _print_list("data sets", [(name, entry.summary, entry.source) for name, entry in DATASETS.items()])
    _print_list("models", [(name, str(entry), "") for name, entry in MODELS.items()])
    _print_list("experiments", [(name, entry.summary, entry.source) for name, entry in EXPERIMENTS.items()])


def _print_list(title: str, rows: list[tuple[str, str, str]]) -> None:
    print(f"{title}\n{report.text_table(['name', 'what', 'source'], rows)}\n")


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _info(arguments: argparse.Namespace, options: list[str]) -> None:
    _no_options(options)
    facts: dict[str, Any] = {**environment(), **ops.build_info()}
    rows = [
        (f"{name} {part}", fact)
        for name, value in facts.items()
        for part, fact in (value.items() if isinstance(value, dict) else [("", value)])
    ]
    print(report.text_table(["what", "value"], [[name.strip(), _plain(fact)] for name, fact in rows]))


def _plain(fact: Any) -> str:
    return ", ".join(map(str, fact)) or "none" if isinstance(fact, list | tuple) else str(fact)


def _hash(arguments: argparse.Namespace, options: list[str]) -> None:
    _no_options(options)
    for name in arguments.files:
        rows, numbered = _rows(Path(name))
        weights = ops.hash_weights(rows.shape[1], seed=arguments.seed)
        for i, (first, second) in enumerate(ops.weighted_sum_hash(rows, weights).tolist()):
            print(f"{first:015d} {second:015d} {rows.shape[1]} {name}" + (f"[{i}]" if numbered else ""))


def _rows(path: Path) -> tuple[torch.Tensor, bool]:
    """The rows of a uint8 .npy file, or the bytes of any other file as one row; and whether rows are numbered."""
    require(path.is_file(), "FILE", "a file", path, error=DataError)
    if path.suffix == ".npy":
        try:
            array = np.load(path, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            fail("FILE", "a whole .npy file", path, str(error), DataError)
        require(
            array.dtype == np.uint8 and array.ndim >= 2, "FILE", "uint8 rows", f"{path}: {array.dtype} {array.shape}"
        )
        return torch.from_numpy(array).flatten(1), True
    size = path.stat().st_size
    require(size <= MAX_DIM, "FILE", f"at most {MAX_DIM:,} bytes", f"{path}: {size:,}", error=DataError)
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8).copy()
    return torch.from_numpy(content)[None], False


def _convert(arguments: argparse.Namespace, options: list[str]) -> None:
    _no_options(options)
    progress = Progress()
    imagenet64.convert(arguments.source, arguments.destination, progress=progress.status)
    progress.line(f"converted to {arguments.destination}")


def _no_options(options: list[str]) -> None:
    require(not options, "arguments", "those that --help lists", " ".join(options))


def _pairs(options: list[str]) -> list[tuple[str, str]]:
    """``--a.b value`` and ``--a.b=value`` as pairs, outer fields first so that inner ones apply to them."""
    pairs, rest = [], list(options)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not equals:
            require(bool(rest) and option.startswith("--"), "options", "of the form --option value", option)
            value = rest.pop(0)
        pairs.append((option, value))
    return sorted(pairs, key=lambda pair: pair[0].count("."))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        fail("--device", "cpu, cuda or cuda:N", name)
    require(device.type in ("cpu", "cuda"), "--device", "cpu, cuda or cuda:N", name)
    return device


def _spread(data: ImageDataset, rows: int) -> ImageDataset:
    """``rows`` rows spread evenly, since many data sets are sorted by class."""
    rows = min(rows, len(data))
    return data.take(torch.arange(rows) * len(data) // rows)


if __name__ == "__main__":
    sys.exit(main())
