"""The Triton hash: its values in the interpreter, its machine code without a GPU, and both on a GPU where there is one.

The interpreter is chosen by TRITON_INTERPRET when Triton is imported, for the whole process. So its cases run in a
process of their own (this file as a script), and this one can compile for real.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

P = 2**48 + 21
# The 21 residues that six balanced digits cannot write, and their neighbours.
SEVEN_DIGITS = range(140185576636287, 140185576636310)


def big_integers(x, weights):
    rows, vectors = x.tolist(), weights.tolist()
    sums = [[sum(w * b for w, b in zip(v, row, strict=True)) % P for v in vectors] for row in rows]
    return torch.tensor(sums, dtype=torch.int64).reshape(len(rows), len(vectors))


def random_case(N, D, V, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (N, D), dtype=torch.uint8, generator=generator)
    return x, torch.randint(0, P, (V, D), generator=generator)


def cases():
    """Name -> (x, weights, CHUNK or None for the kernel's own)."""
    out = {}
    for N, D, V in [(0, 5, 2), (3, 0, 2), (3, 5, 0), (1, 1, 1), (127, 3, 2), (128, 2, 1), (129, 5, 3), (2, 9, 5)]:
        out[f"N={N} D={D} V={V}"] = (*random_case(N, D, V), None)
    for D in (255, 256, 257, 511, 512, 513, 784):
        out[f"block edge D={D}"] = (*random_case(3, D, 2), None)
    for D in (511, 512, 513, 1025):
        out[f"chunk edge D={D}"] = (*random_case(3, D, 2), 512)
    for pixel in (0, 127, 128, 255):
        for weight in (0, 1, 2**47, 2**48, P - 1):
            x = torch.full((2, 300), pixel, dtype=torch.uint8)
            out[f"pixels {pixel}, weights {weight}"] = (x, torch.full((2, 300), weight), None)
    # Digits and pixels of -128: one int32 sum over the row would be 2^32.
    out["int32 overflow"] = (torch.zeros(1, 2**18, dtype=torch.uint8), torch.full((1, 2**18), 128), None)
    special = torch.tensor([SEVEN_DIGITS, list(SEVEN_DIGITS)[::-1]])
    out["seven digits"] = (random_case(4, len(SEVEN_DIGITS), 2)[0], special, None)
    x, weights = random_case(8, 600, 4)
    out["strided rows"] = (x[::2, 3:], weights[:, 3:], None)
    out["strided columns"] = (x[:, ::2], weights[:, ::2], None)
    out["transposed"] = (x.T.contiguous().T, weights.T.contiguous().T, None)
    out["repeated row"] = (x[:1].expand(5, -1), weights, None)
    return out


CASES = cases()


@pytest.fixture(scope="module")
def interpreted():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernel_equals_big_integers(interpreted, name):
    x, weights, _ = CASES[name]
    assert interpreted[name] == big_integers(x, weights).tolist()


@pytest.mark.parametrize(("capability", "shared_limit"), [(80, 163), (90, 227), (100, 227)])
def test_compiles_to_int8_tensor_cores_and_wide_loads(capability, shared_limit, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from poisonkit.ops import weighted_sum_hash_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"x": "*u8", "digits": "*i8", "bias": "*i64", "out": "*i64"}
    integers = dict.fromkeys(("N", "D", "K", "V", "row_stride", "pairs"), "i32")
    constants = {name: getattr(module, name) for name in ("BLOCK_N", "BLOCK_K", "CHUNK")}
    signature = pointers | integers | dict.fromkeys(constants, "constexpr")
    aligned = {*pointers, "D", "K", "row_stride"}  # what a launch finds for contiguous rows of 16 n bytes
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in aligned}
    compiled = triton.compile(
        ASTSource(module._kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": module.WARPS, "num_stages": module.STAGES, "enable_fp_fusion": False},
    )
    ptx = compiled.asm["ptx"]

    assert 2 * (compiled.metadata.shared + 1024) <= (shared_limit + 1) * 1024  # two programs per SM; each pays 1 KB
    multiply = {
        80: r"mma\.sync\S*s32\.s8\.s8\.s32",
        90: r"wgmma\.mma_async\S*m64n16k32\.s32\.s8\.s8",
        100: r"mma\.sync\S*s32\.s8\.s8\.s32|tcgen05\.mma\S*kind::i8",  # the second since Triton 3.9
    }[capability]
    assert re.search(multiply, ptx)
    # Every copy from x and the digits to shared memory takes 16 bytes a thread (the narrow form is .ca with 4 or 8).
    assert set(re.findall(r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], (\w+)", ptx)) == {"0x10"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_gpu_kernel_equals_big_integers(name, monkeypatch):
    from poisonkit.ops import weighted_sum_hash_triton as module

    x, weights, chunk = CASES[name]
    monkeypatch.setattr(module, "CHUNK", chunk or module.CHUNK)
    assert torch.equal(module.weighted_sum_hash(x.cuda(), weights.cuda()).cpu(), big_integers(x, weights))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("D", [3072, 12288, 150528, 2**20])
def test_gpu_kernel_at_real_widths(D):
    from poisonkit.ops.weighted_sum_hash_triton import weighted_sum_hash

    x, weights = random_case(131, D, 2)
    x[0], weights[1] = 255, P - 1
    # Sums of 24-bit halves times pixels stay below 2^52 at these widths, so float64 is exact.
    halves = [(part.double() @ x.T.double()).long() for part in (weights >> 24, weights & 0xFFFFFF)]
    high, low = ([[int(v) for v in row] for row in half.T.tolist()] for half in halves)
    expected = [[((h << 24) + lo) % P for h, lo in zip(*pair, strict=True)] for pair in zip(high, low, strict=True)]
    assert weighted_sum_hash(x.cuda(), weights.cuda()).cpu().tolist() == expected


def main():
    from poisonkit.ops import weighted_sum_hash_triton as module

    own = module.CHUNK
    hashes = {}
    for name, (x, weights, chunk) in CASES.items():
        module.CHUNK = chunk or own
        hashes[name] = module.weighted_sum_hash(x, weights).tolist()
    json.dump(hashes, sys.stdout)


if __name__ == "__main__":
    main()
