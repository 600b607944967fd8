"""Time and energy of one operator on a profile: the roofline model plus a fixed overhead.

An operator takes the longer of its arithmetic at the attainable throughput and its traffic at the
attainable bandwidth (S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual
performance model for multicore architectures", CACM 52(4), 2009), and a launch. Everything here is
modelled, never measured.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Final, Literal

from advisor.errors import ProfileError, UsageError
from advisor.formats import DTYPE_BITS
from advisor.passes.graph import Layer
from advisor.profiles.costparts import EnergyParts
from advisor.profiles.schema import FAMILIES, Compute, Profile, Unit
from advisor.profiles.timeparts import TimeParts

WIDER: Final[dict[str, tuple[str, ...]]] = {
    "float32": (),
    "float16": ("float32",),
    "bfloat16": ("float32",),
    "float8_e4m3": ("float16", "bfloat16", "float32"),
    "float8_e5m2": ("float16", "bfloat16", "float32"),
    "fp4": ("float8_e4m3", "float16", "bfloat16", "float32"),
    "int8": ("float16", "bfloat16", "float32"),
    "int4": ("int8", "float16", "bfloat16", "float32"),
}
"""By dtype, what a device without it computes in instead: the first that it has. Every entry
represents all values of the dtype before it (int8 is exact in float16 and bfloat16), which is why
float16 and bfloat16 do not stand in for each other."""

SAME_ARITHMETIC: Final = {"uint8": "int8", "uint4": "int4"}
"""Signedness does not change the throughput."""

PRODUCTS: Final = ("linear", "conv", "depthwise")
"""Families that multiply two operands, tile by tile."""

CONVERT_OPS: Final = 4
"""Operations per element of a quantize, dequantize or cast pass: scale, shift, round, clamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectiveCompute:
    """The arithmetic that a device really uses for a requested dtype.

    ops_per_s: peak of ``unit``, all its cores. widened: True when ``dtype`` is not what was asked.
    multiple: what the unit fills inputs and outputs of a product up to; 1 where it need not.
    """

    dtype: str
    ops_per_s: float
    unit: Unit
    widened: bool
    multiple: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineTime:
    """The parts of an operator's time. compute_s and memory_s overlap; overhead_s does not."""

    compute_s: float
    memory_s: float
    overhead_s: float

    @property
    def seconds(self) -> float:
        """The modelled time."""
        return max(self.compute_s, self.memory_s) + self.overhead_s

    @property
    def parts(self) -> TimeParts:
        """The same time, the shorter of the two that overlap left out."""
        if self.compute_s >= self.memory_s:
            return TimeParts(compute_s=self.compute_s, overhead_s=self.overhead_s)
        return TimeParts(memory_s=self.memory_s, overhead_s=self.overhead_s)

    @property
    def bound(self) -> Literal["compute", "memory", "overhead"]:
        """What the time is mostly made of."""
        if self.overhead_s > max(self.compute_s, self.memory_s):
            return "overhead"
        return "compute" if self.compute_s >= self.memory_s else "memory"


def effective_compute(profile: Profile, dtype: str) -> EffectiveCompute:
    """What ``profile`` computes in when ``dtype`` is asked for, and how fast.

    The rule: ``dtype`` itself if the profile has a throughput for it, else the first entry of
    ``WIDER[dtype]`` that it has, on the units that plans use. A dtype that several of them offer
    runs on the fastest. ``dtype`` is the dtype of the multiplication, not of storage: a
    weight-only scheme multiplies in the runtime's float dtype, whatever its weights are stored in.

    Raises:
        UsageError: not a compute dtype.
        ProfileError: the profile has neither the dtype nor a wider one.
    """
    base = SAME_ARITHMETIC.get(dtype, dtype)
    if base not in WIDER:
        raise UsageError(
            f"{dtype!r} is not a compute dtype; compute dtypes: {', '.join([*WIDER, 'uint8'])}. "
            "For a format that is only stored, ask for the dtype that it is expanded to"
        )
    for candidate in (base, *WIDER[base]):
        offers = [entry for entry in profile.offers if entry.dtype == candidate]
        if offers:
            best = max(offers, key=_peak)
            return EffectiveCompute(
                dtype=candidate,
                ops_per_s=_peak(best),
                unit=best.unit,
                widened=candidate != base,
                multiple=1 if best.multiple is None else int(best.multiple.value),
            )
    raise ProfileError(
        f"{profile.name}: no throughput for {dtype} or a wider dtype; "
        f"it has {', '.join(profile.dtypes)}"
    )


