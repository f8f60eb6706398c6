"""Networks of timm and transformers, the real ones, behind this package's interface."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from poisonkit.defenses.guards import AttnBlock
from poisonkit.defenses.training import IEU
from poisonkit.errors import ArgumentError
from poisonkit.models import ViT, logits
from poisonkit.models.adapters import Adapted, from_timm
from poisonkit.models.vit import attentions, load_weights
from poisonkit.random import key
from poisonkit.train import Cosine, Recipe
from poisonkit.types import ImageDataset

SHAPE = (3, 32, 32)


def images(n: int = 4) -> Tensor:
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=key(1).generator())


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    """timm needs torchvision, whose only wheels want CUDA: what it registers is declared, so that it imports."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou) -> Tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    found.keep = library  # type: ignore[attr-defined]
    return found


def test_our_network_is_timms(timm: ModuleType) -> None:
    """The weights of one give the logits of the other, layer by layer the same names."""
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=5).eval()
    config = ViT(2, 192, 3, patch=8, mean=(127.5,), std=(127.5,))
    ours = config.build(SHAPE, 5, key(0)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert load_weights(ours, theirs.state_dict()) == []
    expected = theirs(images().float() / 127.5 - 1)
    torch.testing.assert_close(ours(images()), expected, rtol=1e-4, atol=1e-5)
    larger = timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, depth=3, num_classes=7)
    assert load_weights(ours, larger.state_dict()) == ["head.weight", "head.bias"]
    from timm.layers import resample_abs_pos_embed

    resized = resample_abs_pos_embed(larger.pos_embed, [4, 4])
    torch.testing.assert_close(ours.pos_embed, resized, rtol=1e-4, atol=1e-5)


def test_from_timm(timm: ModuleType) -> None:
    model = from_timm("vit_tiny_patch16_224", 5, key=key(0), img_size=32, depth=1, patch_size=8)
    assert model.side == 32
    assert logits(model, images()).shape == (4, 5)
    again = from_timm("vit_tiny_patch16_224", 5, key=key(0), img_size=32, depth=1, patch_size=8)
    assert torch.equal(logits(model, images()), logits(again, images()))
    with attentions(model) as maps:
        model(images())
    assert [each.shape for each in maps] == [(4, 3, 17, 17)]
    guarded = AttnBlock()(model, None, key=key(0))
    assert guarded.predict(images()).shape == (4,)
    with pytest.raises(ArgumentError, match=r"name must be one of timm.list_models\(\), got vit_nobody"):
        from_timm("vit_nobody", 5, key=key(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cait_xxs24_224", "deit_small_patch16_224", "pit_xs_224", "xcit_tiny_12_p16_224", "wide_resnet50_2"]
)
def test_the_papers_other_architectures_are_defended(timm: ModuleType, name: str) -> None:
    data = ImageDataset(images(4), torch.arange(4) % 2, ("a", "b"))
    recipe = Recipe(ViT(1, 8, 2, patch=8), 1, 2, "adamw", Cosine(1e-5), augment=None, channels_last=False)
    defense = IEU(poisoned=recipe, threshold=0.51, views=None)
    model = from_timm(name, 2, key=key(0))
    assert logits(defense(data, recipe, key=key(0), model=model), images()).isfinite().all()


def test_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=24, image_size=16, patch_size=8
    )
    config.num_labels = 5
    with key(0).ambient():
        network = transformers.ViTForImageClassification(config).eval()
    model = Adapted(network, side=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    x = nn.functional.interpolate(images().float() / 127.5 - 1, (16, 16), mode="bicubic")
    torch.testing.assert_close(logits(model, images()), network(x).logits.detach(), rtol=1e-4, atol=1e-5)
    data = ImageDataset(images(8), torch.arange(8) % 5, tuple("abcde"))
    recipe = Recipe(ViT(1, 8, 2, patch=8), 1, 4, "adamw", Cosine(1e-3), augment=None, channels_last=False)
    defended = IEU(poisoned=replace(recipe, epochs=1), threshold=0.3, views=None)(data, recipe, key=key(0), model=model)
    assert not torch.equal(logits(defended, images()), logits(model, images()))


def test_errors() -> None:
    with pytest.raises(ArgumentError, match="side must be 1 or more pixels, or None, got 0"):
        Adapted(nn.Identity(), side=0)
