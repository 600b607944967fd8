"""Write the artifact's files: the package, how to run it, and what to check it against."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from advisor.passes.graph import QuantizedGraph
from advisor.targets.coreai.convert import convert
from advisor.targets.coreai.program import PACKAGE
from advisor.targets.describe import describe
from advisor.targets.fixedshapes import at_deployment, write_shapes
from advisor.targets.manifest import CHECK_FOLDER, damaged, read_json, write_json, write_manifest
from advisor.targets.packages import quiet
from advisor.targets.parts import Names
from advisor.targets.plainports import Ports
from advisor.targets.simulation import save_simulation

SETTINGS_FILE: Final = "coreai.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the parts of a package are called: its inputs and outputs, layers and tensors."""

    ports: Ports
    names: Names


def write_artifact(graph: QuantizedGraph, out: Path) -> None:
    """Write every file of the artifact but acceptance.json into the existing folder ``out``.

    Raises:
        InputError: the model does not accept the deployment's batch or sequence.
        UnsupportedError: an operator has no form in Core AI.
    """
    graph, shapes = at_deployment(graph)
    converted = convert(graph, shapes.batch)
    with quiet():
        converted.program.save_asset(out / PACKAGE)
    manifest = describe(graph)
    write_manifest(manifest, out)
    write_shapes(shapes, out)
    write_json(out / SETTINGS_FILE, asdict(Settings(ports=converted.ports, names=converted.names)))
    save_simulation(graph, tuple(record.name for record in manifest.inputs), out / CHECK_FOLDER)


def read_settings(folder: Path) -> Settings:
    """Read coreai.json.

    Raises:
        PlanError: missing or damaged.
    """
    path = folder / SETTINGS_FILE
    kept = read_json(path)
    try:
        return Settings(ports=Ports(**kept["ports"]), names=Names(**kept["names"]))
    except (KeyError, TypeError) as error:
        raise damaged(path, error) from error
