"""Hold an artifact against the simulation: layer by layer on equal inputs, then end to end.

A flip of one rounding spreads through the layers after it, so a layer is judged on the
simulation's own input, and only the whole on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from advisor.formats import scheme_named
from advisor.passes import ops
from advisor.passes.fx import placeholders
from advisor.passes.graph import name_of
from advisor.passes.layers import can_be_layer
from advisor.passes.recurrent import WEIGHTS_AT
from advisor.targets.base import Mismatch
from advisor.targets.manifest import LayerRecord
from advisor.targets.simulation import Simulation

FLOAT_TOLERANCE: Final = 1e-5
"""Largest absolute difference over the largest magnitude of the simulation's output."""

FLIP_SHARE: Final = 1e-3
"""Share of integers that may differ by one step: roundings that fall the other way."""

END_TO_END_SHARE: Final = 0.1
"""Distance to the simulation over the simulation's own distance to the float model."""

SHAKEN_SHARE: Final = 3.0
"""The same over the simulation's distance to itself under rounding errors of its own."""

ROUNDING: Final = 1e-6
"""Relative rounding error of a sum of some hundred float32 products, standard deviation."""

QUANTIZERS: Final = frozenset({ops.QUANTIZE_STATIC, ops.QUANTIZE_DEQUANTIZE_DYNAMIC})

