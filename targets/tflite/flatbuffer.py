"""A TFLite flatbuffer as objects that can be edited: the official schema behind a few verbs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, Final

import numpy as np

from advisor.errors import PlanError
from advisor.targets.tflite.packages import load

Array = np.ndarray[Any, Any]

UTILITIES: Final = "ai_edge_litert.tools.flatbuffer_utils"


def schema() -> Any:
    """The classes that flatc generates from the official schema; they come without types."""
    return load("ai_edge_litert.schema_py_generated")


class FlatModel:
    """One model: its tensors, operators and buffers by index, all of subgraph 0."""

    def __init__(self, content: bytes) -> None:
        """content: the flatbuffer.

        Raises:
            PlanError: it is no TFLite model.
        """
        if content[4:8] != b"TFL3":
            raise PlanError("the file is no TFLite model; compile the plan again")
        self.tree: Any = load(UTILITIES).read_model_from_bytearray(content)
        self.graph: Any = self.tree.subgraphs[0]
        self._types = _names(schema().TensorType)
        self._codes = _names(schema().BuiltinOperator)

    def to_bytes(self) -> bytes:
        """The flatbuffer, without tensors and buffers that nothing uses."""
        self._drop_unused()
        return self.pack()

    def pack(self) -> bytes:
        """The flatbuffer as it is, so that every index stays."""
        return bytes(load(UTILITIES).convert_object_to_bytearray(self.tree))

    @property
    def operators(self) -> list[Any]:
        """Operators in execution order."""
        found: list[Any] = self.graph.operators
        return found

    def code(self, operator: Any) -> str:
        """Name of an operator's kind: "CONV_2D"."""
        entry = self.tree.operatorCodes[operator.opcodeIndex]
        return self._codes[max(entry.builtinCode, entry.deprecatedBuiltinCode)]

    def custom_code(self, operator: Any) -> str:
        """Name of a custom operator, "" of a built-in one."""
        text: bytes | None = self.tree.operatorCodes[operator.opcodeIndex].customCode
        return "" if text is None else text.decode()

    def tensor(self, index: int) -> Any:
        """The tensor's record."""
        return self.graph.tensors[index]

    def name(self, index: int) -> str:
        """The tensor's name."""
        found: bytes = self.graph.tensors[index].name
        return found.decode()

    def rename(self, index: int, name: str) -> None:
        """Give the tensor a name."""
        self.graph.tensors[index].name = name.encode()

    def shape(self, index: int) -> tuple[int, ...]:
        """The tensor's shape."""
        shape = self.graph.tensors[index].shape
        return () if shape is None else tuple(int(size) for size in shape)

    def dtype(self, index: int) -> str:
        """The tensor's type: "FLOAT32"."""
        return self._types[self.graph.tensors[index].type]

    def is_constant(self, index: int) -> bool:
        """Whether the tensor's values are in the file."""
        return self.data(index) is not None

    def data(self, index: int) -> bytes | None:
        """The bytes of a constant, None for a computed tensor."""
        data = self.tree.buffers[self.graph.tensors[index].buffer].data
        return bytes(data) if data is not None and len(data) else None

    def add_tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        *,
        data: bytes | None = None,
        quantization: Any = None,
    ) -> int:
        """A new tensor, a constant when it has data; its index."""
        tensor = schema().TensorT()
        tensor.shape = [int(size) for size in shape]
        tensor.type = getattr(schema().TensorType, dtype)
        tensor.buffer = 0 if data is None else self.add_buffer(data)
        tensor.name = name.encode()
        tensor.quantization = quantization
        tensor.hasRank = True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def add_twin(self, tensor: int, name: str) -> int:
        """A second tensor with the same contents under another name; its index."""
        twin = _copy_tensor(self.graph.tensors[tensor])
        twin.name = name.encode()
        self.graph.tensors.append(twin)
        return len(self.graph.tensors) - 1

    def add_buffer(self, data: bytes) -> int:
        """A new buffer; its index."""
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.tree.buffers.append(buffer)
        return len(self.tree.buffers) - 1

    def make_operator(self, code: str, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        """An operator without options that is not yet in the graph."""
        operator = schema().OperatorT()
        operator.inputs, operator.outputs = list(inputs), list(outputs)
        self.set_code(operator, code)
        return operator

    def set_code(self, operator: Any, code: str) -> None:
        """Make ``operator`` of this kind; ``set_versions`` says later in which version."""
        number = getattr(schema().BuiltinOperator, code)
        for index, entry in enumerate(self.tree.operatorCodes):
            if max(entry.builtinCode, entry.deprecatedBuiltinCode) == number:
                operator.opcodeIndex = index
                return
        entry = schema().OperatorCodeT()
        entry.builtinCode = number
        entry.deprecatedBuiltinCode = min(number, 127)
        entry.version = 1
        self.tree.operatorCodes.append(entry)
        operator.opcodeIndex = len(self.tree.operatorCodes) - 1

    def producers(self) -> dict[int, Any]:
        """By tensor index the operator that computes it."""
        return {int(out): op for op in self.operators for out in op.outputs}

    def replace_uses(self, old: int, new: int) -> None:
        """Let every operator, output and signature that uses tensor ``old`` use ``new``."""
        for operator in self.operators:
            operator.inputs = [new if int(i) == old else int(i) for i in operator.inputs]
        self.graph.outputs = [new if int(i) == old else int(i) for i in self.graph.outputs]
        for _, entry in self.signature():
            if entry.tensorIndex == old:
                entry.tensorIndex = new

    def signature(self) -> list[tuple[str, Any]]:
        """("input" or "output", entry) of every tensor of the model's one signature."""
        return [
            (kind, entry)
            for definition in _list(self.tree.signatureDefs)
            for kind, entries in (("input", definition.inputs), ("output", definition.outputs))
            for entry in _list(entries)
        ]

    def extract(
        self, operators: Iterable[Any], inputs: Sequence[int], outputs: Sequence[int]
    ) -> bytes:
        """A flatbuffer of these operators alone; this model stays as it is."""
        part = copy(self)
        part.tree, part.graph = copy(self.tree), copy(self.graph)
        part.tree.signatureDefs = part.tree.metadata = None
        part.tree.operatorCodes = [copy(code) for code in self.tree.operatorCodes]
        part.graph.tensors = [_copy_tensor(tensor) for tensor in self.graph.tensors]
        part.graph.operators = [copy(operator) for operator in operators]
        part.graph.inputs, part.graph.outputs = list(inputs), list(outputs)
        part.tree.subgraphs = [part.graph]
        return part.to_bytes()

    def set_metadata(self, name: str, value: Any) -> None:
        """Keep a value, as JSON, with the model under a name of its own."""
        entry = schema().MetadataT()
        entry.name = name.encode()
        entry.buffer = self.add_buffer(json.dumps(value, sort_keys=True).encode())
        self.tree.metadata = [*_list(self.tree.metadata), entry]

    def metadata(self, name: str) -> Any:
        """What ``set_metadata`` kept; None when there is nothing of that name."""
        for entry in _list(self.tree.metadata):
            if entry.name == name.encode():
                return json.loads(bytes(self.tree.buffers[entry.buffer].data))
        return None

    def _drop_unused(self) -> None:
        graph = self.graph
        used = {int(i) for op in graph.operators for i in (*op.inputs, *op.outputs) if i >= 0}
        used |= {int(i) for i in (*graph.inputs, *graph.outputs)}
        blocked = [found for i in used if (found := blocks_of(graph.tensors[i])) is not None]
        used |= {int(details.scales) for details in blocked}  # which no operator reads
        place = {old: new for new, old in enumerate(sorted(used))}
        for operator in graph.operators:
            operator.inputs = [place.get(int(i), -1) for i in operator.inputs]
            operator.outputs = [place[int(i)] for i in operator.outputs]
        graph.inputs = [place[int(i)] for i in graph.inputs]
        graph.outputs = [place[int(i)] for i in graph.outputs]
        for _, entry in self.signature():
            entry.tensorIndex = place[int(entry.tensorIndex)]
        for details in blocked:
            details.scales = place[int(details.scales)]
        graph.tensors = [graph.tensors[old] for old in sorted(used)]
        self._compact_buffers()
        self._drop_codes()

    def _compact_buffers(self) -> None:
        """Buffers in the order of their first use; 0 is the empty one by definition."""
        place: dict[int, int] = {0: 0}
        holders = [t for g in self.tree.subgraphs for t in g.tensors]
        holders += _list(self.tree.metadata)
        for holder in holders:
            holder.buffer = place.setdefault(int(holder.buffer), len(place))
        self.tree.buffers = [self.tree.buffers[old] for old in place]

    def _drop_codes(self) -> None:
        place: dict[int, int] = {}
        for graph in self.tree.subgraphs:
            for operator in graph.operators:
                index = int(operator.opcodeIndex)
                operator.opcodeIndex = place.setdefault(index, len(place))
        self.tree.operatorCodes = [self.tree.operatorCodes[old] for old in place]


def blocks_of(tensor: Any) -> Any:
    """How the scales of blocks are kept, None for a tensor without blocks."""
    details = None if tensor.quantization is None else tensor.quantization.details
    return details if hasattr(details, "scales") else None


def _list(entries: Any) -> list[Any]:
    """What may be left out of a file as an empty list."""
    return [] if entries is None else list(entries)


def _names(enumeration: type) -> dict[int, str]:
    members = vars(enumeration).items()
    return {value: name for name, value in members if isinstance(value, int)}


def _copy_tensor(tensor: Any) -> Any:
    """A tensor whose buffer and scales can be renumbered without touching the original."""
    made = copy(tensor)
    if tensor.quantization is not None:
        made.quantization = copy(tensor.quantization)
        made.quantization.details = copy(tensor.quantization.details)
    return made
