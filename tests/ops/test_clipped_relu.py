"""The clipped ReLU: hand-worked values, autograd's own derivatives, and the ways tensors reach it."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nan

from poisonkit import ops

INF = torch.inf
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
EVERY_ISA = pytest.mark.parametrize("isa", ops.isas())
EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}


def gradients(x, bound, grad):
    x, bound = x.detach().requires_grad_(), bound.detach().requires_grad_()
    y = ops.clipped_relu(x, bound)
    return (y.detach(), *torch.autograd.grad(y, (x, bound), grad))


def same(result, expected):
    torch.testing.assert_close(result, torch.tensor(expected, dtype=result.dtype), rtol=0, atol=0, equal_nan=True)


@EVERY_ISA
@EVERY_DTYPE
def test_hand_worked_values(isa, dtype):
    x = torch.tensor([[-1, 2, 1], [0.5, -3, 1], [3, 1.5, -1], [1, 0, 0]], dtype=dtype)
    bound = torch.tensor([1, 2, -0.5], dtype=dtype)
    grad = torch.tensor([[1, 2, 4], [8, 16, 32], [64, 128, 256], [512, 1024, 2048]], dtype=dtype)
    with ops.isa(isa):
        y, dx, dbound = gradients(x, bound, grad)
    same(y, [[0, 2, -0.5], [0.5, 0, -0.5], [1, 1.5, -0.5], [1, 0, -0.5]])
    same(dx, [[0, 0, 0], [8, 0, 0], [0, 128, 0], [0, 0, 0]])
    same(dbound, [64 + 512, 2, 4 + 32 + 256 + 2048])


# x, z: y, the share of the gradient that goes to x, and to z
EDGES = [
    ((1, 1), (1, 0, 1)),  # a tie is clipped
    ((0, 1), (0, 0, 0)),
    ((0, 0), (0, 0, 1)),  # z <= 0: the channel is constant, and all of its gradient is the bound's
    ((-1, 0), (0, 0, 1)),
    ((-1, -0.0), (0, 0, 1)),
    ((2, -1), (-1, 0, 1)),
    ((-2, -1), (-1, 0, 1)),
    ((INF, 1), (1, 0, 1)),
    ((INF, INF), (INF, 0, 1)),
    ((5, INF), (5, 1, 0)),
    ((-INF, 1), (0, 0, 0)),
    ((5, -INF), (-INF, 0, 1)),
    ((nan, 1), (nan, 0, 0)),
    ((nan, -1), (nan, 0, 0)),
    ((1, nan), (nan, 0, 0)),
    ((-1, nan), (nan, 0, 0)),
    ((nan, nan), (nan, 0, 0)),
]


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("planes", [False, True], ids=["rows", "planes"])
def test_ties_bounds_below_zero_nan_and_infinity(isa, dtype, planes):
    x, z = torch.tensor([numbers for numbers, _ in EDGES], dtype=dtype).T
    y, to_x, to_z = zip(*(expected for _, expected in EDGES), strict=True)
    x = x[None, :, None].expand(1, -1, 3).contiguous() if planes else x[None]
    times = 3 if planes else 1
    with ops.isa(isa):
        result, dx, dbound = gradients(x, z, torch.full_like(x, 2))
    same(result[0], [[value] * 3 for value in y] if planes else y)
    same(dx[0], [[2 * share] * 3 for share in to_x] if planes else [2 * share for share in to_x])
    same(dbound, [2 * times * share for share in to_z])


@EVERY_ISA
def test_gradients_are_selected_not_multiplied(isa):
    x, bound = torch.tensor([[-1.0, 0.5, 2.0]]).repeat(2, 1), torch.ones(3)
    grad = torch.tensor([[nan, nan, nan], [1, 2, 4]])
    with ops.isa(isa):
        _, dx, dbound = gradients(x, bound, grad)
    same(dx, [[0, nan, 0], [0, 2, 0]])
    same(dbound, [0, 0, nan])


@EVERY_ISA
def test_bounds_are_rounded_to_the_activations(isa):
    x = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)  # one step of bfloat16 apart
    bound = torch.tensor([1.001, 1.001])
    with ops.isa(isa):
        y, dx, dbound = gradients(x, bound, torch.ones_like(x))
    assert y.dtype == dx.dtype == torch.bfloat16
    assert dbound.dtype == torch.float32
    same(y, [[1, 1]])
    same(dx, [[0, 0]])
    same(dbound, [1, 1])


@EVERY_ISA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bounds_gradients_are_summed_in_float32(isa, dtype, layout):
    """10,000 and many ones: in 16 bits every one of them would be lost."""
    x = LAYOUTS[layout](torch.ones(64, 2, 8, 8, dtype=dtype))
    grad = torch.ones_like(x)
    grad[0, :, 0, 0] = 10_000 if dtype == torch.float16 else 9984
    with ops.isa(isa):
        *_, dbound = gradients(x, torch.ones(2), grad)
    same(dbound, [64 * 64 - 1 + grad[0, 0, 0, 0].item()] * 2)


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("layout", LAYOUTS)
def test_derivatives_are_autograds(isa, dtype, layout):
    """Away from ties, where torch splits them, torch's own formula has the same derivatives."""
    generator = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randn(5, 70, 6, 3, generator=generator).to(dtype))
    grad = torch.randn(5, 70, 6, 3, generator=generator).to(dtype)
    bound = (torch.rand(70, generator=generator) + 0.1).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, bound)]
    expected = torch.minimum(torch.relu(exact[0]), exact[1].view(-1, 1, 1))
    expected_dx, expected_dbound = torch.autograd.grad(expected, exact, grad.double())
    tie = x == bound.view(-1, 1, 1)
    half = torch.where(tie, grad, 0).double() / 2
    with ops.isa(isa):
        y, dx, dbound = gradients(x, bound, grad)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0)
    torch.testing.assert_close(dx.double(), expected_dx - half, rtol=0, atol=0)
    wanted = (expected_dbound + half.sum((0, 2, 3))).to(dtype)
    torch.testing.assert_close(dbound, wanted, rtol=max(1e-5, 2 * torch.finfo(dtype).eps), atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_shape_on_every_path_gives_the_bits_of_the_others(data):
    shape = [data.draw(st.integers(0, 4)), data.draw(st.integers(0, 300))]
    shape += data.draw(st.lists(st.integers(0, 20), max_size=2))
    dtype = data.draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x, grad = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    if len(shape) == 4 and data.draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    bound = torch.randn(shape[1], generator=generator)
    reference, *native = (isa for isa in ops.isas())
    with ops.isa(reference):
        y, dx, dbound = gradients(x, bound, grad)
    first = None
    for isa in native:
        with ops.isa(isa):
            results = gradients(x, bound, grad)
        assert torch.equal(results[0], y)
        assert torch.equal(results[1], dx)
        torch.testing.assert_close(results[2], dbound, rtol=1e-4, atol=1e-4)
        first = first or results
        assert torch.equal(results[2], first[2])


@EVERY_ISA
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(33, 130, 9, 9), (2000, 130, 1, 1)])
def test_any_number_of_threads_gives_the_same_bits(isa, layout, shape):
    generator = torch.Generator().manual_seed(0)
    x, grad = (LAYOUTS[layout](torch.randn(shape, generator=generator)) for _ in range(2))
    bound = torch.rand(130, generator=generator)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        with ops.isa(isa):
            results.append(gradients(x, bound, grad))
    native = slice(None) if isa != "reference" else slice(2)  # torch's own sums are not ours to promise
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result[native], results[0][native], strict=True))


