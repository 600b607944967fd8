"""What a quantized graph must look like before coremltools sees it.

Every pass takes a GraphModule that it may change; the layers' numbers stay the plan's.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from advisor.passes.fx import (
    argument,
    constant_value,
    copy_meta,
    insert_constant,
)
from advisor.targets.coreml.operators import GELU_TANH

aten = torch.ops.aten

LARGEST: Final = 6e4
"""Largest constant that is left in a float16 program (float16 ends at 65504): the numbers that
masks are made of would become infinite, and 0 times infinity is no number."""

HEADROOM: Final = 128.0
"""A row's largest magnitude is taken as at least sqrt(eps) over this in a float16 RMSNorm, so that
eps over its square stays below float16's end; smaller rows lose nothing by it."""


def spell_out(module: GraphModule) -> None:
    """Give arguments that coremltools does not know the default of: strides of pooling."""
    for target in (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default):
        for node in module.graph.find_nodes(op="call_function", target=target):
            if not argument(node, 2):
                node.args = (node.args[0], node.args[1], node.args[1], *node.args[3:])


LOGICAL: Final = {
    aten.__and__.Tensor: aten.logical_and.default,
    aten.bitwise_and.Tensor: aten.logical_and.default,
    aten.__or__.Tensor: aten.logical_or.default,
    aten.bitwise_or.Tensor: aten.logical_or.default,
    aten.bitwise_not.default: aten.logical_not.default,
}
"""Operators on bits, and what they are where there is one bit."""


FACTORED: Final = {aten.add.Tensor: 1, aten.sub.Tensor: 1, aten.rsub.Tensor: 0}
"""Operators with a factor, and which operand it multiplies."""

CORRECTED: Final = {aten.var.correction: aten.var.dim, aten.std.correction: aten.std.dim}

NUMBERS: Final = {
    aten.where.ScalarOther: (2,),
    aten.where.ScalarSelf: (1,),
    aten.where.Scalar: (1, 2),
}
"""Choices between numbers, and which of their arguments those are."""


def respell(module: GraphModule) -> None:
    """Put operators that coremltools has no form of as others that compute the same: bits of
    truth values, tensors made like another, and choices of which one is a number."""
    for target, places in NUMBERS.items():
        for node in module.graph.find_nodes(op="call_function", target=target):
            with module.graph.inserting_before(node):
                for place in places:
                    dtype = {"dtype": node.meta["val"].dtype}
                    full = module.graph.call_function(
                        aten.full.default, ([], argument(node, place)), dtype
                    )
                    full.meta["val"] = node.meta["val"].new_empty(())
                    node.update_arg(place, full)
            node.target = aten.where.self
    for target, logical in LOGICAL.items():
        for node in module.graph.find_nodes(op="call_function", target=target):
            if node.meta["val"].dtype is torch.bool:
                node.target = logical
    for target, fill in ((aten.new_ones.default, 1), (aten.new_zeros.default, 0)):
        for node in module.graph.find_nodes(op="call_function", target=target):
            node.target, node.args = aten.full.default, (argument(node, 1), fill)
            node.kwargs = {"dtype": node.meta["val"].dtype}


