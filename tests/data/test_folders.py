"""Folders of pictures: one folder per class, Tiny ImageNet and GTSRB as published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import poisonkit.data as data
from poisonkit.data.folder import read_folder
from poisonkit.data.gtsrb import read_gtsrb
from poisonkit.data.tiny_imagenet import read_tiny_imagenet
from poisonkit.errors import DataError

Encode = Callable[..., bytes]


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def pixels(seed: int, h: int = 6, w: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


# <class>/*.png


@pytest.fixture
def folder(tmp_path: Path, encode: Encode) -> Path:
    for part, base in (("train", 0), ("test", 10)):
        for i, name in enumerate(("dog/2.png", "cat/1.png", "cat/0.ppm")):
            kind = "PPM" if name.endswith("ppm") else "PNG"
            put(tmp_path / "pets" / part / name, encode(pixels(base + i, 6, 5), kind))
    put(tmp_path / "pets" / "train" / "dog" / "notes.txt", "not a picture")
    return tmp_path / "pets"


def test_folder_sorts_classes_then_files(folder: Path) -> None:
    train, test = data.load("folder", folder)
    assert train.classes == test.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 0, 1]
    for data_set, base in ((train, 0), (test, 10)):
        want = np.stack([pixels(base + i, 6, 5) for i in (2, 1, 0)])
        np.testing.assert_array_equal(data_set.images.permute(0, 2, 3, 1).numpy(), want)
    assert train.images[0, 2, 5, 3] == pixels(2, 6, 5)[5, 3, 2]


def test_folder_val_and_a_class_without_test_pictures(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    (folder / "val" / "dog" / "2.png").unlink()
    assert read_folder(str(folder))[1].labels.tolist() == [0, 0]


def test_folder_of_other_sizes(folder: Path, encode: Encode) -> None:
    put(folder / "train" / "dog" / "3.png", encode(pixels(1, 8, 8)))
    with pytest.raises(DataError, match=r"dog.3.png must be 6x5 pixels.* got 8x8; pass size= to resize them all"):
        data.load("folder", folder)
    assert data.load("folder", folder, size=7)[0].shape == (3, 7, 7)


@pytest.mark.parametrize("size", [None, 4])
@pytest.mark.parametrize(("inserted", "row"), [("cat/0.png", 0), ("cat/9.png", 2), ("dog/9.png", 3)])
def test_one_colour_picture_changes_no_grey_row(
    tmp_path: Path, encode: Encode, inserted: str, row: int, size: int | None
) -> None:
    for i, name in enumerate(("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "test/cat/1.png")):
        put(tmp_path / name, encode(pixels(i)[:, :, 0]))
    before, test_before = read_folder(tmp_path, size)
    put(tmp_path / "train" / inserted, encode(pixels(9)))
    after, test_after = read_folder(tmp_path, size)
    kept = torch.arange(4) != row
    assert before.shape == (3, size or 6, size or 6)
    assert torch.equal(after.images[kept], before.images)
    assert torch.equal(after.labels[kept], before.labels)
    assert test_after.digest() == test_before.digest()


def test_folder_names_what_is_wrong(folder: Path) -> None:
    path = folder / "test" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"test.cat.1.png must be a whole PNG, JPEG or PPM picture"):
        read_folder(folder)
    path.unlink()
    (folder / "test" / "cat").rename(folder / "test" / "cow")
    with pytest.raises(DataError, match=r"test.cow must be a class of train"):
        read_folder(folder)
    (folder / "test").rename(folder / "other")
    with pytest.raises(DataError, match=r"test must be a folder of classes, got none"):
        read_folder(folder)
    (folder / "test" / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"test must be a folder of pictures"):
        read_folder(folder)
    (folder / "train").rename(folder / "old")
    (folder / "train").mkdir()
    with pytest.raises(DataError, match=r"train must be a folder of classes, got an empty one"):
        read_folder(folder)


# Tiny ImageNet

WNIDS = ["n01443537", "n02124075", "n01629819"]


@pytest.fixture
def tiny(tmp_path: Path, encode: Encode) -> Path:
    folder = tmp_path / "tiny-imagenet-200"
    put(folder / "wnids.txt", "\n".join(WNIDS) + "\n")
    words = "n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\n"
    put(folder / "words.txt", words)
    for k, wnid in enumerate(WNIDS):
        for i in range(2):
            content = encode(np.full((64, 64, 3), (40 * k, 100 + i, 200), np.uint8), "JPEG", quality=95)
            put(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", content)
        put(folder / "train" / wnid / f"{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    grey = encode(np.full((64, 64), 77, np.uint8), "JPEG")
    put(folder / "val" / "images" / "val_0.JPEG", grey)
    put(folder / "val" / "images" / "val_1.JPEG", grey)
    lines = "val_1.JPEG\tn02124075\t0\t32\t44\t62\nval_0.JPEG\tn01443537\t1\t2\t3\t4\n"
    put(folder / "val" / "val_annotations.txt", lines)
    return folder


def test_tiny_imagenet_as_published(tiny: Path) -> None:
    train, val = data.load("tiny-imagenet", tiny.parent)
    assert train.classes == ("goldfish", "n01629819", "Egyptian cat")  # sorted wnids; one has no words
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert val.labels.tolist() == [2, 0]
    assert train.shape == val.shape == (3, 64, 64)
    assert (val.images == 77).all()
    for row, (k, i) in enumerate([(0, 0), (0, 1), (2, 0), (2, 1), (1, 0), (1, 1)]):
        want = torch.tensor([40 * k, 100 + i, 200]).view(3, 1, 1)
        assert (train.images[row].int() - want).abs().max() <= 3  # JPEG
    assert data.load("tiny-imagenet", tiny, size=32)[0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("wnids.txt", "", "a list of distinct wnids"),
        ("wnids.txt", "n01443537\nn01443537\n", "a list of distinct wnids"),
        ("wnids.txt", "../../secret\n", "a list of wnids"),
        ("wnids.txt", b"\xff\xfe", "a readable text file"),
        ("wnids.txt", "n01443537\nn99999999\n", r"a folder of \*.JPEG"),
        ("val/val_annotations.txt", "", "a list of files"),
        ("val/val_annotations.txt", "val_0.JPEG\tn00000000\n", "a file and its wnid"),
        ("val/val_annotations.txt", "../val_0.JPEG\tn01443537\n", "a file and its wnid"),
        ("val/val_annotations.txt", "val_7.JPEG\tn01443537\n", "a whole PNG, JPEG or PPM picture"),
        ("train/n01629819/images/n01629819_1.JPEG", b"\xff\xd8\xff", "a whole PNG, JPEG or PPM picture"),
    ],
)
def test_tiny_imagenet_names_what_is_wrong(tiny: Path, name: str, content: bytes | str, rule: str) -> None:
    put(tiny / name, content)
    with pytest.raises(DataError, match=rf"tiny-imagenet-200.* must be {rule}"):
        read_tiny_imagenet(tiny)


@pytest.mark.parametrize("name", ["words.txt", "wnids.txt", "val/val_annotations.txt"])
def test_tiny_imagenet_needs_its_tables(tiny: Path, name: str) -> None:
    (tiny / name).unlink()
    with pytest.raises(DataError, match=rf"{name} must be a readable text file, got FileNotFoundError"):
        read_tiny_imagenet(str(tiny))


# GTSRB

HEAD = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n"


@pytest.fixture
def signs(tmp_path: Path, encode: Encode) -> Path:
    folder = tmp_path / "GTSRB"
    for k in range(3):
        lines = HEAD
        for i in range(2):
            put(
                folder / "Final_Training" / "Images" / f"{k:05d}" / f"0000{i}_00000.ppm",
                encode(pixels(10 * k + i, 32, 32), "PPM"),
            )
            lines += f"0000{i}_00000.ppm;32;32;5;5;27;27;{k}\r\n"
        put(folder / "Final_Training" / "Images" / f"{k:05d}" / f"GT-{k:05d}.csv", lines)
    put(folder / "Final_Test" / "Images" / "00000.ppm", encode(np.full((53, 54, 3), (1, 2, 3), np.uint8), "PPM"))
    put(folder / "Final_Test" / "Images" / "GT-final_test.test.csv", HEAD.replace(";ClassId", ""))
    put(folder / "GT-final_test.csv", HEAD + "00000.ppm;53;54;6;5;48;49;2\r\n")
    return folder


@pytest.mark.parametrize("place", ["", "Final_Test", "Final_Test/Images"])
def test_gtsrb_as_published(signs: Path, place: str) -> None:
    (signs / "GT-final_test.csv").rename(signs / place / "GT-final_test.csv")
    train, test = data.load("gtsrb", signs.parent)
    assert train.classes == ("00000", "00001", "00002")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    want = np.stack([pixels(10 * k + i, 32, 32) for k in range(3) for i in range(2)])
    np.testing.assert_array_equal(train.images.permute(0, 2, 3, 1).numpy(), want)  # 32x32 is not resampled
    assert test.labels.tolist() == [2]
    assert test.images[0, :, 31, 0].tolist() == [1, 2, 3]
    assert data.load("gtsrb", signs, size=48)[1].shape == (3, 48, 48)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("Final_Training/Images/00001/GT-00001.csv", HEAD, "a table of pictures"),
        ("Final_Training/Images/00001/GT-00001.csv", HEAD + "00000_00000.ppm;1;1;1;1;1;1;2\n", "a table of class 1"),
        ("Final_Training/Images/00001/GT-00001.csv", HEAD + "00000_00000.ppm;1;1\n", "a Filename and its ClassId"),
        ("Final_Training/Images/00001/GT-00001.csv", HEAD + "../0.ppm;1;1;1;1;1;1;1\n", "a Filename and its ClassId"),
        ("Final_Training/Images/00001/00001_00000.ppm", b"P6\n32 32\n255\nabc", "a whole PNG, JPEG or PPM picture"),
        ("Final_Training/Images/00005/GT-00005.csv", HEAD, "a folder of classes 00000, 00001"),
        ("GT-final_test.csv", HEAD + "00000.ppm;1;1;1;1;1;1;43\n", r"ClassIds in 0\.\.2"),
        ("GT-final_test.csv", HEAD + "00000.ppm;1;1;1;1;1;1;-1\n", "a Filename and its ClassId"),
        ("GT-final_test.csv", HEAD + "00009.ppm;1;1;1;1;1;1;1\n", "a whole PNG, JPEG or PPM picture"),
    ],
)
def test_gtsrb_names_what_is_wrong(signs: Path, name: str, content: bytes | str, rule: str) -> None:
    put(signs / name, content)
    with pytest.raises(DataError, match=rf"GTSRB.* must be {rule}"):
        read_gtsrb(signs)


def test_gtsrb_needs_the_table_with_classes(signs: Path) -> None:
    (signs / "GT-final_test.csv").unlink()
    with pytest.raises(DataError, match=r"GTSRB must be a folder with GT-final_test.csv or "):
        read_gtsrb(str(signs))
