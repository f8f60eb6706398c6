"""Each paper from end to end on one device: undefended beside defended, seconds, images a second, the share of our op.

Of every paper a slice comes first, for the speed, and then the whole, which keeps its place in a run directory: a part
that was cut off goes on where it stopped. CIFAR-10 where its reader finds it below POISONKIT_DATA, else the digits.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from bench.measure import speedup
from bench.place import Place, sections, share_of_ops
from bench.rows import Row
from poisonkit import metrics
from poisonkit.__main__ import main as command_line
from poisonkit.attacks import BadNetsWhite, CentrePatch, DMPoison, GradientMatching
from poisonkit.data import load
from poisonkit.defenses import DPA, EPIC
from poisonkit.defenses.condense import DM, RdmDc
from poisonkit.defenses.repair import MMAC
from poisonkit.engine import Local, Progress, Run, environment, journal, seconds_of
from poisonkit.experiments.comparison import prepare
from poisonkit.experiments.families import defend, set_aside
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import Row as Measured
from poisonkit.experiments.presets import RECIPES
from poisonkit.experiments.reproduce.ieu import SCALES
from poisonkit.models import ConvNet, ResNet
from poisonkit.models.predict import ensemble_logits
from poisonkit.models.resnet import folded
from poisonkit.random import key
from poisonkit.train import Recipe, fit_stack, new_model, train_epoch
from poisonkit.train.finetuning import FineTuning, fine_tune
from poisonkit.train.loop import deterministic, new_optimizer
from poisonkit.train.pretraining import clean_split, pretrain
from poisonkit.types import Attack, Budget, ImageDataset


@dataclass(frozen=True, eq=False)
class Images:
    """What the papers are run on.

    name   of the data set
    root   where it lies; None for the digits, which come with the package
    train, test  on the device
    patch  side of a square that a network learns
    rate   share of the rows that carry it
    """

    name: str
    root: Path | None
    train: ImageDataset
    test: ImageDataset
    patch: int
    rate: float

    def recipe(self, place: Place, model: ResNet | ConvNet, epochs: int, batch_size: int) -> Recipe:
        """The recipe of the data set for another network; as small as can be where everything is."""
        own = RECIPES[self.name]
        if place.small:
            model, epochs, batch_size = replace(model, **SMALL[type(model)]), 1, 16
        precision = "bfloat16" if place.device.type == "cuda" else "float32"
        return replace(own, model=model, epochs=epochs, batch_size=batch_size, precision=precision)


SMALL = {ResNet: {"depth": 8, "width": 4}, ConvNet: {"depth": 2, "width": 4}}


def images(place: Place) -> Images:
    root = Path(os.environ.get("POISONKIT_DATA", ".data"))
    # what its reader needs
    real = not place.small and (root / "cifar10").is_dir() and all(map(find_spec, ("pyarrow", "PIL")))
    name, folder, patch, rate = ("cifar10", root, 8, 0.01) if real else ("digits", None, 2, 0.03)
    sets = (data.take(torch.arange(min(len(data), place.of(len(data), 120)))) for data in load(name, folder))
    train, test = (data.to(place.device) for data in sets)
    return Images(name, folder, train, test, patch, rate)


def slice_of(place: Place, name: str, count: int, what: str, run: Callable[[], object]) -> Iterator[Row]:
    """How many images a second ``run`` takes, which is ``what`` and sees ``count``, and what part are our ops."""
    seconds, share = share_of_ops(place, run)
    yield place.row(f"{name}/images", count / seconds, "1/s", f"{what}: {seconds:.3g} s", samples=1)
    yield place.row(f"{name}/ops", share, "share", f"of {what}; a wait for the device after each", "lower", 1)


@contextmanager
def whole(place: Place, name: str, note: str) -> Iterator[tuple[Path, list[Row]]]:
    """A folder that a run keeps its place in until it is done, and rows to add to: the wall clock and the memory."""
    folder, found = place.folder / name.replace("/", "-"), []
    resumed, start = folder.exists(), time.perf_counter()
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    yield folder, found
    note += "; from where it was cut off" if resumed else ""
    found.append(place.row(f"{name}/wall", time.perf_counter() - start, "s", note, "lower", 1))
    if place.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(place.device) / 1e9
        found.append(place.row(f"{name}/memory", peak, "GB", "the most that torch held", "lower", 1))
    shutil.rmtree(folder)


def figures(place: Place, name: str, seconds: float, accuracy: float, success: float | None) -> Iterator[Row]:
    """What one classifier came to."""
    yield place.row(f"{name}/train", seconds, "s", better="lower", samples=1)
    yield place.row(f"{name}/clean_accuracy", accuracy, "share", samples=1)
    if success is not None:
        yield place.row(f"{name}/attack_success_rate", success, "share", better="lower", samples=1)


def compared(
    place: Place,
    name: str,
    have: Images,
    attack: Attack,
    budget: Budget,
    recipe: Recipe,
    defenses: Mapping[str, object],
    clean: int | None = None,
) -> Iterator[Row]:
    """The network that is trained on poisoned rows as on any, and each of the defenses, measured alike."""
    with whole(place, name, f"{recipe}") as (folder, found):
        run = Run(folder, {"bench": name, "environment": environment(place.device)})
        kept, test = set_aside(have.test, clean, key(0).child("clean")) if clean else (None, have.test)
        lab = Lab(run, have.train, test, recipe, key(0), Local(), Progress())
        start = time.perf_counter()
        poison = prepare(have.train, test, attack=attack, budget=budget, defense=None, key=key(0))
        place.wait()
        crafting = time.perf_counter() - start
        found.append(place.row(f"{name}/poison", crafting, "s", f"{attack}", "lower", 1))
        for tag, defense in defenses.items():
            undefended, defended = defend(lab, tag, defense, poison, kept).rows
            if not any(row.name.startswith(f"{name}/undefended/") for row in found):
                found += of(place, f"{name}/undefended", undefended)
            found += of(place, f"{name}/{tag}", defended)
            ratio = defended.seconds / undefended.seconds
            found.append(place.row(f"{name}/{tag}/of_undefended", ratio, "ratio", f"{defense}", "lower", 1))
    yield from found


def of(place: Place, name: str, row: Measured) -> Iterator[Row]:
    return figures(place, name, row.seconds, row.clean_accuracy, row.attack_success_rate)


def dpa(place: Place) -> Iterator[Row]:
    """DPA with sixteen base models: asked, trained, and run by the command line to its report."""
    yield from sections(place, (asking, training, dpa_run))


def dpa_run(place: Place) -> Iterator[Row]:
    have, partitions = images(place), place.of(16, 4)
    recipe = have.recipe(place, RECIPES[have.name].model, 10, 64)
    name, defense = f"dpa/{place.name}/{have.name}", DPA(partitions)

    def an_epoch() -> None:
        short = replace(recipe, epochs=1)
        split = defense.split(have.train, key(0))
        jobs = defense.jobs(have.train, short, key=key(0), split=split)
        models = dict(enumerate(fit_stack(jobs)))
        defense.gather(models, have.train.num_classes, split).certify(have.test.images)

    what = f"split, one epoch of {partitions} base models in one stack, and certificates of the test images"
    yield from slice_of(place, name, len(have.train), what, an_epoch)

    line = ["run", "--data", have.name, "--device", str(place.device), "--stack", str(partitions)]
    line += ["--root", str(have.root)] if have.root else []
    line += ["--limit", str(len(have.train))] if place.small else []
    line += ["--attack", "centre_patch", "--attack.size", str(have.patch), "--rate", str(have.rate / place.of(5, 1))]
    line += ["--defense", "dpa", "--defense.partitions", str(partitions)]
    line += ["--recipe.epochs", str(recipe.epochs), "--recipe.batch_size", str(recipe.batch_size)]
    line += ["--recipe.model.width", str(recipe.model.width), "--recipe.precision", recipe.precision]
    with whole(place, name, f"poisonkit {' '.join(line)}".replace(str(have.root), "DATA")) as (folder, found):
        status = command_line([*line, "--out", str(folder)])
        assert status == 0, f"poisonkit {' '.join(line)} failed"
        for row in json.loads((folder / "results.json").read_text()):
            which = f"{name}/{row['name'].split('(')[0].strip().replace(' ', '_')}"
            found += figures(place, which, row["seconds"], row["clean_accuracy"], row["attack_success_rate"])
    yield from found


def asking(place: Place) -> Iterator[Row]:
    """All base models against the one of full width, and against what the device could do at best."""
    batch_size, batches, partitions = place.of((512, 8, 16), (4, 2, 4))
    wide, shape = place.of((ResNet(50, 128), (3, 64, 64)), (ResNet(50, 8), (3, 32, 32)))
    narrow = wide.scaled(partitions)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        base = [narrow.build(shape, 1000, key(i)).to(place.device) for i in range(partitions)]
        single = [wide.build(shape, 1000, key(0)).to(place.device)]
        pixels = torch.randint(256, (batch_size * batches, *shape), dtype=torch.uint8, device=place.device)
        best = partitions * batches * roofline(place, folded(base[0]), pixels[:batch_size])
        for name, compiled in (("", False), ("/compiled", True)):
            if compiled and place.small:
                continue  # minutes, where there is no device to compile for

            def ask(models: list[nn.Module], compiled: bool = compiled) -> list[Tensor]:
                return list(ensemble_logits(models, pixels, batch_size, compiled=compiled))

            times = place.interleave({"ensemble": partial(ask, base), "single": partial(ask, single)})
            ensemble, one = median(times["ensemble"]), median(times["single"])
            note = f"{batches} batches of {batch_size}, widths {narrow.width} and {wide.width}, TF32"
            note += f"; roofline {best:.3g} s"
            about = f"stacked/{place.name}/predict/resnet50/k{partitions}{name}"
            yield place.row(f"{about}/of_single", ensemble / one, "ratio", note, "lower")
            yield place.row(f"{about}/of_roofline", ensemble / best, "ratio", note, "lower")
            yield place.row(f"{about}/of_allowed", ensemble / max(1.5 * one, 1.3 * best), "ratio", note, "lower")
    finally:
        torch.set_float32_matmul_precision(before)


def roofline(place: Place, model: nn.Module, pixels: Tensor) -> float:
    """Seconds of ``model`` were every layer as fast as a large product, or as copying what it reads and writes."""
    side, count = place.of((8192, 1 << 28), (32, 1 << 10))
    matrix, source = torch.randn(side, side, device=place.device), torch.zeros(count, device=place.device)
    product, target = torch.empty_like(matrix), torch.empty_like(source)
    candidates = {"product": lambda: torch.mm(matrix, matrix, out=product), "copy": lambda: target.copy_(source)}
    times = place.interleave(candidates)
    per_product = median(times["product"]) / len(matrix) ** 3
    per_byte = median(times["copy"]) / (2 * source.nbytes)
    total = 0.0

    def count_layer(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += max(
            out.numel() * weight[0].numel() * per_product,
            (inputs[0].nbytes + weight.nbytes + out.nbytes) * per_byte,
        )

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count_layer)
    with torch.no_grad():
        model(pixels)
    return total


def training(place: Place) -> Iterator[Row]:
    """A step of a base model against one of the network of full width: each row is visited by one base model."""
    batch_size, steps = place.of((512, 4), (4, 2))
    wide, side = place.of((ResNet(50, 128), 64), (ResNet(50, 8), 32))
    pixels = torch.randint(256, (batch_size * steps, 3, side, side), dtype=torch.uint8, device=place.device)
    labels = torch.randint(1000, (len(pixels),), device=place.device)
    data = ImageDataset(pixels, labels, tuple(map(str, range(1000))))
    precision = "bfloat16" if place.device.type == "cuda" else "float32"
    candidates = {}
    for name, model in (("single", wide), ("base", wide.scaled(16))):
        recipe = Recipe(model, batch_size=batch_size, precision=precision)
        network = new_model(recipe, data, key(0))
        optimizer = new_optimizer(network, recipe)
        candidates[name] = partial(train_epoch, network, optimizer, data, recipe, key=key(0), epoch=0)
    rounds = place.of(5, 1)
    with deterministic(data.device):
        times = place.interleave(candidates, rounds)
    note = f"batch {batch_size}, {precision}, {steps} steps of one base model of width {wide.scaled(16).width}"
    ratio = 1 / speedup(times, "base", over="single")
    yield place.row(f"stacked/{place.name}/train/resnet50/k16/of_single", ratio, "ratio", note, "lower", rounds)


def epic(place: Place) -> Iterator[Row]:
    """Gradient matching against EPIC-0.2 on a ResNet-18 that is trained for forty epochs."""
    have = images(place)
    recipe = have.recipe(place, ResNet(18, 64, stem="small"), 40, 512)
    name = f"epic/{place.name}/{have.name}"
    looking = EPIC(medoids=0.2, warmup=0, every=1)
    once = partial(looking, have.train, replace(recipe, epochs=1), key=key(0))
    yield from slice_of(place, name, len(have.train), "an epoch with a look before it", once)
    steps = {"steps": 2} if place.small else {}
    surrogate = replace(recipe, epochs=place.of(20, 1))
    attack = GradientMatching(eps=16, restarts=1, surrogate=surrogate, **steps)
    defenses = {"epic": EPIC(medoids=0.2, warmup=place.of(None, 0))}
    yield from compared(place, name, have, attack, Budget(place.of(0.01, 0.05), eps=16), recipe, defenses)


def mmac(place: Place) -> Iterator[Row]:
    """A backdoor in a ResNet-18, and its activations clipped with fifty clean images of every class."""
    have, clean = images(place), place.of(50, 2)
    recipe = have.recipe(place, ResNet(18, 64, stem="small"), 20, 512)
    name, iterations = f"mmac/{place.name}/{have.name}", place.of(4, 1)
    network = new_model(recipe, have.train, key(0)).eval()
    kept, _ = set_aside(have.test, clean, key(0).child("clean"))
    seen = iterations * (len(kept) + 2 * clean * kept.num_classes)
    what = f"{iterations} iterations, of {len(kept)} clean images and twice as many maximisers"
    short = partial(MMAC(iterations=iterations, tolerance=0.0), network, kept, key=key(0))
    yield from slice_of(place, name, seen, what, short)
    attack = CentrePatch(size=have.patch)
    defense = MMAC(iterations=place.of(300, 2))
    yield from compared(place, name, have, attack, Budget(have.rate), recipe, {"mmac": defense}, clean)


def rdm_dc(place: Place) -> Iterator[Row]:
    """DM poisoning of a tenth of a class against RDM-DC and plain DM, fifty images of every class, 1,000 iterations."""
    have, iterations, each = images(place), place.of(1000, 2), place.of(50, 1)
    model, real = ConvNet(3 if have.train.shape[1] >= 32 else 2, place.of(128, 4)), place.of(256, 8)
    recipe = have.recipe(place, model, 20, 256)
    name, short = f"rdm-dc/{place.name}/{have.name}", place.of(20, 1)
    sizes = {"images": each, "batch_size": real, "model": model}
    seen = short * have.train.num_classes * (real + each)
    once = partial(RdmDc(iterations=short, **sizes), have.train, key=key(0))
    yield from slice_of(place, name, seen, f"{short} iterations", once)
    attack = DMPoison(eps=64, restarts=1, model=model, **({"steps": 2} if place.small else {}))
    defenses = {"rdm_dc": RdmDc(iterations=iterations, **sizes), "dm": DM(iterations=iterations, **sizes)}
    yield from compared(place, name, have, attack, Budget(place.of(0.01, 0.03), eps=64), recipe, defenses)


def ieu(place: Place) -> Iterator[Row]:
    """A small vision transformer, pretrained on one half of the rows, fine-tuned on the other with a backdoor in it."""
    have = images(place)
    scale = SCALES["small" if have.name == "cifar10" else "smoke"]
    recipe, pretraining, defense = scale.recipe, scale.pretraining, scale.ieu
    if place.small:
        model = replace(recipe.model, depth=2, width=8, heads=2)
        recipe, pretraining = (replace(each, model=model, epochs=1) for each in (recipe, pretraining))
        defense = replace(defense, poisoned=replace(defense.poisoned, epochs=1))
    name, root = f"ieu/{place.name}/{have.name}", key(0)
    rows, rest = clean_split(len(have.train), scale.share, root.child("pretrain"))
    data, own = have.train.take(rest), {"views": defense.views, "clip": defense.clip, "decay": defense.decay}
    poison = BadNetsWhite(target=1, size=have.patch // 2 + 1)(data, Budget(scale.rate), key=root.child("attack"))
    dirty = poison.apply(data)

    fresh, epoch = new_model(recipe, data, root), replace(recipe, epochs=1)
    seen = {
        "confidence": (torch.arange(len(dirty)) % 10 == 0).float(),  # a tenth of the rows is unlearned
        "predicted": dirty.labels.cpu(),
        "loss": torch.zeros(len(dirty)),
    }
    once = partial(defense.interleave, dirty, epoch, seen, key=root, model=fresh)
    yield from slice_of(
        place, name, len(dirty), "an epoch of stage 2, a tenth of the rows flagged; no op of ours", once
    )

    with whole(place, name, f"{recipe}") as (folder, found):
        run = Run(folder, {"bench": name, "environment": environment(place.device)})
        keep = partial(journal, run, progress=Progress())
        pretrained = pretrain(
            have.train, rows, pretraining, source=have.name, key=root.child("pretrain"), journal=keep("pretraining")
        )
        found.append(place.row(f"{name}/pretraining", seconds_of(run, "pretraining"), "s", f"{pretrained}", "lower", 1))
        start, told = pretrained.begin(data.num_classes, root.child("head")), root.child("defense")
        plain = FineTuning(recipe, len(dirty), key=told, **own)
        networks = {
            "undefended": fine_tune(dirty, plain, model=start, journal=keep("undefended")),
            "ieu": defense(dirty, recipe, key=told, model=start, journal=keep("ieu")),
        }
        taken = {tag: seconds_of(run, tag) for tag in networks}
        for tag, network in networks.items():
            accuracy = metrics.clean_accuracy(network, have.test)
            success = metrics.attack_success_rate(network, have.test, poison.goal)
            found += figures(place, f"{name}/{tag}", taken[tag], accuracy, success)
        note = "both stages, in times of plain fine-tuning"
        found.append(
            place.row(f"{name}/ieu/of_undefended", taken["ieu"] / taken["undefended"], "ratio", note, "lower", 1)
        )
    yield from found


PARTS: dict[str, Callable[[Place], Iterator[Row]]] = {
    "dpa": dpa,
    "epic": epic,
    "ieu": ieu,
    "rdm-dc": rdm_dc,
    "mmac": mmac,
}
