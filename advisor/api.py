"""``advise``: from a model, a target and a budget to a Plan."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from advisor.assemble import Setting, build_problem, weight_column
from advisor.binding import bind, fingerprint, plan_tensors
from advisor.budget import Budget
from advisor.decide import (
    alternative,
    decide_layers,
    decide_tensors,
    measured,
    modelled,
    package_versions,
)
from advisor.errors import BudgetError, UsageError
from advisor.formats import scheme_named
from advisor.inferred import synthetic_calibration
from advisor.inputs import check_finite, check_inputs, split_label
from advisor.metric import Metric, evaluate_metric
from advisor.outputs import choose_kinds
from advisor.passes.calibrate import CalibrationData, observe, spool_calibration
from advisor.passes.divergence import measure_powers
from advisor.passes.fx import flatten_inputs
from advisor.passes.group import class_tensors
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.sensitivity import Question, Sensitivity, probe
from advisor.plan import Alternative, Calibration, Metrics, Plan, Provenance
from advisor.prepare import Prepared, check_deployment, prepare
from advisor.search.milp import solve, within
from advisor.search.objective import (
    DIVERGENCE_LIMIT,
    check_objective,
    pareto_front,
    score_for,
    select,
    start,
)
from advisor.search.problem import Choice, Problem, evaluate
from advisor.search.study import Knobs, Trial, refine
from advisor.simulate import Loss, Simulator

logger = logging.getLogger("advisor")

Progress = Callable[[str, int, int], None]
TRIALS: Final = 24
SYNTHETIC_SAMPLES: Final = 64
DROP_LIMIT: Final = 0.01
"""Share of the metric that ``objective="auto"`` accepts to lose when no accuracy_drop is given."""

METRIC_TRIALS: Final = 8
"""Finalists on which the user's metric is run; it may be expensive."""

KNOBS: Final[dict[str, tuple[str, ...] | tuple[bool, ...]]] = {
    "observer": ("mse", "minmax", "percentile"),
    "bias_correction": (False, True),
}


