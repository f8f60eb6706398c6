"""ConvNet: published sizes, instance norm image by image, keyed initialisation, a recipe's network like any other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from poisonkit import config
from poisonkit.errors import ArgumentError
from poisonkit.experiments.reproduce.registry import Training
from poisonkit.experiments.reproduce.sizes import size
from poisonkit.models import MODELS, ConvNet
from poisonkit.models.predict import multiply_adds
from poisonkit.models.stack import by_network, stack
from poisonkit.random import key
from poisonkit.train import Recipe, fit
from poisonkit.types import ImageDataset


def pixels(count: int, channels: int = 3, side: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=key(seed).generator())


# 3·9·w + 9·w² for each later block, norms 2w each, biases; the head 16w · 10 + 10
@pytest.mark.parametrize(
    ("model", "shape", "features", "parameters", "work"),
    [
        (ConvNet(), (3, 32, 32), 2048, 320_010, 1024 * 27 * 128 + (256 + 64) * 9 * 128**2 + 20_480),
        (ConvNet(), (3, 64, 64), 8192, 381_450, 4096 * 27 * 128 + (1024 + 256) * 9 * 128**2 + 81_920),
        (ConvNet(4), (3, 64, 64), 2048, 467_850, 4096 * 27 * 128 + (1024 + 256 + 64) * 9 * 128**2 + 20_480),
    ],
)
def test_published_sizes(
    model: ConvNet, shape: tuple[int, int, int], features: int, parameters: int, work: int
) -> None:
    network = model.build(shape, 10, key(0))
    assert network.features(torch.zeros(1, *shape)).shape == (1, features)
    assert sum(each.numel() for each in network.parameters()) == parameters
    assert multiply_adds(network, shape) == work


def test_a_block_by_hand() -> None:
    """One channel, one block: convolution, then mean 0 and variance 1 over the image, ReLU, mean of 2x2."""
    network = ConvNet(1, 1).build((1, 2, 2), 2, key(0))
    convolution = network.layers[0]
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 1, 1] = 1  # the pixel itself
    x = torch.tensor([0.0, 1.0, 2.0, 5.0]) * 63.75 + 127.5
    deviations = torch.tensor([-2.0, -1.0, 0.0, 3.0]) / torch.tensor(3.5 + 1e-5).sqrt()
    expected = deviations.clamp(min=0).mean()
    torch.testing.assert_close(network.features(x.view(1, 1, 2, 2)), expected.view(1, 1))


def test_instance_norm_sees_one_image() -> None:
    network = ConvNet(2, 4).build((3, 8, 8), 5, key(0)).train()
    x = pixels(6)
    whole = network.features(x)
    for i in range(6):
        torch.testing.assert_close(whole[i], network.features(x[i : i + 1])[0], rtol=1e-5, atol=1e-6)
    batch = ConvNet(2, 4, "batch").build((3, 8, 8), 5, key(0)).train()
    assert not torch.allclose(batch.features(x)[0], batch.features(x[:2])[0], atol=1e-3)


def test_a_function_of_its_key_and_of_bytes_or_floats() -> None:
    one, same, other = (ConvNet(2, 4).build((3, 8, 8), 5, key(seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(one.fc.weight, other.fc.weight)
    assert torch.equal(one(pixels(3)), one(pixels(3).float()))


def test_scaled_keeps_the_cost_of_all_partitions() -> None:
    assert [ConvNet().scaled(k).width for k in (1, 3, 4, 9, 16, 10**6)] == [128, 74, 64, 42, 32, 2]


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_stacked_networks_are_the_networks(norm: str) -> None:
    model = ConvNet(2, 4, norm)  # type: ignore[arg-type]
    single = [model.build((3, 8, 8), 5, key(i)).eval() for i in range(3)]
    each = [pixels(4, seed=seed) for seed in range(3)]
    stacked = stack(single)
    out = stacked(torch.cat(each, 1)).view(4, 3, 5)
    for place, (network, x) in enumerate(zip(single, each, strict=True)):
        torch.testing.assert_close(out[:, place], network(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_network(stacked, single[0])["fc.weight"][1], single[1].fc.weight)


def test_a_recipe_trains_it_and_knows_its_size() -> None:
    data = ImageDataset(pixels(40, side=8), torch.arange(40) % 2, ("a", "b"))
    data.images[data.labels == 1] //= 4
    recipe = Recipe(model=ConvNet(2, 4), epochs=2, batch_size=20, augment=None)
    assert config.from_dict(Recipe, config.to_dict(recipe)) == recipe
    network = fit(data, recipe, key=key(0))
    assert isinstance(network.get_submodule("fc"), nn.Linear)
    found = size([Training(2, 40, recipe)], (3, 8, 8), 2, 40)
    assert found.networks == 2
    kept = 2 * (4 * 64 + 4 * 16) + 2  # before and after the norm, in both blocks; the logits
    parameters = sum(each.numel() for each in network.parameters())
    assert found.gpu_bytes == 12 * parameters + 4 * kept * 20 + 40 * 3 * 64


def test_options_name_it() -> None:
    assert MODELS["convnet3"] == ConvNet(3, 128, "instance")
    recipe = config.with_option(Recipe(), "model", "convnet", "recipe")
    assert config.with_option(recipe, "model.width", "32", "recipe").model == ConvNet(width=32)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNet(0), "depth must be 1 or more"),
        (lambda: ConvNet(width=0), "width must be 1 or more"),
        (lambda: ConvNet(norm="layer"), "norm must be 'instance', 'batch' or 'none'"),  # type: ignore[arg-type]
        (lambda: ConvNet(4).build((3, 8, 8), 5, key(0)), "shape must be .* of 16 pixels or more"),
        (lambda: ConvNet().build((3, 8, 8), 0, key(0)), "num_classes must be 1 or more"),
    ],
)
def test_what_is_refused(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()  # type: ignore[operator]
