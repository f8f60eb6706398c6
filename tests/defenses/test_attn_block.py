"""AttnBlock: the rollout against loops written from the formula, where the square goes, what it answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from poisonkit.defenses.guards import AttnBlock, attn_block
from poisonkit.defenses.guards.attn_block import Blocking, rollout
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet, ViT, predict
from poisonkit.models.vit import VisionTransformer, attentions
from poisonkit.random import key

VIT = ViT(depth=3, width=12, heads=3, patch=2)


def network() -> VisionTransformer:
    model = VIT.build((3, 8, 8), 4, key(0)).eval()
    with torch.no_grad():  # attention that is not all alike
        for parameter in model.parameters():
            parameter.mul_(6)
    return model


def images(n: int = 3) -> Tensor:
    return torch.randint(1, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=key(1).generator())


def by_loops(model: VisionTransformer, image: Tensor, order: list[int], discard: float) -> Tensor:
    with attentions(model) as maps:
        scores = model(image[None].float())
        slopes = torch.autograd.grad(scores[0, scores[0].argmax()], maps)
    flow = torch.eye(17, dtype=torch.float64)
    for layer, other in enumerate(order):
        mixed = torch.zeros(17, 17, dtype=torch.float64)
        for head in range(3):
            mixed += maps[layer][0, head].detach().double() * slopes[other][0, head].double() / 3
        values = [max(0.0, float(value)) for value in mixed.flatten()]
        cut = sorted(range(len(values)), key=lambda i: values[i])[: int(discard * len(values))]
        for i in cut:
            values[i] = 0.0
        mixed = (torch.tensor(values, dtype=torch.float64).view(17, 17) + torch.eye(17, dtype=torch.float64)) / 2
        for row in range(17):
            mixed[row] /= mixed[row].sum()
        flow = mixed @ flow
    return (flow[0, 1:] / flow[0, 1:].max()).view(4, 4).float()


@pytest.mark.parametrize(("legacy", "order"), [(False, [0, 1, 2]), (True, [2, 1, 0])])
def test_rollout_by_loops(legacy: bool, order: list[int]) -> None:
    model = network()
    found = rollout(model, images(), AttnBlock(discard=0.5, legacy_order=legacy))
    assert found.shape == (3, 4, 4)
    for image, own in zip(images(), found, strict=True):
        torch.testing.assert_close(own, by_loops(model, image, order, 0.5), rtol=1e-3, atol=1e-4)
    other = rollout(model, images(), AttnBlock(discard=0.5, legacy_order=not legacy))
    assert not torch.allclose(found, other, atol=1e-3)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("hot", "rows", "columns"),
    [((2, 1), (6, 10), (2, 6)), ((0, 0), (0, 4), (0, 4)), ((3, 3), (12, 16), (12, 16)), ((0, 2), (0, 4), (6, 10))],
)
def test_the_square_is_about_the_hottest_patch_and_within(
    monkeypatch: pytest.MonkeyPatch, hot: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    """A side of 16 pixels in patches of 4; a square of 4 about a pixel of the patch, or moved inside."""
    heat = torch.zeros(1, 4, 4)
    heat[0, hot[0], hot[1]] = 1
    monkeypatch.setattr(attn_block, "rollout", lambda model, images, config: heat)
    pixels = torch.full((1, 3, 16, 16), 9, dtype=torch.uint8)
    black = Blocking(nn.Linear(1, 1), AttnBlock(block=0.25, window=0.01)).blocked(pixels) == 0
    top, left = (int(black[0, 0].any(dim).nonzero()[0]) for dim in (1, 0))
    assert int(black.sum()) == 3 * 16
    # the patch's two middle pixels are equally hot
    assert top - rows[0] in (0, 1, -1)
    assert left - columns[0] in (0, 1, -1)
    assert 0 <= top <= 12
    assert 0 <= left <= 12


def test_it_answers_for_what_is_left() -> None:
    model, config = network(), AttnBlock(block=0.5, batch_size=2)
    guarded = config(model, None, key=key(0))
    blocked = guarded.blocked(images(5))
    assert torch.equal(guarded.predict(images(5)), predict(model, blocked))
    assert torch.equal(guarded.flagged(images(5)), predict(model, blocked) != predict(model, images(5)))
    assert ((blocked == 0).all(1).flatten(1).sum(1) == 16).all()
    assert torch.equal(blocked[:2], config(model, None, key=key(0)).blocked(images(5)[:2])), "whatever the batch"


def test_a_network_without_attention_is_refused() -> None:
    with pytest.raises(ArgumentError, match="model must be a vision transformer of poisonkit or timm"):
        AttnBlock()(ResNet(8, 2).build((3, 8, 8), 2, key(0)), None, key=key(0))


@pytest.mark.parametrize("options", [{"block": 0.0}, {"window": 2.0}, {"discard": 1.0}, {"batch_size": 0}])
def test_errors(options: dict) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} must be"):
        AttnBlock(**options)