def family_of(layer: Layer) -> str:
    """The operator family (one of ``FAMILIES``) that a layer's efficiency is looked up by.

    Raises:
        UsageError: the operator belongs to no family.
    """
    if layer.is_depthwise:
        return "depthwise"
    if layer.op.startswith("conv"):
        return "conv"
    # A recurrent layer is a product with a matrix at every step.
    is_product = layer.is_product or layer.op in ("lstm", "gru")
    return "linear" if is_product else _known_family(layer.op)


def layer_time(
    profile: Profile,
    *,
    op_family: str,
    macs: float,
    weight_bytes: float,
    activation_bytes: float,
    compute_dtype: str,
    threads: int | None = None,
) -> RooflineTime:
    """The modelled time of one operator, in its parts.

    compute = 2 * macs / (peak * efficiency), memory as ``traffic_seconds`` has it, and one launch,
    or what the smallest product takes. Depthwise layers have the peak of vectors. An embedding has
    no arithmetic: its efficiency is the share of the sustained bandwidth that a gather of rows
    reaches.

    Args:
        profile: the device.
        op_family: one of ``FAMILIES``.
        macs: multiply-accumulates of the operator at the deployment batch.
        weight_bytes: weights read, as stored (for an embedding: the rows looked up).
        activation_bytes: activations read and written.
        compute_dtype: dtype of the multiplication; ``effective_compute`` says what is used.
        threads: CPU threads; None: all cores. CPU throughput is scaled by threads / cores, and
            more threads than cores add nothing. Other units do not depend on it.

    Raises:
        UsageError: unknown family or dtype, a negative amount, fewer than one thread.
        ProfileError: the profile has neither the dtype nor a wider one.
    """
    family = _known_family(op_family)
    _check_amounts(macs=macs, weight_bytes=weight_bytes, activation_bytes=activation_bytes)
    used = effective_compute(profile, compute_dtype)
    share = profile.efficiency[family].value
    rate = _scaled(profile, used, threads)
    if family == "depthwise":
        rate *= vector_ops(profile, used) / used.ops_per_s
    memory_s = traffic_seconds(
        profile, weight_bytes=weight_bytes, activation_bytes=activation_bytes, threads=threads
    )
    return RooflineTime(
        compute_s=2 * macs / (rate * share),
        memory_s=memory_s / share if family == "embedding" else memory_s,
        overhead_s=start_seconds(profile, family),
    )


def traffic_seconds(
    profile: Profile,
    *,
    weight_bytes: float = 0.0,
    activation_bytes: float,
    threads: int | None = None,
) -> float:
    """Seconds that the main memory needs for what one operator reads and writes.

    Weights come from there at every forward. Activations do not where all that the operator reads
    and writes of them fits into the cache of the chip: the operator before left them there.
    """
    cache = profile.memory.cache_bytes
    if cache is not None and activation_bytes <= cache.value:
        activation_bytes = 0.0
    return (weight_bytes + activation_bytes) / sustained_bandwidth(profile, threads)


def vector_ops(profile: Profile, used: EffectiveCompute) -> float:
    """Operations per second of a unit without its matrix unit, which depthwise layers cannot use.

    That of the unit's slowest dtype, by as many times as more numbers fit into its registers.
    """
    same = [entry for entry in profile.offers if entry.unit == used.unit]
    slowest = min(same, key=_peak)
    wider = DTYPE_BITS[slowest.dtype] / DTYPE_BITS[used.dtype]
    return min(_peak(slowest) * max(wider, 1.0), used.ops_per_s)


def start_seconds(profile: Profile, op_family: str) -> float:
    """Seconds that an operator of the family takes however small it is.

    A product has to fetch its first tiles before it can multiply, and to write the last ones after
    it, which on a device that launches fast is longer than the launch.
    """
    launch_s, product = profile.overhead.launch_s.value, profile.overhead.product_s
    if op_family not in PRODUCTS or product is None:
        return launch_s
    return max(launch_s, product.value)


def layer_seconds(
    profile: Profile,
    *,
    op_family: str,
    macs: float,
    weight_bytes: float,
    activation_bytes: float,
    compute_dtype: str,
    threads: int | None = None,
) -> float:
    """The modelled time of one operator in seconds; arguments and errors as ``layer_time``."""
    return layer_time(
        profile,
        op_family=op_family,
        macs=macs,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        compute_dtype=compute_dtype,
        threads=threads,
    ).seconds


