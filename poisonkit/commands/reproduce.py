"""``poisonkit reproduce``: tables and figures of the papers, ours beside theirs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from poisonkit import config, report
from poisonkit.commands import options as opt
from poisonkit.commands.parsing import Commands, no_options
from poisonkit.data import DATASETS
from poisonkit.engine import Local, Progress, Run, environment
from poisonkit.errors import require
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.reproduce import REPRODUCTIONS, SCALES, Reproduction, Result
from poisonkit.experiments.reproduce.page import html, markdown, show
from poisonkit.experiments.reproduce.results import beside, read, where, write
from poisonkit.experiments.reproduce.sizes import SHAPES, TERAFLOPS, size
from poisonkit.random import key
from poisonkit.train.checkpoints import write_atomic
from poisonkit.types import ImageDataset


def add(commands: Commands) -> None:
    reproduce = commands.add_parser("reproduce", help="tables and figures of the papers, our numbers beside theirs")
    reproduce.add_argument("name", nargs="*", help="such as dpa/table4, or dpa for all of a paper (default: all)")
    reproduce.add_argument("--list", action="store_true", help="what there is, and stop")
    reproduce.add_argument(
        "--scale", default="smoke", choices=SCALES, help="minutes, hours, a GPU (default: %(default)s)"
    )
    reproduce.add_argument("--data", choices=sorted(DATASETS), help="another data set than the scale's")
    reproduce.add_argument("--root", help="folder that holds it")
    shared = "the tables of a paper on one data set share a run, so all of them must be named"
    opt.add_running(reproduce, "runs/reproduce", afresh=f"{opt.AFRESH}; {shared}")
    reproduce.add_argument(
        "--teraflops", type=float, default=TERAFLOPS, help="what a GPU sustains, for --dry-run (default: %(default)s)"
    )
    reproduce.set_defaults(command=_reproduce)


def _reproduce(arguments: argparse.Namespace, options: list[str]) -> None:
    no_options(options)
    if arguments.list:
        for name in REPRODUCTIONS:
            print(name)
        return
    require(arguments.teraflops > 0, "--teraflops", "above 0", arguments.teraflops)
    chosen = _chosen(arguments.name)
    for name, entry in chosen.items():
        require(
            arguments.scale in entry.scales, f"--scale of {name}", f"one of {', '.join(entry.scales)}", arguments.scale
        )
    if arguments.overwrite:
        for name in chosen:
            _require_all(name, chosen, arguments)
    if arguments.dry_run:
        _plan(chosen, arguments)
        return
    device, folder = opt.device_of(arguments), Path(arguments.out)
    started: set[Path] = set()
    for name, entry in chosen.items():
        run = _folder(name, arguments)
        result = _run(name, entry, arguments, device, overwrite=arguments.overwrite and run not in started)
        started.add(run)
        write(folder, result)
        print(f"{name}: {len(result.rows)} numbers in {folder / arguments.scale / f'{name}.json'}")
    results = read(folder, list(REPRODUCTIONS), SCALES)
    write_atomic(folder / "results.md", markdown(REPRODUCTIONS, results).encode())
    write_atomic(folder / "report.html", html(REPRODUCTIONS, results).encode())
    print(f"\n{folder / 'report.html'}")


def _chosen(names: Sequence[str]) -> dict[str, Reproduction]:
    """The reproductions of those names, or of those papers; all where none is named."""
    papers = {name.partition("/")[0] for name in REPRODUCTIONS}
    for name in names:
        known = name in REPRODUCTIONS or name in papers
        require(known, "name", f"one of {', '.join([*sorted(papers), *REPRODUCTIONS])}", name)
    wanted = {name: entry for name, entry in REPRODUCTIONS.items() if {name, name.partition("/")[0]} & set(names)}
    return wanted if names else dict(REPRODUCTIONS)


def _folder(name: str, arguments: argparse.Namespace) -> Path:
    """The run of a reproduction: those of a paper on one data set share their networks."""
    data: str = arguments.data or REPRODUCTIONS[name].scales[arguments.scale].data
    return Path(arguments.out, arguments.scale, "runs", name.partition("/")[0], data)


def _require_all(name: str, chosen: Mapping[str, Reproduction], arguments: argparse.Namespace) -> None:
    """Raise ArgumentError where the run of ``name`` holds networks of a reproduction that is not chosen."""
    others = [each for each, entry in REPRODUCTIONS.items() if arguments.scale in entry.scales and each not in chosen]
    sharing = [each for each in others if _folder(each, arguments) == _folder(name, arguments)]
    rule = f"with {', '.join(sharing)} too, which have their networks in the same run"
    remedy = "name all of them, or give another --out"
    require(not sharing, "--overwrite", rule, name, remedy)


def _run(
    name: str, entry: Reproduction, arguments: argparse.Namespace, device: torch.device, *, overwrite: bool
) -> Result:
    folder, scale, setting = _folder(name, arguments), arguments.scale, entry.scales[arguments.scale]
    data = arguments.data or setting.data
    train, test = opt.loaded(data, arguments.root, setting.limit)
    configuration = {**config.to_dict(setting), "data": data}
    plan = {"paper": name.partition("/")[0], "scale": scale, **configuration}
    manifest = {"plan": plan, "data": opt.described(train, test)}
    run = Run(folder, {**manifest, "environment": environment(device)}, overwrite=overwrite)
    lab = Lab(run, train, test.to(device), setting.recipe, key(setting.seed), Local(), Progress())
    parts = entry.run(lab, setting)
    command = [f"poisonkit reproduce {name} --scale {scale}"]
    command += [f"--data {data}"] if arguments.data else []
    command += ["--root data/"] if arguments.root else []
    command += [f"--threads {arguments.threads}"] if arguments.threads else []
    return Result(
        {
            "name": name,
            "scale": scale,
            "data": data,
            "training_images": len(train),
            "test_images": len(test),
            "command": " ".join(command),
            "seeds": [setting.seed],
            **where(device),
            "config": configuration,
        },
        beside(entry, parts),
    )


def _plan(chosen: dict[str, Reproduction], arguments: argparse.Namespace) -> None:
    """Print what ``chosen`` would train, and what that takes."""
    rows = []
    for name, entry in chosen.items():
        setting = entry.scales[arguments.scale]
        data = arguments.data or setting.data
        shape, classes, total = SHAPES.get(data) or _shape(*opt.loaded(data, arguments.root, setting.limit))
        total = min(total, setting.limit or total)
        found = size(entry.plan(setting, total), shape, classes, total, arguments.teraflops)
        hours = [show("seconds", 3600 * each) for each in (found.hours, found.hours_on_8)]
        memory = [f"{each / 1e9:.2g} GB" for each in (found.gpu_bytes, found.disk_bytes)]
        rows.append([name, f"{data}, {total:,} rows", found.networks, f"{found.multiply_adds:.3g}", *hours, *memory])
    headers = [
        "name",
        "data",
        "networks",
        "multiply-adds",
        "one GPU",
        "eight, at best",
        "GPU memory",
        "networks on disk",
    ]
    print(report.text_table(headers, rows))
    print(
        f"\nTraining, arithmetic alone, at {arguments.teraflops:g} TFLOP/s (two FLOP a multiply-add): reading data "
        "and the\nmemory traffic of narrow networks come on top. Eight GPUs: each network on one of them. GPU memory: "
        "the data\nand the largest network with gradients, momenta and a batch of activations. Tables of one paper "
        "share networks."
    )


def _shape(train: ImageDataset, test: ImageDataset) -> tuple[tuple[int, int, int], int, int]:
    return train.shape, train.num_classes, len(train)
