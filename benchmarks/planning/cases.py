"""A question as the advisor sees it: captured, with candidates, bytes, calibration and scores."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from advisor.budget import Budget
from advisor.evidence import Evidence, gather
from advisor.passes.candidates import Space
from advisor.prepare import Prepared, check_deployment, prepare
from advisor.search.problem import Candidate
from advisor.setting import Deployment
from advisor.targets.capability import WEIGHTED_OPS, Capability, SchemeSupport, load_capability
from benchmarks.models import Inputs
from benchmarks.planning.questions import FIXED, SCHEMES, Question


def weights_only() -> Deployment:
    """A runtime that takes any of ``SCHEMES`` wherever there is a weight."""
    deployment = check_deployment(
        target="intel-vnni", runtime="onnxruntime", batch=1, sequence=None, threads=None
    )
    return replace(deployment, capability=_weights_only(deployment.capability))


@contextmanager
def open_evidence(question: Question, batches: Sequence[Inputs], seed: int) -> Generator[Evidence]:
    """What the advisor knows of a model before it searches."""
    prepared = prepared_for(question, batches)
    with tempfile.TemporaryDirectory(prefix="planning-") as folder:
        yield gather(
            prepared, output=question.kind, loss=None, seed=seed, folder=Path(folder), say=silent
        )


def prepared_for(question: Question, batches: Sequence[Inputs]) -> Prepared:
    """The captured model with its candidates and their bytes."""
    example = {name: value[:2] for name, value in batches[0].items()}
    prepared = prepare(
        question.model,
        example,
        batches,
        weights_only(),
        budget=Budget(),
        schemes=SCHEMES,
        pins={},
        on_unsupported="keep",
    )
    setting = prepared.setting
    kept: dict[str, tuple[Candidate, ...]] = {}
    for group in setting.groups:
        options = setting.space.candidates[group.name]
        ours = tuple(o for o in options if o.scheme in SCHEMES and o.algorithm != "rtn")
        if any(layer.op == "embedding" for layer in setting.layers_of(group)):
            ours = tuple(option for option in ours if option.scheme == FIXED)
        kept[group.name] = ours or options[:1]
    space = Space(candidates=kept, refused=setting.space.refused)
    return replace(prepared, setting=replace(setting, space=space))


def silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody follows."""


def _weights_only(capability: Capability) -> Capability:
    supported = {
        name: SchemeSupport(scheme=name, ops=WEIGHTED_OPS, ragged=True) for name in SCHEMES
    }
    known = load_capability(capability.name)
    return replace(known, schemes=supported, refused={}, static=None, dynamic={})
