"""Which tensors are integers, as a function of which layers are statically quantized.

A static layer reads its input quantized. Some operators run in integers only when they write
integers too (``StaticRules.quantized_output``); operators without weights between them follow
(``StaticRules.followers``). The answer is one boolean expression per tensor over the layers, used
three times: to place the quantize operators, to build the exact optimisation problem, and to
decide what to observe.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch
from torch.fx import Node

from advisor.passes.graph import Graph, Layer, name_of
from advisor.passes.layers import PRODUCT_OPS, can_be_layer, operands
from advisor.targets.capability import StaticRules


@dataclass(frozen=True, slots=True)
class IsStatic:
    """The layer is statically quantized."""

    layer: str


@dataclass(frozen=True, slots=True)
class IsProduced:
    """The tensor is computed as integers (``Regions.produced``)."""

    tensor: str


@dataclass(frozen=True, slots=True)
class IsNeeded:
    """Something that runs in integers reads the tensor (``Regions.needed``)."""

    tensor: str


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds; true when empty."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """Some part holds; false when empty."""

    parts: tuple[Expression, ...]


Expression = IsStatic | IsProduced | IsNeeded | All | Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A tensor that may be quantized.

    node: graph node that computes it (after a fused activation function). readers: layers that
    read it quantized when they are static, whatever produced it. dtype: of its integers.
    """

    tensor: str
    node: str
    readers: tuple[str, ...]
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Regions:
    """Every site in execution order, and when each is computed or needed as integers.

    A tensor that is ``produced`` as integers is seen quantized by every reader; any other site
    only by its static ``readers``. ``consumed``: when every reader of a produced tensor takes
    integers, so that nothing has to turn it back into floats.
    """

    sites: tuple[Site, ...]
    produced: Mapping[str, Expression]
    needed: Mapping[str, Expression]
    consumed: Mapping[str, Expression]

    def holds(self, expression: Expression, static: Set[str]) -> bool:
        """Truth of an expression when exactly the layers named ``static`` are static."""
        match expression:
            case IsStatic(layer=layer):
                return layer in static
            case IsProduced(tensor=tensor):
                return self.holds(self.produced[tensor], static)
            case IsNeeded(tensor=tensor):
                return self.holds(self.needed[tensor], static)
            case All(parts=parts):
                return all(self.holds(part, static) for part in parts)
            case Any(parts=parts):
                return any(self.holds(part, static) for part in parts)

    def quantized(self, static: Set[str]) -> dict[str, bool]:
        """Tensor name to "every reader sees integers", for each quantized tensor."""
        truth: dict[str, bool] = {}
        for site in self.sites:  # execution order: produced() of inputs is known before
            truth[site.tensor] = self._produced_given(site.tensor, static, truth)
        found: dict[str, bool] = {}
        for site in self.sites:
            if truth[site.tensor]:
                found[site.tensor] = True
            elif any(reader in static for reader in site.readers):
                found[site.tensor] = False
        return found

    def _produced_given(self, tensor: str, static: Set[str], truth: Mapping[str, bool]) -> bool:
        expression = self.produced.get(tensor, NEVER)
        parts = expression.parts if isinstance(expression, All) else (expression,)
        return all(
            truth[part.tensor] if isinstance(part, IsProduced) else self.holds(part, static)
            for part in parts
        )


def find_regions(
    graph: Graph, rules: StaticRules | None, capable: Set[str], fixed: Set[str] = frozenset()
) -> Regions:
    """Every tensor that some choice of static layers quantizes.

    capable: names of the layers that could be static at all. rules: None when the runtime has no
    static quantization; then there are no sites. fixed: the tensors that can have the one scale
    that ``StaticRules.fixed_outputs`` allows them (``group.class_tensors``).
    """
    if rules is None or not capable:
        return Regions(sites=(), produced={}, needed={}, consumed={})
    walk = _Walk(graph, rules, capable, fixed)
    sites: list[Site] = []
    consumed: dict[str, Expression] = {}
    for node in graph.module.graph.nodes:
        readers, produced = walk.readers(node), walk.produced(node)
        if readers or produced != NEVER:
            dtype = rules.second_operand if walk.is_second(node) else ""
            sites.append(
                Site(
                    tensor=name_of(node),
                    node=node.name,
                    readers=readers,
                    dtype=dtype or rules.dtype,
                )
            )
            consumed[name_of(node)] = walk.consumed(node)
    tensors = {site.tensor for site in sites}
    return Regions(
        sites=tuple(sites),
        produced={name: e for name, e in walk.all_produced().items() if name in tensors},
        needed=walk.all_needed(),
        consumed=consumed,
    )


NEVER = Any(())


