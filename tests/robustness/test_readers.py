"""Whatever is in a file, a reader reads it or says what is wrong with it: no other error, and no gigabytes."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import resource
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

from poisonkit.__main__ import main
from poisonkit.attacks.published import read_setups, read_trial
from poisonkit.commands.hashing import _rows
from poisonkit.data import load
from poisonkit.data.imagenet64 import convert
from poisonkit.engine import Run, load_ensemble
from poisonkit.engine.run import read_manifest
from poisonkit.errors import PoisonkitError
from poisonkit.experiments.reproduce.results import read as read_results
from poisonkit.experiments.runs import read as read_finished
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe, new_model
from poisonkit.train.checkpoints import load as load_checkpoint
from poisonkit.train.checkpoints import save_tensors
from poisonkit.train.pretraining import Pretrained, load_pretrained
from poisonkit.types import ImageDataset

GENERATOR = np.random.default_rng(0)
BOUNDED = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MOST_MEMORY = 400_000  # KiB: what a process may grow by while it reads some kilobytes a few hundred times


def pixels(*shape: int) -> np.ndarray:
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


def png(side: int = 6) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(side, side, 3)).save(file, "PNG")
    return file.getvalue()


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cifar10(folder: Path) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        put(folder / name, pickle.dumps({"data": pixels(2, 3072), "labels": [0, 9]}, 2))
    put(folder / "batches.meta", pickle.dumps({"label_names": [f"c{k}" for k in range(10)]}, 4))


def cifar100(folder: Path) -> None:
    for name in ("train", "test"):
        put(folder / name, pickle.dumps({"data": pixels(2, 3072), "fine_labels": [0, 99]}, 3))
    put(folder / "meta", pickle.dumps({"fine_label_names": [f"c{k}" for k in range(100)]}, 2))


def parquet(folder: Path) -> None:
    for name in ("train-00000-of-00001", "test-00000-of-00001"):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": png(), "path": ""} for _ in range(4)], kind)
        table = pa.table({"image": column, "label": pa.array([0, 1, 0, 1], pa.int64())})
        names = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), folder / f"{name}.parquet")


def pictures(folder: Path) -> None:
    for part in ("train", "test"):
        for kind in ("PNG", "JPEG", "PPM"):
            path = folder / part / "a" / f"{kind}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(8, 8, 3)).save(path, kind)


def gtsrb(folder: Path) -> None:
    train, test = folder / "Final_Training" / "Images" / "00000", folder / "Final_Test" / "Images"
    put(train / "GT-00000.csv", "Filename;Width;ClassId\n1.ppm;6;0\n")
    put(folder / "GT-final_test.csv", "Filename;Width;ClassId\n1.ppm;6;0\n")
    for place in (train, test):
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(6, 6, 3)).save(place / "1.ppm", "PPM")


def tiny_imagenet(folder: Path) -> None:
    put(folder / "wnids.txt", "n00000001\nn00000002\n")
    put(folder / "words.txt", "n00000001\tcat, feline\nn00000002\tdog\n")
    put(folder / "val" / "val_annotations.txt", "v.JPEG\tn00000001\t0\t0\t1\t1\n")
    for place in ("train/n00000001/images/a.JPEG", "train/n00000002/images/a.JPEG", "val/images/v.JPEG"):
        file = io.BytesIO()
        Image.fromarray(pixels(8, 8, 3)).save(file, "JPEG")
        put(folder / place, file.getvalue())


NAMES = [f"train_data_batch_{i}" for i in range(1, 11)] + ["val_data"]


def npz(folder: Path) -> None:
    for name in NAMES:
        np.savez(folder / f"{name}.npz", data=pixels(2, 12), labels=np.array([1, 1000]))


def converted(folder: Path) -> None:
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir()
    npz(source)
    convert(source, folder / "imagenet64")


def synthetic(folder: Path) -> None:
    tensors = {
        "images": torch.rand(4, 1, 4, 4) * 255,
        "labels": torch.tensor([0, 1, 0, 1]),
        "test_images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        "test_labels": torch.tensor([0, 1]),
    }
    save_file(tensors, folder / "synthetic.safetensors", {"classes": '["a", "b"]'})


def checkpoint(folder: Path) -> None:
    save_tensors(folder / "checkpoint.safetensors", {"w": torch.ones(3)}, {"epochs": "3"})


RECIPE = Recipe(ResNet(8, 4, stem="small"), epochs=1)


def pretrained(folder: Path) -> None:
    empty = ImageDataset(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a", "b"))
    model = new_model(RECIPE, empty, key(0))
    whole = Pretrained(model, RECIPE, "labels", (1, 8, 8), ("a", "b"), torch.arange(3), "digits")
    whole.save(folder / "pretrained.safetensors")


def trial(folder: Path) -> None:
    first, second, victim = (Image.fromarray(pixels(4, 4, 3)) for _ in range(3))
    contents = {"poisons": [(first, 3), (second, 3)], "base_indices": np.array([5, 1]), "target": (victim, 7)}
    for name, content in contents.items():
        put(folder / f"{name}.pickle", pickle.dumps(content, 4))


def setups(folder: Path) -> None:
    some = [{"target class": 7, "target index": 2, "base class": 3, "base indices": np.array([5, 1])} for _ in "ab"]
    put(folder / "setups.pickle", pickle.dumps(some, 4))


def rows(folder: Path) -> None:
    np.save(folder / "rows.npy", pixels(3, 5))


def run(folder: Path) -> None:
    command = ["run", "--data", "digits", "--limit", "40", "--attack", "none", "--defense.partitions", "2"]
    command += ["--recipe.epochs", "1", "--recipe.model.width", "4", "--out", str(folder)]
    assert main(command) == 0


def results(folder: Path) -> None:
    put(folder / "smoke" / "dpa" / "table4.json", json.dumps({"name": "dpa/table4", "rows": []}))


def reconvert(folder: Path) -> None:
    convert(folder, folder.with_name(f"{folder.name}-converted"))


def hashed(folder: Path) -> None:
    _rows(folder / "rows.npy")


@dataclass(frozen=True)
class Format:
    """A format: ``write`` a small whole one into a folder, ``read`` what is there."""

    write: Callable[[Path], None]
    read: Callable[[Path], object]
    files: str = "*"  # those that are damaged


FORMATS = {
    "cifar10": Format(cifar10, lambda folder: load("cifar10", folder)),
    "cifar100": Format(cifar100, lambda folder: load("cifar100", folder)),
    "parquet": Format(parquet, lambda folder: load("parquet", folder)),
    "folder": Format(pictures, lambda folder: load("folder", folder)),
    "gtsrb": Format(gtsrb, lambda folder: load("gtsrb", folder, size=8)),
    "tiny-imagenet": Format(tiny_imagenet, lambda folder: load("tiny-imagenet", folder)),
    "npz": Format(npz, reconvert),
    "imagenet64": Format(converted, lambda folder: load("imagenet64", folder)),
    "synthetic": Format(synthetic, lambda folder: load("synthetic", folder)),
    "checkpoint": Format(checkpoint, lambda folder: load_checkpoint(folder / "checkpoint.safetensors")),
    "pretrained": Format(pretrained, lambda folder: load_pretrained(folder / "pretrained.safetensors")),
    "trial": Format(trial, read_trial),
    "setups": Format(setups, lambda folder: read_setups(folder / "setups.pickle")),
    "rows": Format(rows, hashed),
    "ensemble": Format(run, load_ensemble),
    "finished": Format(run, read_finished, "*.json"),
    "results": Format(results, lambda folder: read_results(folder, ["dpa/table4"], ["smoke"])),
}

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "overwrite", "insert", "delete", "repeat"]),
        st.floats(0, 1),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from(
                [b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 3, b"\x00\x00\x00\x80", b"9" * 25, b"[" * 40]
            ),
        ),
    ),
    min_size=1,
    max_size=3,
)


def damaged(content: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, new in edits:
        at = int(place * len(content))
        content = {
            "cut": content[:at],
            "overwrite": content[:at] + new + content[at + len(new) :],
            "insert": content[:at] + new + content[at:],
            "delete": content[:at] + content[at + len(new) :],
            "repeat": content[:at] + content[max(0, at - 64) :],
        }[kind]
    return content


def refused_or_read(read: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow and NumPy, about what they read nevertheless
        with contextlib.suppress(PoisonkitError):
            read()


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    case = FORMATS[name]
    case.write(folder)
    files = sorted(path for path in folder.rglob(case.files) if path.is_file() and ".locks" not in path.parts)
    whole = {path: path.read_bytes() for path in files}
    case.read(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @BOUNDED
    @given(st.sampled_from(files), EDITS)
    def check(path: Path, edits: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(damaged(whole[path], edits))
        try:
            refused_or_read(lambda: case.read(folder))
        finally:
            path.write_bytes(whole[path])

    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY


# Whole files of values that no writer of theirs would write

ARRAYS = st.builds(
    lambda shape, kind: np.zeros(shape, kind),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["u1", "i1", "<i8", ">i8", "u8", "f4", "f8"]),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(1 << 70), 1 << 70), st.floats(), st.text(max_size=4)
)
JSON = st.recursive(
    SCALARS, lambda some: st.lists(some, max_size=4) | st.dictionaries(st.text(max_size=6), some, max_size=3)
)
VALUES = st.recursive(
    SCALARS | ARRAYS | st.binary(max_size=4) | st.just(Image.new("RGB", (4, 4))) | st.just(Image.new("L", (3, 4))),
    lambda some: st.lists(some, max_size=4) | st.tuples(some, some) | st.dictionaries(st.text(max_size=4), some),
)
LABELS = st.lists(st.integers(-2, 1 << 65) | SCALARS, max_size=3) | ARRAYS | VALUES


def wild(strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    BOUNDED(given(strategy)(lambda value: refused_or_read(lambda: check(value))))()


def test_a_batch_of_other_values(tmp_path: Path) -> None:
    cifar10(tmp_path)

    def check(values: dict[str, Any]) -> None:
        put(tmp_path / "data_batch_3", pickle.dumps(values, 4))
        load("cifar10", tmp_path)

    wild(st.fixed_dictionaries({"data": st.just(pixels(2, 3072)) | VALUES, "labels": LABELS}), check)
    put(tmp_path / "data_batch_3", (tmp_path / "data_batch_2").read_bytes())
    wild(
        VALUES,
        lambda names: (put(tmp_path / "batches.meta", pickle.dumps({"label_names": names})), load("cifar10", tmp_path)),
    )


@pytest.mark.parametrize("part", ["poisons", "base_indices", "target"])
def test_a_trial_of_other_values(part: str, tmp_path: Path) -> None:
    trial(tmp_path)
    picture = st.just(Image.new("RGB", (4, 4))) | ARRAYS
    pair = st.tuples(picture, st.integers(0, 1 << 70))
    like = {
        "poisons": st.lists(pair, max_size=3),
        "base_indices": st.lists(st.integers(0, 1 << 70), max_size=3) | ARRAYS,
        "target": pair | st.tuples(picture, st.just(3), ARRAYS, VALUES | st.lists(st.integers(-9, 9), max_size=3)),
    }

    def check(value: Any) -> None:
        put(tmp_path / f"{part}.pickle", pickle.dumps(value, 4))
        read_trial(tmp_path)

    wild(VALUES | like[part], check)


def test_setups_of_other_values(tmp_path: Path) -> None:
    names = ("target class", "target index", "base class", "base indices")
    setup = st.fixed_dictionaries({name: st.integers(0, 1 << 70) | VALUES for name in names})

    def check(value: Any) -> None:
        put(tmp_path / "setups.pickle", pickle.dumps(value, 4))
        read_setups(tmp_path / "setups.pickle")

    wild(VALUES | st.lists(setup, max_size=2), check)


def test_an_npz_of_other_values(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    npz(source)

    def check(values: dict[str, Any]) -> None:
        np.savez(source / f"{NAMES[2]}.npz", **values)
        reconvert(source)

    wild(st.fixed_dictionaries({}, optional={"data": st.just(pixels(2, 12)) | ARRAYS, "labels": ARRAYS}), check)


def test_a_synthetic_set_of_other_values(tmp_path: Path) -> None:
    kinds = st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.bool])
    tensor = st.builds(
        lambda shape, kind: torch.zeros(shape, dtype=kind), st.lists(st.integers(0, 4), max_size=4), kinds
    )
    names = ("images", "labels", "test_images", "test_labels")

    def check(found: tuple[dict[str, torch.Tensor], str]) -> None:
        put(tmp_path / "synthetic.safetensors", save(found[0], {"classes": found[1]}))
        load("synthetic", tmp_path)

    wild(
        st.tuples(st.fixed_dictionaries(dict.fromkeys(names, tensor)), JSON.map(json.dumps) | st.just("[" * 9999)),
        check,
    )


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for name, each in inner for place in places(each, (*at, name)))]


def replaced(tree: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[at[0]] = replaced(tree[at[0]], at[1:], value)
    return copy


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ensemble", "manifest.json"),
        ("finished", "manifest.json"),
        ("finished", "results.json"),
        ("imagenet64", "imagenet64/index.json"),
        ("results", "smoke/dpa/table4.json"),
    ],
)
def test_json_of_other_values(name: str, file: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    case, path = FORMATS[name], folder / file
    case.write(folder)
    tree = json.loads(path.read_text())

    def check(change: tuple[tuple[Any, ...], Any]) -> None:
        path.write_text(json.dumps(replaced(tree, *change)))
        case.read(folder)

    wild(st.tuples(st.sampled_from(places(tree)), JSON), check)


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    deep = "[" * 100_000
    run(tmp_path / "run")
    put(tmp_path / "run" / "results.json", deep)
    with pytest.raises(PoisonkitError, match="must be written by poisonkit, got RecursionError"):
        read_finished(tmp_path / "run")
    put(tmp_path / "run" / "dpa" / "base-0000" / "model.json", deep)
    assert not Run(tmp_path / "run", read_manifest(tmp_path / "run")).done("dpa/base-0000/model")
    put(tmp_path / "run" / "manifest.json", deep)
    with pytest.raises(PoisonkitError, match="run directory must be new, empty or a run of poisonkit"):
        load_ensemble(tmp_path / "run")