def _keep_above(x: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
    return torch.where(_places_right_of(x) >= diagonal, x, torch.zeros_like(x))


def _keep_below(x: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
    return torch.where(_places_right_of(x) <= diagonal, x, torch.zeros_like(x))


def _places_right_of(x: torch.Tensor) -> torch.Tensor:
    """How far every element is to the right of the diagonal."""
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    return columns - rows[:, None]


def _cosine(one: torch.Tensor, two: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """Of vectors whose largest element is 1, so that float16 holds their squares; 0 for a vector
    of zeros, as ``eps``, which float16 does not have, makes it."""
    del eps
    one, two = (x / x.abs().amax(dim, keepdim=True).clamp_min(1e-6) for x in (one, two))
    first, second = (x.square().sum(dim).sqrt().clamp_min(1e-4) for x in (one, two))
    return (one * two).sum(dim) / first / second


DECOMPOSITIONS: Final[dict[Any, Any]] = {
    aten.triu.default: _keep_above,
    aten.tril.default: _keep_below,
    aten.cosine_similarity.default: _cosine,
}
"""Operators that coremltools makes of differences, infinity less infinity in a causal mask, and one
whose arguments it wants all of."""


def spell_keywords(module: GraphModule) -> None:
    """Write out what coremltools leaves unread when it is given by name: factors of a term, the
    correction of a variance, the form of a GELU."""
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.gelu.default):
        if node.kwargs.get("approximate") == "tanh":
            node.target, node.kwargs = GELU_TANH, {}
    for target, place in FACTORED.items():
        for node in graph.find_nodes(op="call_function", target=target):
            _scale(node, place, node.kwargs.get("alpha", 1))
            node.kwargs = {}
    for node in graph.find_nodes(op="call_function", target=aten.addcmul.default):
        _scale(node, 1, node.kwargs.get("value", 1))
        x, first, second = node.args
        with graph.inserting_before(node):
            product = graph.call_function(aten.mul.Tensor, (first, second))
        product.meta["val"] = node.meta["val"]
        node.target, node.args, node.kwargs = aten.add.Tensor, (x, product), {}
    for target, spelled in CORRECTED.items():
        for node in graph.find_nodes(op="call_function", target=target):
            x = argument(node, 0)
            dims = argument(node, 1) if len(node.args) > 1 else None
            correction = node.kwargs.get("correction")
            if correction in (None, 0, 1):  # others have no form, and coremltools says so
                every = list(range(x.meta["val"].ndim))
                keep = bool(node.kwargs.get("keepdim", False))
                node.args = (x, dims or every, correction != 0, keep)
                node.target, node.kwargs = spelled, {}


def _scale(node: Node, place: int, factor: float) -> None:
    """Multiply an operand by a number before the operator reads it; by 1 is left out."""
    if factor == 1:
        return
    source = argument(node, place)
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(aten.mul.Tensor, (source, factor))
    scaled.meta["val"] = source.meta["val"]
    node.update_arg(place, scaled)


def divide_reciprocals(module: GraphModule) -> None:
    """Spell 1/x as a division: coremltools' own form of it adds 1e-4 to x."""
    for node in module.graph.find_nodes(op="call_function", target=aten.reciprocal.default):
        with module.graph.inserting_before(node):
            ones = module.graph.call_function(aten.ones_like.default, (argument(node, 0),))
        ones.meta["val"] = node.meta.get("val")
        node.target, node.args = aten.div.Tensor, (ones, argument(node, 0))


def bound_constants(module: GraphModule) -> None:
    """Bring finite constants that float16 does not have to its range, as masks have them."""
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        node.args = tuple(map_aggregate(node.args, _bounded))
        node.kwargs = dict(map_aggregate(node.kwargs, _bounded))
        for source in node.all_input_nodes:
            value = constant_value(module, source)
            if value is None or isinstance(value, torch.nn.Parameter):
                continue
            if not value.is_floating_point() or not value.numel():
                continue
            finite = value.isfinite()
            if bool((finite & (value.abs() > LARGEST)).any()):
                bounded = torch.where(finite, value.clamp(-LARGEST, LARGEST), value)
                constant = insert_constant(module, node, f"{source.target}_bounded", bounded)
                copy_meta(source, constant)
                constant.meta["val"] = bounded
                node.replace_input_with(source, constant)


def _bounded(value: Any) -> Any:
    if isinstance(value, float) and LARGEST < abs(value) < float("inf"):
        return LARGEST if value > 0 else -LARGEST
    return value


def scale_norms(module: GraphModule) -> None:
    """Keep the squares of RMSNorm inside float16's range.

    Given: x * rsqrt(mean(x²) + eps).
    Result: x/m * rsqrt(mean((x/m)²) + (sqrt(eps)/m)²) with m = max(|x|) of the row. The same
    number, but x² neither overflows above 255 nor vanishes below 0.0002.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.rsqrt.default):
        found = _norm_of(node)
        if found is None:
            continue
        x, dims, eps = found
        graph = module.graph
        with graph.inserting_before(node):
            largest = graph.call_function(aten.abs.default, (x,))
            largest = graph.call_function(aten.amax.default, (largest, dims, True))
            least = max(eps, 1e-30) ** 0.5 / HEADROOM
            unit = graph.call_function(aten.clamp_min.default, (largest, least))
            scaled = graph.call_function(aten.div.Tensor, (x, unit))
            square = graph.call_function(aten.mul.Tensor, (scaled, scaled))
            mean = graph.call_function(aten.mean.dim, (square, dims, True))
            share = graph.call_function(aten.mul.Tensor, (unit, max(eps, 1e-30) ** -0.5))
            share = graph.call_function(aten.pow.Tensor_Scalar, (share, -2.0))
            total = graph.call_function(aten.add.Tensor, (mean, share))
            factor = graph.call_function(aten.rsqrt.default, (total,))
        for made in (largest, unit, scaled, square, mean, share, total, factor):
            made.meta["val"] = node.meta.get("val")
        for user in list(node.users):
            user.replace_input_with(node, factor)
            user.replace_input_with(x, scaled)


def _norm_of(node: Node) -> tuple[Node, list[int], float] | None:
    """x, its dimensions and eps where ``node`` is rsqrt(mean(x²) + eps) and only scales x."""
    total = argument(node, 0)
    if not _calls(total, aten.add.Tensor) or not isinstance(argument(total, 1), float):
        return None
    mean = argument(total, 0)
    if not _calls(mean, aten.mean.dim) or not argument(mean, 2):
        return None
    square = argument(mean, 0)
    by_power = _calls(square, aten.pow.Tensor_Scalar) and argument(square, 1) == 2
    by_product = _calls(square, aten.mul.Tensor) and argument(square, 0) is argument(square, 1)
    if not (by_power or by_product):
        return None
    x = argument(square, 0)
    scales_x = all(
        user.target is aten.mul.Tensor and set(user.args) == {x, node} for user in node.users
    )
    dims = [int(dim) for dim in argument(mean, 1)]
    return (x, dims, float(argument(total, 1))) if scales_x else None


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is target
