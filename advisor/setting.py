"""Everything fixed before calibration: the graph, the runtime, the hardware, the candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from advisor.errors import UsageError
from advisor.formats import DTYPE_BITS, scheme_named
from advisor.measure.costs import MeasuredCosts
from advisor.passes.attention import open_products
from advisor.passes.candidates import Space, regions_of
from advisor.passes.gates import spell_gates, spells_gates
from advisor.passes.graph import Graph, Layer, name_of
from advisor.passes.group import Group
from advisor.passes.kvcache import cached_elements
from advisor.passes.layers import find_layers
from advisor.passes.regions import Regions
from advisor.passes.shapes import TensorInfo, deployment_inputs, infer_shapes
from advisor.profiles.cost import LayerCost, Traffic, layer_cost
from advisor.profiles.schema import Profile
from advisor.profiles.timeparts import TimeParts
from advisor.targets.capability import Capability


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One planning problem before its sensitivities.

    shapes: by node name at the deployment's ``batch`` and ``sequence``. measured: seconds found on
    this machine, which replace the modelled ones. cache_bytes: of the keys and values that a
    decoder keeps at the deployment's context. costs, counts: what was computed so far, by
    (layer, scheme) and elements by tensor name.
    """

    graph: Graph
    groups: tuple[Group, ...]
    space: Space
    regions: Regions
    capability: Capability
    profile: Profile
    shapes: Mapping[str, TensorInfo]
    batch: int
    threads: int | None = None
    sequence: int | None = None
    cache_bytes: float = 0.0
    measured: MeasuredCosts | None = None
    costs: dict[tuple[str, str], LayerCost] = field(
        default_factory=dict[tuple[str, str], LayerCost]
    )
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def layers_of(self, group: Group) -> list[Layer]:
        """The group's layers, in execution order."""
        names = set(group.layers)
        return [layer for layer in self.graph.layers if layer.name in names]

    def cost(self, layer: Layer, scheme: str) -> LayerCost:
        """Cost of one layer under a scheme; computed once."""
        key = (layer.name, scheme)
        if key not in self.costs:
            cost = layer_cost(
                layer,
                scheme_named(scheme),
                self._traffic(layer),
                capability=self.capability,
                profile=self.profile,
                threads=self.threads,
            )
            if self.measured is not None:
                timed_s = self.measured.layers[layer.name][scheme]
                cost = replace(cost, parts=TimeParts(timed_s=timed_s))
            self.costs[key] = cost
        return self.costs[key]

    def with_measured(self, measured: MeasuredCosts) -> Setting:
        """This setting with seconds from this machine in place of the modelled ones."""
        return replace(self, measured=measured, costs={})

    def with_graph(self, graph: Graph) -> Setting:
        """This setting for a graph of the same layers that has other operators between them."""
        flat = deployment_inputs(graph, self.batch, self.sequence)
        return replace(self, graph=graph, shapes=infer_shapes(graph.module, flat), counts={})

    @property
    def latency_source(self) -> str:
        """Where the seconds come from, in words."""
        if self.measured is None:
            return f"roofline of {self.profile.name}"
        machine, error = self.measured.machine, self.measured.error
        return (
            "sum of layer times measured on this machine "
            f"({machine['cpu']}, {machine['runtime']}), "
            f"which is off by {error:.1%} (median) for timed models that it was not found from"
        )

    def bytes_of(self, node: str) -> int:
        """Bytes of a tensor by node name, floats in the runtime's own dtype."""
        info = self.shapes[node]
        if not info.is_float:
            return info.size_bytes
        return info.count * DTYPE_BITS[self.capability.float_dtype] // 8

    def count_of(self, tensor: str) -> int:
        """Elements of a tensor by its stable name, at the deployment batch; 0 when unknown."""
        if not self.counts:
            self.counts.update(
                (name_of(node), self.shapes[node.name].count)
                for node in self.graph.module.graph.nodes
                if node.name in self.shapes
            )
        return self.counts.get(tensor, 0)

    def _traffic(self, layer: Layer) -> Traffic:
        return Traffic(
            input_elements=self.count_of(layer.input) + self.count_of(layer.other or ""),
            output_elements=self.count_of(layer.output),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Where and how the model will run."""

    profile: Profile
    capability: Capability
    batch: int
    sequence: int | None
    threads: int | None
    context: int | None = None


def make_setting(
    graph: Graph, groups: tuple[Group, ...], space: Space, deployment: Deployment
) -> Setting:
    """The setting, with every shape and multiply-accumulate count at the deployment's batch.

    Raises:
        InputError: the model accepts only one batch or sequence, and another was asked.
        UsageError: a context was asked, and the model has no self-attention.
    """
    flat = deployment_inputs(graph, deployment.batch, deployment.sequence)
    shapes = infer_shapes(graph.module, flat)
    sizes = {name: info.shape for name, info in shapes.items()}
    return Setting(
        graph=replace(graph, layers=find_layers(graph.module, sizes, products=graph.products)),
        groups=groups,
        space=space,
        regions=regions_of(graph, deployment.capability),
        capability=deployment.capability,
        profile=deployment.profile,
        shapes=shapes,
        batch=deployment.batch,
        threads=deployment.threads,
        sequence=deployment.sequence,
        cache_bytes=_cache_bytes(graph, shapes, deployment),
    )


def _cache_bytes(graph: Graph, shapes: Mapping[str, TensorInfo], deployment: Deployment) -> float:
    """Keys and values of the deployment's context, in the runtime's own float dtype."""
    if deployment.context is None:
        return 0.0
    elements = cached_elements(graph, shapes)
    if not elements:
        raise UsageError(
            f"context={deployment.context}: the model has no attention of a sequence over itself "
            "whose keys and values could be kept; leave context out"
        )
    return elements * deployment.context * DTYPE_BITS[deployment.capability.float_dtype] / 8


def graph_for(graph: Graph, capability: Capability) -> Graph:
    """The captured graph as the runtime's plans see it.

    Products are layers where it quantizes some, and attention is then spelled out; so is SiLU
    where sigmoids can be integers.
    """
    if spells_gates(capability.static):
        graph = replace(graph, module=spell_gates(graph.module))
    return open_products(graph) if capability.quantizes_products else graph
