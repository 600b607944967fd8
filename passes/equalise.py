"""Cross-layer equalisation: even out the channels of a tensor between two layers.

Nagel et al. 2019 (arXiv:1906.04721, section 4.1): when f(x/s) = f(x)/s for every s > 0, then

    W2 f(W1 x + b1)  =  (W2 S) f(S^-1 W1 x + S^-1 b1),      S = diag(s),

so the channels of the tensor between two layers can be rescaled for free. What that buys here is
not what it buys there. Weights have a scale per output channel, so dividing row i of W1 by s_i
divides its scale too and costs nothing; but the tensor has one scale for all channels. Let R_i be
the largest magnitude of channel i on real data and C_i that of column i of W2. The tensor's step
is proportional to max_i R_i / s_i and its error reaches the output through W2 S: for a given step
the smallest S is s_i = R_i. The columns of W2 share their scales, too: its step is proportional to
max_i C_i s_i and its error meets activations of the size R_i / s_i, which is least at
s_i = 1 / C_i. Between the two lies their geometric mean, s_i = sqrt(R_i / C_i), after which
activations and weights are uneven alike. It is the paper's own sqrt(max |W1_i| / C_i) with what is
seen in place of a guess from weights.

A depthwise W2 has a scale for every channel, so there s_i = R_i should be best. It is not: with all
channels at their limit every one of them is clipped by data a little larger than what was seen.
Squared error of the logits under w8a8, a small MobileNetV2 with ReLU on 8x8 digits, geometric mean
over three draws of 128 images to observe: 1.6e-4 as trained, 1.7e-4 with the paper's factors,
1.5e-4 with those above, 2.6e-4 with R_i for depthwise layers; the same network with its channels
rescaled at random by exp(N(0, 1)): 4.6e-2, and the same three numbers again.

Functions that hold positive factors are passed: ReLU, leaky ReLU, pooling, means over positions,
flattening. ReLU6 is not: exactly rescaled it needs a bound of its own for every channel, and
ONNX's Clip takes scalars, so the layer before it would lose its fused activation and the tensor
would be computed in floats. Nor is there much to win, for the clip keeps every channel within 0..6
(the network above with its ReLU6 has 1.4e-4 as trained).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import torch
from torch.fx import Node

from advisor.passes.fx import argument, attribute, clone, finish, set_constant
from advisor.passes.graph import Graph, Layer, name_of
from advisor.passes.layers import LAYER_OPS, input_argument
from advisor.passes.smooth import count_readers, smooth

aten = torch.ops.aten

CHANNEL_DIM: Final = {"linear": -1, "conv1d": -2, "conv2d": -3}
"""Where a layer's channels are in its input and in its output, counted from the end."""

ELEMENTWISE: Final = frozenset[Any]({aten.relu.default, aten.leaky_relu.default})
CLAMPS: Final = frozenset[Any]({aten.clamp.default, aten.clamp_min.default})
POOLS: Final[Mapping[Any, int]] = {
    aten.max_pool1d.default: 1,
    aten.avg_pool1d.default: 1,
    aten.adaptive_avg_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.avg_pool2d.default: 2,
    aten.adaptive_avg_pool2d.default: 2,
}
"""Pooling operators and over how many of the last dimensions they work."""

LARGEST: Final = 2.0**10
"""Factors stay within [1 / LARGEST, LARGEST] around 1. A channel that far below the others carries
nothing; amplified without limit it would meet values that calibration has not seen."""

ROUNDS: Final = 32
TOLERANCE: Final = 1e-4
"""Chains that share a layer are solved in turn, until no factor changes by more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Two layers of which the second alone reads what the first computes.

    repeat: inputs of ``second`` per channel of ``first``; more than 1 behind a flattening.
    """

    first: Layer
    second: Layer
    repeat: int = 1


def find_chains(graph: Graph) -> tuple[Chain, ...]:
    """Every chain of ``graph``, in execution order.

    The tensors between have no other reader and are no output; both layers own their weights
    and the first its bias.
    """
    layers = {layer.name: layer for layer in graph.layers if layer.op in CHANNEL_DIM}
    calls = {
        layer.name: node
        for node in graph.module.graph.nodes
        if node.target in LAYER_OPS and (layer := layers.get(name_of(node))) is not None
    }
    readers = count_readers(graph.module)
    found: list[Chain] = []
    for name, node in calls.items():
        first = layers[name]
        end = _follow(node, CHANNEL_DIM[first.op])
        if end is None:
            continue
        reader, channel, repeat = end
        second = layers.get(name_of(reader))
        if second is None or CHANNEL_DIM[second.op] != channel:
            continue
        constants = [first.weight, second.weight, *([first.bias] if first.bias else [])]
        has_bias = argument(node, 2) is not None
        if has_bias == (first.bias is not None) and all(readers[c] == 1 for c in constants):
            found.append(Chain(first=first, second=second, repeat=repeat))
    return tuple(found)