@EVERY_ISA
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_dense_layouts_are_kept_and_others_become_contiguous(isa, layout, grad_layout):
    generator = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 5, generator=generator))
    grad = torch.randn(2, 3, 4, 5, generator=generator)
    bound = torch.rand(3, generator=generator)
    expected = gradients(x.contiguous(), bound, grad)
    kept = x if layout in ("contiguous", "channels_last") else x.contiguous()
    with ops.isa(isa):
        y = ops.clipped_relu(x, bound)
        dx, dbound = ops.clipped_relu_backward(LAYOUTS[grad_layout](grad), y, bound, True, True)
    assert y.stride() == dx.stride() == kept.stride()
    torch.testing.assert_close((y, dx, dbound), expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("frozen", ["none", "x", "bound", "both"])
def test_frozen_parts_get_no_gradient_and_only_the_output_is_saved(layout, frozen):
    x = LAYOUTS[layout](torch.randn(4, 3, 5, 5)).requires_grad_(frozen not in ("x", "both"))
    bound = torch.rand(3).requires_grad_(frozen not in ("bound", "both"))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        y = ops.clipped_relu(x, bound)
    if frozen == "both":
        assert not saved
        assert y.grad_fn is None
        return
    assert sorted({tensor.data_ptr() for tensor in saved}) == sorted({y.data_ptr(), bound.data_ptr()})
    _, dx, dbound = gradients(x, bound, torch.ones_like(x))
    y.sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (bound.grad is None) == (frozen == "bound")
    if x.grad is not None:
        assert torch.equal(x.grad, dx)
    if bound.grad is not None:
        assert torch.equal(bound.grad, dbound)


@EVERY_ISA
def test_what_is_not_asked_for_is_empty(isa):
    y, bound = torch.rand(2, 3), torch.rand(3)
    with ops.isa(isa):
        assert [t.numel() for t in ops.clipped_relu_backward(y, y, bound, True, False)] == [6, 0]
        assert [t.numel() for t in ops.clipped_relu_backward(y, y, bound, False, True)] == [0, 3]


@EVERY_ISA
def test_second_derivatives(isa):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    bound = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    with ops.isa(isa):
        assert torch.autograd.gradgradcheck(ops.clipped_relu, (x, bound))
        squares = (ops.clipped_relu(x, bound) ** 2).sum()
        slope, slope_of_bound = torch.autograd.grad(squares, (x, bound), create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, retain_graph=True)
        (curvature_of_bound,) = torch.autograd.grad(slope_of_bound.sum(), bound)
    z = bound.detach().view(-1, 1)
    same(curvature, (2.0 * ((x > 0) & (x < z))).tolist())
    same(curvature_of_bound, (2.0 * (x.clamp(min=0) >= z).sum((0, 2))).tolist())


def test_changing_the_output_before_the_backward_pass_is_noticed():
    x = torch.randn(2, 3, requires_grad=True)
    y = ops.clipped_relu(x, torch.ones(3))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_one_bound_for_all_channels_gets_the_sum_of_their_gradients():
    x = torch.tensor([[2.0, 3.0, 0.5]])
    bound = torch.ones(1, requires_grad=True)
    ops.clipped_relu(x, bound.expand(3)).backward(torch.tensor([[1.0, 2.0, 4.0]]))
    same(bound.grad, [3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_compiled_network_has_the_same_gradients(dtype, layout):
    """In one graph, forward and backward, with what surrounds the op fused as the compiler likes."""
    torch.manual_seed(0)
    x = LAYOUTS[layout](torch.randn(4, 3, 6, 6).to(dtype)).requires_grad_()
    bound = torch.rand(3, requires_grad=True)

    def network(x, bound):
        return (ops.clipped_relu(2 * x, bound) * x).square().sum()

    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(network(x, bound), (x, bound))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, bound), (x, bound)), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_inductor_network_has_the_same_gradients(layout):
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(3, 8, 3)
    x, bound = LAYOUTS[layout](torch.randn(4, 3, 9, 9)), torch.rand(8, requires_grad=True)

    def network(x):
        return (ops.clipped_relu(convolution(x), bound) * 2).square().sum()

    wanted = (bound, convolution.weight)
    expected = torch.autograd.grad(network(x), wanted)
    compiled = torch.compile(network, fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), wanted), expected, rtol=1e-4, atol=1e-4)


FORK = """
import os, signal, torch
from poisonkit import ops
torch.set_num_threads(2)
y, bound = torch.ones(64, 64, 32, 32), torch.ones(64)
expected = ops.clipped_relu_backward(y, y, bound, True, True)  # starts the parent's OpenMP threads
child = os.fork()
if child == 0:
    signal.alarm(20)
    torch.set_num_threads(1)  # torch's own threads are gone as well
    dx, dbound = ops.clipped_relu_backward(y, y, bound, True, True)
    os._exit(0 if torch.equal(dbound, expected[1]) else 1)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_does_not_wait_for_its_parents_threads():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORK], check=True, timeout=60)
