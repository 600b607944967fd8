"""Normalisation: every pass keeps the numbers, and folding does what the references say."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils import _pytree as pytree

from advisor.passes.capture import capture, quiet_export
from advisor.passes.decompositions import DECOMPOSITIONS, decompose, decompose_rms_norm
from advisor.passes.fx import attribute, detach_parameters
from advisor.passes.graph import PASS_KEY, Graph, Layer, name_of
from advisor.passes.group import group_layers
from advisor.passes.normalise import PIPELINE
from advisor.passes.verify import verify_nodes
from advisor.targets.capability import load_capability
from tests.graph.models import CASES, captured, image, make_case, seeded, signal, tokens, vectors

aten = torch.ops.aten


def raw(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GraphModule:
    """What the pipeline starts from, exported at a fixed batch."""
    with quiet_export():
        program = decompose(torch.export.export(model, args, kwargs))
    module: GraphModule = program.module(check_guards=False)
    detach_parameters(module)
    return module


def close(found: Any, wanted: Any, relative: float = 1e-6) -> bool:
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
    return all(
        float((one - two).abs().max()) <= relative * float(two.abs().max()) for one, two in pairs
    )


def state(module: GraphModule) -> tuple[str, dict[str, bytes]]:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    dense = {
        name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()
    }
    return module.code, dense


@pytest.mark.parametrize("name", CASES)
def test_programs_are_decomposed_as_torch_does_it(name: str) -> None:
    """Node for node, with the same signature and constants."""
    with torch.no_grad(), quiet_export():
        program: Any = torch.export.export(*make_case(name, 3))
        wanted, found = program.run_decompositions(dict(DECOMPOSITIONS)), decompose(program)
    assert str(found.graph) == str(wanted.graph)
    assert found.graph_signature == wanted.graph_signature
    assert [*found.constants] == [*wanted.constants]


@pytest.mark.parametrize("name", CASES)
def test_every_single_pass_keeps_the_numbers(name: str) -> None:
    case = make_case(name, 3)
    with torch.no_grad():
        wanted = case.model(*case.args, **case.kwargs)
        module = raw(*case)
        for step in PIPELINE:
            before = state(module)
            changed = step(module)
            assert state(module) == before, f"{step.__name__} changed its input"
            module = changed
            assert verify_nodes(module) == [], step.__name__
            assert close(module(*case.args, **case.kwargs), wanted), step.__name__


def test_the_passes_say_what_they_do() -> None:
    for step in PIPELINE:
        documentation = inspect.getdoc(step) or ""
        assert "Given:" in documentation, step.__name__
        assert "Result:" in documentation, step.__name__


def test_a_node_that_a_pass_makes_bears_its_name() -> None:
    makers = {
        node.meta["custom"][PASS_KEY]
        for name in CASES
        for node in captured(name)[1].module.graph.nodes
        if node.op != "output"
    }
    assert {"capture", "fold_constants", "canonicalise_linear", "fold_affine"} <= makers


def targets(graph: Graph) -> list[Any]:
    return [node.target for node in graph.module.graph.nodes if node.op == "call_function"]


def layer(graph: Graph, name: str) -> Layer:
    return next(found for found in graph.layers if found.name == name)


def norms(model: nn.Module) -> nn.Module:
    """Give every batch norm statistics of its own."""
    return seeded(model, seed=7)


@pytest.mark.parametrize(
    ("conv", "norm", "x"),
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), signal(2)),
        (nn.Conv1d(4, 6, 3, padding="same", bias=False), nn.BatchNorm1d(6), signal(2)),
        (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), image(2)),
        (nn.Conv2d(3, 6, 3, padding="same"), nn.BatchNorm2d(6, affine=False), image(2)),
        (nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), image(2, channels=8)),
        (nn.Conv2d(8, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6), image(2, channels=8)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6), signal(2)),
        (nn.ConvTranspose2d(3, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6), image(2)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), vectors(3)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), vectors(3)),
    ],
)
def test_batch_norm_folds_as_torch_fuses_it(conv: Any, norm: Any, x: Tensor) -> None:
    model = norms(nn.Sequential(conv, norm))
    graph = capture(model, (x,), {})
    (found,) = graph.layers
    assert found.name == "0"
    fuse: Any = fuse_linear_bn_weights if isinstance(conv, nn.Linear) else fuse_conv_bn_weights
    weight, bias = fuse(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        **({"transpose": True} if getattr(conv, "transposed", False) else {}),
    )
    assert len(targets(graph)) == 1
    assert found.weight == "0.weight"
    assert found.bias == "0.bias"
    assert close(attribute(graph.module, "0.weight"), weight.detach())
    assert close(attribute(graph.module, "0.bias"), bias.detach())
    with torch.no_grad():
        assert close(graph.module(x), model(x), 3e-6)


def test_batch_norm_folds_into_a_grouped_transposed_convolution() -> None:
    conv = nn.ConvTranspose2d(8, 6, 3, groups=2, stride=2)
    model, x = norms(nn.Sequential(conv, nn.BatchNorm2d(6))), image(2, channels=8)
    graph = capture(model, (x,), {})
    assert len(targets(graph)) == 1
    with torch.no_grad():
        assert close(graph.module(x), model(x), 3e-6)


def test_batch_norm_before_a_convolution_stays_a_multiplication_and_an_addition() -> None:
    model = norms(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)))
    graph = capture(model, (image(2),), {})
    assert targets(graph) == [aten.mul.Tensor, aten.add.Tensor, aten.conv2d.default]
    calls = [node for node in graph.module.graph.nodes if node.op == "call_function"]
    assert [name_of(node) for node in calls] == ["0.mul", "0.add", "1"]
    assert torch.equal(attribute(graph.module, "1.weight"), model.get_parameter("1.weight"))
    with torch.no_grad():
        assert close(graph.module(image(5)), model(image(5)))


def test_an_activation_between_stops_the_folding() -> None:
    model = norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)))
    graph = capture(model, (image(2),), {})
    assert aten.mul.Tensor in targets(graph)
    with torch.no_grad():
        assert close(graph.module(image(5)), model(image(5)))


class Twice(nn.Module):
    """One convolution called twice, with the same batch norm or another after it."""

    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.BatchNorm2d(3)
        self.second = self.first if same else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.conv(F.relu(self.first(self.conv(x)))))
        return result


@pytest.mark.parametrize("same", [True, False])
def test_a_shared_convolution_stays_shared_only_under_equal_norms(same: bool) -> None:
    model = norms(Twice(same=same))
    graph = capture(model, (image(2),), {})
    assert [found.name for found in graph.layers] == ["conv", "conv#2"]
    assert len({found.weight for found in graph.layers}) == (1 if same else 2)
    assert len({found.bias for found in graph.layers}) == (1 if same else 2)
    assert len(targets(graph)) == 3
    with torch.no_grad():
        assert close(graph.module(image(5)), model(image(5)), 3e-6)
        untouched = seeded(Twice(same=same), seed=7)
        assert close(model(image(5)), untouched(image(5)), 0.0)


def test_a_raw_layer_output_that_is_read_twice_is_not_folded() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            result: Tensor = self.norm(h) + h
            return result

    model = norms(Both())
    graph = capture(model, (image(2),), {})
    assert torch.equal(attribute(graph.module, "conv.weight"), model.get_parameter("conv.weight"))
    with torch.no_grad():
        assert close(graph.module(image(5)), model(image(5)))


def test_a_factor_with_more_dimensions_is_not_folded() -> None:
    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.gain = nn.Parameter(torch.ones(1, 1, 3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.linear(x) * self.gain
            return result

    model = seeded(Widened())
    graph = capture(model, (vectors(2),), {})
    with torch.no_grad():
        assert graph.module(vectors(2)).shape == model(vectors(2)).shape == (1, 2, 3)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-3, 0.0])
@pytest.mark.parametrize("dims", [1, 2])
def test_rms_norm_is_its_formula_at_every_scale(scale: float, dims: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 8, generator=generator) * scale
    x[0, 0] = 0.0
    shape = list(x.shape[-dims:])
    weight = torch.randn(shape, generator=generator)
    for eps in (1e-6, None):
        found = decompose_rms_norm(x, shape, weight, eps)
        wide, small = x.double(), torch.finfo(torch.float32).eps if eps is None else eps
        axes = tuple(range(-dims, 0))
        wanted = wide / (wide.square().mean(axes, keepdim=True) + small).sqrt() * weight.double()
        assert torch.isfinite(found).all()
        assert float((found - wanted).abs().max()) <= 1e-6 * max(float(wanted.abs().max()), 1.0)
        assert float((found - F.rms_norm(x, shape, weight, eps)).abs().max()) <= 1e-6 * max(
            float(wanted.abs().max()), 1.0
        )


def test_rms_norm_is_open_and_the_rest_stays_whole() -> None:
    used = set(targets(captured("decoder")[1]))
    assert aten.rms_norm.default not in used
    assert {
        aten.rsqrt.default,
        aten.scaled_dot_product_attention.default,
        aten.linear.default,
    } <= used
    assert aten.gelu.default in targets(captured("conv1d")[1])

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(x)
            return result

    assert targets(capture(seeded(Normed()), (vectors(2),), {})) == [aten.layer_norm.default]


class Tables(nn.Module):
    """A causal mask and sinusoidal positions that the forward computes every time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((6, 6), float("-inf")).triu(1)
        angles = torch.arange(6)[:, None] / 10 ** (torch.arange(4) / 2)
        h = self.linear(x + torch.sin(angles))
        result: Tensor = torch.softmax(h @ h.transpose(1, 2) + mask, -1) @ h
        return result


