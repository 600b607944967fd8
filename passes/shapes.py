"""Shapes and dtypes of every tensor at the deployment's batch and sequence, without computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from advisor.errors import CaptureError, InputError
from advisor.passes.blame import locate
from advisor.passes.fx import Tracer, flatten_inputs, placeholders
from advisor.passes.graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Shape and bytes per element of one activation tensor."""

    shape: tuple[int, ...]
    element_bytes: int
    is_float: bool

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes when stored densely in its own dtype."""
        return self.count * self.element_bytes


def deployment_inputs(graph: Graph, batch: int, sequence: int | None) -> list[Any]:
    """The example inputs, flat, repeated or cut to the deployment's batch and sequence.

    Raises:
        InputError: the model accepts only one batch size or one sequence length, and another
            was asked.
    """
    if graph.batch is not None and batch != graph.batch:
        raise InputError(
            f"batch {batch} was asked, but the model accepts only batch {graph.batch} "
            f"({'; '.join(graph.notes) or 'its batch is fixed'}); ask batch={graph.batch}"
        )
    wanted = {"batch": batch, "sequence": sequence}
    flat = flatten_inputs(graph.module, graph.args, graph.kwargs)
    _check_sequence(graph, flat, sequence)
    resized = list(flat)
    for index, node in enumerate(placeholders(graph.module)):
        for dim, label in graph.dynamic.get(node.name, {}).items():
            size = wanted.get(label)
            if size is not None and isinstance(resized[index], torch.Tensor):
                resized[index] = _resize(resized[index], dim, size)
    return resized


def _check_sequence(graph: Graph, flat: Sequence[Any], sequence: int | None) -> None:
    if sequence is None or any("sequence" in dims.values() for dims in graph.dynamic.values()):
        return
    lengths = [v.shape[1] for v in flat if isinstance(v, torch.Tensor) and v.ndim > 1]
    if sequence not in lengths:
        raise InputError(
            f"sequence {sequence} was asked, but the second dimension of the inputs is fixed at "
            f"{', '.join(map(str, lengths)) or 'nothing'} "
            f"({'; '.join(graph.notes) or 'there are no token ids'}); "
            "leave sequence out, or give inputs of that length"
        )


def infer_shapes(module: GraphModule, flat_inputs: Sequence[Any]) -> dict[str, TensorInfo]:
    """By node name, for every node that yields one tensor; nothing is computed or allocated.

    Raises:
        CaptureError: the shape of a tensor depends on values; names the module and the line.
        InputError: an operator refuses the shapes.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(module)
    try:
        with mode, torch.no_grad():
            fakes = pytree.tree_map_only(torch.Tensor, mode.from_tensor, list(flat_inputs))
            recorder.run(*fakes, enable_io_processing=False)
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise CaptureError(
            f"the result of {error.func} in {recorder.place} depends on tensor values, so that "
            "shapes are not known before it runs; rewrite it with torch.where or a mask on "
            "tensors of fixed shape"
        ) from error
    except (RuntimeError, ValueError, IndexError) as error:
        shapes = [tuple(v.shape) for v in flat_inputs if isinstance(v, torch.Tensor)]
        raise InputError(
            f"the model does not run on inputs of shapes {shapes}: {recorder.place} refuses "
            f"({str(error).strip().splitlines()[0]}); ask a batch and sequence it accepts"
        ) from error
    return recorder.found


class _Recorder(Tracer):
    """Shapes of what runs; ``place`` is the node last begun."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, TensorInfo] = {}
        self.place = "the model"

    def run_node(self, n: Node) -> Any:
        self.place = locate(n)
        return super().run_node(n)

    def observe(self, node: Node, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.found[node.name] = TensorInfo(
                shape=tuple(int(size) for size in value.shape),
                element_bytes=value.element_size(),
                is_float=value.is_floating_point(),
            )
        return value


def _resize(value: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    repeats = [1] * value.ndim
    repeats[dim] = -(-size // value.shape[dim])
    return value.repeat(repeats).narrow(dim, 0, size)
