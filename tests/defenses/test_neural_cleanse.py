"""Neural Cleanse: the outlier score by hand, a linear network whose trigger is known, and its unlearning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from poisonkit.data.augment import Augment
from poisonkit.defenses.detectors.neural_cleanse import NeuralCleanse, anomaly, stamped
from poisonkit.defenses.repair.neural_cleanse import NeuralCleanseMitigation
from poisonkit.errors import ArgumentError
from poisonkit.random import key
from poisonkit.train import Journal, Recipe, Step
from poisonkit.types import ImageDataset

QUICK = NeuralCleanse(rounds=40, batch_size=16)


class Bands(nn.Module):
    """Images 1×10×10 to 6 classes: the brightest pair of rows; or class 0, where two pixels in the corner are white."""

    passes = 0  # of all of them, since a detector works on a copy

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(100, 6)
        weight = torch.zeros(6, 10, 10)
        for band in range(5):
            weight[band + 1, 2 * band : 2 * band + 2] = 1
        weight[0, 9, 8:] = 40
        self.fc.weight.data = weight.flatten(1)
        self.fc.bias.data = torch.tensor([-60.0, 0, 0, 0, 0, 0])

    def forward(self, images: Tensor) -> Tensor:
        Bands.passes += 1
        return self.fc(images.flatten(1).float() / 255)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def clean() -> ImageDataset:
    """Dark images with one brighter band, which is their class."""
    labels = torch.arange(40) % 5 + 1
    images = torch.randint(0, 40, (40, 1, 10, 10), generator=key(0).generator())
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 2 * label - 2 : 2 * label] += 160
    return ImageDataset(images.to(torch.uint8), labels, tuple("012345"))


def test_anomaly_by_hand() -> None:
    # Median 10; distances 0, 0, 2, 4, 9 have the median 2, which is 2.9652 in standard deviations
    index = anomaly(torch.tensor([10.0, 10.0, 12.0, 14.0, 1.0]))
    assert index.tolist() == pytest.approx([0, 0, -0.674491, -1.348982, 3.035208], abs=1e-6)
    # Between the middle two of four: median 2.5, distances 1.5, 0.5, 0.5, 7.5 with the median 1
    assert anomaly(torch.tensor([1.0, 2.0, 3.0, 10.0])).tolist() == pytest.approx(
        [1.011736, 0.337245, -0.337245, -5.05868], abs=1e-5
    )
    assert anomaly(torch.tensor([3.0, 3.0, 3.0, 1.0])).tolist() == [0, 0, 0, torch.inf]


def test_stamp_by_hand() -> None:
    images, mask = torch.full((1, 2, 1, 2), 100.0), torch.tensor([[[[1.0, 0.25]]]])
    pattern = torch.tensor([[[[200.0, 200.0]], [[0.0, 0.0]]]])
    assert stamped(images, mask, pattern).tolist() == [[[[200, 125]], [[0, 75]]]]


def test_the_trigger_of_a_linear_network_is_reversed(clean: ImageDataset) -> None:
    model, journal = Bands(), Journal()
    assert torch.equal(model(clean.images).argmax(1), clean.labels)
    found = QUICK(model, clean, key=key(0), journal=journal)
    assert found.flagged.tolist() == [True] + 5 * [False]
    assert found.p_value is not None
    assert found.p_value[0] < 0.01
    assert found.p_value[1:].min() > 0.02275, "1 - Φ(2)"
    mask, pattern = journal.notes["masks"][0, 0], journal.notes["patterns"][0, 0]
    assert mask.flatten().argsort(descending=True)[:2].sort().values.tolist() == [98, 99]
    assert mask[9, 8:].min() > 0.8
    assert mask.sum() - mask[9, 8:].sum() < 1
    assert pattern[9, 8:].min() > 240
    assert (journal.notes["reached"] >= 0.99).all()
    assert torch.equal(journal.notes["norms"], journal.notes["masks"].flatten(1).sum(1))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_classes_are_searched_as_alone(clean: ImageDataset) -> None:
    few = NeuralCleanse(rounds=4, steps=3, batch_size=8, patience=2)
    journals = Journal(), Journal()
    for at_once, journal in zip((8, 1000), journals, strict=True):
        NeuralCleanse(**{**few.__dict__, "at_once": at_once})(Bands(), clean, key=key(0), journal=journal)
    for name, tensor in journals[0].notes.items():
        torch.testing.assert_close(tensor, journals[1].notes[name], rtol=1e-3, atol=1e-3)


def test_classes_done_are_not_searched_again(clean: ImageDataset, tmp_path: Path) -> None:
    few = NeuralCleanse(rounds=2, steps=2, batch_size=8, at_once=16)
    whole = few(Bands(), clean, key=key(0), journal=Journal(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"classes-{a}-{a + 1}.safetensors" for a in (0, 2, 4)]
    (tmp_path / "classes-2-3.safetensors").unlink()
    Bands.passes = 0
    again = few(Bands(), clean, key=key(0), journal=Journal(tmp_path))
    assert Bands.passes == 4
    assert torch.equal(whole.score, again.score)


def test_a_class_that_makes_no_progress_is_left(clean: ImageDataset) -> None:
    model = Bands()
    for parameter in model.parameters():
        parameter.data.zero_()
    Bands.passes = 0
    journal = Journal()
    NeuralCleanse(rounds=5, steps=2, batch_size=8, at_once=8, stop=1, rate=0.0)(
        model, clean, key=key(0), journal=journal
    )
    # All logits tie, so every image is class 0: its mask works at once, does not shrink, and is left after two rounds
    assert journal.notes["reached"].tolist() == [1, 0, 0, 0, 0, 0]
    assert Bands.passes == 2 * 2 + 5 * (5 * 2)


def test_mitigation_unlearns_what_was_reversed(clean: ImageDataset) -> None:
    model, journal = Bands(), Journal()
    recipe = Recipe(epochs=30, batch_size=20, schedule=Step(0.5, ()), weight_decay=0.0, augment=Augment(0, flip=False))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mended = NeuralCleanseMitigation(QUICK, share=0.5, recipe=recipe)(model, clean, key=key(0), journal=journal)
    triggered = clean.images.clone()
    triggered[:, :, 9, 8:] = 255
    assert (model(triggered).argmax(1) == 0).all()
    assert torch.equal(mended(triggered).argmax(1), clean.labels)
    assert torch.equal(mended(clean.images).argmax(1), clean.labels)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_mitigation_leaves_a_clean_network_alone(clean: ImageDataset) -> None:
    never = NeuralCleanse(rounds=1, steps=1, threshold=1e9)
    model = Bands()
    same = NeuralCleanseMitigation(never)(model, clean, key=key(0))
    assert same is not model
    assert torch.equal(same(clean.images), model(clean.images))


def test_errors(clean: ImageDataset) -> None:
    with pytest.raises(ArgumentError, match="classes must be 3 or more: an outlier needs others, got 2"):
        QUICK(Bands(), ImageDataset(clean.images, clean.labels % 2, ("a", "b")), key=key(0))
    with pytest.raises(ArgumentError, match="clean must be 1 or more images, got 0"):
        QUICK(Bands(), clean.take(torch.arange(0)), key=key(0))
