"""The simulation beside the artifact, so that it can be checked again on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from advisor.errors import PlanError
from advisor.inferred import synthetic_calibration
from advisor.inputs import Inputs
from advisor.passes import ops
from advisor.passes.fx import with_plain_outputs
from advisor.passes.graph import Graph, QuantizedGraph
from advisor.pt2 import load_program
from advisor.targets.manifest import Manifest
from advisor.targets.reexport import reexport
from advisor.targets.signature import bind

PROGRAM_FILE: Final = "simulation.pt2"
EXAMPLES_FILE: Final = "examples.safetensors"

MOST_ROWS: Final = 64
MOST_ELEMENTS: Final = 2**22
"""Random rows to compare end to end: this many, or as many as have this many input elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What verification compares against.

    module: the quantized graph. inputs, floats: example inputs by name and the float model's
    outputs for them by name.
    """

    module: GraphModule
    inputs: dict[str, torch.Tensor]
    floats: dict[str, torch.Tensor]


def simulation_of(graph: QuantizedGraph, input_names: tuple[str, ...]) -> Simulation:
    """What ``save_simulation`` writes, without writing it."""
    source = graph.float_graph
    inputs = check_inputs_of(source)
    tensors = flat_tensors((inputs.args, inputs.kwargs))
    with torch.no_grad():
        outputs = flat_tensors(source.module(*inputs.args, **inputs.kwargs))
    return Simulation(
        module=with_plain_outputs(graph.module),
        inputs=dict(zip(input_names, tensors, strict=True)),
        floats=dict(zip(source.output_names, outputs, strict=True)),
    )


def save_simulation(graph: QuantizedGraph, input_names: tuple[str, ...], folder: Path) -> None:
    """Write the simulation, its example inputs and the float model's outputs into ``folder``."""
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    folder.mkdir()
    simulation = simulation_of(graph, input_names)
    program = reexport(simulation.module, graph.float_graph)
    program.example_inputs = None  # pickled otherwise; they go to safetensors
    torch.export.save(program, folder / PROGRAM_FILE)
    stored = {f"input.{name}": tensor for name, tensor in simulation.inputs.items()}
    stored |= {f"float.{name}": tensor for name, tensor in simulation.floats.items()}
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in stored.items()}
    save_file(copies, folder / EXAMPLES_FILE)


def check_inputs_of(graph: Graph) -> Inputs:
    """The example inputs and, where the batch may change, random rows like them.

    One flipped rounding moves a single sample by as much as quantization itself does, so the
    end-to-end comparison needs more samples than an example has.
    """
    example = Inputs(args=graph.args, kwargs=graph.kwargs)
    tensors = example.tensors()
    if graph.batch is not None or len(graph.input_names) != len(tensors):
        return example
    elements = sum(tensor.numel() for tensor in tensors.values()) // max(example.batch, 1)
    rows = min(max(MOST_ELEMENTS // max(elements, 1), example.batch), MOST_ROWS)
    dynamic = dict(zip(tensors, (graph.dynamic.get(n, {}) for n in graph.input_names), strict=True))
    drawn = [example, *synthetic_calibration(example, rows, seed=0)]
    joined = {
        name: torch.cat([part.tensors()[name] for part in drawn])
        if dynamic[name].get(0) == "batch"
        else tensor
        for name, tensor in tensors.items()
    }
    return example.map_tensors(joined)


def load_simulation(folder: Path) -> Simulation:
    """Read what ``save_simulation`` wrote.

    Raises:
        PlanError: missing.
        ModelError: the program is damaged, or would run code on loading.
    """
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    ops.register()
    path = folder / PROGRAM_FILE
    if not path.exists():
        raise PlanError(
            f"{path} is missing, so the artifact cannot be checked; compile the plan again"
        )
    program = load_program(path)
    module = program.module(check_guards=False)
    stored = load_file(folder / EXAMPLES_FILE)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in stored.items()
            if name.startswith(prefix)
        }

    return Simulation(module=module, inputs=part("input."), floats=part("float."))


def load_examples(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The example inputs that ``save_simulation`` wrote, by name.

    Raises:
        PlanError: missing.
    """
    from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]

    path = folder / EXAMPLES_FILE
    if not path.exists():
        raise PlanError(f"{path} is missing, so there are no inputs to run; compile the plan again")
    return {
        name.removeprefix("input."): array
        for name, array in load_file(path).items()
        if name.startswith("input.")
    }


def inputs_or_examples(
    manifest: Manifest, simulation: Simulation, inputs: Sequence[Any], named: Mapping[str, Any]
) -> list[torch.Tensor]:
    """One tensor per input of the model: what was given, or the examples where nothing was.

    Raises:
        InputError: what was given does not fit the model.
    """
    if not inputs and not named:
        return [simulation.inputs[record.name] for record in manifest.inputs]
    arrays = bind(manifest, inputs, named)
    return [torch.as_tensor(arrays[record.name]) for record in manifest.inputs]


def flat_tensors(outputs: Any) -> list[torch.Tensor]:
    """The tensors of an output, in the order of its structure."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