def short_op(node: Node) -> str:
    """The operator without namespace, overload or trailing underscore: "max_pool2d"."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else ""


class _Walk:
    """Memoised walk over one graph; ``produced`` looks back, ``needed`` looks forward."""

    def __init__(
        self, graph: Graph, rules: StaticRules, capable: Set[str], fixed: Set[str]
    ) -> None:
        self.rules = rules
        self.fixed = fixed
        self.layers: dict[str, Layer] = {
            layer.name: layer for layer in graph.layers if layer.name in capable
        }
        self._produced: dict[Node, Expression] = {}
        self._needed: dict[Node, Expression] = {}

    def layer_of(self, node: Node) -> Layer | None:
        """The statically quantizable layer that ``node`` is the call of."""
        return self.layers.get(name_of(node)) if can_be_layer(node) else None

    def readers(self, node: Node) -> tuple[str, ...]:
        """Names of capable layers that read ``node`` as an activation."""
        if not is_float_tensor(node):
            return ()
        found = [
            layer.name
            for user in node.users
            if (layer := self.layer_of(user)) is not None and node in operands(user)
        ]
        return tuple(dict.fromkeys(found))

    def is_second(self, node: Node) -> bool:
        """Whether all that reads ``node`` quantized is products, as their second operand."""
        layers = [user for user in node.users if self.layer_of(user) is not None]
        return self.produced(node) == NEVER and all(
            user.target in PRODUCT_OPS and operands(user)[0] is not node for user in layers
        )

    def source(self, node: Node) -> Node:
        """The operator whose fused output ``node`` is: itself, or the one before a fused relu."""
        while short_op(node) in self.rules.fused:
            before = node.args[0]
            if not isinstance(before, Node) or len(before.users) != 1:
                break
            node = before
        return node

    def ends_fusion(self, node: Node) -> bool:
        """False for a tensor that disappears inside its only reader, a fused activation."""
        users = list(node.users)
        return not (len(users) == 1 and short_op(users[0]) in self.rules.fused)

    def produced(self, node: Node) -> Expression:
        """When ``node`` is computed as integers: NEVER, or a reference to its definition."""
        if node not in self._produced:
            self._produced[node] = self._find_produced(node)
        return NEVER if self._produced[node] == NEVER else IsProduced(name_of(node))

    def all_produced(self) -> dict[str, Expression]:
        """The definitions by tensor name."""
        return {name_of(node): e for node, e in self._produced.items() if e != NEVER}

    def all_needed(self) -> dict[str, Expression]:
        """The definitions by tensor name."""
        return {name_of(node): e for node, e in self._needed.items() if e != NEVER}

    def _find_produced(self, node: Node) -> Expression:
        if not is_float_tensor(node) or not self.ends_fusion(node):
            return NEVER
        source = self.source(node)
        layer = self.layer_of(source)
        if layer is not None:
            return IsStatic(layer.name) if layer.op in self.rules.quantized_output else NEVER
        if short_op(source) not in self.rules.followers:
            return NEVER
        if self.rules.fixed_output(short_op(source)) and name_of(node) not in self.fixed:
            return NEVER
        inputs = [argument for argument in source.all_input_nodes if is_float_tensor(argument)]
        parts = [self.produced(argument) for argument in inputs]
        if not parts or NEVER in parts:
            return NEVER
        needed = self.needed(node)
        return NEVER if needed == NEVER else All((*parts, needed))

    def needed(self, node: Node) -> Expression:
        """When something that runs in integers reads ``node``: NEVER, or a reference."""
        if node not in self._needed:
            parts: list[Expression] = [IsStatic(reader) for reader in self.readers(node)]
            parts += [
                self.needed(self._fused_end(user))
                for user in node.users
                if short_op(user) in self.rules.followers
            ]
            self._needed[node] = Any(tuple(part for part in parts if part != NEVER))
        return NEVER if self._needed[node] == NEVER else IsNeeded(name_of(node))

    def consumed(self, node: Node) -> Expression:
        """When every reader of ``node`` takes it as integers."""
        parts: list[Expression] = []
        for user in node.users:
            layer = self.layer_of(user)
            if layer is not None:
                parts.append(IsStatic(layer.name))
            elif short_op(user) in self.rules.followers:
                parts.append(self.produced(self._fused_end(user)))
            else:
                return NEVER
        return NEVER if NEVER in parts else All(tuple(parts))

    def _fused_end(self, node: Node) -> Node:
        while not self.ends_fusion(node):
            (node,) = node.users
        return node


def is_float_tensor(node: Node) -> bool:
    """True for a node whose value is one floating-point tensor computed from the inputs."""
    value = node.meta.get("val")
    if node.op == "get_attr" or not isinstance(value, torch.Tensor):
        return False
    return value.is_floating_point()
