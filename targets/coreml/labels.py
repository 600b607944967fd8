"""A package that names the class it finds: labels for the scores of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from advisor.errors import UnsupportedError, UsageError
from advisor.passes.fx import output_nodes
from advisor.passes.graph import QuantizedGraph
from advisor.targets.base import Mismatch
from advisor.targets.coreml.options import NONE
from advisor.targets.coreml.package import Package
from advisor.targets.fixedshapes import FixedShapes

BEST_LABEL: Final = "classLabel"
"""The output with the label, as Apple's own tools call it."""

SCORES: Final = "classLabel_probs"
"""The output with the score of every label; coremltools makes the name of the other's."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """What a classifier says of one row: the label with the largest score, and all scores.

    The scores are the model's own: probabilities where it ends in a softmax.
    """

    label: str
    scores: Mapping[str, float]


def classify(labels: Sequence[str], scores: Array) -> list[Classification]:
    """One classification per row of ``scores`` (rows, labels)."""
    return [
        Classification(
            label=labels[int(row.argmax())],
            scores={label: float(score) for label, score in zip(labels, row, strict=True)},
        )
        for row in scores.reshape(-1, len(labels))
    ]


def choose_labels(option: str, graph: QuantizedGraph, shapes: FixedShapes) -> tuple[str, ...]:
    """The labels in the file that the option names; none where it names none.

    Raises:
        UsageError: the file cannot be read, has an empty or repeated line, or another number of
            labels than the model has classes.
        UnsupportedError: the model is no classifier, or the plan is for several rows at once.
    """
    if option == NONE:
        return ()
    labels = read_labels(Path(option))
    nodes = output_nodes(graph.module)
    values: list[Any] = [node.meta.get("val") for node in nodes]
    kinds = [f"{value.dtype} {list(value.shape)}".removeprefix("torch.") for value in values]
    if len(values) != 1 or len(values[0].shape) != 2 or not values[0].is_floating_point():
        raise UnsupportedError(
            f"labels={option}: the model gives {' and '.join(kinds) or 'nothing'}; a classifier "
            "gives one tensor of scores [1, classes]; compile without labels"
        )
    if shapes.batch != 1:
        raise UnsupportedError(
            f"labels={option}: Core ML names the class of one row per call, but the plan is for "
            f"{shapes.batch} at once; plan with advise(..., batch=1)"
        )
    classes = int(values[0].shape[1])
    if len(labels) != classes:
        raise UsageError(
            f"labels={option}: {len(labels)} labels for {classes} classes of the model's output; "
            "give one line per class, in the order of the scores"
        )
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels in a UTF-8 text file, one per line.

    Raises:
        UsageError: not readable, or a line is empty or there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"labels={path}: cannot be read ({error}); give a text file") from error
    labels = tuple(line.strip() for line in lines)
    first: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if not label:
            raise UsageError(f"labels={path}: line {number} is empty; give every class a label")
        other = first.setdefault(label, number)
        if other != number:
            raise UsageError(
                f"labels={path}: lines {other} and {number} are both {label!r}; Core ML tells "
                "classes apart by their labels"
            )
    return labels


def compare_labels(package: Package, labels: Sequence[str]) -> list[Mismatch]:
    """Whether the package names its classes by these labels, from the package alone."""
    description = package.description
    named = (description.predictedFeatureName, description.predictedProbabilitiesName)
    kinds = {each.name: each.type.WhichOneof("Type") for each in description.output}
    found: Any = (tuple(package.evaluator.labels), named, [kinds.get(name) for name in named])
    expected: Any = (
        (tuple(labels), (BEST_LABEL, SCORES), ["stringType", "dictionaryType"])
        if labels
        else ((), ("", ""), [None, None])
    )
    if found == expected:
        return []
    return [Mismatch(name="labels", expected=f"{expected}", found=f"{found}")]


def note_on(labels: Sequence[str], scores: Array) -> str:
    """That the scores are no probabilities; empty when they are, or nobody asked."""
    if not labels:
        return ""
    rows = scores.reshape(-1, len(labels))
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-2):
        return ""
    return (
        "the scores under the labels are the model's own and no probabilities; let the model end "
        "in a softmax if an app shows them as such"
    )
