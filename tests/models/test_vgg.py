"""VGG networks: published sizes, torchvision's names, images of any size with the small stem, stacks, options."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from poisonkit import config
from poisonkit.errors import ArgumentError
from poisonkit.experiments.reproduce.registry import Training
from poisonkit.experiments.reproduce.sizes import size
from poisonkit.models import MODELS, VGG
from poisonkit.models.predict import multiply_adds
from poisonkit.models.stack import obstacle, stack
from poisonkit.random import key
from poisonkit.train import Recipe, fit
from poisonkit.types import ImageDataset

# What torchvision publishes beside its weights: parameters, and 10^9 multiply-adds at 224 pixels to three decimals
PUBLISHED = {
    "vgg11": (132_863_336, 7.609),
    "vgg11_bn": (132_868_840, 7.609),
    "vgg13": (133_047_848, 11.308),
    "vgg13_bn": (133_053_736, 11.308),
    "vgg16": (138_357_544, 15.470),
    "vgg16_bn": (138_365_992, 15.470),
    "vgg19": (143_667_240, 19.632),
    "vgg19_bn": (143_678_248, 19.632),
}


def images(count: int, side: int, seed: int = 9) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=key(seed).generator())


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_published_by_torchvision(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name].build((3, 224, 224), 1000, key(0))
        parameters, billions = PUBLISHED[name]
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        assert multiply_adds(model, (3, 224, 224)) / 1e9 == pytest.approx(billions, abs=0.0006)


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        plain, normed = (MODELS[name].build((3, 32, 32), 1000, key(0)).state_dict() for name in ("vgg16", "vgg16_bn"))
    assert (len(plain), len(normed)) == (32, 97)
    assert {"features.0.weight", "features.28.bias", "classifier.0.weight", "classifier.6.bias"} <= plain.keys()
    assert {"features.1.running_var", "features.40.weight", "features.41.num_batches_tracked"} <= normed.keys()
    assert plain["classifier.0.weight"].shape == (4096, 512 * 7 * 7)


@pytest.mark.parametrize("side", [1, 8, 13, 32])
def test_the_small_stem_takes_any_size(side: int) -> None:
    model = VGG(11, 4, stem="small").build((3, side, side), 5, key(0)).eval()
    pixels = images(3, side)
    assert model(pixels).shape == (3, 5)
    assert torch.equal(model(pixels), model(pixels.float()))


def test_weights_are_a_function_of_the_key() -> None:
    one, same, other = (VGG(11, 2, stem="small").build((3, 8, 8), 5, key(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["features.0.weight"], other["features.0.weight"])


def test_scaled() -> None:
    assert VGG(16).scaled(16) == VGG(16, 16)
    assert [VGG(11, 64).scaled(k).width for k in (1, 3, 4, 7, 9, 100000)] == [64, 36, 32, 24, 22, 2]


def test_networks_of_the_small_stem_stack_and_others_say_why_not() -> None:
    single = [VGG(11, 2, stem="small").build((3, 8, 8), 4, key(seed)).eval() for seed in range(3)]
    pixels = [images(4, 8, seed) for seed in range(3)]
    out = stack(single)(torch.cat(pixels, 1)).view(4, 3, 4)
    for place, (network, mine) in enumerate(zip(single, pixels, strict=True)):
        torch.testing.assert_close(out[:, place], network(mine))
    with torch.device("meta"):
        assert "a second dropout" in str(obstacle(VGG(11, 2).build((3, 32, 32), 4, key(0))))
        assert obstacle(VGG(11, 2, dropout=0).build((3, 32, 32), 4, key(0))) is None


def test_as_an_option_and_in_json() -> None:
    recipe = config.with_option(Recipe(), "model", "vgg", "recipe")
    recipe = config.with_option(recipe, "model.stem", "small", "recipe")
    assert recipe.model == VGG(stem="small")
    assert config.from_dict(Recipe, json.loads(json.dumps(config.to_dict(recipe)))) == recipe


def test_its_size_on_paper() -> None:
    recipe = Recipe(model=VGG(11, 4, stem="small"), epochs=2)
    found = size([Training(1, 10, recipe)], (3, 32, 32), 10, 10)
    assert found.multiply_adds == 3 * multiply_adds(recipe.model.build((3, 32, 32), 10, key(0)), (3, 32, 32)) * 10 * 2


def test_it_learns() -> None:
    data = ImageDataset(images(64, 8), torch.arange(64) % 2, ("a", "b"))
    data.images[data.labels == 1] //= 2
    recipe = Recipe(model=VGG(11, 4, stem="small", dropout=0.1), epochs=6, batch_size=16, augment=None)
    recipe = replace(recipe, schedule=replace(recipe.schedule, start=0.01, peak=0.05))
    model = fit(data, recipe, key=key(0))
    assert float((model(data.images).argmax(1) == data.labels).float().mean()) > 0.9
    assert not any(isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules())


@pytest.mark.parametrize("wrong", [{"depth": 12}, {"width": 0}, {"stem": "large"}, {"dropout": 1.0}])
def test_rejects(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        VGG(**wrong)  # type: ignore[arg-type]


def test_small_images_need_the_small_stem() -> None:
    with pytest.raises(ArgumentError, match="take stem='small'"):
        VGG(11, 2).build((3, 28, 28), 10, key(0))
