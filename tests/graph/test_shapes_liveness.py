"""Shapes without computing, and the peak of memory against a simulated allocator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from advisor.errors import InputError
from advisor.passes.capture import capture
from advisor.passes.fx import Tracer, operator_name
from advisor.passes.graph import Graph, name_of
from advisor.passes.liveness import VIEWS, ProgramPoint, peak_bytes, program_points
from advisor.passes.shapes import TensorInfo, deployment_inputs, infer_shapes
from tests.graph.models import (
    CASES,
    Decoder,
    captured,
    seeded,
    tokens,
    vectors,
)


class Recorder(Tracer):
    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[tuple[int, ...], int, bool]] = {}

    def observe(self, node: Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            entry = (tuple(value.shape), value.element_size(), value.is_floating_point())
            self.found[node.name] = entry
        return value


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", CASES)
def test_shapes_are_those_of_a_real_run(name: str, batch: int) -> None:
    _, graph = captured(name)
    flat = deployment_inputs(graph, batch, None)
    found = infer_shapes(graph.module, flat)
    real = Recorder(graph.module)
    with torch.no_grad():
        real.run(*flat, enable_io_processing=False)
    assert {n: (i.shape, i.element_bytes, i.is_float) for n, i in found.items()} == real.found


@pytest.mark.parametrize(("name", "length"), [("decoder", 3), ("decoder", 17), ("masked", 9)])
def test_the_sequence_can_be_asked(name: str, length: int) -> None:
    _, graph = captured(name)
    flat = deployment_inputs(graph, 4, length)
    assert [tuple(value.shape) for value in flat if isinstance(value, Tensor)] == [
        (4, length) for value in flat if isinstance(value, Tensor)
    ]
    found = infer_shapes(graph.module, flat)
    assert found[graph.input_names[0]].shape == (4, length)
    assert found[graph.input_names[0]].size_bytes == 4 * length * 8


def test_values_of_the_example_are_repeated() -> None:
    model = seeded(Decoder(layers=1))
    graph = capture(model, (tokens(2, 6),), {})
    (flat,) = deployment_inputs(graph, 5, 9)
    assert torch.equal(flat[:2, :6], tokens(2, 6))
    assert torch.equal(flat[2:4, 6:9], tokens(2, 6)[:, :3])


def test_another_batch_than_the_fixed_one_is_refused() -> None:
    program = torch.export.export(seeded(nn.Linear(4, 3)), (vectors(2),))
    graph = capture(program, (vectors(2),), {})
    assert deployment_inputs(graph, 2, None)[0].shape == (2, 4)
    with pytest.raises(InputError, match=r"batch 3 was asked, .* only batch 2 .*; ask batch=2"):
        deployment_inputs(graph, 3, None)


def test_another_sequence_than_the_fixed_one_is_refused() -> None:
    graph = captured("conv1d")[1]
    assert len(deployment_inputs(graph, 2, 4)) == 1  # its second dimension is 4
    with pytest.raises(InputError, match=r"sequence 7 was asked, .* is fixed at 4"):
        deployment_inputs(graph, 2, 7)


def test_a_sequence_that_the_model_cannot_take_is_refused() -> None:
    graph = captured("decoder")[1]  # its position table has 32 rows
    flat = deployment_inputs(graph, 1, 40)
    with pytest.raises(
        InputError, match=r"shapes \[\(1, 40\)\]: the model's own forward at models"
    ):
        infer_shapes(graph.module, flat)


def points_of(graph: Graph, batch: int = 2) -> tuple[tuple[ProgramPoint, ...], dict[str, int]]:
    shapes = infer_shapes(graph.module, deployment_inputs(graph, batch, None))
    points = program_points(graph.module, shapes)
    sizes = {
        name_of(node): shapes[node.name].size_bytes
        for node in graph.module.graph.nodes
        if node.name in shapes
    }
    return points, sizes


def alive_by_definition(graph: Graph, shapes: Mapping[str, TensorInfo]) -> list[int]:
    """For every operator that allocates: each block that it or anything later still touches."""
    nodes = [node for node in graph.module.graph.nodes if node.op != "get_attr"]
    owner: dict[Node, Node] = {}
    for node in nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        is_view = operator_name(node) in VIEWS and source in owner
        is_part = operator_name(node) == "getitem" and operator_name(source or node) in VIEWS
        owner[node] = owner[source] if source in owner and (is_view or is_part) else node
    sizes: list[int] = []
    for here, node in enumerate(nodes):
        parts = [user for user in node.users if operator_name(user) == "getitem"]
        born = [node] if node.name in shapes else [part for part in parts if part.name in shapes]
        own = [block for block in born if owner[block] is block]
        made_here = operator_name(node) != "getitem" and node.op == "call_function"
        if not own or not made_here:
            continue
        touched = {
            owner[source]
            for later in nodes[here:]
            for source in (*later.all_input_nodes, later)
            if source in owner
        }
        existing = {owner[earlier] for earlier in nodes[: here + 1]} | set(own)
        inputs = {n for n in nodes if n.op == "placeholder"}
        alive = {b for b in (touched & existing) | inputs | set(own) if b.name in shapes}
        sizes.append(sum(shapes[block.name].size_bytes for block in alive))
    return sizes


@pytest.mark.parametrize("name", CASES)
def test_every_program_point_holds_what_is_still_touched(name: str) -> None:
    graph = captured(name)[1]
    shapes = infer_shapes(graph.module, deployment_inputs(graph, 3, None))
    points, sizes = points_of(graph, 3)
    found = [sum(sizes[tensor] for tensor in point.alive) for point in points]
    assert found == alive_by_definition(graph, shapes)
    assert peak_bytes(points, sizes) == max(found)
    assert all(len(set(point.alive)) == len(point.alive) for point in points)


class Skip(nn.Module):
    """x is needed again at the very end; views lie between."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        start = torch.tanh(x)
        wide = F.relu(self.one(start.reshape(-1, 2, 2).reshape(-1, 4)))
        result: Tensor = start + self.two(wide)
        return result


