"""The Triton clipped ReLU: every sample in the interpreter, and its machine code without a GPU.

The interpreter is chosen by TRITON_INTERPRET when Triton is imported, for the whole process, so it runs in one of its
own: this file as a script. test_registry.py has the same samples on a GPU.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from poisonkit import ops

pytest.importorskip("triton", reason="triton is not installed")

NAMES = ("clipped_relu", "clipped_relu_backward")
NAN = torch.tensor([torch.nan, 1, -1, 0])


def cases():
    for name in NAMES:
        for index, sample in enumerate(ops.OPS[name].samples()):
            yield f"{name}-{index}", name, sample
    for layout, x in {"rows": NAN[:, None].repeat(1, 4), "planes": NAN.repeat(1, 4, 1)}.items():
        yield f"clipped_relu-nan-{layout}", NAMES[0], (x, NAN)
        y = ops.clipped_relu(x, NAN)
        yield f"clipped_relu_backward-nan-{layout}", NAMES[1], (torch.ones_like(y), y, NAN, True, True)


CASES = {case: (name, sample) for case, name, sample in cases()}


@pytest.fixture(scope="module")
def interpreted():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernel_equals_the_reference(interpreted, case):
    assert interpreted[case] == ""


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(80, "fp32"), (90, "fp32"), (100, "fp32"), (90, "bf16"), (90, "fp16"), (90, "fp64")],
)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_compiles_to_wide_loads_and_stores(name, last, capability, dtype, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from poisonkit.ops import clipped_relu_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    tensors = ("x", "bound", "y") if name == "_forward" else ("grad", "y", "bound", "dx")
    pointers = dict.fromkeys(tensors, f"*{dtype}")
    # Feature maps of 64 channels and 32 by 32 pixels
    constants = {"LAST": last, "ROWS": 64 if last else 4, "COLUMNS": 64 if last else 1024}
    if name == "_backward":
        pointers["sums"] = "*fp64" if dtype == "fp64" else "*fp32"
        constants |= {"FOR_X": True, "FOR_BOUND": True, "STEPS": module.STEPS if last else 1}
    signature = pointers | dict.fromkeys("ABC", "i32") | dict.fromkeys(constants, "constexpr")
    order = {argument: index for index, argument in enumerate(signature)}
    attributes = {(order[argument],): [["tt.divisibility", 16]] for argument in (*pointers, *"ABC")}
    compiled = triton.compile(
        ASTSource(getattr(module, name), signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": module.WARPS, "enable_fp_fusion": False},
    )
    ptx = compiled.asm["ptx"]
    moved = r"global\S*\.v4\.b32|global\S*\.v2\.b64|global\S*\.v8\.b32|global\S*\.v4\.b64"  # 16 bytes a thread, or 32
    loads, stores = (len(re.findall(rf"{kind}\.(?:{moved})", ptx)) for kind in ("ld", "st"))
    assert loads >= (1 if name == "_forward" else 2)
    assert stores >= 1
    assert "atom" not in ptx
    assert compiled.metadata.shared <= 48 * 1024


def main():
    from poisonkit.ops import clipped_relu_triton as module

    failures = {}
    for case, (name, sample) in CASES.items():
        # The interpreter takes subnormal bfloat16 for 0.
        tensors = [arg.clone() if torch.is_tensor(arg) else arg for arg in sample]
        for tensor in tensors:
            if torch.is_tensor(tensor) and tensor.dtype == torch.bfloat16:
                tensor[tensor.abs() < torch.finfo(torch.bfloat16).smallest_normal] = 0
        try:
            result, expected = getattr(module, name)(*tensors), ops.OPS[name].reference(*tensors)
            torch.testing.assert_close(result, expected, equal_nan=True)
            failures[case] = ""
        except AssertionError as error:
            failures[case] = str(error)
    json.dump(failures, sys.stdout)


if __name__ == "__main__":
    main()
