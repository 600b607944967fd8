"""Write the artifact's files: the package, how to run it, and what to check it against."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from advisor.errors import VerificationError
from advisor.passes.graph import QuantizedGraph
from advisor.targets.coreml.convert import convert, find_precision
from advisor.targets.coreml.deployment import SPECIFICATIONS, check_deployment, describe
from advisor.targets.coreml.images import Image, choose_images
from advisor.targets.coreml.labels import choose_labels
from advisor.targets.coreml.options import CoremlOptions
from advisor.targets.coreml.package import PACKAGE
from advisor.targets.coreml.packages import load
from advisor.targets.describe import describe as describe_graph
from advisor.targets.fixedshapes import at_deployment, write_shapes
from advisor.targets.manifest import CHECK_FOLDER, damaged, read_json, write_json, write_manifest
from advisor.targets.packages import quiet
from advisor.targets.plainports import Ports
from advisor.targets.signature import describe_inputs
from advisor.targets.simulation import save_simulation

SETTINGS_FILE: Final = "coreml.json"

BENCHMARK_FILE: Final = "benchmark.py"
"""What measures the package on a Mac: a copy of ``ondevice``, which stands alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a package was written. deployment: the oldest system that runs it. compute: dtype of
    what the schemes leave to the runtime. ports: names of inputs and outputs. images: inputs that
    are pictures, by name. labels: of a classifier's classes."""

    deployment: str
    compute: str
    ports: Ports
    images: Mapping[str, Image] = field(default_factory=dict[str, Image])
    labels: tuple[str, ...] = ()


def write_artifact(graph: QuantizedGraph, out: Path, options: CoremlOptions) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        AdvisorError: as ``write_package``.
    """
    fixed = write_package(graph, out, options)
    names = tuple(record.name for record in describe_inputs(fixed.float_graph))
    save_simulation(fixed, names, out / CHECK_FOLDER)


def write_package(graph: QuantizedGraph, out: Path, options: CoremlOptions) -> QuantizedGraph:
    """Write the package and how to run it: all but what it is checked against.

    Returns the graph with example inputs of the deployment's sequence.

    Raises:
        InputError: the model does not accept the deployment's batch or sequence.
        UnsupportedError: an operator has no form in MIL, a scheme needs a newer system, or an
            input is no picture, or the model no classifier, where the options say so.
        UsageError: options that do not fit the model, or a file of labels that cannot be used.
        VerificationError: coremltools wrote for a newer system than it was told to.
    """
    deployment = check_deployment(graph, options.deployment)
    graph, shapes = at_deployment(graph)
    images = choose_images(options, describe_inputs(graph.float_graph), shapes)
    labels = choose_labels(options.labels, graph, shapes)
    converted = convert(
        graph, shapes.batch, deployment, options.compute, images=images, labels=labels
    )
    with quiet():
        converted.model.save(str(out / PACKAGE))
    _check_version(converted.model.get_spec().specificationVersion, deployment)
    is_half = find_precision(graph, options.compute).is_half
    settings = Settings(
        deployment=deployment,
        compute="float16" if is_half else "float32",
        ports=converted.ports,
        images=images,
        labels=labels,
    )
    write_manifest(describe_graph(graph), out)
    write_shapes(shapes, out)
    write_json(out / SETTINGS_FILE, asdict(settings))
    shutil.copyfile(Path(__file__).with_name("ondevice.py"), out / BENCHMARK_FILE)
    return graph


def _check_version(found: int, deployment: str) -> None:
    if found == SPECIFICATIONS[deployment]:
        return
    written = next((name for name, v in SPECIFICATIONS.items() if v == found), f"version {found}")
    raise VerificationError(
        f"the package should run on {describe(deployment)}, but coremltools "
        f"{load('coremltools').__version__} wrote it for {written}: an operator of the model needs "
        f"that; compile with options={{'deployment': {written!r}}}"
    )


def read_settings(folder: Path) -> Settings:
    """Read coreml.json.

    Raises:
        PlanError: missing or damaged.
    """
    path = folder / SETTINGS_FILE
    kept = read_json(path)
    try:
        return Settings(
            deployment=kept["deployment"],
            compute=kept["compute"],
            ports=Ports(**kept["ports"]),
            images={
                name: Image(
                    color=each["color"], scale=tuple(each["scale"]), bias=tuple(each["bias"])
                )
                for name, each in kept["images"].items()
            },
            labels=tuple(kept["labels"]),
        )
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error
