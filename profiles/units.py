"""One compute unit of a device that has several."""

from dataclasses import replace

from advisor.errors import ProfileError
from advisor.profiles.schema import UNITS, Profile, UnitFigures


def select_unit(profile: Profile, unit: str) -> Profile:
    """The profile with ``unit`` alone at work, such as "m2:gpu"; the memory stays the whole one's.

    Efficiency and overhead are the unit's own where the profile states them, else the device's.

    Raises:
        ProfileError: the profile has no throughput for that unit.
    """
    offered = {entry.unit for entry in profile.compute}
    chosen = next((each for each in UNITS if each == unit and each in offered), None)
    if chosen is None:
        possible = ", ".join(f"{profile.name}:{each}" for each in UNITS if each in offered)
        raise ProfileError(f"{profile.name} has no unit {unit!r}; possible: {possible}")
    own = profile.by_unit.get(chosen, UnitFigures())
    return replace(
        profile,
        name=f"{profile.name}:{chosen}",
        units=(chosen,),
        efficiency=own.efficiency or profile.efficiency,
        overhead=own.overhead or profile.overhead,
    )
