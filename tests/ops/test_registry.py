"""Four nets for every op: opcheck, gradcheck, poisoned memory, and every path against the reference."""

import re

import pytest
import torch

from poisonkit import ops
from poisonkit.errors import ArgumentError
from poisonkit.ops.native import core, forced_isa

EVERY_OP = pytest.mark.parametrize("op", ops.OPS.values(), ids=list(ops.OPS))
EVERY_SAMPLE = pytest.mark.parametrize(
    ("op", "sample"),
    [
        pytest.param(op, sample, id=f"{name}-{index}")
        for name, op in ops.OPS.items()
        for index, sample in enumerate(op.samples())
    ],
)


def run(op, sample):
    return getattr(ops, op.name)(*sample)


@EVERY_SAMPLE
def test_opcheck(op, sample):
    torch.library.opcheck(getattr(torch.ops.poisonkit, op.name).default, sample)


@EVERY_OP
def test_gradcheck(op):
    if op.gradient is None:
        pytest.skip(f"{op.name} has no gradient")
    for sample in op.gradient.samples():
        floats = [torch.is_tensor(arg) and arg.is_floating_point() for arg in sample]
        inputs = [arg.double().requires_grad_() if f else arg for arg, f in zip(sample, floats, strict=True)]
        outputs = run(op, inputs)
        if torch.is_tensor(outputs):
            assert torch.autograd.gradcheck(getattr(ops, op.name), inputs)
        else:  # those with a gradient
            which = [i for i, output in enumerate(outputs) if output.requires_grad]
            assert torch.autograd.gradcheck(lambda *args: tuple(run(op, args)[i] for i in which), inputs)  # noqa: B023


@EVERY_SAMPLE
def test_every_byte_of_the_result_is_written(op, sample, monkeypatch):
    expected = op.reference(*sample)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(run(op, sample), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("op", "isa"),
    [pytest.param(op, isa, id=f"{op.name}-{isa}") for op in ops.OPS.values() for isa in op.isas or ("reference",)],
)
def test_every_path_equals_the_reference(op, isa):
    if op.native is None:
        pytest.skip(f"{op.name} has no native kernel")
    if core is None:
        pytest.skip("poisonkit was built without its C++ core")
    if isa not in ops.isas():
        pytest.skip(f"this processor has no {isa}")
    for sample in op.samples():
        with ops.isa(isa):
            result = run(op, sample)
        torch.testing.assert_close(result, op.reference(*sample))  # integers: equal


@pytest.mark.gpu
@EVERY_OP
def test_cuda_equals_the_reference(op):
    if not torch.cuda.is_available():
        pytest.skip("this machine has no CUDA device")
    if op.triton is None and op.native_cuda is None:
        pytest.skip(f"{op.name} has no CUDA kernel")
    for sample in op.samples():
        result = run(op, [arg.cuda() if torch.is_tensor(arg) else arg for arg in sample])
        torch.testing.assert_close(result, op.reference(*sample), check_device=False)


@EVERY_OP
@pytest.mark.parametrize("backend", ["MPS", "XPU", "PrivateUse1"])
def test_the_reference_is_there_on_every_device(op, backend):
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"poisonkit::{op.name}", backend)


@pytest.mark.parametrize(
    ("op", "reject"),
    [
        pytest.param(op, reject, id=f"{name}-{index}")
        for name, op in ops.OPS.items()
        for index, reject in enumerate(op.rejects)
    ],
)
def test_bad_arguments_are_refused(op, reject):
    with pytest.raises(reject.error, match=re.escape(reject.match)):
        run(op, reject.args())


@EVERY_OP
def test_the_docstring_reaches_the_user(op):
    call = getattr(ops, op.name)
    assert call.__doc__ == op.reference.__doc__
    assert "Source:" in call.__doc__


def test_only_a_path_of_this_machine_can_be_forced():
    assert ops.isas()[0] == "reference"
    for name in ("", "sse9"):
        with pytest.raises(ArgumentError, match="isa must be one of reference"), ops.isa(name):
            pass


def test_a_forced_path_ends_with_its_block():
    with ops.isa("reference"):
        assert forced_isa() == "reference"
    assert forced_isa() == ""


def test_build_info_says_what_is_there_or_why_not():
    info = ops.build_info()
    assert info["isas"] == ops.isas()
    for part in ("core", "cuda"):
        assert info[part]["built"] or info[part]["reason"]
