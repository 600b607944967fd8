"""Time whole plans against each other, so that none is returned that only looked fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from advisor.binding import fingerprint
from advisor.measure.cache import keep
from advisor.measure.terms import schemes_of
from advisor.passes.graph import QuantizedGraph
from advisor.passes.shapes import deployment_inputs
from advisor.search.problem import Choice
from advisor.setting import Deployment, Setting
from advisor.targets.base import Stopwatch

LIMIT_S: Final = 20.0
"""Time to spend on one contest, where the fewest runs do not take longer."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPlans:
    """Plans timed in turns. seconds, noise: of each, in order. when: UTC, ISO 8601.

    partitions: of the runtime's delegate; empty where it has none.
    """

    seconds: tuple[float, ...]
    noise: tuple[float, ...]
    when: str
    machine: Mapping[str, str]
    partitions: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A plan to time. rescaled: names of what it rescales, which may take time of its own."""

    choice: Choice
    build: Callable[[], QuantizedGraph]
    rescaled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """What it takes to time plans as they will be deployed. cache: None times anew."""

    stopwatch: Stopwatch
    deployment: Deployment
    cache: Path | None
    say: Progress

    def hold(self, setting: Setting, entrants: Sequence[Entrant]) -> TimedPlans:
        """Time the plans, the first of which is the reference; times kept from before are used.

        Raises:
            OutputError: the cache cannot be written.
            MissingDependencyError: the runtime is not installed.
        """
        key = {
            "machine": dict(self.stopwatch.machine()),
            "model": fingerprint(setting.graph),
            "batch": self.deployment.batch,
            "sequence": self.deployment.sequence,
            "threads": self.deployment.threads,
            "plans": [
                [
                    *sorted((layer.name, s) for layer, s in schemes_of(setting, each.choice)),
                    *sorted(each.rescaled),
                ]
                for each in entrants
            ],
        }
        folder = None if self.cache is None else self.cache / "contests"
        builders = tuple(each.build for each in entrants)
        return keep(folder, key, TimedPlans, partial(self._time, setting, builders))

    def _time(
        self, setting: Setting, builders: Sequence[Callable[[], QuantizedGraph]]
    ) -> TimedPlans:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        timings = self.stopwatch.time_models(
            builders,
            deployment_inputs(setting.graph, self.deployment.batch, self.deployment.sequence),
            threads=setting.threads,
            limit_s=LIMIT_S,
            with_parts=False,
            say=partial(self.say, "time"),
        )
        return TimedPlans(
            seconds=tuple(timing.seconds for timing in timings),
            noise=tuple(timing.noise for timing in timings),
            when=when,
            machine=dict(self.stopwatch.machine()),
            partitions=tuple(
                timing.partitions for timing in timings if timing.partitions is not None
            ),
        )
