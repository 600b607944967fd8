"""Smoothing: shrink the outlier channels of a tensor, and widen the weights that read them.

SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): linear layers that read x compute the same from
x / s with their columns multiplied by s. A tensor has one step for all channels, so one channel 20
times larger than the others, as transformers have behind layer norms and GELUs, leaves the others
a twentieth of the integers. Weights have a scale per output and take the factor far better.

Here only outliers are touched: s_i = max(1, R_i / level), R_i the largest magnitude of channel i.
The level is the one of ``LEVELS`` times the median R with the least expected squared error of the
readers' outputs, from what is known without running them (rounding noise is step squared over 12,
Bennett 1948): with W the weights, step the tensor's and step_o that of output o,

    step^2 / 12  sum_i s_i^2 |W_i|^2   +   sum_o step_o^2 / 12  sum_i E[x_i^2] / s_i^2

The paper's factors R_i^a / C_i^(1-a) change the columns of all channels; chosen by the same formula
they do worse (MiniLM with dynamic int8, divergence on calibration data held out: 1.2e-2 as trained,
3.8e-3 with those, 3.2e-3 with these).

Dividing by s is free where all that reads x is multiplied in turn, and what computes x ends in
constants that can be divided: the gains of a norm, the rows of a layer, or a product with one of
these (SwiGLU). Where x is read by more, as in a post-norm transformer whose norm also feeds the
residual, or comes out of a GELU, x / s takes a multiplication of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch.fx import GraphModule, Node

from advisor.errors import PlanError
from advisor.passes.calibrate import ChannelStats
from advisor.passes.fx import (
    argument,
    attribute,
    clone,
    constant_value,
    copy_meta,
    finish,
    insert_constant,
    set_constant,
    stamp,
)
from advisor.passes.graph import Graph, Layer, name_of
from advisor.passes.layers import LAYER_OPS, find_calls, input_argument

aten = torch.ops.aten

MADE_BY: Final = "smooth"
LEVELS: Final = tuple(2.0 ** (half / 2) for half in range(-1, 9))
"""Levels to try, in medians of the channels' largest magnitudes."""

LEAST_GAIN: Final = 0.1
"""Share of the expected error that smoothing must take away to be done at all."""

LEAST_SHARE: Final = 0.02
"""Of what rounding all that linear layers read costs: what a multiplication must win back. One
takes 0.2 to 0.3 % of MiniLM's latency in int8 (32 tokens, one thread)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A tensor whose channels can be rescaled.

    readers: the linear layers whose columns make up for it. constants: what is divided where that
    is free; none where it takes a multiplication.
    """

    tensor: str
    readers: tuple[Layer, ...]
    constants: tuple[str, ...] = ()

    @property
    def is_free(self) -> bool:
        """Whether dividing the tensor costs no operator."""
        return bool(self.constants)


def find_sites(graph: Graph) -> tuple[Site, ...]:
    """Tensors read by linear layers that own their weights, in execution order.

    Not those that a layer writes and that would take a multiplication: the name is the layer's.
    """
    owners = count_readers(graph.module)
    calls = find_calls(graph.module, graph.layers)
    layers = set(calls.values())
    found: dict[Node, list[Layer]] = {}
    for layer in graph.layers:
        if layer.op == "linear" and layer.frozen is None and owners[layer.weight] == 1:
            found.setdefault(input_argument(calls[layer.name]), []).append(layer)
    sites: list[Site] = []
    for node, readers in found.items():
        constants = _constants(graph.module, node) if len(node.users) == len(readers) else ()
        is_owned = all(owners[constant] == 1 for constant in constants)
        site = Site(
            tensor=name_of(node),
            readers=tuple(readers),
            constants=constants if is_owned else (),
        )
        if node.op == "call_function" and (site.is_free or node not in layers):
            sites.append(site)
    return tuple(sites)


def find_smoothing(
    graph: Graph,
    sites: Sequence[Site],
    seen: Mapping[str, ChannelStats],
    losses: Mapping[str, float] | None = None,
) -> dict[str, torch.Tensor]:
    """The factor s of every channel, by tensor name; tensors that gain too little are left out.

    seen: by layer name, what the layers read on real data. losses: predicted divergence of
    rounding each tensor that linear layers read; None: unknown, and every gain is worth its time.
    """
    found: dict[str, torch.Tensor] = {}
    for site in sites:
        stats = seen[site.readers[0].name]
        largest = stats.largest.double()
        middle = float(largest.median())
        if middle <= 0:
            continue
        rows = [attribute(graph.module, reader.weight).detach() for reader in site.readers]
        weights = torch.cat(rows).double()
        options = [(largest / (level * middle)).clamp(min=1) for level in LEVELS]
        errors = [expected_error(weights, stats, option) for option in options]
        best = min(range(len(options)), key=errors.__getitem__)
        plain = expected_error(weights, stats, torch.ones_like(largest))
        gain = 1 - errors[best] / plain if plain else 0.0
        is_worth = site.is_free or losses is None
        if losses is not None and not is_worth:
            is_worth = losses.get(site.tensor, 0.0) * gain >= LEAST_SHARE * sum(losses.values())
        if gain >= LEAST_GAIN and is_worth:
            found[site.tensor] = options[best].float()
    return found