def boundary_seconds(
    profile: Profile,
    *,
    elements: float,
    from_element_bytes: float,
    to_element_bytes: float,
    threads: int | None = None,
) -> float:
    """Seconds of one pass that quantizes, dequantizes or casts a tensor of ``elements``.

    Reads and writes every element once (from_element_bytes, to_element_bytes: bytes of one
    element, 0.5 for a packed int4) and does ``CONVERT_OPS`` operations on it at the throughput of
    the profile's slowest dtype (conversions gain nothing from matrix units for narrow ones) and
    the efficiency of elementwise operators; plus one launch.

    Raises:
        UsageError: a negative amount, fewer than one thread.
    """
    _check_amounts(
        elements=elements, from_element_bytes=from_element_bytes, to_element_bytes=to_element_bytes
    )
    slowest = profile.dtypes[-1]
    rate = _scaled(profile, effective_compute(profile, slowest), threads)
    return RooflineTime(
        compute_s=elements * CONVERT_OPS / (rate * profile.efficiency["elementwise"].value),
        memory_s=traffic_seconds(
            profile,
            activation_bytes=elements * (from_element_bytes + to_element_bytes),
            threads=threads,
        ),
        overhead_s=profile.overhead.launch_s.value,
    ).seconds


def sustained_bandwidth(profile: Profile, threads: int | None = None) -> float:
    """Main-memory bytes per second that kernels reach with ``threads`` CPU threads (None: all).

    The peak times ``memory.fraction``, and no more than the threads can draw where the profile
    states the bandwidth of one core.

    Raises:
        UsageError: fewer than one thread.
    """
    memory = profile.memory
    whole = memory.bandwidth_bytes_per_s.value * memory.fraction.value
    active = _active_cores(profile, threads)
    per_core = memory.core_bandwidth_bytes_per_s
    if active is None or per_core is None:
        return whole
    return min(whole, active * per_core.value)


def dispatch_seconds(profile: Profile) -> float:
    """Seconds added once per forward pass; 0 when the profile knows of none."""
    dispatch = profile.overhead.dispatch_s
    return 0.0 if dispatch is None else dispatch.value


def switch_seconds(profile: Profile, launches: float) -> float:
    """Seconds of passing from a runtime's delegate to its own kernels or back: so many launches."""
    return launches * profile.overhead.launch_s.value


def energy_parts(
    profile: Profile, *, macs: float, traffic_bytes: float, compute_dtype: str
) -> EnergyParts | None:
    """Energy of one operator: 2 * macs operations and ``traffic_bytes`` of main-memory traffic.

    None when the profile has no energy figure for the dtype that is really used: energy is only
    given where numbers are published.

    Raises:
        UsageError: not a compute dtype, or a negative amount.
        ProfileError: the profile has neither the dtype nor a wider one.
    """
    _check_amounts(macs=macs, traffic_bytes=traffic_bytes)
    used = effective_compute(profile, compute_dtype)
    if profile.energy is None or used.dtype not in profile.energy.joules_per_op:
        return None
    per_op = profile.energy.joules_per_op[used.dtype].value
    return EnergyParts(
        compute_j=2 * macs * per_op,
        memory_j=traffic_bytes * profile.energy.joules_per_byte.value,
    )


def _peak(entry: Compute) -> float:
    return entry.ops_per_s.value


def _scaled(profile: Profile, used: EffectiveCompute, threads: int | None) -> float:
    active = _active_cores(profile, threads)
    if used.unit != "cpu" or active is None or profile.cores is None:
        return used.ops_per_s
    return used.ops_per_s * active / profile.cores.value


def _active_cores(profile: Profile, threads: int | None) -> float | None:
    """Cores at work; None when all are, or when the profile has no cores to count."""
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: at least one thread is needed; None means all cores")
    if threads is None or profile.cores is None:
        return None
    return min(float(threads), profile.cores.value)


def _known_family(name: str) -> str:
    if name not in FAMILIES:
        raise UsageError(f"unknown operator family {name!r}; families: {', '.join(FAMILIES)}")
    return name


def _check_amounts(**amounts: float) -> None:
    for name, amount in amounts.items():
        if not isfinite(amount) or amount < 0:
            raise UsageError(f"{name}={amount!r}: expected a finite amount of 0 or more")
