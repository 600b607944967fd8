"""How much a decoder keeps of every token it has seen: the keys and values of its attention.

The captured graph has no cache; it computes the keys and values of all tokens anew. What a runtime
would keep of them is what attention reads, before heads are repeated for grouped queries (Ainslie
et al. 2023, arXiv:2305.13245): 2 x layers x key-value heads x head width numbers per token and row
of the batch (Pope et al. 2022, Efficiently Scaling Transformer Inference, arXiv:2211.05102).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Final

from torch.fx import Node

from advisor.passes.graph import Graph
from advisor.passes.regions import short_op
from advisor.passes.shapes import TensorInfo

PRODUCTS: Final = frozenset({"matmul", "bmm"})
VIEWS: Final = frozenset(
    {
        "_unsafe_view",
        "clone",
        "contiguous",
        "expand",
        "permute",
        "repeat",
        "repeat_interleave",
        "reshape",
        "t",
        "transpose",
        "unsqueeze",
        "view",
    }
)
"""What stands between a projection and attention without computing: moves, and repeated heads."""

SOFT: Final = frozenset({"softmax", "_softmax", "_safe_softmax"})
BETWEEN: Final = VIEWS | {"_to_copy", "add", "div", "dropout", "masked_fill", "mul", "where"}
"""What may stand between the scores, their softmax, and the product with the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """query, key, value: tensors that one attention reads. tokens: of its keys."""

    key: Node
    value: Node
    queries: int
    tokens: int


def cached_elements(graph: Graph, shapes: Mapping[str, TensorInfo]) -> float:
    """Numbers that all self-attention together keeps of one token, for every row of the batch.

    shapes: by node name, at the deployment's batch. 0 where the graph has no attention of a
    sequence over itself; attention over another sequence, an encoder's, does not grow with it.
    """
    total = 0.0
    for found in _attentions(graph, shapes):
        if found.queries == found.tokens:
            kept = sum(_narrowest(node, shapes) for node in (found.key, found.value))
            total += kept / found.tokens
    return total


def _attentions(graph: Graph, shapes: Mapping[str, TensorInfo]) -> Iterator[_Attention]:
    for node in graph.module.graph.nodes:
        if node.op != "call_function":
            continue
        sources = node.all_input_nodes
        if short_op(node) == "scaled_dot_product_attention":
            query, key, value = sources[:3] if len(sources) > 2 else (sources * 3)[:3]
            yield _Attention(
                key=key,
                value=value,
                queries=shapes[query.name].shape[-2],
                tokens=shapes[key.name].shape[-2],
            )
        elif short_op(node) in SOFT:
            scores, weighed = _before(sources[0]), _after(node)
            if scores is None or weighed is None:
                continue
            yield _Attention(
                key=scores.all_input_nodes[-1],
                value=weighed.all_input_nodes[-1],
                queries=shapes[scores.name].shape[-2],
                tokens=shapes[scores.name].shape[-1],
            )


def _before(node: Node) -> Node | None:
    """The product of queries and keys that a softmax reads, behind scale and mask."""
    while node.op == "call_function" and short_op(node) in BETWEEN:
        # A mask is an operand too: the scores are the operand that is a product or leads to one.
        ways = [each for each in node.all_input_nodes if each.op == "call_function"]
        found = [product for each in ways if (product := _before(each)) is not None]
        return found[0] if found else None
    return node if node.op == "call_function" and short_op(node) in PRODUCTS else None


def _after(node: Node) -> Node | None:
    """The product of a softmax and the values."""
    for user in node.users:
        if user.op == "call_function" and short_op(user) in PRODUCTS:
            return user
        if user.op == "call_function" and short_op(user) in BETWEEN:
            return _after(user)
    return None


def _narrowest(node: Node, shapes: Mapping[str, TensorInfo]) -> int:
    """Fewest elements on the way back to what computed it: heads before they are repeated."""
    fewest = prod(shapes[node.name].shape)
    while node.op == "call_function" and short_op(node) in VIEWS:
        node = node.all_input_nodes[0]
        if node.name in shapes:
            fewest = min(fewest, prod(shapes[node.name].shape))
    return fewest