def test_masks_and_positions_are_computed_once() -> None:
    model = seeded(Tables())
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    graph = capture(model, (x,), {})
    used = {str(target) for target in targets(graph)}
    assert not any(word in name for name in used for word in ("arange", "full", "triu", "sin"))
    folded = [node for node in graph.module.graph.nodes if str(node.target).startswith("folded.")]
    assert sorted(tuple(node.meta["val"].shape) for node in folded) == [(6, 4), (6, 6)]
    assert [found.name for found in graph.layers] == ["linear"]
    with torch.no_grad():
        assert close(graph.module(x), model(x))


def test_constants_made_from_weights_stay_weights() -> None:
    graph = captured("functional")[1]
    weights = {found.weight: found for found in graph.layers}
    assert set(weights) == {"first", "fused_folded", "fused_folded_2_transposed"}
    assert isinstance(attribute(graph.module, "fused_folded"), nn.Parameter)
    assert all(found.op == "linear" for found in graph.layers)


def test_random_operators_are_never_folded() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(4) + F.dropout(x, 0.5, training=True)

    graph = capture(Noisy(), (vectors(2),), {})
    names = {str(target) for target in targets(graph)}
    assert any("rand" in name for name in names)
    assert any("dropout" in name for name in names)
    assert not torch.equal(graph.module(vectors(2)), graph.module(vectors(2)))


