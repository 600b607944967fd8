"""Whether this machine is the one that a plan is for, so that measuring says something."""

from __future__ import annotations

import logging
import os
from typing import Final

from advisor.doctor import read_cpu
from advisor.errors import MissingDependencyError, MissingEmitterError, UsageError
from advisor.profiles.host import HOST
from advisor.profiles.schema import Profile
from advisor.targets.base import Stopwatch
from advisor.targets.capability import Capability
from advisor.targets.registry import target_named

VARIABLE: Final = "ADVISOR_MEASURE"
"""Environment variable: "auto" (the default) measures where this machine is the target's,
"never" keeps to the profile's figures."""

FEATURE: Final = {"intel-vnni": "avx512_vnni"}
"""Profiles that this machine stands for when its processor has the instruction named."""

logger = logging.getLogger("advisor")


def find_stopwatch(profile: Profile, capability: Capability) -> Stopwatch | None:
    """What can time models as the deployment will run them; None: costs stay modelled.

    Raises:
        UsageError: ADVISOR_MEASURE is set to something else, or the target is this machine and
            its runtime cannot be timed.
        MissingDependencyError: the target is this machine, and the runtime is not installed.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "never"):
        raise UsageError(f'{VARIABLE}={wanted!r}: possible are "auto" (the default) and "never"')
    if wanted == "never":
        return None
    is_host = profile.name == HOST
    if not is_host and FEATURE.get(profile.name) not in (read_cpu().features or ()):
        return None
    try:
        target = target_named(capability.name)
    except MissingEmitterError:
        target = None
    if isinstance(target, Stopwatch):
        try:
            target.machine()  # fails here when the runtime is missing
        except MissingDependencyError:
            if is_host:
                raise
            return None
        return target
    if is_host:
        raise UsageError(
            f"target 'host' is measured, which {capability.title} does not offer; "
            "possible: runtime='onnxruntime' and runtime='tflite'"
        )
    return None
