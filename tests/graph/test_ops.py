"""The advisor:: operators against ONNX's own reference implementation."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from advisor.errors import UsageError
from advisor.passes import ops

KINDS = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int4": TensorProto.INT4,
    "int2": TensorProto.INT2,
}


def reference(
    op: str, data: Any, scale: Any, zero_point: Any = None, kind: str = "uint8", **attributes: int
) -> np.ndarray[Any, Any]:
    """Evaluate one QuantizeLinear or DequantizeLinear with onnx.reference."""
    constants = [numpy_helper.from_array(np.asarray(scale, np.float32), "s")]
    names = ["x", "s"]
    if zero_point is not None:
        zero = np.atleast_1d(zero_point)
        shape = np.shape(zero_point)
        constants.append(helper.make_tensor("z", KINDS[kind], shape, zero.flatten().tolist()))
        names.append("z")
    if op == "DequantizeLinear":
        constants.append(
            helper.make_tensor("x", KINDS[kind], data.shape, data.flatten().astype(int).tolist())
        )
    inputs = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
        if op == "QuantizeLinear"
        else []
    )
    output = KINDS[kind] if op == "QuantizeLinear" else TensorProto.FLOAT
    node = helper.make_node(op, names, ["y"])
    node.attribute.extend(helper.make_attribute(name, n) for name, n in attributes.items())
    graph = helper.make_graph(
        [node],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", output, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)])
    feed = {"x": data} if op == "QuantizeLinear" else {}
    found: Any = ReferenceEvaluator(model).run(None, feed)
    return np.asarray(found[0])


@pytest.mark.parametrize(("dtype", "zero_point"), [("uint8", 128), ("uint8", 0), ("int8", -3)])
def test_quantize_static_rounds_halves_to_even_and_saturates(dtype: str, zero_point: int) -> None:
    halves = np.arange(-20, 21, dtype=np.float32) / 2 * np.float32(0.25)
    wild = np.array([1e6, -1e6, 0.0, 31.9, -32.1], dtype=np.float32)
    x = np.concatenate([halves, wild, np.random.default_rng(0).normal(0, 9, 500)], dtype=np.float32)
    found = ops.QUANTIZE_STATIC(torch.from_numpy(x), 0.25, zero_point, dtype)
    zero = np.array(zero_point, np.uint8 if dtype == "uint8" else np.int8)
    wanted = reference("QuantizeLinear", x, 0.25, zero, dtype)
    assert found.dtype == ops.storage_dtype(dtype)
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_quantize_static_divides_by_the_float32_scale() -> None:
    # 0.3 is not a float32; and x / s differs from x * (1 / s) just at some halves
    scale = 0.3
    x = torch.arange(-400, 400, dtype=torch.float32) * torch.tensor(0.15)
    wanted = reference("QuantizeLinear", x.numpy(), np.float32(scale), np.uint8(7))
    found = ops.QUANTIZE_STATIC(x, scale, 7, "uint8")
    np.testing.assert_array_equal(found.numpy(), wanted)
    reciprocal = (torch.round(x * (1 / torch.tensor(scale))) + 7).clamp(0, 255).to(torch.uint8)
    assert bool((found != reciprocal).any())


def test_dequantize_static_equals_onnx() -> None:
    q = np.arange(256, dtype=np.uint8)
    wanted = reference("DequantizeLinear", q, 0.1, np.uint8(77))
    found = ops.DEQUANTIZE_STATIC(torch.from_numpy(q), 0.1, 77)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("dtype", ["int8", "int4", "int2"])
@pytest.mark.parametrize(("axis", "block"), [(0, 0), (1, 0), (1, 4), (0, 2)])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_dequantize_affine_equals_onnx(dtype: str, axis: int, block: int, asymmetric: bool) -> None:
    rng = np.random.default_rng(axis + 10 * block)
    low, high = ops.INTEGER_RANGE[dtype]
    q = rng.integers(low, high + 1, (6, 8)).astype(np.int8)
    shape = [6, 8]
    shape[axis] = shape[axis] // block if block else shape[axis]
    scale_shape = tuple(shape) if block else (q.shape[axis],)
    scale = rng.uniform(0.01, 1, scale_shape).astype(np.float32)
    zero = rng.integers(low, high + 1, scale_shape).astype(np.int8) if asymmetric else None
    attributes = {"axis": axis} | ({"block_size": block} if block else {})
    wanted = reference("DequantizeLinear", q, scale, zero, dtype, **attributes)
    found = ops.DEQUANTIZE_AFFINE(
        torch.from_numpy(q),
        torch.from_numpy(scale),
        None if zero is None else torch.from_numpy(zero),
        axis,
        block,
        dtype,
    )
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_dequantize_affine_with_one_scale_and_a_negative_axis() -> None:
    q = torch.tensor([[-8, 7], [3, 0]], dtype=torch.int8)
    whole = ops.DEQUANTIZE_AFFINE(q, torch.tensor(0.5), None, 0, 0, "int4")
    assert whole.tolist() == [[-4.0, 3.5], [1.5, 0.0]]
    scale = torch.tensor([[1.0], [2.0]])
    last = ops.DEQUANTIZE_AFFINE(q, scale, None, -1, 2, "int4")
    assert last.tolist() == [[-8.0, 7.0], [6.0, 0.0]]


def test_fake_kernels_promise_what_the_real_ones_give() -> None:
    q = torch.randint(-8, 8, (4, 6), dtype=torch.int8)
    for args in (
        (ops.DEQUANTIZE_AFFINE, (q, torch.rand(4, 3), None, 1, 2, "int4")),
        (ops.QUANTIZE_STATIC, (torch.rand(3, 5), 0.1, 3, "int8")),
        (ops.DEQUANTIZE_STATIC, (torch.zeros(3, 5, dtype=torch.uint8), 0.1, 3)),
    ):
        operator, values = args
        assert isinstance(operator, torch._ops.OpOverload)
        torch.library.opcheck(operator, values, test_utils=("test_schema", "test_faketensor"))


def test_unknown_dtype_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'int3' is not an integer dtype; these are: int8"):
        ops.QUANTIZE_STATIC(torch.zeros(2), 0.1, 0, "int3")


def test_registration_is_idempotent_and_metadata_survives_export() -> None:
    importlib.reload(ops)
    ops.register()

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = ops.QUANTIZE_STATIC(x, 0.1, 3, "uint8")
            return ops.DEQUANTIZE_STATIC(q, 0.1, 3)

    program = torch.export.export(Model(), (torch.randn(2, 3),))
    for node in program.graph.nodes:
        node.meta["custom"] = {"advisor_name": node.name}
    again = torch.export.export(program.module(check_guards=False), (torch.randn(2, 3),))
    names = {n.target: n.meta["custom"] for n in again.graph.nodes if n.op == "call_function"}
    assert names == {
        ops.QUANTIZE_STATIC: {"advisor_name": "quantize_static"},
        ops.DEQUANTIZE_STATIC: {"advisor_name": "dequantize_static"},
    }


def test_onnx_has_the_two_bit_type_the_target_relies_on() -> None:
    assert onnx.TensorProto.INT2 == 26
