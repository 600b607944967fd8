"""Whether the shape of a layer's weight fits a scheme on a runtime."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from advisor.formats import PerBlock, PerGroup, Scheme

if TYPE_CHECKING:
    from advisor.passes.graph import Layer
    from advisor.targets.capability import SchemeSupport


def misfit(title: str, layer: Layer, scheme: Scheme, entry: SchemeSupport) -> str:
    """Why the shape does not fit, in words; empty when it does. title: the runtime's."""
    if not layer.weight_shape:
        return ""
    outputs, inputs = layer.weight_shape[0], prod(layer.weight_shape[1:])
    if not entry.depthwise and layer.op.startswith("conv") and layer.weight_shape[1] == 1:
        return (
            f"{title} runs {scheme.name} on no convolution with one input channel per group "
            "(depthwise)"
        )
    taps = prod(layer.weight_shape[2:])
    if layer.op.startswith("conv") and taps > entry.most_taps:
        return (
            f"{title} runs {scheme.name} only on convolutions with kernels of up to "
            f"{entry.most_taps} positions, and this one has {taps}"
        )
    if not entry.odd_rows and layer.op == "embedding" and inputs % 2:
        return (
            f"{title} looks {scheme.name} up only in rows of even width, and these have {inputs} "
            "numbers"
        )
    if outputs % entry.multiple or inputs % entry.multiple:
        return (
            f"{title} runs {scheme.name} only with outputs and inputs that are multiples of "
            f"{entry.multiple}, and these are {outputs} and {inputs}"
        )
    granularity = scheme.weight.granularity
    if isinstance(granularity, PerGroup) and outputs % granularity.size:
        return f"{granularity.size} does not divide {outputs} outputs"
    if not isinstance(granularity, PerBlock):
        return ""
    if inputs % granularity.size and not entry.ragged:
        return f"block {granularity.size} does not divide {inputs} inputs"
    if inputs < entry.least_blocks * granularity.size and entry.least_blocks > 1:
        return (
            f"{title} runs {scheme.name} only with {entry.least_blocks} blocks or more, and "
            f"{inputs} inputs have {-(-inputs // granularity.size)}"
        )
    return ""