def test_inference_dropout_and_copies_disappear() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(x.clone().detach())[:, :]
            result: Tensor = self.linear(x.transpose(0, 1).contiguous().view(-1, 4))
            return result

    model = seeded(Copies())
    graph = capture(model, (vectors(4),), {})
    assert targets(graph) == [aten.transpose.int, aten.reshape.default, aten.linear.default]
    with torch.no_grad():
        assert close(graph.module(vectors(4)), model(vectors(4)))


class Conv1D(nn.Module):
    """GPT-2's linear layer, which stores its weight as (in, out)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.weight.shape[1])
        return torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight).view(size)


class Products(nn.Module):
    """Every spelling of a product with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(19, 4)
        self.proj = Conv1D(4, 4)
        self.matrix = nn.Parameter(torch.zeros(4, 4))
        self.square = nn.Parameter(torch.zeros(4, 4))

    def forward(self, ids: Tensor) -> Tensor:
        h = self.proj(self.proj(self.embed(ids)))
        h = h @ self.matrix + torch.matmul(h, self.square.transpose(0, 1))
        logits: Tensor = h @ self.embed.weight.t()
        return logits


def test_products_with_constants_become_linear_and_ties_survive() -> None:
    model = seeded(Products())
    graph = capture(model, (tokens(2),), {})
    assert {aten.addmm.default, aten.mm.default, aten.matmul.default}.isdisjoint(targets(graph))
    found = [(each.name, each.op, each.weight, each.weight_shape) for each in graph.layers]
    assert found == [
        ("embed", "embedding", "embed.weight", (19, 4)),
        ("proj", "linear", "proj.weight_transposed", (4, 4)),
        ("proj#2", "linear", "proj.weight_transposed", (4, 4)),
        ("linear", "linear", "matrix_transposed", (4, 4)),
        ("linear#2", "linear", "square", (4, 4)),
        ("linear#3", "linear", "embed.weight", (19, 4)),
    ]
    assert [each.bias for each in graph.layers][1:3] == ["proj.bias", "proj.bias"]
    groups = group_layers(graph, load_capability("onnxruntime"))
    assert [group.layers for group in groups] == [
        ("embed", "linear#3"),
        ("proj", "proj#2"),
        ("linear",),
        ("linear#2",),
    ]
    with torch.no_grad():
        assert close(graph.module(tokens(3)), model(tokens(3)))


