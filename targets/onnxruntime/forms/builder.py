"""Adds nodes and constants to a model, next to the marker that they replace."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from advisor.targets.onnxruntime.tidy import NAME_PROPERTY, ROLE_PROPERTY

if TYPE_CHECKING:
    import onnx_ir as ir

MICROSOFT: Final = "com.microsoft"
"""Domain of ONNX Runtime's own operators (docs/ContribOperators.md in its repository)."""

Array = np.ndarray[Any, Any]


@dataclass(slots=True, kw_only=True)
class Builder:
    """Writes the nodes of one layer or tensor.

    before: the node that new nodes precede. name: stable name of the layer or tensor. used: how
    often a node name was given away.
    """

    model: ir.Model
    before: ir.Node
    name: str
    used: Counter[str]

    def node(
        self, op_type: str, inputs: list[ir.Value | None], *, role: str, **attributes: Any
    ) -> ir.Value:
        """One node with one output; see ``nodes``."""
        return self.nodes(op_type, inputs, role=role, outputs=1, **attributes)[0]

    def nodes(
        self,
        op_type: str,
        inputs: list[ir.Value | None],
        *,
        role: str,
        outputs: int,
        **attributes: Any,
    ) -> tuple[ir.Value, ...]:
        """One node; its outputs.

        role: "op" for the operator that stands for the layer, "weight" and "output" for what
        prepares its weight and follows it, "quantize" and "dequantize" for tensors.
        """
        import onnx_ir as ir

        base = self.name if role == "op" else f"{self.name}/{role}"
        self.used[base] += 1
        node = ir.node(
            op_type,
            inputs,
            attributes,
            domain=DOMAINS.get(op_type, ""),
            num_outputs=outputs,
            name=base if self.used[base] == 1 else f"{base}/{self.used[base]}",
            metadata_props={NAME_PROPERTY: self.name, ROLE_PROPERTY: role},
        )
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}/out" if index == 0 else f"{node.name}/out{index}"
        graph = self.model.graph
        graph.insert_before(self.before, node)
        return tuple(node.outputs)

    def constant(self, name: str, array: Array, kind: str = "") -> ir.Value:
        """An initializer, made once per name. kind: a narrow type, "INT4" or "INT2"."""
        import onnx_ir as ir

        known = self.model.graph.initializers.get(name)
        if known is not None:
            return known
        if kind:
            dtype = ir.DataType[kind]
            tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        else:
            # ascontiguousarray would make a vector of a scalar
            tensor = ir.tensor(np.array(array, order="C", copy=None), name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.model.graph.register_initializer(value)
        return value


MICROSOFT_OPERATORS: Final = frozenset(
    {
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulIntegerToFloat",
        "MatMulNBits",
    }
)
"""Operators of ONNX Runtime's own domain that are written here."""

DOMAINS: Final = {
    **dict.fromkeys(MICROSOFT_OPERATORS, MICROSOFT),
    "TRT_FP4DynamicQuantize": "trt",
}
"""Domain of every operator that is not ONNX's own."""
