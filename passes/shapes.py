"""Shapes and dtypes of every tensor at the deployment's batch and sequence, without computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from advisor.errors import InputError
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
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def size_bytes(self) -> int:
        """Bytes when stored densely in its own dtype."""
        return self.count * self.element_bytes


def deployment_inputs(graph: Graph, batch: int, sequence: int | None) -> list[Any]:
    """The example inputs, flat, repeated or cut to the deployment's batch and sequence.

    Raises:
        InputError: the model accepts only one batch size and another was asked.
    """
    if graph.batch is not None and batch != graph.batch:
        raise InputError(
            f"batch {batch} was asked, but the model accepts only batch {graph.batch} "
            f"({'; '.join(graph.notes) or 'its batch is fixed'}); ask batch={graph.batch}"
        )
    wanted = {"batch": batch, "sequence": sequence}
    flat = flatten_inputs(graph.module, graph.args, graph.kwargs)
    resized: list[Any] = []
    for node, value in zip(placeholders(graph.module), flat, strict=True):
        for dim, label in graph.dynamic.get(node.name, {}).items():
            size = wanted.get(label)
            if size is not None and isinstance(value, torch.Tensor):
                value = _resize(value, dim, size)
        resized.append(value)
    return resized


def infer_shapes(module: GraphModule, flat_inputs: list[Any]) -> dict[str, TensorInfo]:
    """By node name, for every node that yields one tensor; nothing is computed or allocated."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    found: dict[str, TensorInfo] = {}

    class Recorder(Tracer):
        def observe(self, node: Node, value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                found[node.name] = TensorInfo(
                    shape=tuple(int(size) for size in value.shape),
                    element_bytes=value.element_size(),
                    is_float=value.is_floating_point(),
                )
            return value

    with mode, torch.no_grad():
        fakes = pytree.tree_map_only(torch.Tensor, mode.from_tensor, flat_inputs)
        Recorder(module).run(*fakes, enable_io_processing=False)
    return found


def _resize(value: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    repeats = [1] * value.ndim
    repeats[dim] = -(-size // value.shape[dim])
    return value.repeat(repeats).narrow(dim, 0, size)
