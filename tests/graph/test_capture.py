"""Capture: what goes in runs the same when it comes out, and what cannot is refused clearly."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from advisor.errors import CaptureError, InputError, ModelError
from advisor.passes.capture import capture, quiet_export
from advisor.passes.graph import Graph
from advisor.passes.shapes import deployment_inputs
from tests.graph.models import (
    CASES,
    LstmClassifier,
    Masked,
    ResidualCNN,
    captured,
    image,
    make_case,
    masked_inputs,
    seeded,
    tokens,
    vectors,
)


def assert_same(found: Any, wanted: Any, relative: float = 1e-6) -> None:
    """Same structure; every tensor within ``relative`` of the wanted one's largest magnitude."""
    assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
    for one, two in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        assert one.shape == two.shape
        assert one.dtype == two.dtype
        scale = max(float(two.abs().max()), 1e-6)
        assert float((one - two).abs().max()) <= relative * scale


def run(graph: Graph, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return graph.module(*args, **kwargs)


def eager(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.no_grad():
        return model(*args, **kwargs)


@pytest.mark.parametrize("name", CASES)
def test_captured_at_batch_1_it_runs_at_any(name: str) -> None:
    case, graph = captured(name)
    assert graph.batch is None
    assert graph.notes == ()
    for batch in (1, 3, 7):
        other = make_case(name, batch)
        assert_same(
            run(graph, *other.args, **other.kwargs), eager(case.model, *other.args, **other.kwargs)
        )


@pytest.mark.parametrize("length", [1, 2, 11])
@pytest.mark.parametrize("name", ["decoder", "masked"])
def test_token_models_take_any_sequence(name: str, length: int) -> None:
    case, graph = captured(name)
    if name == "decoder":
        assert graph.dynamic == {"input_ids": {0: "batch", 1: "sequence"}}
        ids = tokens(3, length)
        assert_same(run(graph, ids), eager(case.model, ids))
    else:
        inputs = masked_inputs(3, length)
        inputs["attention_mask"][:, 0] = 1.0
        assert_same(run(graph, **inputs), eager(case.model, **inputs))


def test_inputs_may_be_slices_of_something_larger() -> None:
    case, _ = captured("decoder")
    longer = tokens(2, 9)
    graph = capture(case.model, (longer[:, :-1],), {})
    assert graph.dynamic == {"input_ids": {0: "batch", 1: "sequence"}}
    assert_same(run(graph, longer[:, 1:]), eager(case.model, longer[:, 1:]))


def test_an_exported_program_is_taken_as_it_is() -> None:
    model = seeded(ResidualCNN())
    fixed = capture(torch.export.export(model, (image(2),)), (image(2),), {})
    assert fixed.batch == 2
    assert fixed.dynamic == {}
    assert fixed.notes == ("given as an ExportedProgram", "batch is fixed at 2: it was exported so")
    assert_same(run(fixed, image(2)), eager(model, image(2)))
    program = torch.export.export(model, (image(4),), dynamic_shapes=({0: Dim("n")},))
    dynamic = capture(program, (image(4),), {})
    assert dynamic.batch is None
    assert dynamic.dynamic == {"x": {0: "batch"}}
    for batch in (1, 5):
        assert_same(run(dynamic, image(batch)), eager(model, image(batch)))
    assert [layer.name for layer in dynamic.layers] == [layer.name for layer in fixed.layers]


def test_an_exported_program_refuses_what_it_was_not_exported_for() -> None:
    program = torch.export.export(seeded(ResidualCNN()), (image(2),))
    with pytest.raises(InputError, match=r"does not run on the inputs \(float32 \(3, 3, 8, 8\)\)"):
        capture(program, (image(3),), {})


class Several(nn.Module):
    """Positional and keyword tensors, an integer, None, and a list of two outputs beside None."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(
        self, a: Tensor, b: Tensor, times: int = 1, extra: Tensor | None = None
    ) -> list[Tensor | None]:
        total = self.one(a) + self.two(b) * times
        return [total if extra is None else total + extra, None, total.argmax(-1)]


def test_several_inputs_constants_and_none() -> None:
    model = seeded(Several())
    graph = capture(model, (vectors(1, 4), vectors(1, 5), 3, None), {})
    assert graph.batch is None
    for batch in (1, 4):
        args = (vectors(batch, 4), vectors(batch, 5), 3, None)
        found, wanted = run(graph, *args), eager(model, *args)
        assert found[1] is None
        assert_same([found[0], found[2]], [wanted[0], wanted[2]])
    assert len(deployment_inputs(graph, 6, None)) == 4


def test_positional_and_keyword_tensors_together() -> None:
    model = seeded(Several())
    graph = capture(model, (vectors(1, 4),), {"extra": vectors(1, 3), "b": vectors(1, 5)})
    assert graph.batch is None
    args, kwargs = (vectors(4, 4),), {"b": vectors(4, 5), "extra": vectors(4, 3)}
    found, wanted = run(graph, *args, **kwargs), eager(model, *args, **kwargs)
    assert_same([found[0], found[2]], [wanted[0], wanted[2]])


def test_outputs_are_named_by_key_or_number() -> None:
    assert captured("shared")[1].output_names == ("score", "logits")
    assert captured("conv1d")[1].output_names == ("output", "output_1")
    assert captured("residual")[1].output_names == ("output",)


def test_an_optional_input_may_be_given() -> None:
    model = seeded(Masked())
    kwargs = masked_inputs(2) | {"bias": vectors(2, 4)}
    graph = capture(model, (), kwargs)
    more = masked_inputs(5) | {"bias": vectors(5, 4)}
    assert_same(run(graph, **more), eager(model, **more))


class OnlyOne(nn.Module):
    """Runs at batch 1 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x).view(3)
        return result


class Centred(OnlyOne):
    """Every sample sees the mean of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x - x.mean(0))
        return result


class Counted(OnlyOne):
    """torch.export turns the loop over the batch into a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.linear(row) for row in x])


