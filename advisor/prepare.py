"""Everything before calibration: model, inputs, graph, runtime, candidates, feasibility."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, float32
from torch.nn import Module

from advisor.assemble import build_problem
from advisor.budget import Budget
from advisor.errors import CalibrationError, ModelError, UnsupportedError, UsageError
from advisor.formats import scheme_named
from advisor.inferred import infer_inputs
from advisor.inputs import Inputs, check_finite, normalise_inputs, split_label
from advisor.measure.costs import MeasuredCosts
from advisor.modelsource import LoadedModel, load_model
from advisor.passes.candidates import Space, find_candidates, keep_to
from advisor.passes.capture import capture
from advisor.passes.graph import Graph
from advisor.passes.group import Group, group_layers
from advisor.pins import apply_pins, resolve_pins
from advisor.profiles.loader import load_profile
from advisor.search.feasibility import check_feasible
from advisor.setting import Deployment, Setting, graph_for, make_setting
from advisor.targets.capability import Capability
from advisor.targets.registry import capability_named
from advisor.uniform import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The planning problem without its sensitivities, known to have a solution.

    budget: with its latency in seconds.
    """

    setting: Setting
    example: Inputs
    model: Any
    source: str | None
    batches: Iterable[Any] | None
    pinned: Mapping[str, tuple[str, str]]
    budget: Budget


