"""Residual networks: published sizes, torchvision's names, keyed initialisation, input as uint8 or float."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from poisonkit.errors import ArgumentError
from poisonkit.models import MODELS, ResNet
from poisonkit.random import key

# (depth, scaling, width): (multiplications, parameters) at 3x64x64 and 1000 classes, from torchvision's
# ResNets under hooks, and from the formulas for the widths it does not have
SIZES = {
    (50, "bottleneck", 32): (150_618_112, 12_381_864),
    (50, "bottleneck", 42): (200_343_552, 15_891_244),
    (50, "bottleneck", 48): (233_717_760, 18_262_120),
    (50, "bottleneck", 64): (335_691_776, 25_557_032),
    (50, "bottleneck", 74): (409_010_176, 30_834_732),
    (50, "bottleneck", 128): (932_331_520, 68_883_240),
    (50, "bottleneck", 256): (3_031_580_672, 223_439_144),
    (50, "all", 32): (86_843_392, 6_917_640),
    (50, "all", 42): (147_205_632, 11_483_170),
    (50, "all", 48): (191_016_960, 14_771_992),
    (50, "all", 64): (335_691_776, 25_557_032),
    (50, "all", 74): (446_680_576, 33_785_922),
    (50, "all", 128): (1_319_403_520, 98_004_072),
    (50, "all", 256): (5_230_886_912, 383_571_176),
    (18, "all", 8): (3_430_912, 241_712),
    (18, "all", 16): (11_187_200, 831_096),
    (18, "all", 32): (39_675_904, 3_055_880),
    (18, "all", 64): (148_557_824, 11_689_512),
    (18, "all", 128): (573_939_712, 45_693_032),
}


def build(config: ResNet, channels: int = 3, classes: int = 10, seed: int = 0) -> nn.Module:
    return config.build((channels, 8, 8), classes, key(seed)).eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiplications(model: nn.Module, images: Tensor) -> int:
    count = 0

    def add(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal count
        count += output[0].numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model.eval()(images)
    return count


@pytest.mark.parametrize(("depth", "scaling", "width"), SIZES)
def test_sizes(depth: int, scaling: str, width: int) -> None:
    with torch.device("meta"):  # shapes without numbers
        model = build(ResNet(depth, width, scaling), classes=1000)
        images = torch.empty(1, 3, 64, 64, dtype=torch.uint8)
        assert (multiplications(model, images), parameters(model)) == SIZES[depth, scaling, width]


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet34", 21_797_672), ("resnet101", 44_549_160), ("resnet152", 60_192_808), ("wide_resnet50_2", 68_883_240)],
)
def test_parameters_published_by_torchvision(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(build(MODELS[name], classes=1000)) == count


def test_parameters_of_the_cifar_family() -> None:
    # He et al. print 0.27 M; 269,722 without projections, which add two 1x1 layers and their norms
    assert parameters(build(MODELS["resnet20"])) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)


@pytest.mark.parametrize("name", MODELS)
def test_every_listed_model_runs(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name].build((3, 32, 32), 10, key(0)).eval()
        assert model(torch.empty(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_names_are_torchvisions() -> None:
    with torch.device("meta"):
        small, large = build(ResNet(18)).state_dict(), build(ResNet(50)).state_dict()
    assert (len(small), len(large)) == (122, 320)
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.1.bias"} < small.keys()
    assert {"layer1.0.downsample.0.weight", "layer4.2.bn3.num_batches_tracked", "fc.bias"} < large.keys()
    assert "layer1.0.downsample.0.weight" not in small
    # the stride sits in the 3x3 layer of a bottleneck
    assert (build(ResNet(50)).layer2[0].conv1.stride, build(ResNet(50)).layer2[0].conv2.stride) == ((1, 1), (2, 2))


def test_scaled_widths_of_the_paper() -> None:
    assert [ResNet(50, 128).scaled(k).width for k in (1, 3, 4, 7, 9, 16)] == [128, 74, 64, 48, 42, 32]


def test_scaled_is_the_nearest_even_width() -> None:
    for width in range(1, 200):
        for partitions in (1, 2, 3, 5, 9, 16, 50, 997):
            scaled = ResNet(18, width).scaled(partitions).width
            assert scaled >= 2
            assert scaled % 2 == 0
            if scaled > 2:  # |scaled - width/sqrt(k)| <= 1, squared into fractions
                square = Fraction(width * width, partitions)
                assert (scaled - 1) ** 2 <= square < (scaled + 1) ** 2


def test_scaled_keeps_the_rest() -> None:
    assert ResNet(50, 64, "bottleneck", "small", 0.5).scaled(4) == ResNet(50, 32, "bottleneck", "small", 0.5)


def test_weights_are_a_function_of_the_key_and_global_state_is_untouched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(ResNet(8, 4))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = build(ResNet(8, 4)), build(ResNet(8, 4), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_initial_spread() -> None:
    weight = build(ResNet(18, 32)).layer4[1].conv2.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 7, 13), (4, 32, 32)])
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_bytes_and_floats_give_the_same(shape: tuple[int, int, int], stem: str) -> None:
    model = ResNet(8, 4, stem=stem).build(shape, 5, key(0)).eval()
    images = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=key(1).generator())
    assert torch.equal(model(images), model(images.float()))
    assert model(images).shape == (3, 5)
    assert torch.equal(model.fc(model.features(images)), model(images))


def test_input_is_scaled_by_constants() -> None:
    model = build(ResNet(8, 4, stem="small"))
    seen = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(torch.tensor([0, 255, 127, 128], dtype=torch.uint8).view(1, 1, 2, 2).expand(1, 3, 2, 2))
    assert seen[0][0, 0].flatten().tolist() == pytest.approx([-2, 2, -0.5 / 63.75, 0.5 / 63.75])
    model.double()
    assert model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).dtype == torch.float64


def test_channels_last_changes_nothing_but_rounding() -> None:
    model = build(ResNet(18, 8, stem="small"))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=key(1).generator())
    expected = model(images)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(images), expected)


def test_few_channels_in_channels_last_train_in_bounds() -> None:
    # In a process of its own: a write out of bounds (oneDNN issue 6035) kills it, at the latest when it frees memory
    code = """if True:
        import torch
        from poisonkit.models import ResNet
        from poisonkit.random import key
        torch.set_num_threads(1)
        for width, size in ((2, 6), (4, 6), (6, 6), (2, 8), (4, 8), (6, 8)):
            images = torch.zeros(8, 1, size, size, dtype=torch.uint8)
            model = ResNet(8, width, stem="small").build((1, 8, 8), 3, key(0)).to(memory_format=torch.channels_last)
            for _ in range(40):
                model(images).sum().backward()
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("width", [6, 15, 16])
def test_thin_shortcuts_are_strided_convolutions(width: int) -> None:
    shortcut = build(ResNet(8, width)).layer2[0].downsample[0]
    x = torch.rand(2, width, 7, 6, generator=key(0).generator())
    torch.testing.assert_close(shortcut(x), nn.functional.conv2d(x, shortcut.weight, stride=2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 17},
        {"width": 0},
        {"scaling": "inner"},
        {"scaling": "bottleneck"},
        {"stem": "large"},
        {"dropout": 1.0},
    ],
)
def test_rejects(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        ResNet(**wrong)  # type: ignore[arg-type]


def test_build_and_scaled_reject() -> None:
    with pytest.raises(ArgumentError, match="partitions"):
        ResNet().scaled(0)
    with pytest.raises(ArgumentError, match="shape"):
        ResNet().build((3, 0, 8), 10, key(0))
    with pytest.raises(ArgumentError, match="num_classes"):
        ResNet().build((3, 8, 8), 0, key(0))