@pytest.mark.parametrize(
    ("model", "batch", "reason"),
    [
        (OnlyOne(), 1, r"does not run at batch 2 \(shape '\[3\]' is invalid"),
        (Centred(), 1, "depend on its neighbours"),
        (Centred(), 3, "depend on its neighbours"),
        (Counted(), 1, "code fixes it"),
        (Counted(), 3, "code fixes it"),
    ],
)
def test_a_batch_that_cannot_change_is_fixed_and_said(
    model: nn.Module, batch: int, reason: str
) -> None:
    graph = capture(seeded(model), (vectors(batch),), {})
    assert graph.batch == batch
    assert graph.dynamic == {}
    (note,) = graph.notes
    assert re.search(f"batch is fixed at {batch}: .*{reason}", note)
    assert_same(run(graph, vectors(batch)), eager(model, vectors(batch)))
    with pytest.raises(InputError, match=f"accepts only batch {batch} .*ask batch={batch}"):
        deployment_inputs(graph, batch + 1, None)


@pytest.mark.parametrize("length", [1, 5])
def test_time_first_networks_do_not_mistake_time_for_the_batch(length: int) -> None:
    model = seeded(LstmClassifier(batch_first=False))
    ids = tokens(length, 2)
    graph = capture(model, (ids,), {})
    assert graph.batch == length
    assert "no batch" in graph.notes[0]
    assert_same(run(graph, ids), eager(model, ids))
    with pytest.raises(InputError, match=f"accepts only batch {length}"):
        deployment_inputs(graph, length + 2, None)


def test_a_time_first_program_with_dynamic_time_is_no_batch_either() -> None:
    model = seeded(LstmClassifier(batch_first=False))
    with quiet_export():
        program = torch.export.export(model, (tokens(4, 2),), dynamic_shapes=({0: Dim.AUTO},))
    graph = capture(program, (tokens(4, 2),), {})
    assert graph.batch == 4
    assert graph.dynamic == {}


