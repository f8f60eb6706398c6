"""Vision transformers: attention against torch's own, fused against explicit, timm's names, weights of other grids."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm

from poisonkit.errors import ArgumentError, DataError
from poisonkit.models import MODELS, ResNet, ViT, logits
from poisonkit.models.features import features, head
from poisonkit.models.predict import multiply_adds
from poisonkit.models.stack import obstacle
from poisonkit.models.vit import VisionTransformer, attentions, explicit_attention, first_blocks, load_weights
from poisonkit.random import key
from poisonkit.train import Recipe, fit, stack_size
from poisonkit.types import ImageDataset

SMALL = ViT(depth=2, width=12, heads=3, patch=4)
SHAPE = (3, 8, 8)


def images(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=key(1).generator())


def network(config: ViT = SMALL, classes: int = 4) -> VisionTransformer:
    return config.build(SHAPE, classes, key(0)).eval()


def test_forward_by_torch_alone() -> None:
    """Patches by unfolding, attention by torch's MultiheadAttention, written apart from the module."""
    model, state = network(), network().state_dict()
    x = (images().float() - 127.5) / 63.75
    patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
    x = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for i in range(2):
        own = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in state.items()}
        y = layer_norm(x, (12,), own["norm1.weight"], own["norm1.bias"], 1e-6)
        torch_attention = nn.MultiheadAttention(12, 3, batch_first=True)
        torch_attention.load_state_dict(
            {
                "in_proj_weight": own["attn.qkv.weight"],
                "in_proj_bias": own["attn.qkv.bias"],
                "out_proj.weight": own["attn.proj.weight"],
                "out_proj.bias": own["attn.proj.bias"],
            }
        )
        x = x + torch_attention(y, y, y)[0]
        y = layer_norm(x, (12,), own["norm2.weight"], own["norm2.bias"], 1e-6)
        y = gelu(y @ own["mlp.fc1.weight"].T + own["mlp.fc1.bias"])
        x = x + y @ own["mlp.fc2.weight"].T + own["mlp.fc2.bias"]
    x = layer_norm(x, (12,), state["norm.weight"], state["norm.bias"], 1e-6)
    torch.testing.assert_close(model(images()), x[:, 0] @ state["head.weight"].T + state["head.bias"])


def test_fused_equals_explicit_and_only_this_can_be_differentiated_twice() -> None:
    model, pixels = network(), images().float().requires_grad_(True)
    fused = model(pixels)
    with explicit_attention(model):
        explicit = model(pixels)
        (slope,) = torch.autograd.grad(explicit.logsumexp(1).sum(), pixels, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), model.blocks[0].attn.qkv.weight)
    torch.testing.assert_close(fused, explicit)
    torch.testing.assert_close(slope, torch.autograd.grad(fused.logsumexp(1).sum(), pixels)[0])
    assert second.abs().max() > 0
    assert model.blocks[0].attn.fused_attn


def test_attentions_are_read_in_order() -> None:
    model = network()
    with attentions(model) as maps:
        model(images())
    assert [tuple(each.shape) for each in maps] == [(5, 3, 5, 5)] * 2
    for each in maps:
        torch.testing.assert_close(each.sum(3), torch.ones(5, 3, 5))
    with pytest.raises(ArgumentError, match="vision transformer"), attentions(ResNet(8, 2).build(SHAPE, 2, key(0))):
        pass


def test_keys_shapes_and_counts_are_those_of_timm() -> None:
    """timm's vit_small_patch16_224 of ten classes has 21.67 M parameters, 2.15 M of them at depth 1."""
    whole = MODELS["vit_small16"].build((3, 224, 224), 10, key(0))
    assert sum(p.numel() for p in whole.parameters()) == 21_669_514
    one = ViT(depth=1).build((3, 224, 224), 10, key(0))
    block = 12 * 384**2 + 13 * 384
    assert sum(p.numel() for p in one.parameters()) == 21_669_514 - 11 * block
    assert list(one.state_dict()) == [
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "blocks.0.norm1.weight",
        "blocks.0.norm1.bias",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.qkv.bias",
        "blocks.0.attn.proj.weight",
        "blocks.0.attn.proj.bias",
        "blocks.0.norm2.weight",
        "blocks.0.norm2.bias",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc1.bias",
        "blocks.0.mlp.fc2.weight",
        "blocks.0.mlp.fc2.bias",
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    ]


def test_sit_head() -> None:
    model = network(replace(SMALL, head="sit"))
    found, scores = features(model, images())
    assert found.shape == (5, 12)
    assert head(model) is model.head[2]
    x = model.norm(model.blocks(torch.cat([model.cls_token.expand(5, -1, -1), tokens(model)], 1) + model.pos_embed))
    pooled = torch.cat([x[:, 0], x[:, 1:].mean(1)], 1)
    torch.testing.assert_close(scores, model.head[2](gelu(model.head[0](pooled))))


