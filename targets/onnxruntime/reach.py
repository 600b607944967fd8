"""What a value in an ONNX graph is computed from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def reads_inputs(value: ir.Value) -> bool:
    """Whether a value depends on more of the model's inputs than their sizes."""
    waiting, seen = [value], {id(value)}
    while waiting:
        now = waiting.pop()
        if now.is_graph_input():
            return True
        producer = now.producer()
        if producer is None or producer.op_type == "Shape":
            continue
        new = [each for each in producer.inputs if each is not None and id(each) not in seen]
        seen.update(map(id, new))
        waiting += new
    return False