class Comparing(nn.Module):
    """Has one scalar input and a table of the batch's size by accident."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, gains: Tensor, temperature: Tensor) -> Tensor:
        result: Tensor = self.linear(x) * gains / temperature
        return result


def test_inputs_that_only_look_like_a_batch_fix_it() -> None:
    model = seeded(Comparing())
    args = (vectors(3), torch.tensor([1.0, 2.0, 3.0]), torch.tensor(2.0))
    graph = capture(model, args, {})
    assert graph.batch == 3
    assert_same(run(graph, *args), eager(model, *args))


def test_training_mode_is_said_and_put_back() -> None:
    model = seeded(ResidualCNN()).train()
    frozen = dict(model.named_modules())["norm"].eval()
    graph = capture(model, (image(2),), {})
    assert graph.notes == ("the model was in training mode; it is planned in evaluation mode",)
    assert model.training
    assert not frozen.training
    assert_same(run(graph, image(2)), eager(model.eval(), image(2)))


class Counting(nn.Module):
    """Keeps state in buffers while it runs."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        result: Tensor = self.linear(x) + self.steps
        return result


def snapshot(model: nn.Module) -> dict[str, Any]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    wants = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    keys = {name: sorted(vars(module)) for name, module in model.named_modules()}
    return {"state": state, "pointers": pointers, "wants": wants, "modes": modes, "keys": keys}


@pytest.mark.parametrize("name", ["residual", "decoder", "counting"])
def test_the_users_model_is_left_as_it_was(name: str) -> None:
    model, args = (
        (seeded(Counting()), (vectors(2),)) if name == "counting" else make_case(name, 2)[:2]
    )
    next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    if name == "counting":
        with pytest.raises(CaptureError, match="the model changes steps while it runs"):
            capture(model, args, {})
    else:
        graph = capture(model, args, {})
        assert list(graph.module.parameters())
        assert not any(parameter.requires_grad for parameter in graph.module.parameters())
    after = snapshot(model)
    before_state, after_state = before.pop("state"), after.pop("state")
    assert all(torch.equal(before_state[key], after_state[key]) for key in before_state)
    assert before == after


def test_weights_are_shared_with_the_users_model_not_copied() -> None:
    case, graph = captured("decoder")
    theirs = {parameter.data_ptr() for parameter in case.model.parameters()}
    assert {parameter.data_ptr() for parameter in graph.module.parameters()} <= theirs


def test_half_precision_models_are_captured_in_float32() -> None:
    model = seeded(nn.Sequential(nn.Linear(4, 3), nn.ReLU())).to(torch.bfloat16)
    graph = capture(model, (vectors(2).to(torch.bfloat16),), {})
    assert "torch.bfloat16" in graph.notes[0]
    assert next(model.parameters()).dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in graph.module.parameters())
    assert_same(run(graph, vectors(2)), eager(model.float(), vectors(2)))


def test_no_grad_and_autocast_regions_disappear() -> None:
    class Regions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.linear(x)
            with torch.autocast("cpu", enabled=False):
                return torch.cos(h) * x

    model = seeded(Regions())
    graph = capture(model, (vectors(1),), {})
    assert_same(run(graph, vectors(3)), eager(model, vectors(3)))