def tokens(model: VisionTransformer) -> torch.Tensor:
    return model.patch_embed((images().float() - 127.5) / 63.75)


def test_pixels_are_normalised_by_constants() -> None:
    config = replace(SMALL, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4))
    model, plain = network(config), network(replace(SMALL, mean=(0.0,), std=(1.0,)))
    shifted = (images().float() - torch.tensor(config.mean)[:, None, None]) / torch.tensor(config.std)[:, None, None]
    torch.testing.assert_close(model(images()), plain(shifted))


def test_images_are_resized_first() -> None:
    resized, plain = network(replace(SMALL, resize=16)), ViT(2, 12, 3, 4).build((3, 16, 16), 4, key(0)).eval()
    large = nn.functional.interpolate(images().float(), (16, 16), mode="bicubic")
    torch.testing.assert_close(resized(images()), plain(large), rtol=1e-4, atol=1e-5)


def test_drop_path_leaves_whole_branches_out() -> None:
    model = network(replace(SMALL, drop_path=0.5)).train()
    assert isinstance(model.blocks[0].drop_path, nn.Identity)
    x = torch.randn(64, 5, 12, generator=key(3).generator())
    block = model.blocks[1]
    with key(4).ambient():
        out = block(x)
    untouched = (out == x).flatten(1).all(1)
    assert 0.1 < untouched.float().mean() < 0.45, "a quarter lose both branches"
    assert torch.equal(block.eval()(x), network(SMALL).blocks[1](x))


def test_first_blocks_share_nothing_and_keep_no_head() -> None:
    model = network(replace(SMALL, drop_path=0.5, depth=3))
    cut = first_blocks(model, 2, 7, key(5))
    assert len(cut.blocks) == cut.config.depth == 2
    assert torch.equal(cut.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert logits(cut, images()).shape == (5, 7)
    assert not [module for module in cut.modules() if isinstance(module, nn.Dropout)]
    assert not {id(p) for p in cut.parameters()} & {id(p) for p in model.parameters()}
    with pytest.raises(ArgumentError, match=r"depth must be in \[1, 3\], the network's blocks, got 4"):
        first_blocks(model, 4, 7, key(5))


def test_weights_of_another_grid_depth_and_head() -> None:
    large = ViT(depth=3, width=12, heads=3, patch=4).build((3, 16, 16), 9, key(7))
    model = network()
    own = model.head.weight.detach().clone()
    assert load_weights(model, large.state_dict()) == ["head.weight", "head.bias"]
    assert torch.equal(model.head.weight, own)
    assert torch.equal(model.blocks[1].attn.qkv.weight, large.blocks[1].attn.qkv.weight)
    assert torch.equal(model.pos_embed[:, 0], large.pos_embed[:, 0])
    constant = {**large.state_dict(), "pos_embed": torch.full((1, 17, 12), 0.25)}
    load_weights(model, constant)
    torch.testing.assert_close(model.pos_embed.detach(), torch.full((1, 5, 12), 0.25))
    assert load_weights(model, network(classes=4).state_dict()) == []
    with pytest.raises(DataError, match=r"norm.weight must be of shape \[12\], got none"):
        load_weights(model, {name: t for name, t in large.state_dict().items() if name != "norm.weight"})


def test_it_is_a_model_like_others() -> None:
    data = ImageDataset(images(8), torch.arange(8) % 4, tuple("abcd"))
    recipe = Recipe(replace(SMALL, drop_path=0.3), epochs=2, batch_size=4, optimizer="adamw")
    first, again = (fit(data, recipe, key=key(0)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert obstacle(first)
    assert stack_size(replace(recipe, optimizer="sgd"), SHAPE, 4, 8, "cpu") == 1
    linear = 2 * 5 * (12 * 36 + 12 * 12 + 2 * 12 * 48)  # by token: qkv, projection, perceptron
    assert multiply_adds(network(), SHAPE) == linear + 4 * 12 * 48 + 4 * 12
    assert ViT(width=384, heads=6).scaled(16) == ViT(width=96, heads=6)
    assert ViT(width=384, heads=6).scaled(4000).width == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 10}, "width must be a multiple of heads = 3, above 0, got 10"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"head": "mlp"}, "head must be 'linear' or 'sit', got 'mlp'"),
        ({"drop_path": 1.0}, "drop_path must be a probability"),
        ({"std": (0.0,)}, "std must be above 0"),
        ({"patch": 3}, "patch must be a divisor of the image's 8 and 8 pixels, got 3"),
        ({"mean": (1.0, 2.0)}, "mean must be one number, or 3, one a channel"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(SMALL, **options).build(SHAPE, 4, key(0))
