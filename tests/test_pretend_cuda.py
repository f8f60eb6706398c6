"""What runs on a GPU, on a pretended one: where tensors lie, and what has no deterministic form. And the pretence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretend_cuda import MixedDevices, pretended, there

from bench import gpu
from bench.place import Place
from poisonkit import ops
from poisonkit.attacks.convex_polytope import simplex
from poisonkit.data import load
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Cosine, Epoch, Recipe, fit
from poisonkit.train.loop import deterministic

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
TINY = Recipe(ResNet(8, 4, stem="small"), epochs=2, batch_size=16, augment=None)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with pretended():
        yield torch.device("cuda")


@pytest.mark.usefixtures("device")
def test_tensors_say_where_they_are() -> None:
    x = torch.zeros(3).to("cuda")
    assert x.is_cuda
    assert x.device == torch.device("cuda", 0)
    y = torch.ones(3, device="cuda")
    assert all(map(there, (x + y, x[:1], x.view(3, 1), torch.nn.Linear(3, 2).cuda()(x))))
    assert (x + y).cpu().device == torch.device("cpu")
    assert x.cpu().numpy().tolist() == [0, 0, 0]
    assert not torch.zeros(3).is_cuda


MIXED: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "sum": lambda here, there: here + there,
    "concatenation": lambda here, there: torch.cat([here, there]),
    "product": lambda here, there: torch.nn.functional.linear(there, here[None]),
    "index": lambda here, there: here[there.long()],
    "values": lambda here, there: there.__setitem__(torch.arange(3), here),
    "numpy": lambda here, there: there.numpy(),
    "generator": lambda here, there: torch.randn(3, device="cuda", generator=torch.Generator()),
    "op": lambda here, there: ops.clipped_relu(there[None], here),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", MIXED)
def test_what_cuda_refuses_is_refused(name: str) -> None:
    with pytest.raises((MixedDevices, ValueError), match=r"device|cuda"):
        MIXED[name](torch.zeros(3), torch.zeros(3, device="cuda"))


@pytest.mark.usefixtures("device")
def test_what_cuda_allows_is_allowed() -> None:
    x = torch.zeros(3, device="cuda")
    assert there(x * torch.tensor(2.0))
    assert there(x[torch.tensor([0, 2])])
    x[torch.tensor([1])] = torch.tensor(4.0)
    x[:2] = torch.ones(2)
    assert x.tolist() == [1, 1, 0]


def test_what_is_not_deterministic_is_refused(device: torch.device) -> None:
    x = torch.rand(1, 1, 4, 4, device=device, requires_grad=True)
    grid = torch.zeros(1, 4, 4, 2, device=device)
    sampled = torch.nn.functional.grid_sample(x, grid, align_corners=False).sum()
    with deterministic(device):
        with pytest.raises(RuntimeError, match=r"cumsum.* has no deterministic form"):
            torch.zeros(3, device=device).cumsum(0)
        assert torch.ones(3, dtype=torch.int64, device=device).cumsum(0).tolist() == [1, 2, 3]
        with pytest.raises(RuntimeError, match=r"grid_sampler_2d_backward.* has no deterministic form"):
            sampled.backward()


@pytest.mark.usefixtures("device")
def test_products_ask_for_their_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    data, _ = load("digits")
    with pytest.raises(RuntimeError, match="CUBLAS_WORKSPACE_CONFIG"):
        fit(data.take(torch.arange(16)), TINY, key=key(0), device="cuda")


def test_the_simplex_is_found_deterministically(device: torch.device) -> None:
    with deterministic(device):
        found = [simplex(torch.tensor(each, device=device)) for each in ([2.0, 1.0, 0.0], [0.6, 0.0, 0.6])]
    torch.testing.assert_close([each.cpu() for each in found], [torch.eye(3)[0], torch.tensor([0.5, 0.0, 0.5])])


class Killed(Exception):
    """What a test interrupts a training with."""


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_is_resumed_there(optimizer: str, device: torch.device, tmp_path: Path) -> None:
    data, _ = load("digits")
    recipe = replace(TINY, optimizer=optimizer, schedule=Cosine(0.01))
    data = data.take(torch.arange(40))

    def kill(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise Killed

    whole = fit(data, recipe, key=key(0), device=device)
    with pytest.raises(Killed):
        fit(data, recipe, key=key(0), device=device, directory=tmp_path, on_epoch=kill)
    again = fit(data, recipe, key=key(0), device=device, directory=tmp_path)
    assert all(map(there, again.state_dict().values()))
    assert all(map(torch.equal, again.state_dict().values(), whole.state_dict().values()))


@pytest.mark.slow
@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_of_the_script(part: str, device: torch.device, tmp_path: Path) -> None:
    measured = {row.name: row for row in gpu.PARTS[part](Place(device, tmp_path, small=True))}
    assert all("/cuda/" in name and row.machine.gpu == "a pretended device" for name, row in measured.items())
    assert not list(tmp_path.iterdir())
