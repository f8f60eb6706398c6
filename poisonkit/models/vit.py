"""Vision transformers of any depth, width and patch, which normalise their own uint8 input.

An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. Alexey Dosovitskiy, Lucas Beyer,
Alexander Kolesnikov, et al. ICLR 2021. https://arxiv.org/abs/2010.11929

State-dict keys and layers are those of timm's VisionTransformer, so its safetensors weights load
(:func:`load_weights`). Linear layers begin as in the paper's own code, Xavier uniform: from a deviation of 0.02, which
suits a width of 768, one of 100 learns little. The "sit" head is that of Atito, Awais and Kittler, "SiT:
Self-supervised vIsion Transformer", 2021, https://arxiv.org/abs/2104.03602.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from math import isqrt
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from poisonkit.errors import DataError, require
from poisonkit.random import Key


@dataclass(frozen=True)
class ViT:
    """A vision transformer.

    depth      blocks of attention and perceptron
    width      numbers a token; a multiple of ``heads``
    heads      of every attention
    patch      side of a square patch in pixels; it divides the image's height and width
    resize     side to which images are resized first (bicubic); None: as they are
    head       "linear" of the class token, or "sit": of the class token beside the mean of the others, with a hidden
               layer
    drop_path  probability of leaving out the last block for an image; earlier blocks in proportion, the first never
    mean, std  of pixels 0..255, for every channel or one each: (x - mean) / std enters
    """

    depth: int = 12
    width: int = 384
    heads: int = 6
    patch: int = 16
    resize: int | None = None
    head: Literal["linear", "sit"] = "linear"
    drop_path: float = 0.0
    mean: tuple[float, ...] = (127.5,)
    std: tuple[float, ...] = (63.75,)

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "patch"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        rule = f"a multiple of heads = {self.heads}, above 0"
        require(self.width >= 1 and self.width % self.heads == 0, "width", rule, self.width)
        require(self.head in ("linear", "sit"), "head", "'linear' or 'sit'", repr(self.head))
        require(0 <= self.drop_path < 1, "drop_path", "a probability in [0, 1)", self.drop_path)
        require(all(s > 0 for s in self.std), "std", "above 0", self.std)
        require(self.resize is None or self.resize >= 1, "resize", "1 or more pixels, or None", self.resize)

    def build(self, shape: tuple[int, int, int], num_classes: int, key: Key) -> VisionTransformer:
        """A network on images ``[N, *shape]``, initialised from ``key``."""
        require(len(shape) == 3 and min(shape) >= 1, "shape", "(C, H, W), each 1 or more", shape)
        height, width = (self.resize, self.resize) if self.resize else shape[1:]
        whole = height % self.patch == 0 and width % self.patch == 0
        require(whole, "patch", f"a divisor of the image's {height} and {width} pixels", self.patch)
        require(num_classes >= 1, "num_classes", "1 or more", num_classes)
        for name in ("mean", "std"):
            each = getattr(self, name)
            require(len(each) in (1, shape[0]), name, f"one number, or {shape[0]}, one a channel", each)
        with key.ambient():
            return VisionTransformer(self, (shape[0], height, width), num_classes)

    def scaled(self, partitions: int) -> ViT:
        """The network one of ``partitions`` base models uses: the multiple of ``heads`` nearest width/√partitions.

        At least one number a head; the cost of all together is about that of this network. A tie goes up.
        """
        require(partitions >= 1, "partitions", "1 or more", partitions)
        per_head = isqrt(4 * (self.width // self.heads) ** 2 // partitions)  # twice width/√partitions, by head, floored
        return replace(self, width=max(1, (per_head + 1) // 2) * self.heads)


class VisionTransformer(nn.Module):
    """Images [N, C, H, W], uint8 or float 0..255, to logits [N, K]."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ViT, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, across = shape
        self.config = config
        self.grid = (height // config.patch, across // config.patch)
        width, depth = config.width, config.depth
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None], persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], width))
        self.patch_embed = _Patches(channels, width, config.patch)
        drops = [config.drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.Sequential(*[_Block(width, config.heads, drop) for drop in drops])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = new_head(config, num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(_initialise)

    def features(self, images: Tensor) -> Tensor:
        """What the head takes, [N, width]; for a "sit" head [N, 2·width]."""
        # Constants, not the statistics of some data set: those would leak from one partition to another
        x = (images.to(self.pos_embed.dtype) - self.mean) / self.std
        if self.config.resize:
            x = interpolate(x, (self.config.resize, self.config.resize), mode="bicubic", align_corners=False)
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return torch.cat([x[:, 0], x[:, 1:].mean(1)], 1) if self.config.head == "sit" else x[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class _Attention(nn.Module):
    """``fused_attn`` and ``attn_drop`` are named as in timm, so that :func:`attentions` reads both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.fused_attn = True
        self.qkv = nn.Linear(width, 3 * width)
        self.attn_drop = nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            x = scaled_dot_product_attention(q, k, v)
        else:
            x = self.attn_drop((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(3)) @ v
        out: Tensor = self.proj(x.transpose(1, 2).reshape(count, tokens, width))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Perceptron(width)
        # Dropout of one number an image, which the block's output is multiplied by: stochastic depth
        self.drop_path = nn.Dropout(drop) if drop else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self.attn(self.norm1(x)))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, y: Tensor) -> Tensor:
        return y if isinstance(self.drop_path, nn.Identity) else y * self.drop_path(y.new_ones(len(y), 1, 1))


class _Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


def new_head(config: ViT, num_classes: int) -> nn.Module:
    """An untrained head, drawn from torch's global generator."""
    last = nn.Linear(config.width, num_classes)
    head = (
        last if config.head == "linear" else nn.Sequential(nn.Linear(2 * config.width, config.width), nn.GELU(), last)
    )
    return head.apply(_initialise)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


def first_blocks(model: VisionTransformer, depth: int, num_classes: int, key: Key) -> VisionTransformer:
    """A copy of ``model`` cut to its first ``depth`` blocks, none of which is ever left out, with a new head."""
    require(1 <= depth <= model.config.depth, "depth", f"in [1, {model.config.depth}], the network's blocks", depth)
    copy = deepcopy(model)
    copy.config = replace(model.config, depth=depth, drop_path=0.0)
    copy.blocks = nn.Sequential(*list(copy.blocks)[:depth])
    for block in copy.blocks:
        block.drop_path = nn.Identity()
    with key.ambient():
        copy.head = new_head(copy.config, num_classes).to(copy.pos_embed.device)
    return copy


@torch.no_grad()
def load_weights(model: VisionTransformer, tensors: Mapping[str, Tensor]) -> list[str]:
    """Give ``model`` the weights of a network of timm's names; what it keeps of its own is returned, by name.

    Deeper blocks than the model has are left out, a head of other shape is not taken, and position embeddings of
    another grid are resized (bicubic), as Dosovitskiy et al. do. Raises DataError where any other tensor is missing
    or of another shape.
    """
    state, kept = model.state_dict(), []
    for name, own in state.items():
        found = tensors.get(name)
        if name == "pos_embed" and found is not None and found.shape[1] != own.shape[1]:
            found = _resized(found, model.grid)
        if name.startswith("head.") and (found is None or found.shape != own.shape):
            kept.append(name)
            continue
        got = "none" if found is None else list(found.shape)
        require(
            found is not None and found.shape == own.shape, name, f"of shape {list(own.shape)}", got, error=DataError
        )
        own.copy_(cast(Tensor, found))
    return kept


def _resized(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings [1, 1+s·s, width] for another grid of patches."""
    side = isqrt(positions.shape[1] - 1)
    require(
        side * side == positions.shape[1] - 1, "pos_embed", "of 1 + s·s positions", positions.shape[1], "", DataError
    )
    first, rest = positions[:, :1], positions[:, 1:]
    picture = rest.view(1, side, side, -1).permute(0, 3, 1, 2).float()
    picture = interpolate(picture, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, picture.flatten(2).transpose(1, 2).to(first.dtype)], 1)


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[nn.Module]:
    """``model`` with attention in single steps, which can be differentiated twice; fused again afterwards.

    For any network whose attentions have ``fused_attn``, as here and in timm; of others it changes nothing.
    """
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield model
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


@contextmanager
def attentions(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after a forward pass in the block, the attention [B, heads, T, T] of every layer, in order.

    Raises ArgumentError for a network without layers named ``attn_drop`` as here and in timm.
    """
    layers = [module for name, module in model.named_modules() if name.endswith("attn_drop")]
    require(len(layers) > 0, "model", "a vision transformer of poisonkit or timm", type(model).__name__)
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda layer, inputs, out: seen.append(out)) for layer in layers]
    try:
        with explicit_attention(model):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
