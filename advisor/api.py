"""``advise``: from a model, a target and a budget to a Plan."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from advisor.arithmetic import describe_arithmetic
from advisor.binding import bind, content_digest, fingerprint, plan_tensors
from advisor.breakdown import break_down, break_down_energy, break_down_memory
from advisor.budget import Budget
from advisor.choose import Chosen, choose, costs_of, measured_of, metrics_of
from advisor.decide import (
    alternative,
    decide_layers,
    decide_tensors,
    package_versions,
)
from advisor.devicenotes import with_warnings
from advisor.doctor import check_cache
from advisor.errors import BudgetError, OutputError, UsageError
from advisor.evidence import Evidence, Progress, gather
from advisor.explain import find_terms
from advisor.formats import scheme_named
from advisor.measure.finalists import Contest
from advisor.measure.machine import find_stopwatch
from advisor.measure.measure import kept_costs
from advisor.metric import Metric
from advisor.plan import Alternative, Calibration, Plan, Provenance
from advisor.planfile import note_measurements
from advisor.prepare import check_deployment, check_whole, prepare
from advisor.search.objective import check_objective, pareto_front
from advisor.search.trial import Trial
from advisor.simulate import Loss

TRIALS: Final = 24


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
        budget: "4GB" (memory: weights plus peak activations), "8ms", "1.05x int8" (latency, against
            the faster uniform int8 plan), "4GB,8ms", or a mapping with memory, size, latency,
            energy, accuracy_drop. None: no limit.
        inputs: example inputs (tensor, tuple or dict); the first calibration batch, or inferred
            where they can be.
        calibration: iterable of inputs or (inputs, label), read once; even batches score, odd
            ones are held out. None: random inputs, which the plan says everywhere.
        metric: callable(module) -> float or array of one value per example; higher is better. Where
            it is a limit it is run on about twenty plans and the uniform ones.
        loss: callable(outputs, reference) -> float, in place of the divergence.
        output: "logits", "embedding" or "regression", for all outputs or by name; guessed if None.
        runtime: overrides the profile's.
        objective: "auto": the fastest plan whose loss stays within the accuracy budget (by
            default 1 % of the metric, or divergence 0.01), else the least loss; "accuracy",
            "latency" or "memory": that one first (of latency, the least loss within 2 % of the
            fastest plan: no latency is known better).
        batch, sequence, threads: of the deployment. context: tokens whose keys and values a decoder
            keeps; their bytes, in the runtime's float dtype, count as memory.
        schemes: names to choose from; float32 always stays possible.
        pin: {"*.head": "fp16", "op:embedding": "fp32"}, layer glob or operator type to scheme.
        on_unsupported: "keep" layers that cannot be quantized in float, with a reason, or "error".
        trials: assignments measured in the search, the exact start and baselines included.
        seed: same seed, same machine, same plan. cache: keep finished trials on disk, so that a
            killed run resumes (not with a ``loss``, which nothing tells apart from another), and
            what was timed on this machine.
            progress: called with (stage, done, total).
        workers: only 1 (or None) so far.

    Raises:
        UsageError: an argument cannot be used (BudgetError, ProfileError, InputError,
            CalibrationError, ModelError and UnsupportedError are usage errors).
        CaptureError: torch.export cannot trace the model.
        InfeasibleError: the budget cannot be met; the smallest possible one is named.
        OutputError: ``cache`` is on and its folder cannot be written.
    """
    limits = Budget.parse(budget)
    check_whole("trials", trials, 1)
    check_whole("seed", seed, 0)
    _check_arguments(limits, metric, objective, workers)
    deployment = check_deployment(
        target=target,
        runtime=runtime,
        batch=batch,
        sequence=sequence,
        threads=threads,
        context=context,
    )
    kept = _cache_folder() if cache else None
    stopwatch = find_stopwatch(deployment.profile, deployment.capability)
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
        measure=None
        if stopwatch is None
        else partial(kept_costs, stopwatch=stopwatch, deployment=deployment, cache=kept, say=say),
    )
    with tempfile.TemporaryDirectory(prefix="advisor-") as folder:
        evidence = gather(
            prepared, output=output, loss=loss, seed=seed, folder=Path(folder), say=say
        )
        chosen = choose(
            evidence,
            budget=prepared.budget,
            objective=objective,
            metric=metric,
            trials=trials,
            seed=seed,
            cache=None if kept is None else kept / "studies",
            say=say,
            contest=None
            if stopwatch is None
            else Contest(stopwatch=stopwatch, deployment=deployment, cache=kept, say=say),
        )
        measured = prepared.setting.measured
        provenance = Provenance(
            seed=seed,
            trials=trials,
            versions=package_versions(),
            calibration=_calibration(evidence),
            profile_digest=deployment.profile.digest,
            outputs=evidence.outputs,
            costs_digest="" if measured is None else measured.digest,
        )
        return _write(
            evidence,
            chosen,
            provenance,
            budget=limits,
            objective=objective,
            batch=batch,
            sequence=sequence,
            context=context,
            pins=pin or {},
        )


def _cache_folder() -> Path:
    """Where studies and timings are kept; checked first: nothing should be computed in vain."""
    found = check_cache()
    if found.problem:
        raise OutputError(
            f"finished trials cannot be kept: {found.problem}; pass cache=False, or set "
            "ADVISOR_CACHE to a folder you can write to"
        )
    return found.path


