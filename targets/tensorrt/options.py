"""How a TensorRT model is written where there is a choice; what it computes stays the plan's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ComputeCapability = Literal["75", "80", "86", "87", "89", "90", "100", "120", "121"]
"""Of a GPU, without its dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorrtOptions:
    """What ``plan.compile(..., options=...)`` takes for this runtime.

    sm: compute capability of the GPU that the engine is for; a plan's profile says it. tf32:
    whether float32 products may run in TF32, one switch for the whole engine; without it they are
    slow and exact.
    """

    sm: ComputeCapability = "80"
    tf32: Literal["on", "off"] = "on"


DEFAULTS: Final = TensorrtOptions()