def find_factors(
    graph: Graph, chains: Sequence[Chain], input_maxima: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The factor s of every output channel, by name of the chain's first layer.

    input_maxima: by layer name, the largest magnitude of every input channel on real data. A
    channel that is never used, or whose weights are all zero, keeps the factor 1.
    """
    weights = {
        layer.name: attribute(graph.module, layer.weight).detach().abs().double()
        for chain in chains
        for layer in (chain.first, chain.second)
    }
    factors = {
        chain.first.name: torch.ones(chain.first.weight_shape[0], dtype=torch.float64)
        for chain in chains
    }
    for _ in range(ROUNDS):
        change = 0.0
        for chain in chains:
            known = factors[chain.first.name]
            seen = input_maxima[chain.second.name].double().reshape(known.numel(), -1).amax(1)
            wanted = _factors_of(chain, seen, weights[chain.second.name], known)
            step = wanted / known
            factors[chain.first.name] = wanted
            _scale_rows(weights[chain.first.name], 1 / step)
            _scale_columns(weights[chain.second.name], step, chain)
            change = max(change, float((step - 1).abs().max()))
        if change < TOLERANCE:
            break
    return {name: factor.float() for name, factor in factors.items()}


def equalise(graph: Graph, factors: Mapping[str, torch.Tensor]) -> Graph:
    """Apply factors.

    Given: a normalised graph, and a factor > 0 per output channel by name of a chain's first
    layer, or per channel by name of a tensor to be smoothed (``passes.smooth``). Result: a graph
    of equal outputs; the rows and the bias of that layer are divided by its factors, the columns
    of the second are multiplied by them. ``graph`` is unchanged.

    Raises:
        PlanError: a factor is of a layer that begins no chain and of no tensor to be smoothed.
    """
    chains = [chain for chain in find_chains(graph) if chain.first.name in factors]
    chained = {chain.first.name for chain in chains}
    changed: dict[str, torch.Tensor] = {}

    def own(target: str) -> torch.Tensor:
        if target not in changed:
            value: torch.Tensor = attribute(graph.module, target)
            changed[target] = value.detach().clone()
        return changed[target]

    for chain in chains:
        factor = factors[chain.first.name]
        _scale_rows(own(chain.first.weight), 1 / factor)
        if chain.first.bias is not None:
            own(chain.first.bias).mul_(1 / factor)
        _scale_columns(own(chain.second.weight), factor, chain)
    module = clone(graph.module)
    for target, value in changed.items():
        set_constant(module, target, torch.nn.Parameter(value, requires_grad=False))
    rescaled = replace(graph, module=finish(module))
    smoothed = {name: factor for name, factor in factors.items() if name not in chained}
    return smooth(rescaled, smoothed) if smoothed else rescaled


def _follow(node: Node, channel: int) -> tuple[Node, int, int] | None:
    """From a layer to the layer behind it: its call, where the channels are then, and repeats.

    None when something on the way has two readers or does not hold factors.
    """
    repeat = 1
    while True:
        if len(node.users) != 1:
            return None
        (user,) = node.users
        if user.target in LAYER_OPS:
            return (user, channel, repeat) if input_argument(user) is node else None
        if user.target in ELEMENTWISE or (user.target in CLAMPS and _is_relu(user)):
            pass
        elif user.target in POOLS:
            if POOLS[user.target] >= -channel:
                return None
        elif user.target is aten.mean.dim:
            moved = _behind_mean(node, user, channel)
            if moved is None:
                return None
            channel = moved
        elif user.target is aten.reshape.default:
            flattened = _flattened(node, user, channel)
            if flattened is None:
                return None
            channel, repeat = -1, repeat * flattened
        else:
            return None
        node = user


def _is_relu(node: Node) -> bool:
    """A clamp to [0, infinity)."""
    return argument(node, 1) == 0 and argument(node, 2) is None and not node.kwargs


def _behind_mean(source: Node, node: Node, channel: int) -> int | None:
    """Where the channels are after a mean over positions; None when it is over something else."""
    rank = source.meta["val"].ndim
    dims = sorted({int(dim) % rank for dim in argument(node, 1) or ()})
    if dims != list(range(rank + channel + 1, rank)):
        return None
    return channel if argument(node, 2) else -1


def _flattened(source: Node, node: Node, channel: int) -> int | None:
    """Features per channel when (batch, channels, ...) becomes (batch, features), else None."""
    before, after = source.meta["val"].shape, node.meta["val"].shape
    rest = before[1:]
    if len(after) != 2 or len(before) + channel != 1 or not all(isinstance(d, int) for d in rest):
        return None
    return prod(rest[1:]) if after[1] == prod(rest) else None


def _factors_of(
    chain: Chain, seen: torch.Tensor, scaled: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """The factors of one chain, the others held fixed; centred, since only ratios matter.

    seen: R. scaled: magnitudes of the second layer's weight under the factors known so far.
    """
    columns = _columns(scaled, chain).amax(dim=(1, 3)).reshape(seen.numel(), -1).amax(1) / known
    alive = (seen > 0) & (columns > 0)
    if not bool(alive.any()):
        return torch.ones_like(seen)
    wanted = (seen / columns).sqrt()
    centred = wanted / wanted[alive].log().mean().exp()
    return torch.where(alive, centred, 1.0).clamp(1 / LARGEST, LARGEST)


def _columns(weight: torch.Tensor, chain: Chain) -> torch.Tensor:
    """A view of the second weight as (groups, outputs, inputs of a group, positions)."""
    groups = chain.second.groups
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _scale_rows(weight: torch.Tensor, factor: torch.Tensor) -> None:
    weight.mul_(factor.reshape(-1, *[1] * (weight.ndim - 1)))


def _scale_columns(weight: torch.Tensor, factor: torch.Tensor, chain: Chain) -> None:
    columns = _columns(weight, chain)
    spread = factor.repeat_interleave(chain.repeat)
    weight.copy_((columns * spread.reshape(chain.second.groups, 1, -1, 1)).reshape(weight.shape))
