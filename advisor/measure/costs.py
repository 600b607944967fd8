"""Costs of a setting's layers as measured on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from advisor.parse import dump_record


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCosts:
    """Seconds that add up to the latency of any plan of one setting, on one machine.

    reference_s: the float32 model as it was timed; a later timing of it tells how much faster or
    slower the machine runs by then. rest_s: everything that is no layer, with float tensors.
    layers: by layer name and scheme. quantize_s, dequantize_s: of a tensor on its own, by tensor
    name. integer_s: what an operator without weights takes more (or, negative, less) on integers
    than on floats, by the name of its output. noise: relative difference expected of a repeated
    timing. error: median relative difference of the sums from the timed models they were found
    from, each left out in turn. models: how many were timed. machine: what they were timed on.
    """

    reference_s: float
    rest_s: float
    layers: Mapping[str, Mapping[str, float]]
    quantize_s: Mapping[str, float]
    dequantize_s: Mapping[str, float]
    integer_s: Mapping[str, float]
    noise: float
    error: float
    models: int
    machine: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        text = json.dumps(dump_record(self), sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