FUSED: Final = frozenset(
    {
        torch.ops.aten.relu.default,
        torch.ops.aten.relu6.default,
        torch.ops.aten.hardtanh.default,
        torch.ops.aten.clamp.default,
    }
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far one layer is from the simulation on equal inputs.

    error: relative for floats, in steps for integers. flips, compared: integers that differ and
    that were compared. problem: empty when the layer agrees.
    """

    layer: str
    error: float
    flips: int = 0
    compared: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Tap:
    """A layer in the simulation: the nodes whose values are its inputs and its output."""

    layer: LayerRecord
    sources: tuple[Node, ...]
    end: Node


def find_calls(
    module: GraphModule, layers: Sequence[LayerRecord]
) -> Iterator[tuple[LayerRecord, Node, bool]]:
    """The layers that the simulation computes with an operator of their own: record, node, and
    whether it reads static integers."""
    records = {layer.node: layer for layer in layers if not layer.operand}
    for node in module.graph.nodes:
        record = records.get(name_of(node)) if can_be_layer(node) else None
        if record is None:
            continue
        if node.target in WEIGHTS_AT and any(node.args[1 : WEIGHTS_AT[node.target][0]]):
            continue  # it reads states beside its input, so only the whole can be judged
        yield record, node, scheme_named(record.scheme).is_static and record.op != "embedding"


def before_quantizers(source: Node, is_static: bool) -> Node:
    """What a layer's file reads where its simulation reads ``source``."""
    quantizers = {ops.QUANTIZE_DEQUANTIZE_DYNAMIC}
    quantizers |= {ops.DEQUANTIZE_STATIC} if is_static else set()
    return source.all_input_nodes[0] if source.target in quantizers else source


def end_of(node: Node) -> Node:
    """The quantizer right after a static layer and its fused activation, else the layer."""
    last = node
    while len(last.users) == 1:
        user = next(iter(last.users))
        if user.target is ops.QUANTIZE_STATIC:
            return user
        if user.target not in FUSED:
            break
        last = user
    return node


def run_tapped(
    module: GraphModule,
    taps: Sequence[Tap],
    flat_inputs: Sequence[torch.Tensor],
    judge: Callable[[Tap, Sequence[torch.Tensor], torch.Tensor], None],
) -> list[torch.Tensor]:
    """Run the simulation; call ``judge`` on every tap as soon as its output exists.

    Returns the output tensors. Values are dropped once no later tap needs them.
    """
    ends: dict[Node, list[Tap]] = {}
    open_uses: dict[Node, int] = {}
    for tap in taps:
        ends.setdefault(tap.end, []).append(tap)
        for source in tap.sources:
            open_uses[source] = open_uses.get(source, 0) + 1
    kept: dict[Node, torch.Tensor] = {}

    class Taps(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in open_uses:
                kept[n] = value
            for tap in ends.get(n, ()):
                judge(tap, [kept[source] for source in tap.sources], value)
                for source in tap.sources:
                    open_uses[source] -= 1
                    if not open_uses[source]:
                        del kept[source]
            return value

    with torch.no_grad():
        outputs = Taps(module).run(
            *place_inputs(placeholders(module), flat_inputs), enable_io_processing=False
        )
    return tensors_of(outputs)


def _flatten(outputs: object) -> Sequence[object]:
    if isinstance(outputs, (tuple, list)):
        return cast("Sequence[object]", outputs)
    return (outputs,)


def tensors_of(outputs: object) -> list[torch.Tensor]:
    """The tensors that a graph returned."""
    return [value for value in _flatten(outputs) if isinstance(value, torch.Tensor)]


def place_inputs(nodes: Sequence[Node], flat_inputs: Sequence[torch.Tensor]) -> list[Any]:
    """One value per placeholder; scalars that export fixed take the value they were fixed to."""
    remaining = iter(flat_inputs)
    placed: list[Any] = []
    for node in nodes:
        fixed = node.meta.get("val")
        is_tensor = isinstance(fixed, torch.Tensor) or len(nodes) == len(flat_inputs)
        placed.append(next(remaining) if is_tensor else fixed)
    return placed


def compare_integers(
    layer: str, found: Array, expected: Array, share: float = FLIP_SHARE
) -> Agreement:
    """Static layers: at most one step, on at most ``share`` of the integers."""
    steps = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    flips, worst = int(np.count_nonzero(steps)), int(steps.max(initial=0))
    allowed = max(1, int(share * steps.size))
    problem = ""
    if worst > 1 or flips > allowed:
        problem = f"{flips} of {steps.size} integers differ, by up to {worst} (allowed: {allowed})"
    return Agreement(
        layer=layer, error=float(worst), flips=flips, compared=steps.size, problem=problem
    )


def compare_floats(
    layer: str,
    found: Array,
    expected: Array,
    tolerance: float = FLOAT_TOLERANCE,
    floor: float = 0.0,
) -> Agreement:
    """Layers that write floats: at most ``tolerance`` of the largest magnitude, or ``floor``, which
    is what numbers too small for the layer's own dtype may be off by."""
    worst = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    size = float(np.abs(expected).max(initial=0.0))
    error = worst / size if size else worst
    problem = ""
    if not (error <= tolerance or worst <= floor):
        problem = f"differs by {error:.2e} of its largest value (allowed: {tolerance:.0e})"
    return Agreement(layer=layer, error=error, problem=problem)


def run_shaken(
    module: GraphModule,
    flat_inputs: Sequence[torch.Tensor],
    noise: Mapping[str, float] | None = None,
) -> list[torch.Tensor]:
    """Outputs of the simulation when whatever is about to be quantized is off by a rounding error.

    noise: by node name of layers that the runtime computes in narrower floats, the relative
    rounding error of what they read and write, standard deviation.

    Two correct programs that add in different orders differ by about that much, and at a few
    numbers in a million they then round to neighbouring integers. How far that spreads to the
    output is a property of the model; here it is measured. The noise is drawn from a fixed seed.
    """
    generator = torch.Generator().manual_seed(0)
    narrow = noise or {}

    def shake(value: Any, size: float) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            return value
        return value * (1 + size * torch.randn(value.shape, generator=generator))

    class Shaken(Interpreter):
        def run_node(self, n: Node) -> Any:
            size = narrow.get(name_of(n)) if can_be_layer(n) else None
            if n.target not in QUANTIZERS and size is None:
                return super().run_node(n)
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            args = (shake(args[0], ROUNDING if size is None else size), *args[1:])
            result = self.call_function(cast("Any", n.target), args, kwargs)
            return result if size is None else shake(result, size)

    with torch.no_grad():
        outputs = Shaken(module).run(
            *place_inputs(placeholders(module), flat_inputs), enable_io_processing=False
        )
    return tensors_of(outputs)


Shake = Callable[[GraphModule, Sequence[torch.Tensor]], list[torch.Tensor]]


def compare_outputs(
    simulation: Simulation,
    flat_inputs: Sequence[torch.Tensor],
    names: Sequence[str],
    found: Sequence[Array],
    shake: Shake = run_shaken,
) -> tuple[float, list[Mismatch]]:
    """``compare_end_to_end`` with what the simulation gives for ``flat_inputs``.

    names: of the outputs, in order. found: the artifact's. shake: the simulation's outputs under
    rounding errors such as the runtime makes.
    """
    expected = run_tapped(simulation.module, (), flat_inputs, lambda tap, feed, end: None)
    simulated = [tensor.numpy() for tensor in expected]
    floats = [simulation.floats[name].numpy() for name in names]
    result = compare_end_to_end(names, found, simulated, floats)
    if not result[1]:
        return result
    shaken = [tensor.numpy() for tensor in shake(simulation.module, flat_inputs)]
    return compare_end_to_end(names, found, simulated, floats, shaken)


def compare_end_to_end(
    names: Sequence[str],
    artifact: Sequence[Array],
    simulation: Sequence[Array],
    floats: Sequence[Array],
    shaken: Sequence[Array] | None = None,
) -> tuple[float, list[Mismatch]]:
    """Largest absolute difference of any output, and the outputs that are out of bounds.

    The bound on the Euclidean distance to the simulation is a tenth of what quantization itself
    moved the output, and never less than the float tolerance of its size, nor than
    ``SHAKEN_SHARE`` times the simulation's distance to its own ``shaken`` outputs.
    """
    worst = 0.0
    problems: list[Mismatch] = []
    moved_by_rounding = simulation if shaken is None else shaken
    for name, found, expected, original, moved in zip(
        names, artifact, simulation, floats, moved_by_rounding, strict=True
    ):
        if found.shape != expected.shape:
            problems.append(
                Mismatch(name=name, expected=f"{expected.shape}", found=f"{found.shape}")
            )
            continue
        reference = expected.astype(np.float64)
        other = moved if np.isfinite(moved).all() else reference  # else it would bound nothing
        distance = found.astype(np.float64) - reference
        worst = max(worst, float(np.abs(distance).max(initial=0.0)))
        bound = max(
            END_TO_END_SHARE * float(np.linalg.norm(reference - original)),
            FLOAT_TOLERANCE * float(np.linalg.norm(reference)),
            SHAKEN_SHARE * float(np.linalg.norm(reference - other)),
        )
        length = float(np.linalg.norm(distance))
        if not length <= bound:
            problems.append(
                Mismatch(
                    name=name,
                    expected=f"within {bound:.3g} of the simulation",
                    found=f"{length:.3g} away",
                )
            )
    return worst, problems


def describe_agreements(agreements: Sequence[Agreement]) -> str:
    """The first layer that leaves the simulation and by how much; how near it is when none does."""
    for found in agreements:
        if found.problem:
            return f"{found.layer}: {found.problem}"
    worst = max(agreements, key=lambda found: found.error, default=None)
    if worst is None:
        return "no layer to compare"
    unit = "steps" if worst.compared else "of its largest value"
    return (
        f"all {len(agreements)} layers agree with the simulation; "
        f"the largest difference is {worst.error:.2g} {unit}, in {worst.layer}"
    )
