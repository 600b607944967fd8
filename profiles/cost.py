"""What a layer costs under a scheme: bytes on disk, bytes resident, seconds, joules.

One function per quantity. Everything here is modelled from the profile and the runtime's
capability data; the ``origin`` of a number made from it is "modelled".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Final

from advisor.formats import DTYPE_BITS, Scheme, storage_bits
from advisor.passes.graph import Layer
from advisor.profiles.costparts import EnergyParts
from advisor.profiles.roofline import (
    PRODUCTS,
    boundary_seconds,
    effective_compute,
    energy_parts,
    family_of,
    layer_time,
)
from advisor.profiles.schema import FAMILIES, Profile
from advisor.profiles.timeparts import TimeParts
from advisor.targets.capability import Capability
from advisor.targets.rules import WeightMemory

EXPONENTIAL: Final = 16
"""Operations of one exponential by range reduction and a polynomial of degree 5 to 6, as vector
libraries compute it after Cephes (https://www.netlib.org/cephes/)."""

OPERATIONS: Final[Mapping[str, int]] = {
    "softmax": EXPONENTIAL + 4,
    "_softmax": EXPONENTIAL + 4,
    "exp": EXPONENTIAL,
    "sigmoid": EXPONENTIAL + 4,
    "silu": EXPONENTIAL + 5,
    "tanh": EXPONENTIAL + 4,
    "gelu": EXPONENTIAL + 8,
    "erf": EXPONENTIAL + 4,
    "log": EXPONENTIAL,
    "pow": 2 * EXPONENTIAL,
    "layer_norm": 8,
    "native_layer_norm": 8,
    "group_norm": 8,
    "rms_norm": 5,
    "div": 4,
    "sqrt": 4,
    "rsqrt": 4,
}
"""Operations per element of operators without a weight, counted by hand; of all others 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Cost of one layer.

    size_bytes: the weight on disk. resident_bytes: in memory while the model is open, and
    opening_bytes: at the highest moment of opening it. scratch_bytes: besides, while the layer
    runs. parts: what the seconds are spent on. energy: None when the profile publishes no figure.
    """

    size_bytes: int
    resident_bytes: int
    opening_bytes: int
    scratch_bytes: int
    parts: TimeParts
    energy: EnergyParts | None

    @property
    def latency_s(self) -> float:
        """Seconds of one forward of the layer."""
        return self.parts.seconds

    @property
    def energy_j(self) -> float | None:
        """Joules of one forward of the layer; None when the profile publishes no figure."""
        return None if self.energy is None else self.energy.joules


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Elements that a layer reads and writes at the deployment batch."""

    input_elements: int
    output_elements: int


def layer_cost(
    layer: Layer,
    scheme: Scheme,
    traffic: Traffic,
    *,
    capability: Capability,
    profile: Profile,
    threads: int | None,
) -> LayerCost:
    """Every cost of ``layer`` under ``scheme``, its weight counted in full."""
    scheme = capability.taken(layer, scheme)
    stored = weight_bytes(layer, scheme, capability)
    expanded = is_storage_only(layer, scheme, capability)
    full = layer.weight_count * _bytes(capability.float_dtype)
    is_lookup = layer.op == "embedding"
    per_weight = stored / max(layer.weight_count, 1)
    read = traffic.output_elements * per_weight if is_lookup else float(stored)
    dtype = compute_dtype(scheme, capability)
    if expanded and not is_lookup:
        read = float(full)
    moved = activation_bytes(layer, scheme, traffic, capability)
    family = family_of(layer) if _has_family(layer) else "elementwise"
    share = filled_share(layer, family, effective_compute(profile, dtype).multiple)
    time = layer_time(
        profile,
        op_family=family,
        macs=layer.macs / share,
        weight_bytes=read,
        activation_bytes=moved,
        compute_dtype=dtype,
        threads=threads,
    )
    quantizing_s = quantize_seconds(
        scheme, traffic, capability=capability, profile=profile, threads=threads
    )
    parts = time.parts * capability.slowdown(layer, scheme) + TimeParts(boundary_s=quantizing_s)
    kept = full if expanded and not is_lookup else stored
    memory = weight_memory(layer, scheme, capability, profile.platform)
    return LayerCost(
        size_bytes=stored,
        resident_bytes=round(memory.resident * kept),
        opening_bytes=round(memory.opening * kept),
        scratch_bytes=round(memory.scratch * full)
        + quantized_bytes(layer, scheme, traffic, capability),
        parts=parts,
        energy=energy_parts(
            profile, macs=layer.macs, traffic_bytes=read + moved, compute_dtype=dtype
        ),
    )


def weight_bytes(layer: Layer, scheme: Scheme, capability: Capability) -> int:
    """Bytes of the layer's weight on disk, scales included; 0 for a product."""
    if layer.is_product:
        return 0
    scales = capability.scale_dtype_of(scheme)
    return storage_bits(layer.weight_shape, layer.weight_format(scheme), scale_dtype=scales) // 8


def weight_memory(
    layer: Layer, scheme: Scheme, capability: Capability, platform: Mapping[str, str]
) -> WeightMemory:
    """What the layer's weight takes in memory; its bytes once where nothing else is known."""
    if capability.memory is None:
        return WeightMemory(ops=(layer.op,), schemes=(scheme.name,))
    return capability.memory.weight(layer.op, scheme.name, platform)


def process_overhead_bytes(capability: Capability, operators: int, size_bytes: float) -> float:
    """What a process takes besides a plan's memory: the runtime, each operator's own data, and the
    file itself where the weights are in it."""
    rules = capability.memory
    if rules is None:
        return 0.0
    parsed = size_bytes if size_bytes < rules.inside_bytes else 0.0
    return rules.runtime_bytes + operators * rules.operator_bytes + parsed


def is_storage_only(layer: Layer, scheme: Scheme, capability: Capability) -> bool:
    """Whether the runtime expands the weight before computing, so that time is not saved."""
    entry = capability.schemes.get(scheme.name)
    return entry is not None and layer.op in entry.storage_only


def compute_dtype(scheme: Scheme, capability: Capability) -> str:
    """Dtype of the multiplication; "float" means the runtime's own float dtype."""
    return capability.float_dtype if scheme.compute == "float" else scheme.compute


def filled_share(layer: Layer, op_family: str, multiple: int) -> float:
    """Share of a unit's tiles that the layer's weight fills: 1, or less where its inputs or outputs
    are no multiple of the tile's width. Depthwise kernels have an efficiency of their own."""
    if op_family not in PRODUCTS[:2] or layer.is_product or multiple == 1:
        return 1.0
    outputs, inputs = layer.weight_shape[0] // layer.groups, layer.weight_shape[1]
    return prod(size / (ceil(size / multiple) * multiple) for size in (outputs, inputs))


def activation_bytes(
    layer: Layer, scheme: Scheme, traffic: Traffic, capability: Capability
) -> float:
    """Bytes of activations read and written: integers under a static scheme where it has them.

    A dynamic layer reads the integers that ``quantize_seconds`` makes, and writes floats.
    """
    width = _bytes(capability.float_dtype)
    rules = capability.static
    writes_integers = scheme.is_static and rules is not None and layer.op in rules.quantized_output
    read = traffic.input_elements * (width if scheme.activation is None else 1)
    written = traffic.output_elements * (1 if writes_integers else width)
    return float(read + written)


def quantize_seconds(
    scheme: Scheme,
    traffic: Traffic,
    *,
    capability: Capability,
    profile: Profile,
    threads: int | None,
) -> float:
    """Seconds of turning the layer's float input into integers, which dynamic schemes do first."""
    if not scheme.is_dynamic:
        return 0.0
    return boundary_seconds(
        profile,
        elements=traffic.input_elements,
        from_element_bytes=_bytes(capability.float_dtype),
        to_element_bytes=1,
        threads=threads,
    )


def quantized_bytes(layer: Layer, scheme: Scheme, traffic: Traffic, capability: Capability) -> int:
    """Bytes of the integers and scales that a dynamic layer makes of its input while it runs."""
    if not scheme.is_dynamic:
        return 0
    rules = capability.dynamic[scheme.name].of(layer)
    inputs = prod(layer.weight_shape[1:])
    shared = {"per-row": inputs, "per-pixel": inputs, "per-block": rules.block}
    together = shared.get(rules.granularity, max(traffic.input_elements, 1))
    scales = ceil(traffic.input_elements / together)
    return traffic.input_elements + scales * _bytes("float32")


def plain_parts(
    profile: Profile,
    *,
    op: str,
    macs: int,
    elements: int,
    moved_bytes: int,
    capability: Capability,
    threads: int | None,
) -> TimeParts:
    """Time of an operator without a weight of its own (add, softmax, attention products).

    op: its ATen name. elements: of its largest tensor. Elementwise operators compute in the
    slowest dtype, as ``boundary_seconds`` does: matrix units are of no use to them.
    """
    dtype = capability.float_dtype if macs else profile.dtypes[-1]
    return layer_time(
        profile,
        op_family="linear" if macs else "elementwise",
        macs=macs or elements * OPERATIONS.get(op, 1) / 2,
        weight_bytes=0,
        activation_bytes=moved_bytes,
        compute_dtype=effective_compute(profile, dtype).dtype,
        threads=threads,
    ).parts


def _bytes(dtype: str) -> int:
    return DTYPE_BITS[dtype] // 8


def _has_family(layer: Layer) -> bool:
    known = (*FAMILIES, "lstm", "gru")
    return layer.is_product or layer.op in known or layer.op.startswith("conv")
