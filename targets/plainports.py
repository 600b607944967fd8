"""Inputs and outputs as runtimes with few dtypes and plain names take them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import is_not
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from advisor.passes.fx import finish, output_nodes

aten = torch.ops.aten

INTEGERS: Final = frozenset({torch.int64, torch.int16, torch.int8, torch.uint8, torch.bool})
FLOATS: Final = frozenset({torch.float64, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Names of the inputs and outputs in the package, by the model's own names."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def name_ports(inputs: Sequence[str], outputs: Sequence[str]) -> Ports:
    """Names that any runtime accepts: letters, digits and underscores, each once."""
    used: set[str] = set()

    def free(name: str) -> str:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain[:1].isalpha() else f"_{plain}"
        made, number = plain, 1
        while made in used:
            number += 1
            made = f"{plain}_{number}"
        used.add(made)
        return made

    return Ports(
        inputs={name: free(name) for name in inputs},
        outputs={name: free(name) for name in outputs},
    )


def flatten_ports(module: GraphModule, flat: Sequence[Any]) -> None:
    """Take tensors alone, in int32 and float32, and return a tuple of such tensors.

    flat: one value per placeholder; those that are no tensors become constants.
    """
    graph = module.graph
    nodes = list(graph.find_nodes(op="placeholder"))
    for node, value in zip(nodes, flat, strict=True):
        if not isinstance(value, torch.Tensor):
            node.replace_all_uses_with(value)
            graph.erase_node(node)
            continue
        port = port_dtype(value.dtype)
        if port is not value.dtype:
            with graph.inserting_after(nodes[-1]):
                cast = graph.call_function(aten._to_copy.default, (node,), {"dtype": value.dtype})
            node.replace_all_uses_with(cast, delete_user_cb=partial(is_not, cast))
    (output,) = graph.find_nodes(op="output")
    results: list[Node] = []
    with graph.inserting_before(output):
        for source in output_nodes(module):
            held: Any = source.meta.get("val")
            if not isinstance(held, torch.Tensor):
                continue
            port = port_dtype(held.dtype)
            is_new = source.op == "call_function" and source not in results
            made: Node = source
            if port is not held.dtype:
                made = graph.call_function(aten._to_copy.default, (source,), {"dtype": port})
            elif not is_new:  # one tensor twice, or an input as it is
                made = graph.call_function(aten.mul.Tensor, (source, 1))
            results.append(made)
    output.args = (tuple(results),)
    graph.set_codegen(CodeGen())
    finish(module)


def port_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the file takes or gives a tensor."""
    if dtype in INTEGERS:
        return torch.int32
    return torch.float32 if dtype in FLOATS else dtype


def as_port(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """An array of the model's own dtype as the file takes it."""
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
