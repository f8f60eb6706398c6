"""Data sets validate themselves; a poison is checked against its budget where it is applied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poisonkit import mapped
from poisonkit.attacks import BadNetsWhite, CentrePatch
from poisonkit.errors import ArgumentError, BudgetError
from poisonkit.random import key
from poisonkit.triggers import Square
from poisonkit.types import Backdoor, Budget, Certificate, ImageDataset, Poison


def some_data(n: int = 10, classes: int = 3, size: int = 8) -> ImageDataset:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(1, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageDataset(images, torch.arange(n) % classes, tuple("abcdefghij"[:classes]))


@pytest.mark.parametrize(
    ("rate", "n", "rows"),
    [
        # Table 6 of arXiv 2306.16415 counts by truncation: 0.3 % of 1,281,167 is 3,843.5
        *zip(
            (0.000025, 0.00005, 0.0001, 0.0003, 0.001, 0.003),
            [1281167] * 6,
            (32, 64, 128, 384, 1281, 3843),
            strict=True,
        ),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996 in floats
        (0.0, 10, 0),
        (1.0, 10, 10),
    ],
)
def test_budget_counts_exactly(rate: float, n: int, rows: int) -> None:
    assert Budget(rate).rows(n) == rows


def poison(data: ImageDataset, rows: list[int], **budget: object) -> Poison:
    index = torch.tensor(rows)
    goal = Backdoor(Square(2, 0, "centre"), 0)
    return Poison(index, data.images[index], data.labels[index], goal, Budget(**budget))  # type: ignore[arg-type]


def test_apply_copies() -> None:
    data = some_data()
    made = CentrePatch(target=2, size=2)(data, Budget(0.3), key=key(0))
    before = data.images.clone()
    dirty = made.apply(data)
    assert torch.equal(data.images, before)
    changed = (dirty.images != data.images).flatten(1).any(1) | (dirty.labels != data.labels)
    assert set(changed.nonzero()[:, 0].tolist()) <= set(made.rows.tolist())
    assert (dirty.labels[made.rows] == 2).all()
    assert len(made.rows) == 3


def test_apply_to_a_mapped_set_changes_neither_it_nor_the_file(tmp_path: Path) -> None:
    data = some_data(200)
    path = tmp_path / "images"
    path.write_bytes(data.images.numpy().tobytes())
    on_file = replace(data, images=mapped.read(path, data.images.shape))
    assert on_file.digest() == data.digest()
    on_file.images[100] = data.images[100] = 7  # written before: the copies have it too
    for rows in ([3, 50, 199], [4, 199]):
        made = replace(poison(data, rows, rate=0.5), images=torch.full((len(rows), 3, 8, 8), 9, dtype=torch.uint8))
        before = data
        data, on_file = made.apply(data), made.apply(on_file)
        assert torch.equal(on_file.images, data.images)
        assert on_file.digest() == data.digest() != before.digest()
        assert on_file.images.untyped_storage() in mapped._FILES
    assert path.read_bytes() == some_data(200).images.numpy().tobytes()


def test_budget_is_enforced_never_clipped() -> None:
    data = some_data()
    with pytest.raises(BudgetError, match=r"poisoned rows must be at most 1 \(0.1 of 10\), got 2"):
        poison(data, [0, 1], rate=0.1).apply(data)
    with pytest.raises(ArgumentError, match="poisoned rows must be distinct"):
        poison(data, [1, 1], rate=0.5).apply(data)
    for outside in (-1, 10):
        stray = replace(poison(data, [0], rate=0.1), rows=torch.tensor([outside]))
        with pytest.raises(ArgumentError, match=r"poisoned rows must be row indices in \[0, 10\)"):
            stray.apply(data)
    brighter = poison(data, [0], rate=0.1, eps=8)
    images = brighter.images.to(torch.int16)
    images[0, 0, 0, 0] = (images[0, 0, 0, 0] + 9) if images[0, 0, 0, 0] < 128 else images[0, 0, 0, 0] - 9
    with pytest.raises(BudgetError, match="pixel change must be at most 8, got 9"):
        replace(brighter, images=images.to(torch.uint8)).apply(data)
    flipped = replace(poison(data, [0], rate=0.1, clean_label=True), labels=torch.tensor([1]))
    with pytest.raises(BudgetError, match=r"labels must be unchanged \(clean_label\), got 1 changed"):
        flipped.apply(data)


def test_dataset_rejects() -> None:
    data = some_data()
    with pytest.raises(ArgumentError, match=r"labels must be in \[0, 3\), got 0\.\.3"):
        ImageDataset(data.images, data.labels + (data.labels == 2), data.classes)
    with pytest.raises(ArgumentError, match=r"images must be of shape \[N, C, H, W\]"):
        ImageDataset(data.images[0], data.labels, data.classes)
    with pytest.raises(ArgumentError, match=r"images must be uint8 pixels"):
        ImageDataset(data.images.double(), data.labels, data.classes)
    with pytest.raises(ArgumentError, match=r"labels must be of shape \[10\]"):
        ImageDataset(data.images, data.labels[:5], data.classes)


def test_digest_sees_everything() -> None:
    data = some_data()
    assert data.digest() == some_data().digest()
    pixel = data.images.clone()
    pixel[3, 1, 2, 2] += 1
    variants = [
        replace(data, images=pixel),
        replace(data, labels=data.labels.flip(0)),
        replace(data, classes=("a", "b", "d")),
        replace(data, images=data.images.reshape(10, 3, 4, 16)),
    ]
    assert len({variant.digest() for variant in [data, *variants]}) == 5


def test_square_by_hand() -> None:
    white = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    stamped = Square(16, 0, "centre")(white)
    assert (stamped[..., 24:40, 24:40] == 0).all()
    assert int((stamped == 0).sum()) == 3 * 16 * 16
    pixel = Square(1, 0, "centre")(white)
    assert pixel[0, :, 31, 31].tolist() == [0, 0, 0]
    assert int((pixel == 0).sum()) == 3
    corner = Square(3, 7, "corner")(white[..., :32, :32])
    assert (corner[..., 29:, 29:] == 7).all()
    assert int((corner == 7).sum()) == 27
    assert int((white == 255).sum()) == white.numel()
    with pytest.raises(ArgumentError, match="size must be at most the image's 8x8, got 16"):
        Square(16, 0, "centre")(white[..., :8, :8])


@pytest.mark.parametrize(("side", "centre", "corner"), [(8, 2, 1), (32, 8, 3), (64, 16, 6)])
def test_default_sizes_follow_the_papers(side: int, centre: int, corner: int) -> None:
    data = some_data(size=side)
    for attack, size in ((CentrePatch(), centre), (BadNetsWhite(), corner)):
        trigger = attack(data, Budget(0.1), key=key(0)).goal.trigger  # type: ignore[union-attr]
        assert trigger.size == size


def test_certificate() -> None:
    certificate = Certificate(torch.tensor([0, 1, 1, 2]), torch.tensor([3, 1, 0, 5]))
    labels = torch.tensor([0, 1, 1, 0])
    assert [certificate.certified_accuracy(labels, r) for r in (0, 1, 2, 3, 4)] == [0.75, 0.5, 0.25, 0.25, 0.0]
