"""What a synthetic set is worth: new networks trained on it, asked about real images.

As Zhao and Bilen evaluate, arXiv 2102.08259 and 2110.04181: stochastic gradient descent for a thousand epochs on images
that Siamese augmentation changes anew in every step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit import metrics, report
from poisonkit.data.siamese import Siamese
from poisonkit.data.synthetic import FILE
from poisonkit.defenses.condense import DM, Calibrated
from poisonkit.defenses.condense.matching import random_rows
from poisonkit.engine import Run
from poisonkit.experiments.lab import Lab
from poisonkit.models import ConvNet, predict
from poisonkit.random import Key
from poisonkit.train import Batch, Procedure, Recipe, Step, fit
from poisonkit.train.checkpoints import load_tensors, save_tensors
from poisonkit.types import ImageDataset

EVALUATION = Recipe(
    model=ConvNet(), epochs=1000, batch_size=256, schedule=Step(0.01, (0.5,)), weight_decay=5e-4, augment=None
)


class Augmented(Procedure):
    """Training on images that ``siamese`` changes: one kind of change a step, its strength drawn for each image."""

    def __init__(self, siamese: Siamese) -> None:
        self.siamese = siamese

    def __repr__(self) -> str:
        return f"Augmented({self.siamese})"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        drawn = self.siamese.draw(len(batch.images), batch.key)
        drawn[:, 0] = drawn[0, 0]
        logits = model(self.siamese.apply(batch.images.float(), drawn))
        return cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing), logits


def answers(
    data: ImageDataset, recipe: Recipe, asked: Mapping[str, Tensor], *, siamese: Siamese | None, key: Key
) -> dict[str, Tensor]:
    """What a new network trained on ``data`` says of images (uint8 [M, C, H, W], by name): int64 [M] each.

    A batch is no larger than ``data``.
    """
    recipe = replace(recipe, batch_size=min(recipe.batch_size, max(2, len(data))))
    network = fit(data, recipe, key=key, procedure=Augmented(siamese) if siamese else None)
    return {name: predict(network, images).cpu() for name, images in asked.items()}


def rounded(data: ImageDataset) -> ImageDataset:
    """``data`` as bytes: rounded, and cut off at 0 and 255."""
    return replace(data, images=data.images.round().clamp(0, 255).to(torch.uint8))


CONDENSED, ROUNDED, RANDOM = "condensed", "condensed as bytes", "random rows"
SHOWN = 10  # synthetic images of a class in the picture


@dataclass(frozen=True, eq=False)
class Condensed:
    """A synthetic set and what it is worth.

    data        float32 images
    notes       of :func:`poisonkit.defenses.condense.matching.condense`
    snapshots   the images on the way, by iteration
    accuracies  of networks trained on it, on its bytes, and on as many random rows
    """

    data: ImageDataset
    notes: Mapping[str, Tensor]
    snapshots: Mapping[int, Tensor]
    accuracies: Mapping[str, Sequence[float]]


def condensed(lab: Lab, method: DM, networks: int) -> Condensed:
    """Condense the training set, keep it as ``synthetic.safetensors``, and train ``networks`` on each kind of it."""
    train = lab.train.to(lab.test.device)

    def made() -> dict[str, Tensor]:
        with lab.journal("condense") as journal:
            found = method(train, key=lab.key.child("defense"), journal=journal)
        return {"images": found.images, "labels": found.labels, **journal.notes}

    kept = lab.run.tensors("condense/result", made)
    images, labels = (kept.pop(name).to(train.device) for name in ("images", "labels"))
    data = ImageDataset(images, labels, train.classes)
    real = {"test_images": lab.test.images, "test_labels": lab.test.labels}
    about = {"classes": json.dumps(train.classes)}
    save_tensors(lab.run.path(FILE), {"images": images, "labels": labels, **real}, about)
    sets = {
        CONDENSED: data,
        ROUNDED: rounded(data),
        RANDOM: random_rows(train, method.images, lab.key.child("random")),
    }
    accuracies: dict[str, list[float]] = {name: [] for name in sets}
    for i in range(networks):
        for name, each in sets.items():
            key, asked = lab.key.child("evaluate", i), {"clean": lab.test.images}
            ask = partial(answers, each, lab.recipe, asked, siamese=method.augment, key=key)
            said = lab.run.tensors(f"evaluation/{name.replace(' ', '-')}-{i}", ask)["clean"]
            accuracies[name].append(metrics.accuracy(said, lab.test.labels.cpu()))
            lab.progress.line(f"{name}, network {i + 1} of {networks}: {report.percent(accuracies[name][-1])}")
    snapshots = {
        int(path.stem.partition("-")[2]): load_tensors(path)["images"]
        for path in sorted((lab.run.directory / "condense" / "condense").glob("snapshot-*.safetensors"))
    }
    return Condensed(data, kept, snapshots, accuracies)


def table(found: Condensed) -> tuple[list[str], list[list[object]]]:
    """Accuracies as headers and cells."""
    rows: list[list[object]] = []
    for name, values in found.accuracies.items():
        spread = report.percent(stdev(values)) if len(values) > 1 else "–"
        rows.append([name, len(found.data), report.percent(fmean(values)), spread])
    return ["trained on", "images", "accuracy", "±"], rows


def picture(data: ImageDataset) -> Tensor:
    """Ten synthetic images of every class, a row a class, as bytes: uint8 [3, H', W']."""
    images = rounded(data).images.cpu()
    return report.picture_grid([images[data.labels.cpu() == label][:SHOWN] for label in range(data.num_classes)])


def write(run: Run, found: Condensed, method: DM, *, title: str, subtitle: str, command: str) -> None:
    """results.json, figures/synthetic.png, figures/snapshots.png, figures/loss.svg and report.html, into the run."""
    lost = fmean(found.accuracies[CONDENSED]) - fmean(found.accuracies[ROUNDED])
    loss = found.notes["loss"].tolist()
    chart = report.line_chart(
        [report.Series("loss", range(1, len(loss) + 1), loss)],
        title="Squared distance of the means, summed over classes",
        x_label="iteration",
        y_label="loss",
        percent=False,
        log_y=True,
    )
    images = report.png(picture(found.data))
    figures = [report.figure(images, "Synthetic images, a row for each class, cut off at 0 and 255")]
    run.write("figures/synthetic.png", images)
    if found.snapshots:
        per_class = len(found.data) // found.data.num_classes
        rows = [
            pixels[::per_class][:SHOWN].round().clamp(0, 255).to(torch.uint8) for pixels in found.snapshots.values()
        ]
        progress = report.png(report.picture_grid(rows))
        run.write("figures/snapshots.png", progress)
        at = ", ".join(map(str, found.snapshots))
        figures.append(report.figure(progress, f"The first image of a class after iterations {at}, from top to bottom"))
    run.write("figures/loss.svg", chart)
    notes = [
        f"Rounding the synthetic pixels to bytes, which cuts them off at 0 and 255, costs {100 * lost:.1f} points.",
        f"{FILE} holds the floats: `poisonkit run --data synthetic --root {run.directory}` trains on them.",
    ]
    if isinstance(method.mean, Calibrated):
        share, gap = (found.notes[name] for name in ("top_share", "top_gap"))
        notes.append(
            f"The top direction of variance has {float(share.min()):.0%} to {float(share.max()):.0%} of a class's "
            f"variance, and the next {1 - float(gap.max()):.2f} to {1 - float(gap.min()):.2f} times that. Natural "
            "features have such a direction, too: if clean data show about the same, good rows were dropped."
        )
    results = {
        "accuracies": {name: list(values) for name, values in found.accuracies.items()},
        "lost_by_rounding": lost,
        "last_loss": loss[-1],
    }
    run.write("results.json", json.dumps(results, indent=2) + "\n")
    sections = [
        report.Section("", [report.html_table(*table(found), "Accuracy on the real test images"), *notes]),
        report.Section("Images", [*figures, report.figure(chart, "The vertical axis is logarithmic")]),
        report.Section(
            "Run it again", [report.code(command), report.details("Manifest", json.dumps(run.manifest, indent=2))]
        ),
    ]
    run.write("report.html", report.page(title, subtitle, sections))
    run.finish()
