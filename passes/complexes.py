"""Complex numbers as pairs of reals: runtimes have no complex tensors, and rotary positions do."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node, map_arg

from advisor.passes.fx import (
    argument,
    clone,
    constant_value,
    copy_meta,
    finish,
    free_name,
    read_constant,
    set_constant,
    stamp,
)

aten = torch.ops.aten
MADE_BY: Final = "open_complex"

APART: Final = frozenset[Any](
    {
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.neg.default,
        aten.reshape.default,
        aten.expand.default,
        aten.slice.Tensor,
        aten.select.int,
        aten.index.Tensor,
        aten.index_select.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.transpose.int,
        aten.permute.default,
        aten.t.default,
        aten.numpy_T.default,
        aten.cat.default,
        aten.repeat.default,
    }
)
"""Operators that treat real and imaginary parts alike and apart when every operand is complex."""

Parts = tuple[Node, Node]


def open_complex(module: GraphModule) -> GraphModule:
    """Compute with real and imaginary parts.

    Given: complex constants, view_as_complex, polar or complex, products, sums and views of them,
    and view_as_real, real or imag at the end. Result: the same on pairs of real tensors. An
    operator outside this list keeps its complex operands.
    """
    module = clone(module)
    parts: dict[Node, Parts] = {}
    for node in list(module.graph.nodes):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.is_complex():
            opened = _open(module, node, parts)
            if opened is not None:
                parts[node] = opened
        elif node.op == "call_function" and argument(node, 0) in parts:
            _close(module, node, parts[node.args[0]])
    return finish(module)


def _open(module: GraphModule, node: Node, parts: dict[Node, Parts]) -> Parts | None:
    """Nodes for the real and the imaginary part of a complex ``node``, before what reads it."""
    constant = constant_value(module, node)
    if constant is not None:
        return _constant_parts(module, node, constant)
    if node.op != "call_function" or node.kwargs:
        return None
    with module.graph.inserting_before(node):
        if node.target is aten.view_as_complex.default:
            one, two = (_call(node, aten.select.int, (node.args[0], -1, part)) for part in (0, 1))
            return one, two
        if node.target is aten.complex.default:
            return argument(node, 0), argument(node, 1)
        if node.target is aten.polar.default:
            size, angle = node.args
            one, two = (
                _call(node, turn, (angle,)) for turn in (aten.cos.default, aten.sin.default)
            )
            real = _call(node, aten.mul.Tensor, (size, one))
            return real, _call(node, aten.mul.Tensor, (size, two))
        if node.target is aten.mul.Tensor:
            return _product(node, parts)
        if node.target in APART and all(source in parts for source in _tensors(node)):
            one, two = (
                _call(node, node.target, _part_of(node.args, parts, index)) for index in (0, 1)
            )
            return one, two
    return None


def _constant_parts(module: GraphModule, node: Node, value: torch.Tensor) -> Parts:
    found: list[Node] = []
    for suffix, part in (("real", value.real), ("imag", value.imag)):
        name = free_name(module, f"{node.target}_{suffix}")
        read = read_constant(module, node, set_constant(module, name, part.contiguous()))
        read.meta["val"] = node.meta["val"].real
        found.append(stamp(read, made_by=MADE_BY))
    return found[0], found[1]


def _product(node: Node, parts: dict[Node, Parts]) -> Parts | None:
    """(a + ib)(c + id) = (ac - bd) + i(ad + bc); a real factor scales both parts."""
    left, right = argument(node, 0), argument(node, 1)
    mul = aten.mul.Tensor
    if left in parts and right in parts:
        (a, b), (c, d) = parts[left], parts[right]
        ac, bd, ad, bc = (_call(node, mul, pair) for pair in ((a, c), (b, d), (a, d), (b, c)))
        return _call(node, aten.sub.Tensor, (ac, bd)), _call(node, aten.add.Tensor, (ad, bc))
    if left not in parts:
        left, right = right, left
    if left not in parts or isinstance(right, complex) or _is_complex(right):
        return None
    one, two = (_call(node, mul, (part, right)) for part in parts[left])
    return one, two


def _close(module: GraphModule, node: Node, pair: Parts) -> None:
    """Replace an operator that turns a complex tensor into a real one."""
    with module.graph.inserting_before(node):
        if node.target is aten.view_as_real.default:
            result = module.graph.call_function(aten.stack.default, (list(pair), -1))
        elif node.target in (aten.real.default, aten.imag.default):
            result = pair[0 if node.target is aten.real.default else 1]
        else:
            return
    if result not in pair:
        copy_meta(node, result)
        stamp(result, made_by=MADE_BY)
    node.replace_all_uses_with(result)


def _call(node: Node, target: Any, arguments: Any) -> Node:
    """A real operator in place of the complex ``node``."""
    made = node.graph.call_function(target, tuple(arguments))
    copy_meta(node, made)
    made.meta["val"] = node.meta["val"].real
    return stamp(made, made_by=MADE_BY)


def _part_of(arguments: Any, parts: dict[Node, Parts], index: int) -> Any:
    return map_arg(arguments, lambda source: parts[source][index] if source in parts else source)


def _tensors(node: Node) -> list[Node]:
    """The complex operands; every floating operand of a sum must be one."""
    takes_numbers = node.target in (aten.add.Tensor, aten.sub.Tensor)
    return [n for n in node.all_input_nodes if takes_numbers or _is_complex(n)]


def _is_complex(value: Any) -> bool:
    found = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(found, torch.Tensor) and found.is_complex()