def check_deployment(
    *,
    target: str,
    runtime: str | None,
    batch: int,
    sequence: int | None,
    threads: int | None,
    context: int | None = None,
) -> Deployment:
    """Read the target and check the numbers, before the model is touched.

    Raises:
        ProfileError: unknown or malformed target.
        UsageError: unknown runtime, or a number below 1.
    """
    if not isinstance(target, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(
            f"target={target!r}: expected the name of a profile, such as 'intel-vnni' "
            "(advisor profiles lists them), or the path of a profile TOML"
        )
    profile = load_profile(target, runtime)
    capability = capability_named(runtime or profile.runtime)
    numbers: dict[str, object] = {
        "batch": batch,
        "sequence": sequence,
        "threads": threads,
        "context": context,
    }
    for name, value in numbers.items():
        if value is not None:
            check_whole(name, value, 1)
    return Deployment(
        profile=profile,
        capability=capability,
        batch=batch,
        sequence=sequence,
        threads=threads,
        context=context,
    )


def check_whole(name: str, value: object, least: int) -> None:
    """Raise UsageError unless the argument is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name}={value!r}: a whole number of at least {least} is needed")


def prepare(
    model: Any,
    inputs: Any,
    calibration: Iterable[Any] | None,
    deployment: Deployment,
    *,
    budget: Budget,
    schemes: Sequence[str] | None,
    pins: Mapping[str, str],
    on_unsupported: str,
    measure: Callable[[Setting], MeasuredCosts] | None = None,
) -> Prepared:
    """Capture the model and set up its planning problem.

    measure: finds the layers' seconds on this machine; None: they are modelled. A budget that
    does not depend on them is held against the cheapest plan before anything is timed.

    Raises:
        InputError, CaptureError, ModelError, UnsupportedError, InfeasibleError: see each.
        BudgetError: a latency as a multiple of a uniform plan that there is not.
    """
    loaded = _load(model)
    _check_float32(loaded.model)
    inputs = inputs if inputs is not None else loaded.inputs
    batches = calibration if calibration is not None else loaded.calibration
    example, batches = _find_example(loaded.model, inputs, batches, deployment.sequence)
    check_finite(example, 0)
    graph = capture(loaded.model, example.args, example.kwargs)
    graph = graph_for(graph, deployment.capability)
    _check_schemes(schemes, deployment)
    groups = group_layers(graph, deployment.capability)
    space = find_candidates(
        graph,
        groups,
        deployment.capability,
        platform=deployment.profile.platform,
        schemes=schemes,
    )
    space = keep_to(space, groups, deployment.profile.schemes, deployment.profile.name)
    _check_quantizable(graph, groups, space, deployment.capability, on_unsupported)
    pinned = resolve_pins(graph, pins)
    space = apply_pins(space, groups, pinned, deployment.capability)
    setting = make_setting(graph, groups, space, deployment)
    if measure is not None:
        check_feasible(build_problem(setting), replace(budget, latency_s=None))
        setting = setting.with_measured(measure(setting))
    problem = build_problem(setting)
    budget = resolve(budget, setting, problem)
    check_feasible(problem, budget)
    return Prepared(
        setting=setting,
        example=example,
        model=loaded.model,
        source=loaded.spec,
        batches=batches,
        pinned=pinned,
        budget=budget,
    )


def _find_example(
    model: Any, inputs: Any, batches: Iterable[Any] | None, sequence: int | None
) -> tuple[Inputs, Iterable[Any] | None]:
    """Example inputs: given, else the first calibration batch (put back), else inferred."""
    kind = type(batches).__name__
    if isinstance(batches, (Tensor, Mapping, str)):
        raise CalibrationError(
            f"calibration is one {kind}; pass an iterable of batches, such as [batch]"
        )
    if batches is not None and not _is_iterable(batches):
        raise CalibrationError(
            f"calibration is a {kind}, which cannot be iterated; pass an iterable of batches, "
            "such as a list, a DataLoader or a generator (called, not the function)"
        )
    if inputs is not None:
        return normalise_inputs(model, inputs), batches
    # An exported program brings the inputs it was made with; a batch may have another size.
    if batches is None or getattr(model, "example_inputs", None) is not None:
        return infer_inputs(model, sequence=sequence), batches
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise CalibrationError(
            "calibration is empty: the iterable gave no batch; pass at least one batch of inputs "
            "(a generator can be read only once: pass a fresh one), or calibration=None"
        )
    example, _label = split_label(model, first)
    return example, chain([first], iterator)


def _is_iterable(batches: object) -> bool:
    return isinstance(batches, Iterable) or hasattr(batches, "__getitem__")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    model: Any
    inputs: Any = None
    calibration: Iterable[Any] | None = None
    spec: str | None = None


def _load(model: Any) -> _Source:
    if isinstance(model, LoadedModel):
        return _from_loaded(model)
    if isinstance(model, (str, bytes)) or hasattr(model, "__fspath__"):
        return _from_loaded(load_model(str(model)))
    from torch.export import ExportedProgram

    if not isinstance(model, (Module, ExportedProgram)):
        raise UsageError(
            f"a model of type {type(model).__name__} cannot be planned; pass an nn.Module, an "
            "ExportedProgram, a .pt2 file, a Hugging Face folder, or 'package.module:factory'"
        )
    return _Source(model=model)


def _from_loaded(loaded: LoadedModel) -> _Source:
    return _Source(
        model=loaded.model,
        inputs=loaded.inputs,
        calibration=loaded.calibration,
        spec=loaded.spec,
    )


def _check_float32(model: Any) -> None:
    """Plans start from float32: sizes, "fp32" and every divergence are said against it.

    Raises:
        ModelError: names the first weight of another floating dtype.
    """
    named = model.state_dict if not isinstance(model, Module) else dict(model.named_parameters())
    for name, value in named.items():
        if value.is_floating_point() and value.dtype != float32:
            dtype = str(value.dtype).removeprefix("torch.")
            raise ModelError(
                f"{name} is {dtype}, and plans are made from float32 weights; "
                "pass model.float(), with inputs and calibration in float32 too"
            )


def _check_schemes(schemes: Sequence[str] | None, deployment: Deployment) -> None:
    capability, device = deployment.capability, deployment.profile
    if isinstance(schemes, str):
        raise UsageError(f"schemes={schemes!r}: expected a list of names, such as [{schemes!r}]")
    for name in schemes or ():
        scheme_named(name)
        if name not in capability.schemes:
            reason = capability.refused.get(name, f"{capability.title} has no {name}")
            raise UnsupportedError(
                f"scheme {name} was asked for, but {reason}; "
                f"possible: {', '.join(capability.schemes)}"
            )
    if schemes is not None and device.schemes and not {*schemes} & {*device.schemes}:
        raise UnsupportedError(
            f"schemes={list(schemes)} were asked for, but {device.name} itself runs only "
            f"{', '.join(device.schemes)}; leave schemes out"
        )


def _check_quantizable(
    graph: Graph,
    groups: Sequence[Group],
    space: Space,
    capability: Capability,
    on_unsupported: str,
) -> None:
    if on_unsupported not in ("keep", "error"):
        raise UsageError(f"on_unsupported={on_unsupported!r}; possible: 'keep', 'error'")
    frozen = [layer for layer in graph.layers if layer.frozen]
    if len(frozen) == len(graph.layers):
        found = Counter(str(n.target) for n in graph.module.graph.nodes if n.op == "call_function")
        listing = ", ".join(f"{layer.name} ({layer.frozen})" for layer in frozen[:5])
        operators = ", ".join(list(found)[:8]) or "none"
        raise ModelError(
            "the model has no layer to quantize: "
            + (f"{listing}; " if frozen else "")
            + "layers that can be are linear, conv1d, conv2d and embedding with constant weights; "
            f"operators found: {operators}"
        )
    stuck = {layer.name: layer.frozen for layer in frozen}
    for group in groups:
        if all(option.scheme == "fp32" for option in space.candidates[group.name]):
            for name in group.layers:
                reasons = [f"{s}: {why}" for s, why in space.refused[name].items() if why]
                if reasons:
                    stuck.setdefault(name, ", ".join(reasons[:3]))
    if on_unsupported == "error" and stuck:
        listing = "; ".join(f"{name}: {reason}" for name, reason in stuck.items())
        raise UnsupportedError(
            f"{len(stuck)} of {len(graph.layers)} layers cannot be quantized on "
            f"{capability.title} ({listing}); use on_unsupported='keep' to leave them in float"
        )
