"""The weighted-sum hash on int8 tensor cores, exactly (Triton).

A weight below 2^49 is seven balanced base-256 digits in [-128, 127], and a pixel x is the int8 number x - 128, so

    sum_d w_d x_d  =  sum_c 256^c (sum_d digit_cd (x_d - 128)  +  128 sum_d digit_cd),

where the inner sums are columns of one int8 matrix product. Two vectors of eight digits (the eighth is zero) fill the
sixteen columns a tensor-core tile has, so ``x`` is read once for two vectors. Every number stays in integers.

Imported on first use: nothing else needs Triton. ``TRITON_INTERPRET=1`` must be set before the import to run without
a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

DIGITS = 8  # bytes of an int64
PAIR = 2  # vectors per pass over x

# Fixed rather than autotuned: one result and one speed per device, and the interpreter has no device to tune on.
# A stage is 32 KB of x in pieces of 256 bytes. Triton keeps two, and two programs fit an SM with 164 KB of shared
# memory: 64 to 128 KB of loads in flight, where about 32 KB cover the latency of Hopper's memory. Not timed yet.
BLOCK_N = 128
BLOCK_K = 256
WARPS = 8
STAGES = 3
CHUNK = 1 << 16  # |digit (x - 128)| <= 2^14: 2^16 terms stay within int32


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x,
    digits,
    bias,
    out,
    N,
    D,
    K,
    V,
    row_stride,
    pairs,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    # The pairs of one block of rows run side by side, so that the second finds x in L2.
    pid = tl.program_id(0)
    pair = pid % pairs
    rows = (pid // pairs).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, 16)
    ks = tl.arange(0, BLOCK_K)

    x_rows = x + rows[:, None] * row_stride
    digit_rows = digits + (pair * 16 + columns).to(tl.int64)[None, :] * K
    inside = rows[:, None] < N
    total = tl.zeros((BLOCK_N, 16), tl.int64) + tl.load(bias + pair * 16 + columns)[None, :]
    for start in range(0, K, CHUNK):
        sums = tl.zeros((BLOCK_N, 16), tl.int32)
        for k in range(start, min(start + CHUNK, K), BLOCK_K):
            # K is D rounded up to whole blocks with digits of zero, so what a masked pixel holds does not matter.
            pixels = tl.load(x_rows + (k + ks)[None, :], mask=inside & ((k + ks)[None, :] < D), other=0)
            signed = (pixels ^ 0x80).to(tl.int8, bitcast=True)  # x - 128
            sums = tl.dot(signed, tl.load(digit_rows + (k + ks)[:, None]), sums, out_dtype=tl.int32)
        total += sums

    # low + 2^32 high, and 2^48 = -21 (mod p): split high at bit 16, then fold what lies above bit 48 once more.
    shifted = total << (columns % 4 * 8).to(tl.int64)[None, :]
    low, high = tl.split(tl.sum(tl.reshape(shifted, (BLOCK_N, 2, 2, 4)), axis=3))
    value = low + ((high & 0xFFFF) << 32) - 21 * (high >> 16)
    value = (value & 0xFFFFFFFFFFFF) - 21 * (value >> 48)
    value = tl.where(value < 0, value + 0x1000000000015, value)
    value = tl.where(value >= 0x1000000000015, value - 0x1000000000015, value)

    vectors = pair * 2 + tl.arange(0, 2)
    tl.store(out + rows[:, None] * V + vectors[None, :], value, mask=inside & (vectors[None, :] < V))


def weighted_sum_hash(x: Tensor, weights: Tensor) -> Tensor:
    """``sum_d weights[v, d] x[n, d] mod 2^48+21`` of uint8 ``x`` [N, D] and int64 ``weights`` [V, D], as int64 [N, V].

    The arguments are those the op has checked, on one device; the rows of ``x`` may be strided. With D up to 2^20 a
    column is below 2^35 and, shifted by three bytes at most, below 2^59.
    """
    N, D = x.shape
    V = weights.shape[0]
    out = torch.empty(N, V, dtype=torch.int64, device=x.device)
    if out.numel() == 0:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    pairs = triton.cdiv(V, PAIR)
    digits = _digits(weights, pairs)
    bias = 128 * digits.sum(1, dtype=torch.int64)
    # Triton launches on the current device, which need not be that of x.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _kernel[(triton.cdiv(N, BLOCK_N) * pairs,)](
            *(x, digits, bias, out),
            *(N, D, digits.shape[1], V, x.stride(0), pairs),
            BLOCK_N=BLOCK_N,
            BLOCK_K=BLOCK_K,
            CHUNK=CHUNK,
            num_warps=WARPS,
            num_stages=STAGES,
            enable_fp_fusion=False,  # there is nothing to fuse; Triton 3.9 warns where it is not said
        )
    return out


def _digits(weights: Tensor, pairs: int) -> Tensor:
    """Balanced base-256 digits of [V, D] weights: int8 [16 pairs, K], zero beyond V and D."""
    V, D = weights.shape
    # Adding 128 to every byte carries what a digit above 127 owes the next one; the bytes are then digits plus 128.
    shifted = weights.contiguous() + (0x8080808080808080 - (1 << 64))
    digits = weights.new_zeros(PAIR * pairs, DIGITS, triton.cdiv(D, BLOCK_K) * BLOCK_K, dtype=torch.int8)
    digits[:V, :, :D] = (shifted.view(torch.int8).view(V, D, DIGITS) ^ -128).transpose(1, 2)
    return digits.view(PAIR * pairs * DIGITS, -1)
