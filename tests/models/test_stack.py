"""Networks side by side as one: each says what it says alone, whatever the others are."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.models.stack import by_network, obstacle, stack
from poisonkit.random import key

NETWORKS = [
    ResNet(8, 2, stem="small"),
    ResNet(8, 4, stem="small", dropout=0.3),
    ResNet(18, 8),
    ResNet(50, 6, "bottleneck"),
]


def networks(config: ResNet, count: int = 3) -> list[nn.Module]:
    return [config.build((3, 16, 16), 5, key(i)) for i in range(count)]


def images(count: int, seed: int = 9) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=key(seed).generator())


@pytest.mark.parametrize("config", NETWORKS, ids=repr)
def test_is_the_networks(config: ResNet) -> None:
    single = [network.eval() for network in networks(config)]
    each = [images(4, seed) for seed in range(3)]
    out = stack(single)(torch.cat(each, 1)).view(4, 3, 5)
    for place, (network, pixels) in enumerate(zip(single, each, strict=True)):
        torch.testing.assert_close(out[:, place], network(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", NETWORKS[:2], ids=repr)
def test_gradients_and_statistics_are_the_networks(config: ResNet) -> None:
    single = [network.train() for network in networks(ResNet(config.depth, config.width, stem=config.stem))]
    stacked = stack(single)
    each, weight = [images(6, seed) for seed in range(3)], torch.linspace(-1, 1, 30).view(6, 5)
    (stacked(torch.cat(each, 1)).view(6, 3, 5) * weight[:, None]).sum().backward()
    views = by_network(stacked, single[0])
    gradients = {name: parameter.grad for name, parameter in stacked.named_parameters()}
    for place, (network, pixels) in enumerate(zip(single, each, strict=True)):
        (network(pixels) * weight).sum().backward()
        for name, parameter in network.named_parameters():
            ours = gradients[name].view(views[name].shape)[place]
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-3, atol=1e-3 * float(parameter.grad.abs().max()))
        for name, buffer in network.named_buffers():
            torch.testing.assert_close(views[name][place], buffer, rtol=1e-4, atol=1e-5)


def test_the_state_is_a_view_of_that_of_each() -> None:
    single = networks(NETWORKS[0])
    stacked = stack(single)
    for name, view in by_network(stacked, single[0]).items():
        for place, network in enumerate(single):
            assert torch.equal(view[place], network.state_dict()[name])
        view.zero_()
    assert all(not tensor.any() for tensor in stacked.state_dict().values())
    assert any(tensor.any() for tensor in single[0].state_dict().values())  # copied, not moved


@pytest.mark.parametrize("width", [1, 2, 4, 6, 8, 16])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_nan_and_inf_stay_in_their_network(width: int, training: bool, memory_format: torch.memory_format) -> None:
    def run(ill: bool) -> list[Tensor]:
        single = networks(ResNet(8, width, stem="small"))
        if ill:
            for parameter, value in zip(single[1].parameters(), [float("nan"), float("inf")] * 99, strict=False):
                parameter.data.fill_(value)
        stacked = stack(single).train(training).to(memory_format=memory_format)
        out = stacked(torch.cat([images(4, seed) for seed in range(3)], 1).contiguous(memory_format=memory_format))
        out.sum().backward()
        views = by_network(stacked, single[0])
        found = [out.detach().view(4, 3, 5)[:, [0, 2]]]
        found += [parameter.grad.view(views[name].shape)[[0, 2]] for name, parameter in stacked.named_parameters()]
        return [*found, *(view[[0, 2]] for view in views.values())]

    well, ill = run(False), run(True)
    assert all(tensor.isfinite().all() for tensor in well)
    assert all(map(torch.equal, well, ill))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4)), "1, LayerNorm"),
        (nn.Sequential(nn.BatchNorm2d(3, momentum=None)), "without momentum"),
        (nn.Sequential(nn.Dropout(), nn.Dropout()), "second dropout"),
        (nn.Sequential(nn.Dropout2d()), "Dropout2d"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")), "circular"),
        (nn.Sequential(nn.Softmax(1)), "Softmax"),
        (nn.TransformerEncoderLayer(4, 2), "MultiheadAttention with weights of its own"),
    ],
)
def test_what_cannot_be_stacked_is_named(model: nn.Module, why: str) -> None:
    assert why in (obstacle(model) or "")
    with pytest.raises(ArgumentError, match=why):
        stack([model, model])


def test_other_architectures_are_refused() -> None:
    one, other = (ResNet(8, width, stem="small").build((3, 8, 8), 5, key(0)) for width in (4, 6))
    with pytest.raises(ArgumentError, match="one architecture"):
        stack([one, other])


def test_a_layer_alone_can_be_stacked() -> None:
    single = [nn.Linear(3, 2, bias=bias) for bias in (False, False)]
    x = torch.arange(12.0).view(2, 6)
    expected = torch.cat([single[0](x[:, :3]), single[1](x[:, 3:])], 1)
    torch.testing.assert_close(stack(single)(x), expected)
    named = nn.Sequential(OrderedDict(flat=nn.Flatten(), fc=nn.Linear(4, 1)))
    assert stack([named, named])(torch.ones(2, 2, 2, 2)).shape == (2, 2)
