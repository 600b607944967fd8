"""A profile whose modelled latency of one model is what a device was seen to take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from advisor.profiles.schema import Figure, Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One forward of one model. modelled_s: by the profile. measured_s: on the device.

    source: what was run, on what and when.
    """

    modelled_s: float
    measured_s: float
    source: str

    @property
    def factor(self) -> float:
        """By how much the device is slower than the profile says."""
        return self.measured_s / self.modelled_s


def correct_profile(profile: Profile, seen: Observation, name: str) -> Profile:
    """The profile of that name in which every time is ``seen.factor`` times as long.

    The efficiencies, the share of the bandwidth and the overheads are scaled alike, so that every
    modelled time is: no more can be told from one number. An efficiency stays the share of a peak
    that it is; where it would pass 1, the peaks of the units in use grow in its place. What one
    unit alone does was not measured and is left out.
    """

    def times(figure: Figure, by: float) -> Figure:
        says = f"{figure.value:g} ({figure.origin}) times {by:.6g}: {_why(seen)}"
        return Figure(value=figure.value * by, origin="measured", source=seen.source, says=says)

    speed = 1 / seen.factor
    # An embedding's efficiency is a share of the bandwidth, which is scaled already.
    scaled = {family for family in profile.efficiency if family != "embedding"}
    highest = max(profile.efficiency[family].value for family in scaled)
    peak = max(1.0, highest * speed)
    memory, overhead = profile.memory, profile.overhead
    stream = max(1.0, memory.fraction.value * speed)
    core = memory.core_bandwidth_bytes_per_s
    return replace(
        profile,
        name=name,
        title=f"{profile.title}, as measured",
        aliases=(),
        unit_aliases={},
        by_unit={},
        memory=replace(
            memory,
            fraction=times(memory.fraction, speed / stream),
            bandwidth_bytes_per_s=_grown(memory.bandwidth_bytes_per_s, stream, times),
            core_bandwidth_bytes_per_s=None if core is None else times(core, speed),
        ),
        compute=tuple(
            replace(each, ops_per_s=_grown(each.ops_per_s, peak, times))
            if each in profile.offers
            else each
            for each in profile.compute
        ),
        efficiency={
            family: times(figure, speed / peak) if family in scaled else figure
            for family, figure in profile.efficiency.items()
        },
        overhead=replace(
            overhead,
            launch_s=times(overhead.launch_s, seen.factor),
            product_s=None
            if overhead.product_s is None
            else times(overhead.product_s, seen.factor),
            dispatch_s=None
            if overhead.dispatch_s is None
            else times(overhead.dispatch_s, seen.factor),
        ),
    )


def _grown(figure: Figure, by: float, times: Callable[[Figure, float], Figure]) -> Figure:
    return figure if by == 1 else times(figure, by)


def _why(seen: Observation) -> str:
    return (
        f"a forward took {seen.measured_s * 1e3:.6g} ms where the profile had "
        f"{seen.modelled_s * 1e3:.6g} ms"
    )
