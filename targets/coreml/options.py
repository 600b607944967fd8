"""How a Core ML package is written where there is a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlOptions:
    """What ``plan.compile(..., options=...)`` takes for this runtime.

    deployment: the oldest system that must run the package; "auto" is the profile's own. A plan
    that needs a newer one is refused. iOS15 to iOS18 are macOS 12 to 15. compute: dtype of the
    activations and the arithmetic of every layer whose scheme leaves it to the runtime: layers
    under fp32 and fp16 have their own. The simulation computes in float32.
    """

    deployment: Literal["auto", "iOS15", "iOS16", "iOS17", "iOS18", "iOS26"] = "auto"
    compute: Literal["float16", "float32"] = "float16"


DEFAULTS: Final = CoremlOptions()
