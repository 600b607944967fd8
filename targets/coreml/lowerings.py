"""What the operators of a quantized graph become in MIL: one function each.

No number is computed here: integers, tables and scales are those of the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from advisor.targets.coreml.packages import load
from advisor.targets.storedweight import pack_bits

LINEAR_RANK: Final = 3
"""Most dimensions that MIL's linear takes."""

STORED: Final = {"int8": "int8", "uint8": "uint8", "int4": "int4", "uint4": "uint4"}
"""MIL's type for integers of a weight."""


def register_lowerings() -> None:
    """Teach coremltools the operators; the second time replaces them by the same."""
    register = load("coremltools.converters.mil.frontend.torch.torch_op_registry").register_torch_op
    for name, function in LOWERINGS.items():
        namespace, _, short = name.partition("::")
        register(torch_alias=[name, f"{namespace}.{short}"], override=True)(_named(short, function))


def _named(short: str, function: Callable[[Any, Any, list[Any]], None]) -> Callable[..., None]:
    """The function as the registry wants it, under a name that no operator of torch has."""
    get_inputs = load("coremltools.converters.mil.frontend.torch.ops")._get_inputs

    def lower(context: Any, node: Any) -> None:
        function(context, node, get_inputs(context, node))

    lower.__name__ = f"advisor_{short}"
    return lower


def _lower_affine(context: Any, node: Any, inputs: list[Any]) -> None:
    mb, types = _builder(), _types()
    values, scale, zero_point, axis, block, dtype = inputs
    integers = np.asarray(values.val)
    scales = np.asarray(scale.val, dtype=np.float32)
    if not int(_plain(block)):
        shape = [1] * integers.ndim
        if scales.ndim:
            shape[int(_plain(axis))] = -1
        scales = scales.reshape(shape)
    offset = None if zero_point is None else np.asarray(zero_point.val).reshape(scales.shape)
    if not _has_blocks():
        made = _affine_of_ios16(integers, scales, offset, int(_plain(axis)), node.name)
    else:
        stored = types.nptype_from_builtin(types.string_to_builtin(STORED[str(_plain(dtype))]))
        more = {} if offset is None else {"offset": offset.astype(stored)}
        made = mb.constexpr_blockwise_shift_scale(
            data=integers.astype(stored), scale=scales, name=node.name, **more
        )
    context.add(made, torch_name=node.name)


def _affine_of_ios16(
    integers: np.ndarray[Any, Any],
    scales: np.ndarray[Any, Any],
    offset: np.ndarray[Any, Any] | None,
    axis: int,
    name: str,
) -> Any:
    """One scale per index of an axis; 8 bits only, which is all that older systems have."""
    zero = np.zeros(()) if offset is None else offset.reshape(-1)
    return _builder().constexpr_affine_dequantize(
        quantized_data=integers,
        zero_point=zero.astype(integers.dtype),
        scale=scales.reshape(-1),
        axis=axis,
        name=name,
    )


def _lower_lut(context: Any, node: Any, inputs: list[Any]) -> None:
    mb, types = _builder(), _types()
    values, table, scale, bits = inputs
    indices = np.asarray(values.val).astype(np.uint8)
    entries = np.asarray(table.val)
    width = int(_plain(bits))
    if not _has_blocks():
        made = mb.constexpr_lut_to_dense(
            indices=pack_bits(indices, width),
            lut=entries.reshape(-1),
            shape=np.array(indices.shape, dtype=np.uint32),
            name=node.name,
        )
    else:
        stored = types.nptype_from_builtin(types.string_to_builtin(f"uint{width}"))
        shape = (len(entries), *[1] * (indices.ndim - 1), entries.shape[1], 1)
        lut: Any = entries.reshape(shape)
        if scale is not None:
            scales = np.asarray(scale.val, dtype=np.float32)
            lut = mb.constexpr_blockwise_shift_scale(
                data=lut.astype(np.int8),
                scale=scales.reshape(-1, *[1] * (indices.ndim + 1)),
                name=f"{node.name}_table",
            )
        made = mb.constexpr_lut_to_dense(indices=indices.astype(stored), lut=lut, name=node.name)
    context.add(made, torch_name=node.name)


def _lower_quantize(context: Any, node: Any, inputs: list[Any]) -> None:
    x, scale, zero_point, dtype = inputs
    kind = str(_plain(dtype))
    made = _builder().quantize(
        input=x,
        scale=np.float32(_plain(scale)),
        output_dtype=kind,
        name=node.name,
        **_zero_point(zero_point, kind),
    )
    context.add(made, torch_name=node.name)


def _lower_dequantize(context: Any, node: Any, inputs: list[Any]) -> None:
    q, scale, zero_point = inputs
    kind = "int8" if q.dtype == _types().int8 else "uint8"
    made = _builder().dequantize(
        input=q,
        scale=np.float32(_plain(scale)),
        name=node.name,
        **_zero_point(zero_point, kind),
    )
    context.add(made, torch_name=node.name)


def _lower_linear(context: Any, node: Any, inputs: list[Any]) -> None:
    mb = _builder()
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    more = {} if bias is None else {"bias": bias}
    if len(x.shape) <= LINEAR_RANK:
        made = mb.linear(x=x, weight=weight, name=node.name, **more)
    else:
        rows = mb.reshape(x=x, shape=[-1, x.shape[-1]], name=f"{node.name}_rows")
        flat = mb.linear(x=rows, weight=weight, name=node.name, **more)
        shape = [*x.shape[:-1], weight.shape[0]]
        made = mb.reshape(x=flat, shape=shape, name=f"{node.name}_shaped")
    context.add(made, torch_name=node.name)


def _lower_gelu_tanh(context: Any, node: Any, inputs: list[Any]) -> None:
    made = _builder().gelu(x=inputs[0], mode="TANH_APPROXIMATION", name=node.name)
    context.add(made, torch_name=node.name)


LOWERINGS: Final[dict[str, Callable[[Any, Any, list[Any]], None]]] = {
    "advisor::dequantize_affine": _lower_affine,
    "advisor::dequantize_lut": _lower_lut,
    "advisor::quantize_static": _lower_quantize,
    "advisor::dequantize_static": _lower_dequantize,
    "advisor_targets::linear": _lower_linear,
    "advisor_coreml::gelu_tanh": _lower_gelu_tanh,
}
"""By operator: (context, node, inputs) adds what it becomes."""


def _zero_point(value: Any, dtype: str) -> dict[str, Any]:
    zero = int(_plain(value))
    return {"zero_point": np.dtype(dtype).type(zero)} if zero else {}


def _plain(value: Any) -> Any:
    """An argument that is no tensor: coremltools hands over some as they are."""
    return value if isinstance(value, (str, int, float)) else value.val


def _has_blocks() -> bool:
    """Whether the deployment has the compression operators of iOS18."""
    targets = load("coremltools.converters.mil._deployment_compatibility").AvailableTarget
    is_within = load(
        "coremltools.converters.mil.mil.block"
    ).is_current_opset_version_compatible_with
    return bool(is_within(targets.iOS18))


def _builder() -> Any:
    return load("coremltools.converters.mil").Builder


def _types() -> Any:
    return load("coremltools.converters.mil.mil").types
