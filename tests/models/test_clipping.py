"""Bounds on ReLUs wherever they are called, by a trace or by hooks: exact, learnable, kept and brought back."""

from __future__ import annotations

import math
import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from poisonkit.errors import ArgumentError
from poisonkit.models import VGG, ResNet, ViT, clipping
from poisonkit.models.clipping import binding, ceilings, clipped, peaks, restored
from poisonkit.random import key
from poisonkit.train.checkpoints import load_tensors, save_tensors


class Functional(nn.Module):
    """Every way to call a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shared, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv(images.to(self.fc.weight.dtype) / 255 - 0.5)
        x = self.shared(x - 0.1) + self.shared(-x)
        x = functional.relu(x - 0.2) + torch.relu(x - 0.3) + (x - 0.1).relu() + functional.relu(input=0.5 - x)
        y = x - 0.5
        z = functional.relu(y, inplace=True)  # y has changed too
        z = z * y + torch.relu_(0.7 - x)
        x = z.mean((2, 3))
        x = functional.relu(x.unsqueeze(1)).squeeze(1)  # tokens
        return self.fc((2 * x).relu_())


class Untraceable(Functional):
    """The same, with a branch that tracing cannot follow."""

    def forward(self, images: Tensor) -> Tensor:
        if float(images.float().mean()) > 1000:
            return images.float()
        return super().forward(images)


def images(count: int = 6, side: int = 8, seed: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=key(seed).generator())


def network(kind: type[nn.Module] = Functional) -> nn.Module:
    with key(0).ambient():
        return kind().eval()


NETWORKS = {
    "resnet8": (lambda: ResNet(8, 4, stem="small").build((3, 8, 8), 5, key(0)), 7),
    "resnet18": (lambda: ResNet(18, 4).build((3, 8, 8), 5, key(0)), 17),
    "resnet32": (lambda: ResNet(32, 4, stem="small").build((3, 8, 8), 5, key(0)), 31),
    "resnet50": (lambda: ResNet(50, 4).build((3, 8, 8), 5, key(0)), 49),
    "vgg11": (lambda: VGG(11, 4, stem="small").build((3, 8, 8), 5, key(0)), 8),
    "vgg11 without norm": (lambda: VGG(11, 1, False).build((3, 32, 32), 5, key(0)), 10),
    "functional": (network, 10),
    "untraceable": (lambda: network(Untraceable), 10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_infinite_bounds_change_nothing(name: str) -> None:
    build, calls = NETWORKS[name]
    model, pixels = build().eval(), images(side=32 if "without" in name else 8)
    before, state = model(pixels), deepcopy(model.state_dict())
    reached = peaks(model, pixels)
    assert len(reached) == calls
    bounded = clipped(model, [torch.full_like(peak, math.inf) for peak in reached])
    assert torch.equal(bounded(pixels), before)
    assert isinstance(bounded, fx.GraphModule) == (name != "untraceable")
    at_peaks = clipped(model, reached)  # nothing is above its own peak
    torch.testing.assert_close(at_peaks(pixels), before)
    assert all(bool((clip == (peak >= 0)).all()) for clip, peak in zip(binding(at_peaks, pixels), reached, strict=True))
    halved = clipped(model, [peak / 2 for peak in reached])
    assert not torch.allclose(halved(pixels), before)
    # the network that was given is as it was
    assert torch.equal(model(pixels), before)
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())
    assert set(halved.state_dict()) == {*state, *(f"relu_bounds.{index}.value" for index in range(calls))}


def test_a_trace_and_hooks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for build, _ in (NETWORKS["functional"], NETWORKS["resnet8"], NETWORKS["vgg11"]):
        model = build().eval()
        bounds = [0.6 * peak for peak in peaks(model, images())]
        traced = clipped(model, bounds)
        with monkeypatch.context() as patch:
            patch.setattr(clipping, "_traced", lambda model: None)
            hooked = clipped(model, bounds)
        assert isinstance(traced, fx.GraphModule)
        assert not isinstance(hooked, fx.GraphModule)
        torch.testing.assert_close(traced(images()), hooked(images()), rtol=0, atol=0)
        for each in (traced, hooked):
            each(images()).square().sum().backward()
        for one, other in zip(ceilings(traced), ceilings(hooked), strict=True):
            torch.testing.assert_close(one.value.grad, other.value.grad)
        # the same file serves both
        hooked.load_state_dict(traced.state_dict())


def test_hooks_see_into_modules_that_are_not_traced_into() -> None:
    with key(0).ambient():
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
        model = nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Flatten(2), nn.LazyLinear(8), layer, nn.Flatten()).eval()

    class Floats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model

        def forward(self, pixels: Tensor) -> Tensor:
            return self.body(pixels.float() / 255)

    whole = Floats().eval()
    whole(images())
    reached = peaks(whole, images())
    assert [len(peak) for peak in reached] == [16]  # neurons, not tokens
    assert not isinstance(clipped(whole, reached), fx.GraphModule)
    torch.testing.assert_close(clipped(whole, reached)(images()), whole(images()))


def test_one_neuron_by_hand() -> None:
    """y = 3·min(max(2x − 1, 0), z): at x = 2 the ReLU gives 3."""
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1)).eval()
    for parameter, value in zip(model.parameters(), (2.0, -1.0, 3.0, 0.0), strict=True):
        nn.init.constant_(parameter, value)
    by_hand = {4.0: (9.0, 6.0, 0.0), 3.0: (9.0, 0.0, 3.0), 1.5: (4.5, 0.0, 3.0), 0.0: (0.0, 0.0, 3.0)}
    for z, expected in by_hand.items():
        bounded = clipped(model, [torch.tensor([z])])
        x = torch.tensor([[2.0]], requires_grad=True)
        out = bounded(x)
        out.backward()
        assert (out.item(), x.grad.item(), ceilings(bounded)[0].value.grad.item()) == expected


def test_gradients_of_bounds() -> None:
    model = network().double()
    # away from every tie, where there is no gradient
    bounded = clipped(model, [0.61 * peak + 0.003 for peak in peaks(model, images(2))])
    values = [bound.value for bound in ceilings(bounded)]

    def of(*bounds: Tensor) -> Tensor:
        named = {f"relu_bounds.{index}.value": bound for index, bound in enumerate(bounds)}
        return torch.func.functional_call(bounded, named, images(2))

    assert torch.autograd.gradcheck(of, values)


@pytest.mark.parametrize("name", ["resnet8", "functional", "untraceable"])
def test_a_file_brings_the_bounds_back(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name][0]().eval()
    bounded = clipped(model, [0.5 * peak for peak in peaks(model, images())])
    save_tensors(tmp_path / "model.safetensors", bounded.state_dict())
    fresh = NETWORKS[name][0]()
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    again = restored(fresh, load_tensors(tmp_path / "model.safetensors"))
    assert not again.training
    assert torch.equal(again(images()), bounded(images()))
    assert not torch.equal(fresh.eval()(images()), bounded(images()))


@pytest.mark.parametrize("name", ["resnet8", "untraceable"])
def test_copies_are_apart(name: str) -> None:
    model = NETWORKS[name][0]().eval()
    bounded = clipped(model, peaks(model, images()))
    before = bounded(images())
    twin = deepcopy(bounded)
    for bound in ceilings(twin):
        nn.init.zeros_(bound.value)
    assert torch.equal(bounded(images()), before)
    assert not torch.equal(twin(images()), before)
    assert torch.equal(pickle.loads(pickle.dumps(bounded))(images()), before)


def test_an_error_in_a_hooked_network_leaves_nothing_behind() -> None:
    bounded = clipped(network(Untraceable), [torch.zeros(4)] * 10)
    with pytest.raises(RuntimeError):
        bounded(torch.zeros(1, 7, 8, 8, dtype=torch.uint8))
    assert float(torch.relu(torch.tensor(2.0))) == 2
    assert bounded(images()).std(0).max().item() < 1e-6  # every neuron at 0 leaves the bias


def test_what_is_refused() -> None:
    vit = ViT(1, 8, 2, patch=4).build((3, 8, 8), 5, key(0))
    with pytest.raises(ArgumentError, match="model must be a network with ReLUs, got VisionTransformer without; GELU"):
        peaks(vit, images())
    with pytest.raises(ArgumentError, match="images must be 1 or more"):
        peaks(network(), images(0))
    bounded = clipped(network(), peaks(network(), images()))
    with pytest.raises(ArgumentError, match="a network with ReLUs"):
        peaks(bounded, images())
    with pytest.raises(ArgumentError, match="a network without bounds"):
        clipped(bounded, [torch.ones(4)])
    with pytest.raises(ArgumentError, match="bounds must be 1 or more"):
        clipped(network(), [])
    with pytest.raises(ArgumentError, match="state must be of a network with bounds"):
        restored(network(), network().state_dict())
    with pytest.raises(ArgumentError, match="state must be of a ResidualNetwork with bounds"):
        restored(ResNet(8, 4, stem="small").build((3, 8, 8), 5, key(0)), bounded.state_dict())
    for count, said in ((9, "more calls"), (11, "10")):
        with pytest.raises(ArgumentError, match=f"one that calls {count} ReLUs, as it has bounds, got {said}"):
            clipped(network(), [torch.ones(4)] * count)(images())
