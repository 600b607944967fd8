"""The simulation beside the artifact, so that it can be checked again on any machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from advisor.errors import PlanError
from advisor.passes import ops
from advisor.passes.graph import QuantizedGraph
from advisor.pt2 import load_program
from advisor.targets.onnxruntime.export import reexport

PROGRAM_FILE: Final = "simulation.pt2"
EXAMPLES_FILE: Final = "examples.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What verification compares against.

    module: the quantized graph. inputs, floats: example inputs by name and the float model's
    outputs for them by name.
    """

    module: GraphModule
    inputs: dict[str, torch.Tensor]
    floats: dict[str, torch.Tensor]


def save_simulation(graph: QuantizedGraph, input_names: tuple[str, ...], folder: Path) -> None:
    """Write the simulation, its example inputs and the float model's outputs into ``folder``."""
    from safetensors.torch import save_file

    folder.mkdir()
    source = graph.float_graph
    program = reexport(graph.module, source)
    program.example_inputs = None  # pickled otherwise; they go to safetensors
    torch.export.save(program, folder / PROGRAM_FILE)
    tree = (tuple(source.args), dict(source.kwargs))
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    with torch.no_grad():
        outputs = flat_tensors(source.module(*source.args, **source.kwargs))
    stored = {
        f"input.{name}": tensor for name, tensor in zip(input_names, tensors, strict=True)
    } | {f"float.{name}": tensor for name, tensor in zip(source.output_names, outputs, strict=True)}
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in stored.items()}
    save_file(copies, folder / EXAMPLES_FILE)


def load_simulation(folder: Path) -> Simulation:
    """Read what ``save_simulation`` wrote.

    Raises:
        PlanError: missing.
        ModelError: the program is damaged, or would run code on loading.
    """
    from safetensors.torch import load_file

    ops.register()
    path = folder / PROGRAM_FILE
    if not path.exists():
        raise PlanError(
            f"{path} is missing, so the artifact cannot be checked; compile the plan again"
        )
    program = load_program(path)
    module = program.module(check_guards=False)
    if not isinstance(module, GraphModule):
        raise PlanError(f"{path} holds no graph; compile the plan again")
    stored = load_file(folder / EXAMPLES_FILE)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in stored.items()
            if name.startswith(prefix)
        }

    return Simulation(module=module, inputs=part("input."), floats=part("float."))


def flat_tensors(outputs: Any) -> list[torch.Tensor]:
    """The tensors of an output, in the order of its structure."""
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
