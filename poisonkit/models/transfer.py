"""A trained network made ready to be trained on other rows, with a last layer drawn anew.

``poisonkit.train.fit(data, recipe, key=key, model=...)`` then trains what has ``requires_grad``, and so does every
defense that takes a ``model``.
"""

from __future__ import annotations

from copy import deepcopy

from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm

from poisonkit.models.features import head
from poisonkit.random import Key


class FixedBatchNorm(nn.BatchNorm2d):
    """A batch norm that goes by its running statistics in training too, and leaves them as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


def for_transfer(model: nn.Module, key: Key, num_classes: int | None = None) -> nn.Module:
    """A copy of ``model`` of which only the last layer, drawn anew, is trained: its features are fixed.

    So are the running statistics of batch norms, which training would move even where no weight does.
    """
    model = for_finetuning(model, key, num_classes)
    last = head(model)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is own for own in last.parameters()))
    for name, norm in list(model.named_modules()):
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            fixed = FixedBatchNorm(norm.num_features, norm.eps, affine=norm.affine, device=norm.running_mean.device)
            fixed.load_state_dict(norm.state_dict())
            _put(model, name, fixed.requires_grad_(False))
    return model


def for_finetuning(model: nn.Module, key: Key, num_classes: int | None = None) -> nn.Module:
    """A copy of ``model`` with a last layer drawn anew, of ``num_classes`` if given; all of it is trained."""
    model = deepcopy(model).requires_grad_(True)
    old = head(model)
    name = next(name for name, module in model.named_modules() if module is old)
    with key.ambient():
        new = nn.Linear(old.in_features, num_classes or old.out_features, old.bias is not None)
    _put(model, name, new.to(old.weight))
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    model.get_submodule(parent).add_module(child, module)
