"""What was read back against what was planned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from advisor.formats import scheme_named, weight_alone
from advisor.targets.base import LayerFormat, Mismatch
from advisor.targets.manifest import LayerRecord, TensorRecord


def compare_layers(
    layers: Sequence[LayerRecord],
    formats: Mapping[str, LayerFormat],
    acceptable_kernels: Callable[[LayerRecord], Collection[str]],
) -> list[Mismatch]:
    """Layers whose format, numbers or executed operator are not the plan's.

    acceptable_kernels: operators that may run a layer; none when any may.
    """
    mismatches: list[Mismatch] = []

    def report(layer: LayerRecord, expected: str, found: str) -> None:
        mismatches.append(Mismatch(name=layer.name, expected=expected, found=found))

    for layer in layers:
        found = formats.get(layer.name)
        if found is None:
            report(layer, expected_scheme(layer), "not in the file")
            continue
        if not same_scheme(layer, found.scheme):
            report(layer, expected_scheme(layer), found.scheme)
        if found.weight_sha256 != layer.weight_sha256:
            report(
                layer,
                f"weight {layer.weight_sha256[:12]}",
                f"weight {found.weight_sha256[:12]}: an integer or a scale differs",
            )
        kernels = acceptable_kernels(layer)
        if kernels and found.kernel not in kernels:
            report(
                layer,
                f"executed by {' or '.join(sorted(kernels))}",
                f"executed by {found.kernel or 'nothing that could be found'}",
            )
    return mismatches


def compare_compute(
    layers: Sequence[LayerRecord], formats: Mapping[str, LayerFormat], dtype: str
) -> list[Mismatch]:
    """Layers that do not compute in the dtype that the plan says.

    dtype: of layers whose scheme leaves it to the runtime.
    """
    mismatches: list[Mismatch] = []
    for layer in layers:
        found = formats.get(layer.name)
        expected = compute_of(layer.scheme, dtype)
        if found is not None and not found.kernel.endswith(f" in {expected}"):
            mismatches.append(
                Mismatch(
                    name=layer.name,
                    expected=f"computed in {expected}",
                    found=found.kernel or "nothing that could be found",
                )
            )
    return mismatches


def compute_of(scheme: str, dtype: str) -> str:
    """The dtype a layer computes in; ``dtype`` is what the runtime is left to choose."""
    return {"fp32": "float32", "fp16": "float16"}.get(scheme, dtype)


def any_kernel(_layer: LayerRecord) -> frozenset[str]:
    """For ``compare_layers``, where whatever runs a layer is as good as its numbers."""
    return frozenset()


def expected_scheme(layer: LayerRecord) -> str:
    """The scheme to find for a layer: an embedding has no activations to quantize."""
    scheme = scheme_named(layer.scheme)
    return weight_alone(scheme).name if layer.op == "embedding" else layer.scheme


def same_scheme(layer: LayerRecord, found: str) -> bool:
    """Whether ``found`` is the planned scheme; one block per row is one scale per channel."""
    wanted = expected_scheme(layer)
    inputs = int(np.prod(layer.weight_shape[1:], dtype=np.int64))
    return found == wanted or found == f"{wanted}-g{inputs}" or wanted == f"{found}-g{inputs}"


def compare_tensors(
    tensors: Sequence[TensorRecord], found: Mapping[str, Sequence[TensorRecord]]
) -> list[Mismatch]:
    """Activation tensors that are not quantized with the planned parameters."""
    mismatches: list[Mismatch] = []
    for tensor in tensors:
        places = found.get(tensor.name, ())
        if not places:
            mismatches.append(
                Mismatch(
                    name=tensor.name,
                    expected=f"quantized to {tensor.dtype}",
                    found="no quantizer",
                )
            )
        mismatches += [
            Mismatch(name=tensor.name, expected=_describe(tensor), found=_describe(place))
            for place in dict.fromkeys(places)
            if place != tensor
        ]
    return mismatches


def _describe(tensor: TensorRecord) -> str:
    return f"{tensor.dtype}, scale {tensor.scale:.9g}, zero point {tensor.zero_point}"
