"""The simulation beside an artifact, read where the model's own code is not."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from advisor.targets.simulation import load_simulation, save_simulation
from tests.targets.making import make


@dataclass
class Scores:
    """A class of the model's package, as Hugging Face's models return them."""

    first: Tensor
    second: Tensor


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Scores:
        return Scores(first=self.one(x), second=self.two(x))


def test_it_is_read_without_the_classes_that_the_model_returns(tmp_path: Path) -> None:
    torch.export.register_dataclass(Scores, serialized_type_name="Scores")
    graph = make("coreml", TwoHeads().eval(), (torch.ones(2, 8),), "w8")
    save_simulation(graph, graph.float_graph.input_names, tmp_path / "check")
    code = (
        "import sys; from pathlib import Path; from advisor.targets.simulation import "
        "load_simulation; print(sorted(load_simulation(Path(sys.argv[1])).floats))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "check")]
    read = subprocess.run(command, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    names = sorted(graph.float_graph.output_names)
    assert read.stdout.splitlines()[-1] == str(names)
    found = load_simulation(tmp_path / "check")
    (x,) = found.inputs.values()
    with torch.no_grad():
        expected = graph.module(x)
        first, second = found.module(x)
    assert torch.equal(first, expected.first)
    assert torch.equal(second, expected.second)