def advise(
    model: Any,
    *,
    target: str,
    budget: str | Mapping[str, str | float] | Budget | None = None,
    inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    metric: Metric | None = None,
    loss: Loss | None = None,
    output: str | Mapping[str, str] | None = None,
    runtime: str | None = None,
    objective: str = "auto",
    batch: int = 1,
    sequence: int | None = None,
    context: int | None = None,
    threads: int | None = None,
    schemes: Sequence[str] | None = None,
    pin: Mapping[str, str] | None = None,
    on_unsupported: str = "keep",
    trials: int = TRIALS,
    seed: int = 0,
    cache: bool = True,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Plan:
    """Which precision every layer of ``model`` should have on ``target``, and why.

    Args:
        model: nn.Module, ExportedProgram, or what ``advisor plan`` takes: "package.module:factory",
            a .pt2 file, a Hugging Face folder.
        target: profile name or alias ("intel-vnni", "m2", "h100"), or a path to a profile's TOML.
        budget: "4GB" (memory: weights plus peak activations), "8ms", "4GB,8ms", or a mapping with
            memory, size, latency, energy, accuracy_drop. None: no limit.
        inputs: example inputs (tensor, tuple or dict); inferred where they can be.
        calibration: iterable of inputs or (inputs, label), read once; even batches score, odd
            ones are held out. None: random inputs, which the plan says everywhere.
        metric: callable(module) -> float or array of one value per example; higher is better.
        loss: callable(outputs, reference) -> float, in place of the divergence.
        output: "logits", "embedding" or "regression", for all outputs or by name; guessed if None.
        runtime: overrides the profile's. objective: "auto", "accuracy", "latency" or "memory".
        batch, sequence, threads: of the deployment. context: not available yet.
        schemes: names to choose from; float32 always stays possible.
        pin: {"*.head": "fp16", "op:embedding": "fp32"}, layer glob or operator type to scheme.
        on_unsupported: "keep" layers that cannot be quantized in float, with a reason, or "error".
        trials: assignments measured in the search, the exact start and baselines included.
        seed: same seed, same machine, same plan. cache: keep finished trials on disk, so that a
            killed run resumes. progress: called with (stage, done, total).
        workers: only 1 (or None) so far.

    Raises:
        UsageError: an argument cannot be used (BudgetError, ProfileError, InputError,
            CalibrationError, ModelError and UnsupportedError are usage errors).
        CaptureError: torch.export cannot trace the model.
        InfeasibleError: the budget cannot be met; the smallest possible one is named.
    """
    limits = Budget.parse(budget)
    _check_arguments(limits, metric, objective, context, workers, trials)
    deployment = check_deployment(
        target=target, runtime=runtime, batch=batch, sequence=sequence, threads=threads
    )
    say = progress or _silent
    say("capture", 0, 1)
    prepared = prepare(
        model,
        inputs,
        calibration,
        deployment,
        budget=limits,
        schemes=schemes,
        pins=pin or {},
        on_unsupported=on_unsupported,
    )
    say("capture", 1, 1)
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        run = _Run(prepared, limits, objective, seed, say, metric, loss)
        run.calibrate(output, Path(folder))
        run.score()
        run.search(trials, cache)
        return run.write(
            target=deployment.profile.name,
            batch=batch,
            sequence=sequence,
            trials=trials,
            pins=pin or {},
        )


def _silent(_stage: str, _done: int, _total: int) -> None:
    return None


def _check_arguments(
    limits: Budget,
    metric: Metric | None,
    objective: str,
    context: int | None,
    workers: int | None,
    trials: int,
) -> None:
    check_objective(objective)
    if limits.accuracy_drop is not None and metric is None:
        raise BudgetError(
            "accuracy_drop is a share of a metric, and no metric was given; "
            "pass metric=callable(module) -> float"
        )
    if context is not None:
        raise UsageError(
            "context= (the KV cache of a decoder) is not modelled yet; leave it out and add the "
            "cache's bytes to your own memory budget"
        )
    if workers not in (None, 1):
        raise UsageError(f"workers={workers}: only one worker is possible so far; leave it out")
    if trials < 1:
        raise UsageError(f"trials={trials}: at least 1 is needed, the exact start itself")


class _Run:
    """One call of ``advise`` after preparation: calibrate, score, search, write."""

    def __init__(
        self,
        prepared: Prepared,
        limits: Budget,
        objective: str,
        seed: int,
        say: Progress,
        metric: Metric | None,
        loss: Loss | None,
    ) -> None:
        self.prepared = prepared
        self.setting: Setting = prepared.setting
        self.limits = limits
        self.objective = objective
        self.seed = seed
        self.say = say
        self.metric = metric
        self.loss = loss
        self.notes: list[str] = [note for note in (prepared.example.note,) if note]
        self.notes += prepared.setting.graph.notes

    def calibrate(self, output: Any, folder: Path) -> None:
        """Spool the data, observe ranges, decide what the outputs are."""
        graph, batches = self.setting.graph, self.prepared.batches
        self.synthetic = batches is None
        self.say("calibrate", 0, 1)
        self.data = spool_calibration(graph, self._flat_batches(batches), folder)
        self.notes += self.data.notes
        if self.synthetic:
            self.notes.append(
                "calibration is synthetic: random inputs; ranges and divergences may be far from "
                "those of real data; pass calibration="
            )
        tensors = frozenset(site.tensor for site in self.setting.regions.sites)
        layers = [la for la in graph.layers if la.frozen is None and la.op != "embedding"]
        observations = observe(graph, self.data.scoring, tensors, layers)
        references = list(self.data.references)
        self.kinds, self.outputs = choose_kinds(graph, references[0], output)
        counting = [[v for v in values] for values in references]
        self.simulator = Simulator(
            setting=self.setting,
            data=self.data,
            observations=observations,
            classes=class_tensors(graph, self.setting.capability),
            kinds=self.kinds,
            powers=_powers(counting, self.kinds),
            rounded=RoundedWeights(graph),
            loss=self.loss,
        )
        if self.loss is not None:
            self.notes.append(
                "sensitivities are of the outputs' divergence; the search measures the given loss"
            )
        self.say("calibrate", 1, 1)

    def _flat_batches(self, batches: Iterable[Any] | None) -> Iterable[list[Any]]:
        graph, example = self.setting.graph, self.prepared.example
        if batches is None:
            random = synthetic_calibration(
                example, SYNTHETIC_SAMPLES, self.seed, model=self.prepared.model
            )
            for item in random:
                yield flatten_inputs(graph.module, item.args, item.kwargs)
            return
        dynamic = _dynamic_by_name(example.tensors(), graph)
        for index, item in enumerate(batches):
            given, _label = split_label(self.prepared.model, item, reference=example)
            check_inputs(example, given, dynamic=dynamic)
            check_finite(given, index)
            yield flatten_inputs(graph.module, given.args, given.kwargs)

    def score(self) -> None:
        """Sensitivities of every candidate, and the problem with them."""
        self.say("score", 0, 1)
        graph = self.setting.graph
        wanted: dict[tuple[str, ...], tuple[Any, str, str]] = {}
        layers = {layer.name: layer for layer in graph.layers}
        for group in self.setting.groups:
            for option in self.setting.space.candidates[group.name]:
                if scheme_named(option.scheme).weight.dtype == "float32":
                    continue
                for name in group.layers:
                    column = weight_column(layers[name], option)
                    scheme, _, algorithm = column[2].partition("/")
                    wanted[column] = (layers[name], scheme, algorithm)
        question = Question(
            weights=tuple(wanted.values()),
            sites=self.setting.regions.sites,
            params=self.simulator.params("mse"),
        )
        self.sensitivity: Sensitivity = probe(
            graph,
            self.data.scoring,
            question,
            rounded=self.simulator.rounded,
            kinds=self.kinds,
            powers=self.simulator.powers,
            seed=self.seed,
        )
        self.problem: Problem = build_problem(self.setting, self.sensitivity)
        self.say("score", 1, 1)

    def search(self, trials: int, cache: bool) -> None:
        """The exact start, the uniform baselines, the study, the winner."""
        begun = start(self.problem, self.limits, self.objective)
        self.model_gap = begun.model_gap
        uniform = self._uniform_choices()
        bounds = self.limits.bounds()
        fitting = [c for c, _ in uniform.values() if within(evaluate(self.problem, c), bounds)]
        starts = list(dict.fromkeys([begun.choice, *self._ladder(bounds), *fitting]))
        knobs = KNOBS if self.setting.regions.sites else {"bias_correction": (False, True)}
        self.found: tuple[Trial, ...] = refine(
            self.problem,
            starts,
            self.simulator.measure,
            budget=self.limits,
            trials=max(trials, len(starts)),
            seed=self.seed,
            storage_path=self._storage() if cache else None,
            knobs=knobs,
            score=score_for(self.objective, DIVERGENCE_LIMIT, begun.evaluation.latency_s),
            on_trial=lambda trial: self.say("search", trial.number + 1, trials),
        )
        self.baselines = self._measure_uniform(uniform, {k: v[0] for k, v in knobs.items()})
        self._choose()

    def _ladder(self, bounds: Mapping[str, float]) -> list[Choice]:
        """Exact optima that predict less divergence than the limit, in case it underestimates."""
        choices: list[Choice] = []
        for share in (0.3, 0.1, 0.03):
            found = solve(
                self.problem,
                minimise="latency_s",
                bounds={**bounds, "divergence": DIVERGENCE_LIMIT * share},
            )
            if found is not None and self.objective == "auto":
                choices.append(found.choice)
        least = solve(self.problem, minimise="divergence", bounds=bounds)
        return [*choices, *([] if least is None else [least.choice])]

    def _uniform_choices(self) -> dict[str, tuple[Choice, int]]:
        """By scheme, the choice that uses it wherever a group can, and how many layers cannot."""
        candidates = [self.setting.space.candidates[g.name] for g in self.setting.groups]
        schemes = dict.fromkeys(option.scheme for options in candidates for option in options)
        found: dict[str, tuple[Choice, int]] = {}
        for scheme in schemes:
            choice: list[int] = []
            unable = 0
            for group, options in zip(self.setting.groups, candidates, strict=True):
                able = [i for i, option in enumerate(options) if option.scheme == scheme]
                if not able:
                    unable += len(group.layers)
                # The last algorithm listed is the better rounding; a group that cannot take the
                # scheme stays in its widest float, which is listed first.
                choice.append(able[-1] if able else 0)
            found[scheme] = (tuple(choice), unable)
        return found

    def _measure_uniform(
        self, uniform: Mapping[str, tuple[Choice, int]], knobs: Knobs
    ) -> tuple[Alternative, ...]:
        known = {
            t.choice: t.divergence for t in self.found if t.knobs == knobs and t.divergence is not None
        }
        bounds = self.limits.bounds()
        results: list[Alternative] = []
        for index, (scheme, (choice, unable)) in enumerate(uniform.items()):
            self.say("baselines", index, len(uniform))
            value = known.get(choice)
            if value is None:
                value = self.simulator.measure(choice, knobs)
            evaluation = evaluate(self.problem, choice)
            metric = self._metric_of(choice, knobs)
            results.append(
                alternative(
                    self.setting,
                    scheme,
                    choice,
                    self._metrics(choice, value, metric),
                    fits=within(evaluation, bounds),
                    note=f"{unable} layers cannot take {scheme} and stay in float" if unable else "",
                )
            )
        self.say("baselines", len(uniform), len(uniform))
        return tuple(results)

    def _choose(self) -> None:
        selection = select(self.found, self.objective, DIVERGENCE_LIMIT)
        self.winner: Trial = selection.trial
        self.outcome = selection.outcome
        self.measured_regret = selection.measured_regret
        if self.metric is None:
            self.winner_metric: float | None = None
            return
        float_metric = evaluate_metric(self.metric, self.setting.graph.module)
        allowed = self.limits.accuracy_drop if self.limits.accuracy_drop is not None else DROP_LIMIT
        finalists = self._finalists(selection.trial)
        values = {t.number: self._metric_of(t.choice, t.knobs) or 0.0 for t in finalists}
        floor = float_metric - allowed * abs(float_metric)
        passing = [trial for trial in finalists if values[trial.number] >= floor]
        if self.objective == "auto":
            best = (
                min(passing, key=lambda t: (t.evaluation.latency_s, t.divergence or 0.0, t.number))
                if passing
                else max(finalists, key=lambda t: (values[t.number], -(t.divergence or 0.0)))
            )
            self.winner = best
        value = values.get(self.winner.number)
        self.winner_metric = value
        drop = float_metric - (value or 0.0)
        case = "within" if drop <= allowed * abs(float_metric) else "outside"
        self.outcome = (
            f"{'fastest plan' if passing else 'no finalist'} within the accepted drop of "
            f"{allowed:.2%} of the metric; chosen: metric {value:.6g} against {float_metric:.6g} "
            f"in float ({case} the drop); {self.outcome}"
        )

    def _finalists(self, favourite: Trial) -> list[Trial]:
        """Measured trials worth the metric: the favourite and the front, most accurate first."""
        front = sorted(
            pareto_front(self.found), key=lambda t: (t.evaluation.latency_s, t.divergence or 0.0)
        )
        picked = {favourite.number: favourite}
        step = max(len(front) // METRIC_TRIALS, 1)
        for trial in (*front[::step], front[-1]):
            picked.setdefault(trial.number, trial)
        return list(picked.values())

    def _metric_of(self, choice: Choice, knobs: Knobs) -> float | None:
        if self.metric is None:
            return None
        return evaluate_metric(self.metric, self.simulator.quantized(choice, knobs).module)

    def _metrics(self, choice: Choice, divergence: float | None, metric: float | None) -> Metrics:
        costs = modelled(evaluate(self.problem, choice), self.setting.profile.name)
        seen = self._measured(divergence, metric)
        return Metrics(
            size_bytes=costs.size_bytes,
            memory_bytes=costs.memory_bytes,
            latency_s=costs.latency_s,
            energy_j=costs.energy_j,
            divergence=seen.divergence,
            metric=seen.metric,
        )

    def _measured(self, divergence: float | None, metric: float | None) -> Metrics:
        return measured(
            divergence, metric, self.data.held_out.samples, synthetic=self.synthetic
        )

    def _storage(self) -> Path:
        from advisor.doctor import cache_folder

        key = {
            "model": fingerprint(self.setting.graph),
            "data": [self.data.scoring.digest, self.data.held_out.digest],
            "kinds": self.kinds,
            "runtime": self.setting.capability.name,
            "loss": None if self.loss is None else getattr(self.loss, "__qualname__", "loss"),
            "versions": package_versions(),
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cache_folder() / "studies" / f"{digest[:32]}.journal"

    def write(
        self,
        *,
        target: str,
        batch: int,
        sequence: int | None,
        trials: int,
        pins: Mapping[str, str],
    ) -> Plan:
        """The Plan, tied to the model and its tensors."""
        graph, winner = self.setting.graph, self.winner
        quantized = self.simulator.quantized(winner.choice, winner.knobs)
        tensors, tree = plan_tensors(graph, quantized.weights, quantized.biases)
        from advisor.binding import content_digest

        static = {
            name
            for name, chosen in quantized.assignment.items()
            if scheme_named(chosen.scheme).is_static
        }
        observer = str(winner.knobs.get("observer", "minmax"))
        front = pareto_front(self.found)
        plan = Plan(
            target=target,
            runtime=self.setting.capability.name,
            objective=self.objective,
            budget=self.limits.describe(),
            outcome=self.outcome,
            batch=batch,
            sequence=sequence,
            threads=self.setting.threads,
            fingerprint=fingerprint(graph),
            layers=decide_layers(
                self.setting, winner.choice, self.sensitivity, self.prepared.pinned
            ),
            tensors=decide_tensors(
                self.setting,
                self.simulator.params(observer),
                self.setting.regions.quantized(static),
                self.sensitivity,
            ),
            predicted=modelled(evaluate(self.problem, winner.choice), self.setting.profile.name),
            measured=self._measured(winner.divergence, self.winner_metric),
            model_gap=self.model_gap,
            measured_regret=self.measured_regret,
            baselines=self.baselines,
            pareto=tuple(self._trial_as_data(t) for t in front if t is not winner),
            trials=tuple(self._trial_as_data(t) for t in self.found),
            notes=tuple(dict.fromkeys(self.notes)),
            provenance=Provenance(
                seed=self.seed,
                trials=trials,
                versions=package_versions(),
                calibration=self._calibration(),
                profile_digest=self.setting.profile.digest,
                outputs=self.outputs,
            ),
            bias_correction=bool(winner.knobs.get("bias_correction", False)),
            observer=observer,
            input_tree=tree,
            pins=dict(pins),
            model=self.prepared.source,
            tensors_sha256=content_digest(tensors),
        )
        return bind(plan, graph, tensors)

    def _trial_as_data(self, trial: Trial) -> Alternative:
        knobs = ", ".join(f"{name}={value}" for name, value in sorted(trial.knobs.items()))
        return alternative(
            self.setting,
            f"trial {trial.number}",
            trial.choice,
            self._metrics(trial.choice, trial.divergence, None),
            fits=trial.feasible,
            note=f"{trial.origin}; {knobs}" if knobs else trial.origin,
        )

    def _calibration(self) -> Calibration:
        data: CalibrationData = self.data
        joined = hashlib.sha256((data.scoring.digest + data.held_out.digest).encode())
        return Calibration(
            synthetic=self.synthetic,
            batches=len(data.scoring) + len(data.held_out),
            scoring_samples=data.scoring.samples,
            held_out_samples=data.held_out.samples,
            digest=joined.hexdigest(),
        )


def _dynamic_by_name(
    tensors: Mapping[str, torch.Tensor], graph: Any
) -> dict[str, Mapping[int, str]]:
    """Which dimensions of the example inputs may change, by the names the user knows."""
    flat = [
        name
        for name, value in zip(
            graph.input_names, flatten_inputs(graph.module, graph.args, graph.kwargs), strict=True
        )
        if isinstance(value, torch.Tensor)
    ]
    return {
        user: graph.dynamic.get(name, {}) for user, name in zip(tensors, flat, strict=True)
    }


def _powers(references: Sequence[Sequence[Any]], kinds: Sequence[str]) -> list[float]:
    floats = [
        [v if k != "ignored" else torch.ones(1) for v, k in zip(values, kinds, strict=True)]
        for values in references
    ]
    return measure_powers(floats)