def expected_error(weights: torch.Tensor, stats: ChannelStats, factor: torch.Tensor) -> float:
    """Expected squared error of the outputs, summed over them, of 8-bit weights and activations.

    weights: (outputs, inputs). factor: s, (inputs,).
    """
    widened = weights.abs() * factor
    high, low = (stats.maximum / factor).max(), (stats.minimum / factor).min()
    step = (high.clamp(min=0) - low.clamp(max=0)) / 255
    of_activations = step.square() / 12 * widened.square().sum()
    steps = widened.amax(dim=1) / 127
    of_weights = steps.square().sum() / 12 * (stats.square / factor.square()).sum()
    return float(of_activations + of_weights)


def smooth(graph: Graph, factors: Mapping[str, torch.Tensor]) -> Graph:
    """Apply factors.

    Given: a normalised graph, and a factor > 0 per channel by name of a tensor that linear layers
    read. Result: a graph of equal outputs; the tensor is divided by its factors and the columns
    of those layers are multiplied by them. A tensor that takes a multiplication keeps its name,
    which is then the multiplication's; as it was before, it is called ``<name>.unscaled``, and
    everything else reads that. ``graph`` is unchanged.

    Raises:
        PlanError: no such tensor, or one with another number of channels.
    """
    sites = {site.tensor: site for site in find_sites(graph)}
    module = clone(graph.module)
    calls = find_calls(module, graph.layers)
    for tensor, factor in factors.items():
        site = sites.get(tensor)
        if site is None or site.readers[0].weight_shape[1] != factor.numel():
            raise PlanError(
                f"the channels of {tensor} cannot be rescaled: it is not read by linear layers "
                f"that own their weights and take {factor.numel()} channels; make the plan again"
            )
        for reader in site.readers:
            _replace(module, reader.weight, attribute(module, reader.weight) * factor)
        for constant in site.constants:
            value = attribute(module, constant)
            _replace(module, constant, value / factor.reshape(-1, *[1] * (value.ndim - 1)))
        if not site.is_free:
            _divide(module, [calls[reader.name] for reader in site.readers], factor)
    return replace(graph, module=finish(module))


def count_readers(module: GraphModule) -> dict[str, int]:
    """How many operators read each constant."""
    found: dict[str, int] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        found[str(node.target)] = found.get(str(node.target), 0) + len(node.users)
    return found


def _constants(module: GraphModule, node: Node) -> tuple[str, ...]:
    """The constants whose division divides the last dimension of ``node``; () where none do."""
    if node.target is aten.layer_norm.default:
        given = [argument(node, 2), argument(node, 3)]
    elif LAYER_OPS.get(node.target) == "linear":
        given = [argument(node, 1), argument(node, 2)]
    elif node.target is aten.mul.Tensor:
        return _constants_of_product(module, node)
    else:
        return ()
    present = [each for each in given if each is not None]
    values = [constant_value(module, each) for each in present]
    width = node.meta["val"].shape[-1]
    # A norm over several dimensions has gains of that many.
    is_rows = all(value is not None and value.shape[0] == width for value in values)
    is_vector = node.target is not aten.layer_norm.default or len(argument(node, 1)) == 1
    if given[0] is None or not is_rows or not is_vector:
        return ()
    return tuple(str(each.target) for each in present)


def _constants_of_product(module: GraphModule, node: Node) -> tuple[str, ...]:
    width = node.meta["val"].shape[-1]
    for operand in (argument(node, 0), argument(node, 1)):
        if not isinstance(operand, Node):
            continue
        value = constant_value(module, operand)
        if value is not None and tuple(value.shape) == (width,):
            return (str(operand.target),)
        is_whole = operand.meta["val"].shape[-1:] == node.meta["val"].shape[-1:]
        if value is None and len(operand.users) == 1 and is_whole:
            found = _constants(module, operand)
            if found:
                return found
    return ()


def _replace(module: GraphModule, target: str, value: torch.Tensor) -> None:
    set_constant(module, target, torch.nn.Parameter(value.detach(), requires_grad=False))


def _divide(module: GraphModule, readers: Sequence[Node], factor: torch.Tensor) -> None:
    """Make what ``readers`` read the product with 1 / s, in place, and move what it was before."""
    node = input_argument(readers[0])
    tensor = name_of(node)
    assert callable(node.target)  # sites are calls of operators
    with module.graph.inserting_before(node):
        before = module.graph.call_function(node.target, node.args, node.kwargs)
    copy_meta(node, before)
    stamp(before, made_by=MADE_BY, name=f"{tensor}.unscaled")
    for user in list(node.users):
        if user not in readers:
            user.replace_input_with(node, before)
    leaf = tensor.replace("#", "_")  # no character of a name in Python
    reciprocal = insert_constant(module, node, f"{leaf}_reciprocal", 1 / factor)
    stamp(reciprocal, made_by=MADE_BY, name=str(reciprocal.target))
    node.target, node.args, node.kwargs = aten.mul.Tensor, (before, reciprocal), {}
    stamp(node, made_by=MADE_BY)
