"""Refine the exact start by measurement: an Optuna study that survives being killed.

Everything a trial depends on is in the study's storage and in the seed: the sampler is made anew
before each trial from (seed, number of finished trials), so an interrupted study continues as if
it had never stopped. Of several processes that share a storage path one writes the journal; the
others make the same trials from the same measurements (``Measurements``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from advisor.budget import Budget
from advisor.errors import UsageError
from advisor.search.measurements import Measurements
from advisor.search.problem import Choice, Knob, Knobs, Problem
from advisor.search.region import region_around, repair
from advisor.search.storage import fail_unfinished, open_storage, sole_writer
from advisor.search.trial import (
    Measure,
    Plan,
    Run,
    Score,
    Suggest,
    Trial,
    is_kept,
    read_trial,
    score_of,
    tell,
    try_plan,
)

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import TPESampler
    from optuna.trial import Trial as OptunaTrial

logger = logging.getLogger("advisor")

SAMPLED: Final = 4
"""Every so many plans after the starts the sampler suggests one, whatever else is suggested."""

SAMPLED_WITH_KNOBS: Final = 2
"""The same where there are knobs, which only the sampler turns."""

PATIENCE: Final = 32
"""Plans in a row that are no better, after which more of them are not worth their time."""

_STARTUP: Final = 4
_REPEATS: Final = 20


def refine(
    problem: Problem,
    starts: Sequence[Choice],
    evaluate_choice: Measure,
    *,
    budget: Budget,
    trials: int,
    seed: int,
    storage_path: Path | None = None,
    kept: Measurements | None = None,
    knobs: Mapping[str, Sequence[Knob]] | None = None,
    variants: Sequence[tuple[Choice, Knobs]] = (),
    trust_radius: int = 1,
    max_groups: int = 16,
    score: Score | None = None,
    problem_under: Callable[[Knobs], Problem] | None = None,
    suggest: Suggest | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    on_end: Callable[[str], None] | None = None,
) -> tuple[Trial, ...]:
    """Measure the starts, then plans near the first of them; every trial is returned, in order.

    A suggestion outside the budget is moved to the nearest plan of the region inside it; starts
    outside the budget are recorded and not measured. No plan is measured twice. Fewer than
    ``trials`` come back when the region has no more plans. ``trials`` counts the starts and their
    variants, all of which are tried even if they are more.

    Args:
        problem: choices and predicted quantities.
        starts: the first is the exact solution, around which the study searches; others (uniform
            baselines, say) may lie anywhere. Their knobs are the first of each knob's values.
        evaluate_choice: measures a choice under knobs; not finite: unusable. What it reports on
            the way ends the measurement of a suggested plan that is ``HOPELESS``.
        budget: limits that ``problem`` can check.
        trials: how many in all, reused ones included.
        seed: same seed, same trials.
        storage_path: a journal file to resume from; None: in memory. Only trials of the same
            problem, starts, budget, knobs, region and seed are reused; the caller keys the path
            by whatever else the measurement depends on (model, calibration).
        kept: measurements that are kept and shared with other processes; None: none are.
        knobs: global settings to try, name to values.
        variants: plans to try right after the starts, under knobs that differ from the first ones
            as given.
        trust_radius: steps on each group's own Pareto front.
        max_groups: how many groups may leave the first start.
        score: what the study minimises, of (divergence, evaluation); None: the divergence.
        problem_under: predicted quantities under knobs that change them; None: always ``problem``.
        suggest: asked for most plans after the starts; the sampler suggests every ``SAMPLED``-th.
            It must depend on the trials alone, so that an interrupted study goes on as it would
            have.
        on_trial: called once per trial, reused ones included.
        on_end: called with the reason when the search ends before ``trials``: the region has no
            more plans, nothing new is suggested, or ``PATIENCE`` plans in a row were no better.

    Raises:
        UsageError: no start, a start that does not fit the problem, fewer than one trial, or a
            knob without values.
        OutputError: the journal cannot be written, or is not a journal.
    """
    settings = {name: tuple(values) for name, values in (knobs or {}).items()}
    _check(problem, [*starts, *(choice for choice, _ in variants)], trials, settings)
    defaults: dict[str, Knob] = {name: values[0] for name, values in settings.items()}
    region = region_around(problem, starts[0], trust_radius, max_groups)
    run = Run(
        problem=problem,
        region=region,
        starts=(
            *((choice, defaults) for choice in dict.fromkeys(starts)),
            *((choice, {**defaults, **changed}) for choice, changed in variants),
        ),
        bounds=budget.bounds(),
        knobs=settings,
        seed=seed,
        measure=evaluate_choice,
        kept=kept or Measurements(),
        score=score or (lambda divergence, _: divergence),
        problem_under=problem_under or (lambda _: problem),
        suggest=suggest,
    )
    with _quiet_optuna(), sole_writer(storage_path) as journal:
        return _continue(run, trials, journal, on_trial, on_end or logger.info)


def _continue(
    run: Run,
    trials: int,
    storage_path: Path | None,
    on_trial: Callable[[Trial], None] | None,
    on_end: Callable[[str], None],
) -> tuple[Trial, ...]:
    import optuna

    storage = open_storage(storage_path)
    name = _digest(run)
    # Starts that the region cannot express are kept in a study of their own: as trials without
    # parameters they would take every parameter out of the sampler's sight.
    inside, outside = (
        optuna.create_study(storage=storage, study_name=f"{name}-{part}", load_if_exists=True)
        for part in ("region", "outside")
    )
    found: list[Trial] = []

    def keep(trial: Trial) -> None:
        found.append(trial)
        if on_trial is not None:
            on_trial(trial)

    for study in (inside, outside):
        fail_unfinished(study)
    reused = sorted(
        (read_trial(run, t.user_attrs) for s in (inside, outside) for t in s.trials if is_kept(t)),
        key=lambda trial: trial.number,
    )
    for trial in reused[: max(trials, len(run.starts))]:
        keep(trial)

    def given(choice: Choice, knobs: Knobs, beside: Sequence[Plan], *, is_start: bool) -> None:
        study = inside if run.region.contains(choice) else outside
        if study is inside:
            inside.enqueue_trial(_params(run, choice, knobs))
        inside.sampler = _sampler(run, inside)
        asked = study.ask(_space(run) if study is inside else {})
        keep(try_plan(run, study, asked, (choice, knobs), found, beside, is_start=is_start))

    while len(found) < len(run.starts):
        given(*run.starts[len(found)], run.starts[len(found) + 1 :], is_start=True)
    while len(found) < trials:
        idle = _idle(run, found)
        if idle >= PATIENCE:
            on_end(f"the last {idle} plans were no better")
            break
        every = SAMPLED_WITH_KNOBS if run.knobs else SAMPLED
        is_sampled = (len(found) - len(run.starts)) % every == every - 1
        foreseen = None if run.suggest is None or is_sampled else run.suggest(found)
        if foreseen is not None:
            given(*foreseen, (), is_start=False)
            continue
        suggested = _suggest(run, inside, found)
        if isinstance(suggested, str):
            on_end(suggested)
            break
        keep(try_plan(run, inside, *suggested, found, (), is_start=False))
    return tuple(found)


def _idle(run: Run, found: Sequence[Trial]) -> int:
    """Plans that the search tried since the last one that was better than all before."""
    best, since = math.inf, 0
    for trial in found:
        value = score_of(run, trial)
        if value < best:
            best, since = value, 0
        elif trial.origin == "search":
            since += 1
    return since


def _suggest(run: Run, study: Study, found: list[Trial]) -> tuple[OptunaTrial, Plan] | str:
    """The next plan not tried yet, with its open Optuna trial; or why there is none."""
    tried = {_key(trial.choice, trial.knobs): trial for trial in found}
    space = _space(run)
    points = math.prod(map(len, (*run.region.options, *run.knobs.values())))
    number = len(found)
    while sum(run.region.contains(trial.choice) for trial in found) < points:
        repeats = sum(t.user_attrs.get("repeat_of") == number for t in study.trials)
        if repeats >= _REPEATS:
            return "nothing new is suggested"
        study.sampler = _sampler(run, study)
        asked = study.ask(space)
        wanted = tuple(asked.params.get(f"group:{g}", i) for g, i in enumerate(run.region.anchor))
        knobs: dict[str, Knob] = {knob: asked.params[f"knob:{knob}"] for knob in run.knobs}
        choice = repair(run.problem_under(knobs), run.region, wanted, run.bounds) or wanted
        known = tried.get(_key(choice, knobs))
        if known is None:
            return asked, (choice, knobs)
        # Told to the sampler, which learns from it, but neither measured nor counted again.
        asked.set_user_attr("repeat_of", number)
        tell(run, study, asked, known)
    return "the region around the start has no more plans"


def _space(run: Run) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution

    groups = {f"group:{g}": o for g, o in enumerate(run.region.options) if len(o) > 1}
    knobs = {f"knob:{name}": values for name, values in run.knobs.items()}
    return {name: CategoricalDistribution(values) for name, values in {**groups, **knobs}.items()}


def _params(run: Run, choice: Choice, knobs: Knobs) -> dict[str, Knob]:
    groups = {f"group:{g}": choice[g] for g, o in enumerate(run.region.options) if len(o) > 1}
    return {**groups, **{f"knob:{name}": value for name, value in knobs.items()}}


def _sampler(run: Run, study: Study) -> TPESampler:
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    seed = np.random.SeedSequence([run.seed, len(finished)]).generate_state(1)[0]
    return TPESampler(seed=int(seed), n_startup_trials=_STARTUP, multivariate=True)


def _digest(run: Run) -> str:
    """Name of the study: whatever changes which trials are made, or what their numbers say."""
    text = json.dumps(
        [run.seed, run.starts, run.region.options, dict(run.knobs), dict(run.bounds)]
        + [[[c.scheme, c.algorithm] for c in options] for options in run.problem.candidates]
        + [repr(run.problem.indicators), run.suggest is not None],
        sort_keys=True,
    )
    digest = hashlib.sha256(text.encode())
    problem = run.problem
    quantities = [problem.size_bytes, problem.latency_s, problem.divergence, *problem.memory_bytes]
    for linear in quantities + ([] if problem.energy_j is None else [problem.energy_j]):
        for terms in (*linear.per_group, linear.per_indicator, np.array([linear.constant])):
            digest.update(np.ascontiguousarray(terms, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]


def _key(choice: Choice, knobs: Knobs) -> tuple[Choice, tuple[tuple[str, Knob], ...]]:
    return choice, tuple(sorted(knobs.items()))


def _check(
    problem: Problem, starts: Sequence[Choice], trials: int, knobs: Mapping[str, Sequence[Knob]]
) -> None:
    if not starts:
        raise UsageError("the study needs a plan to start from; pass the exact solution")
    if trials < 1:
        raise UsageError(f"{trials} trials cannot be run; ask for at least 1")
    sizes = [len(options) for options in problem.candidates]
    for choice in starts:
        if len(choice) != len(sizes) or any(
            not 0 <= index < size for index, size in zip(choice, sizes, strict=True)
        ):
            raise UsageError(
                f"the start {choice} does not choose one of {sizes} candidates per group"
            )
    for name, values in knobs.items():
        if not values:
            raise UsageError(f"the knob {name!r} has no values; give at least one or leave it out")


@contextmanager
def _quiet_optuna() -> Generator[None]:
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
