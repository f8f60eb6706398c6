"""The weighted-sum hash as one would write it in torch: apart, since a GPU's machine may lack what CPU peers need."""

from __future__ import annotations

import torch
from torch import Tensor

P = 2**48 + 21
LOW_24 = 2**24 - 1


def torch_int64(x: Tensor, weights: Tensor) -> Tensor:
    """The hash as two int64 matrix products, of the weights' upper 24 or 25 bits and lower 24."""
    pixels = x.long()
    high, low = pixels @ (weights >> 24).T, pixels @ (weights & LOW_24).T
    # 2^24 high = 2^48 (high >> 24) + ..., and 2^48 = -21 (mod p)
    return (low + ((high & LOW_24) << 24) - 21 * (high >> 24)) % P


def torch_int_mm(x: Tensor, weights: Tensor) -> Tensor:
    """The hash as one int8 matrix product with the weights' balanced digits, as the Triton kernel does it."""
    V, D = weights.shape
    digits = (weights + (0x8080808080808080 - 2**64)).view(torch.int8).view(V, D, 8) ^ -128
    columns = digits.transpose(0, 1).reshape(D, V * 8)
    sums = torch._int_mm(x.view(torch.int8) ^ -128, columns).long() + 128 * columns.sum(0, dtype=torch.int64)
    low, high = (sums.view(-1, V, 2, 4) << torch.arange(0, 32, 8, device=x.device)).sum(-1).unbind(-1)
    return (low + ((high & 0xFFFF) << 32) - 21 * (high >> 16)) % P