class Inner(nn.Module):
    """Four ways to depend on values."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.linear(x)
        match self.kind:
            case "branch":
                if h.sum() > 0:  # a branch on values
                    return h
                return -h
            case "size":
                return h[h[:, 0] > 0].sum(0) + h  # a size from values
            case "cond":
                chosen: Tensor = torch.cond(h.sum() > 0, torch.cos, torch.sin, (h,))  # a sub-graph
                return chosen
            case _:
                return h[: int(h.abs().sum())] + 0 * h  # an integer from values


class Outer(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), Inner(kind)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("branch", r"if h.sum\(\) > 0"),
        ("size", r"h\[h\[:, 0\] > 0\]"),
        ("cond", "torch.cond"),
        ("integer", r"int\(h.abs\(\).sum\(\)\)"),
    ],
)
def test_control_flow_on_values_is_refused_by_module_and_line(
    kind: str, line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(seeded(Outer(kind)), (vectors(2),), {})
    message = str(caught.value)
    assert re.search(r"module 'blocks\.1' at test_capture\.py:\d+ \(.*" + line, message)
    assert "torch.where" in message
    assert "\n" not in message
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize(
    ("model", "args", "parts"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Linear(7, 2)), (vectors(2),), ["'1'", "2x3 and 7x2"]),
        (nn.Linear(4, 3), (vectors(2, 5),), ["float32 (2, 5)", "2x5 and 4x3"]),
        (nn.Linear(4, 3), (torch.zeros(2, 4, dtype=torch.long),), ["int64 (2, 4)"]),
        (nn.Embedding(3, 4), (torch.tensor([[7]]),), ["int64 (1, 1)", "out of range"]),
        (ResidualCNN(), (), ["(none)", "missing 1 required positional argument: 'x'"]),
        (ResidualCNN(), (vectors(2),), ["module 'stem' at models.py", "self.stem(x)"]),
    ],
)
def test_wrong_inputs_are_refused(
    model: nn.Module, args: tuple[Any, ...], parts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        capture(seeded(model), args, {})
    message = str(caught.value)
    assert "pass inputs= that model(*inputs) accepts" in message
    assert all(part in message for part in parts), message


def test_weights_that_are_not_finite_are_named() -> None:
    model = seeded(ResidualCNN())
    with torch.no_grad():
        dict(model.named_parameters())["blocks.1.conv1.weight"][0, 0, 0, :2] = float("nan")
        dict(model.named_parameters())["head.bias"][1] = float("inf")
    wanted = r"blocks\.1\.conv1\.weight \(2 of 576\), head\.bias \(1 of 5\)"
    with pytest.raises(ModelError, match=wanted):
        capture(model, (image(2),), {})
    with pytest.raises(ModelError, match=wanted):
        capture(torch.export.export(model, (image(2),)), (image(2),), {})


class Unsupported(nn.Module):
    """Operators with weights that nothing here quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2, stride=2)
        self.deep = nn.Conv3d(1, 2, 3, padding=1)
        self.pair = nn.Bilinear(4, 4, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.scale = nn.Parameter(torch.zeros(6, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = self.deep(h[:, None]).mean((1, 3))
        h = self.pair(h.transpose(1, 2), h.transpose(1, 2))
        h, _ = self.lstm(h)
        result: Tensor = self.head(h[:, :6] + self.scale)
        return result


def test_unsupported_operators_become_frozen_layers_with_a_reason() -> None:
    model = seeded(Unsupported())
    graph = capture(model, (image(1),), {})
    assert_same(run(graph, image(3)), eager(model, image(3)), relative=1e-5)
    frozen = {layer.name: layer for layer in graph.layers if layer.frozen}
    assert set(frozen) == {"deep", "pair", "add"}
    assert frozen["deep"].op == "conv3d"
    assert frozen["pair"].op == "bilinear"
    assert all(
        f"{layer.op} has no quantized form" in str(layer.frozen) for layer in frozen.values()
    )
    assert {layer.name: layer.macs for layer in graph.layers if layer.name != "head"} == {
        "up": 1 * 8 * 8 * 3 * 4 * 2 * 2 * 2,
        "deep": 1 * 4 * 16 * 16 * 2 * 27 * 2,
        "pair": 16 * 4 * 4 * 5 * 2,
        "lstm.weight_ih_l0": 16 * 4 * 6 * 5 * 2,
        "lstm.weight_hh_l0": 16 * 4 * 6 * 6 * 2,
        "add": 0,
    }
    assert [layer.name for layer in graph.layers if not layer.frozen] == [
        "up", "lstm.weight_ih_l0", "lstm.weight_hh_l0", "head",
    ]  # fmt: skip
    trained = {name for name, value in model.named_parameters() if value.ndim > 1}
    assert {layer.weight for layer in graph.layers} == trained


def test_a_model_without_inputs_that_have_a_batch() -> None:
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return (self.weight * x).sum()

    graph = capture(Scalar(), (torch.tensor(2.0),), {})
    assert graph.batch == 1
    assert float(run(graph, torch.tensor(3.0))) == 27.0


def test_multiply_accumulates_are_those_of_the_textbook() -> None:
    graph = capture(seeded(ResidualCNN(blocks=1)), (image(2),), {})
    macs = {layer.name: layer.macs for layer in graph.layers}
    assert macs == {
        "stem": 2 * 8 * 8 * 8 * 3 * 9,
        "blocks.0.conv1": 2 * 4 * 4 * 8 * 8 * 9,
        "blocks.0.conv2": 2 * 4 * 4 * 8 * 1 * 9,
        "head": 2 * 8 * 5,
    }
    assert {layer.name for layer in graph.layers if layer.is_depthwise} == {"blocks.0.conv2"}