def test_products_with_integer_constants_are_left_alone() -> None:
    class Integers(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(12).reshape(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.table

    ids = torch.arange(8).reshape(2, 4)
    graph = capture(Integers(), (ids,), {})
    assert torch.equal(graph.module(ids), Integers()(ids))
    assert graph.layers == ()


class Doubling(nn.Module):
    """Sixty constants, each computed twice from the one before."""

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(4.0)
        for _ in range(60):
            steps = steps / 2 + steps / 2
        return F.linear(x, torch.ones(2, 4)) + steps.sum()


def test_constants_that_share_their_parts_fold_in_linear_time() -> None:
    graph = capture(Doubling(), (vectors(2),), {})
    names = [name for name, _ in graph.module.named_buffers()]
    assert len(names) == 2  # the matrix and one number, not sixty
    torch.testing.assert_close(graph.module(vectors(2)), Doubling()(vectors(2)))


class Padded(nn.Module):
    """Convolutions behind a pad, as models that came from TensorFlow have them."""

    def __init__(self, conv: nn.Module, *pad: Any) -> None:
        super().__init__()
        self.conv, self.pad = conv, pad

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.pad(x, *self.pad))
        return result


@pytest.mark.parametrize(
    ("conv", "pad", "padding"),
    [
        (nn.Conv2d(3, 6, 3), ([1, 1, 1, 1],), [1, 1]),
        (nn.Conv2d(3, 6, 3, stride=2, padding=1), ([2, 2, 0, 0], "constant", 0.0), [1, 3]),
        (nn.Conv2d(3, 6, 3), ([2, 2],), [0, 2]),
        (nn.Conv2d(3, 6, 1), ([0, 0, 0, 0], "reflect"), None),
        (nn.Conv1d(4, 6, 3, dilation=2), ([2, 2],), [2]),
    ],
)
def test_a_convolution_takes_the_zeros_before_it(conv: Any, pad: Any, padding: Any) -> None:
    model = seeded(Padded(conv, *pad))
    x = image(2) if isinstance(conv, nn.Conv2d) else signal(2)
    graph = capture(model, (x,), {})
    (call,) = [n for n in graph.module.graph.nodes if n.op == "call_function"]
    assert str(call.target).startswith("aten.conv")
    assert (call.args[4] if len(call.args) > 4 else None) == padding
    assert close(graph.module(x), model(x))


@pytest.mark.parametrize(
    "pad",
    [
        ([0, 1, 0, 1],),
        ([1, 1, 1, 1], "constant", 2.0),
        ([1, 1, 1, 1], "replicate"),
        ([-1, -1, -1, -1],),
    ],
)
def test_a_pad_that_no_convolution_can_do_stays(pad: Any) -> None:
    model = seeded(Padded(nn.Conv2d(3, 6, 3), *pad))
    graph = capture(model, (image(2),), {})
    assert aten.pad.default in targets(graph)
    assert close(graph.module(image(2)), model(image(2)))


def test_a_pad_that_something_else_reads_too_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            padded = F.pad(x, [1, 1, 1, 1])
            return self.conv(padded), padded.mean((2, 3))

    assert aten.pad.default in targets(capture(seeded(Twice()), (image(2),), {}))
