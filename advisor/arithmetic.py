"""What a device computes every scheme in, in words: why plans differ from device to device."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.formats import SCHEMES, scheme_named
from advisor.profiles.cost import compute_dtype
from advisor.profiles.roofline import effective_compute
from advisor.profiles.schema import Profile
from advisor.setting import Setting
from advisor.targets.capability import Capability
from advisor.targets.platforms import shortfall


def describe_arithmetic(setting: Setting) -> dict[str, str]:
    """By scheme of the runtime, what the device multiplies in and how fast; or why it has none.

    Schemes that no layer of this model can take are left out, but for those that only the device
    lacks.
    """
    capability, profile = setting.capability, setting.profile
    options = setting.space.candidates.values()
    possible = {option.scheme for candidates in options for option in candidates}
    found: dict[str, str] = {}
    for scheme in capability.schemes:
        if scheme in possible:
            found[scheme] = _describe(scheme, capability, profile)
        elif why := _lacking(scheme, capability, profile):
            found[scheme] = why
    return found


def _describe(scheme: str, capability: Capability, profile: Profile) -> str:
    asked = compute_dtype(scheme_named(scheme), capability)
    used = effective_compute(profile, asked)
    slowest = effective_compute(profile, profile.dtypes[-1])
    text = f"computes in {used.dtype} on the {used.unit}"
    if used.widened:
        text += f", which has no {asked}"
    if used.ops_per_s > slowest.ops_per_s:
        text += f", at {used.ops_per_s / slowest.ops_per_s:.3g} times the rate of {slowest.dtype}"
    expanded = capability.schemes[scheme].storage_only
    if expanded:
        text += f"; weights of {', '.join(expanded)} are expanded first"
    return text


def _lacking(scheme: str, capability: Capability, profile: Profile) -> str:
    """Why the device takes the scheme on no layer; "" where it is the model that does not."""
    missing = shortfall(capability.schemes[scheme].minimum, profile.platform)
    if missing:
        return f"not here: {missing}"
    is_float = SCHEMES[scheme].is_float
    if profile.schemes and scheme not in profile.schemes and not is_float:
        return f"not here: {profile.name} itself runs only {', '.join(profile.schemes)}"
    return ""


def differing(plans: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Schemes whose arithmetic is not the same in all plans, by plan name."""
    schemes = dict.fromkeys(scheme for each in plans.values() for scheme in each)
    return tuple(s for s in schemes if len({each.get(s, "") for each in plans.values()}) > 1)
