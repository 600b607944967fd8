"""One compute unit of a device that has several."""

from dataclasses import replace

from advisor.errors import ProfileError
from advisor.profiles.schema import UNITS, Profile, UnitFigures


def select_unit(profile: Profile, unit: str) -> Profile:
    """The profile with ``unit`` alone at work, such as "gpu", or several, such as "npu+cpu".

    The memory stays the whole device's. Efficiency and overhead are a single unit's own where the
    profile states them, else the device's.

    Raises:
        ProfileError: the profile has no throughput for that unit.
    """
    offered = {entry.unit for entry in profile.compute}
    wanted = unit.split("+")
    for each in wanted:
        if each not in offered:
            possible = ", ".join(f"{profile.name}:{one}" for one in UNITS if one in offered)
            raise ProfileError(f"{profile.name} has no unit {each!r}; possible: {possible}")
    own = profile.by_unit.get(unit, UnitFigures())
    return replace(
        profile,
        name=f"{profile.name}:{unit}",
        units=tuple(each for each in UNITS if each in wanted),
        efficiency=own.efficiency or profile.efficiency,
        overhead=own.overhead or profile.overhead,
    )