def test_a_skip_stays_alive_and_views_cost_nothing() -> None:
    graph = capture(seeded(Skip()), (vectors(2),), {})
    points, sizes = points_of(graph)
    assert [(point.node, set(point.alive)) for point in points] == [
        ("tanh", {"x", "tanh"}),
        ("one", {"x", "tanh", "one"}),
        ("relu", {"x", "tanh", "one", "relu"}),
        ("two", {"x", "tanh", "relu", "two"}),
        ("add", {"x", "tanh", "two", "add"}),
    ]
    row = 2 * 4 * 4  # two samples of four float32
    assert peak_bytes(points, sizes) == row + row + 4 * row + 4 * row
    assert peak_bytes((), {}) == 0


def test_all_outputs_of_one_operator_are_alive_together() -> None:
    class Tops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values, indices = torch.topk(torch.cos(x), 3)
            return values.gather(1, indices.clamp_max(2))

    graph = capture(Tops(), (vectors(2),), {})
    points, _ = points_of(graph)
    alive = {point.node: set(point.alive) for point in points}
    assert alive["topk"] == {"x", "cos", "getitem", "getitem#2"}
    assert alive["gather"] == {"x", "getitem", "clamp_max", "gather"}


def test_pieces_of_a_split_share_its_memory() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.exp(x).chunk(2, -1)
            return torch.sigmoid(a) * torch.sin(b)

    graph = capture(Split(), (vectors(2),), {})
    points, sizes = points_of(graph)
    alive = {point.node: set(point.alive) for point in points}
    assert alive["sin"] == {"x", "exp", "sigmoid", "sin"}
    assert alive["mul"] == {"x", "sigmoid", "sin", "mul"}
    assert peak_bytes(points, sizes) == 32 + 32 + 16 + 16


def test_results_stay_alive_to_the_end() -> None:
    class Early(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cos(x), torch.sin(torch.exp(x))

    graph = capture(Early(), (vectors(2),), {})
    points, _ = points_of(graph)
    assert set(points[-1].alive) == {"x", "cos", "exp", "sin"}