def _silent(_stage: str, _done: int, _total: int) -> None:
    return None


def _check_arguments(
    limits: Budget,
    metric: Metric | None,
    objective: str,
    workers: int | None,
) -> None:
    check_objective(objective)
    if torch.is_inference_mode_enabled():
        raise UsageError(
            "advise() needs gradients, which torch.inference_mode() rules out; call it outside "
            "(torch.no_grad() does no harm)"
        )
    if limits.accuracy_drop is not None and metric is None:
        raise BudgetError(
            "accuracy_drop is a share of a metric, and no metric was given; "
            "pass metric=callable(module) -> float"
        )
    if workers not in (None, 1):
        raise UsageError(f"workers={workers}: only one worker is possible so far; leave it out")


def _write(
    evidence: Evidence,
    chosen: Chosen,
    provenance: Provenance,
    *,
    budget: Budget,
    objective: str,
    batch: int,
    sequence: int | None,
    context: int | None,
    pins: Mapping[str, str],
) -> Plan:
    """The Plan, tied to the model and its tensors."""
    setting, winner = evidence.prepared.setting, chosen.winner
    sensitivity = evidence.under(winner.knobs).sensitivity
    quantized = evidence.simulator.quantized(winner.choice, winner.knobs)
    tensors, tree = plan_tensors(
        setting.graph,
        quantized.weights,
        quantized.biases,
        evidence.simulator.basis(winner.knobs).factors,
    )
    static = {
        name for name, layer in quantized.assignment.items() if scheme_named(layer.scheme).is_static
    }
    front = [trial for trial in pareto_front(chosen.trials) if trial is not winner]
    terms = find_terms(
        evidence.under(winner.knobs).problem,
        winner.choice,
        objective=objective,
        used=chosen.used,
        bounds=chosen.bounds,
    )
    layers = decide_layers(setting, winner.choice, sensitivity, evidence.prepared.pinned, terms)
    decided = (
        setting.with_graph(evidence.simulator.basis(winner.knobs).graph),
        evidence.under(winner.knobs).problem,
        winner.choice,
        winner.evaluation,
    )
    plan = Plan(
        target=setting.profile.name,
        runtime=setting.capability.name,
        objective=objective,
        budget=budget.describe(),
        outcome=chosen.outcome,
        batch=batch,
        sequence=sequence,
        context=context,
        threads=setting.threads,
        fingerprint=fingerprint(setting.graph),
        layers=layers,
        tensors=decide_tensors(
            setting,
            evidence.simulator.params(winner.knobs),
            setting.regions.quantized(static),
            sensitivity,
        ),
        predicted=costs_of(setting, winner.choice, winner.evaluation),
        measured=measured_of(evidence, winner.held_out, chosen.metric),
        breakdown=break_down(*decided),
        memory_parts=break_down_memory(*decided),
        energy_parts=break_down_energy(setting, winner.choice),
        arithmetic=describe_arithmetic(setting),
        model_gap=chosen.model_gap,
        measured_regret=chosen.measured_regret,
        baselines=chosen.baselines,
        pareto=tuple(_as_data(evidence, chosen, trial) for trial in front),
        trials=tuple(_as_data(evidence, chosen, trial) for trial in chosen.trials),
        notes=with_warnings(
            evidence.notes,
            layers,
            setting.capability,
            setting.profile.units,
            setting.profile.platform,
        ),
        provenance=provenance,
        bias_correction=bool(winner.knobs.get("bias_correction", False)),
        observer=str(winner.knobs.get("observer", "minmax")),
        equalise=bool(winner.knobs.get("equalise", False)),
        input_tree=tree,
        drop=chosen.drop,
        pins=dict(pins),
        platform=dict(setting.profile.platform),
        options=dict(setting.profile.options)
        if setting.profile.runtime == setting.capability.name
        else {},
        model=evidence.prepared.source,
        tensors_sha256=content_digest(tensors),
    )
    note_measurements(plan, chosen.timings)
    return bind(plan, setting.graph, tensors)


def _as_data(evidence: Evidence, chosen: Chosen, trial: Trial) -> Alternative:
    said = [trial.origin, ", ".join(f"{name}={v}" for name, v in sorted(trial.knobs.items()))]
    if trial.at_least is not None:
        said.append(f"given up at a divergence of at least {trial.at_least:.4g}")
    return alternative(
        evidence.prepared.setting,
        f"trial {trial.number}",
        trial.choice,
        metrics_of(evidence, trial.choice, trial.evaluation, trial.held_out, None),
        fits=trial.number in chosen.fitting,
        note="; ".join(filter(None, said)),
    )


def _calibration(evidence: Evidence) -> Calibration:
    scoring, held_out = evidence.simulator.data.scoring, evidence.simulator.data.held_out
    joined = hashlib.sha256((scoring.digest + held_out.digest).encode())
    return Calibration(
        synthetic=evidence.synthetic,
        batches=len(scoring) + len(held_out),
        scoring_samples=scoring.samples,
        held_out_samples=held_out.samples,
        digest=joined.hexdigest(),
    )
