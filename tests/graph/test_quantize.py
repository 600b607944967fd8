"""The simulation against fake quantization written by hand in numpy and torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

from advisor.passes.calibrate import Observations, observe
from advisor.passes.candidates import regions_of
from advisor.passes.capture import capture
from advisor.passes.fx import with_code
from advisor.passes.graph import (
    ActivationParams,
    Graph,
    LayerAssignment,
    QuantizedGraph,
    WeightTable,
)
from advisor.passes.quantize import correct_biases, fit_biases, quantize, round_weights
from advisor.passes.spool import Spool
from advisor.targets.capability import load_capability
from tests.graph.small import images, sentences, trained_cnn, trained_transformer

ORT = load_capability("onnxruntime")
assert ORT.static is not None
RULES = ORT.static


def assign(graph: Graph, scheme: str, **others: str) -> dict[str, LayerAssignment]:
    return {
        layer.name: LayerAssignment(scheme=others.get(layer.name, scheme), algorithm="rtn")
        for layer in graph.layers
    }


def build(
    graph: Graph,
    assignment: Mapping[str, LayerAssignment],
    params: Mapping[str, ActivationParams] | None = None,
    biases: Mapping[str, torch.Tensor] | None = None,
) -> QuantizedGraph:
    return quantize(
        graph,
        assignment,
        weights=round_weights(graph, assignment),
        params=params or {},
        regions=regions_of(graph, ORT),
        rules=RULES,
        biases=biases,
    )


def fake_weight(weight: torch.Tensor, bits: int, block: int = 0) -> torch.Tensor:
    """Round to nearest per output (or per block of inputs) and back, in numpy."""
    high = 2 ** (bits - 1) - 1
    low = -high if bits == 8 else -high - 1
    flat: npt.NDArray[np.float32] = weight.numpy().reshape(weight.shape[0], -1)
    rows = flat.reshape(-1, block) if block else flat
    scale = np.abs(rows).max(axis=1, keepdims=True) / np.float32(high)
    restored = np.clip(np.rint(rows / scale), low, high).astype(np.float32) * scale
    return torch.from_numpy(restored.reshape(weight.shape))


def fake_tensor(x: torch.Tensor, params: ActivationParams) -> torch.Tensor:
    """uint8 and back, in numpy."""
    scale = np.float32(params.scale)
    integers = np.clip(np.rint(x.detach().numpy() / scale) + params.zero_point, 0, 255)
    return torch.from_numpy(((integers - params.zero_point) * scale).astype(np.float32))


def params_for(scale: float, zero_point: int = 128) -> ActivationParams:
    return ActivationParams(scale=float(np.float32(scale)), zero_point=zero_point, dtype="uint8")


def single(layer: nn.Module, x: torch.Tensor) -> Graph:
    torch.manual_seed(0)
    return capture(nn.Sequential(layer).eval(), (x,), {})


WEIGHT_ONLY = [("w8", 8, 0), ("w4", 4, 0), ("w8-g32", 8, 32), ("w4-g16", 4, 16), ("w2-g32", 2, 32)]


@pytest.mark.parametrize(("scheme", "bits", "block"), WEIGHT_ONLY)
def test_weight_only_linear(scheme: str, bits: int, block: int) -> None:
    layer, x = nn.Linear(64, 12), torch.randn(5, 64)
    graph = single(layer, x)
    found = build(graph, assign(graph, scheme)).module(x)
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert torch.allclose(found, F.linear(x, fake_weight(weight, bits, block), bias), atol=1e-5)
    assert not torch.allclose(found, layer(x), atol=1e-5)


@pytest.mark.parametrize(("scheme", "bits", "block"), WEIGHT_ONLY)
def test_weight_only_convolution(scheme: str, bits: int, block: int) -> None:
    layer, x = nn.Conv2d(32, 6, 2, groups=2, padding=1), torch.randn(3, 32, 6, 6)
    graph = single(layer, x)
    found = build(graph, assign(graph, scheme)).module(x)
    weight = fake_weight(layer.weight.detach(), bits, block)
    assert torch.allclose(found, F.conv2d(x, weight, layer.bias, padding=1, groups=2), atol=1e-5)


@pytest.mark.parametrize(("scheme", "bits", "block"), WEIGHT_ONLY)
def test_weight_only_transposed_convolution(scheme: str, bits: int, block: int) -> None:
    layer, x = nn.ConvTranspose2d(6, 8, 2, stride=2, padding=1), torch.randn(3, 6, 5, 5)
    graph = single(layer, x)
    found = build(graph, assign(graph, scheme)).module(x)
    weight = layer.weight.detach()
    # One scale per output, which is the second axis; blocks along what one input meets.
    by_output = fake_weight(weight.transpose(0, 1).contiguous(), bits).transpose(0, 1)
    wanted = fake_weight(weight, bits, block) if block else by_output
    reference = F.conv_transpose2d(x, wanted, layer.bias, stride=2, padding=1)
    assert torch.allclose(found, reference, atol=1e-5)
    assert graph.layers[0].macs == 3 * 5 * 5 * 6 * 8 * 2 * 2


def test_grouped_transposed_convolution_has_a_scale_per_input() -> None:
    layer, x = nn.ConvTranspose1d(6, 6, 3, groups=3), torch.randn(2, 6, 9)
    graph = single(layer, x)
    assignment = assign(graph, "w8")
    scale = round_weights(graph, assignment)["0.weight"].scale
    assert scale is not None
    assert scale.shape == (6,)
    reference = F.conv_transpose1d(x, fake_weight(layer.weight.detach(), 8), layer.bias, groups=3)
    assert torch.allclose(build(graph, assignment).module(x), reference, atol=1e-5)


def test_a_weight_tied_between_a_convolution_and_its_transpose_is_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 8, 2, stride=2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv_transpose2d(self.down(x).relu(), self.down.weight, stride=2)

    model, x = Tied().eval(), torch.randn(2, 3, 6, 6)
    graph = capture(model, (x,), {})
    weight = fake_weight(model.down.weight.detach(), 8)
    wanted = F.conv_transpose2d(F.conv2d(x, weight, stride=2).relu(), weight, stride=2)
    assert torch.allclose(build(graph, assign(graph, "w8")).module(x), wanted, atol=1e-5)


@pytest.mark.parametrize(("scheme", "bits", "block"), WEIGHT_ONLY)
def test_weight_only_embedding(scheme: str, bits: int, block: int) -> None:
    layer, ids = nn.Embedding(20, 32), torch.randint(0, 20, (4, 7))
    graph = single(layer, ids)
    found = build(graph, assign(graph, scheme)).module(ids)
    assert torch.equal(found, fake_weight(layer.weight.detach(), bits, block)[ids])


def test_float16_storage() -> None:
    layer, x = nn.Linear(16, 8), torch.randn(3, 16)
    graph = single(layer, x)
    quantized = build(graph, assign(graph, "fp16"))
    table = quantized.weights[graph.layers[0].weight]
    assert table.values.dtype == torch.float16
    weight = torch.from_numpy(layer.weight.detach().numpy().astype(np.float16).astype(np.float32))
    assert torch.allclose(quantized.module(x), F.linear(x, weight, layer.bias), atol=1e-6)


def test_static_linear_keeps_float_outputs_and_bias() -> None:
    layer, x = nn.Linear(24, 10), torch.randn(6, 24)
    graph = single(layer, x)
    site = graph.layers[0].input
    params = {site: params_for(0.03, 120)}
    quantized = build(graph, assign(graph, "w8a8"), params)
    expected = F.linear(
        fake_tensor(x, params[site]), fake_weight(layer.weight.detach(), 8), layer.bias
    )
    assert torch.allclose(quantized.module(x), expected, atol=1e-5)
    assert set(quantized.activations) == {site}


CONVOLUTIONS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv2d(3, 8, 3, padding=1, stride=2), (4, 3, 9, 9)),
    (nn.Conv2d(8, 8, 3, groups=8, padding="same"), (4, 8, 7, 7)),
    (nn.Conv2d(4, 8, 3, groups=4, dilation=2), (4, 4, 9, 9)),
    (nn.Conv1d(5, 6, 3, padding=2), (4, 5, 11)),
    (nn.Conv2d(3, 8, 1, bias=False), (4, 3, 5, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS)
def test_static_convolutions_have_int32_biases_and_integer_outputs(
    layer: nn.Conv2d, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    graph = single(layer, x)
    (only,) = graph.layers
    params = {only.input: params_for(0.03), only.output: params_for(0.02, 131)}
    quantized = build(graph, assign(graph, "w8a8"), params)
    weight = layer.weight.detach()
    bias: torch.Tensor | None = None
    if layer.bias is not None:
        scales = weight.flatten(1).abs().amax(1) / 127
        step = np.float32(params[only.input].scale) * scales.numpy()
        integers = np.rint(layer.bias.detach().numpy() / step)
        assert np.abs(integers).max() < 2**31
        bias = torch.from_numpy((integers * step).astype(np.float32))
    operator = F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
    real = operator(
        fake_tensor(x, params[only.input]),
        fake_weight(weight, 8),
        bias,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )
    expected = fake_tensor(real, params[only.output])
    found = quantized.module(x)
    steps = (found - expected).abs() / params[only.output].scale
    assert float(steps.max()) <= 1.001  # a tie of the last rounding may fall either way
    assert float((steps > 0.5).float().mean()) < 1e-2
    assert set(quantized.activations) == {only.input, only.output}


class Tied(nn.Module):
    """An embedding whose table is the classifier's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.head = nn.Linear(32, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.table(ids)))
        return logits


def test_tied_layers_share_one_table() -> None:
    model, ids = Tied().eval(), torch.randint(0, 20, (3, 5))
    graph = capture(model, (ids,), {})
    quantized = build(graph, assign(graph, "w4-g32"))
    assert len(quantized.weights) == 1
    weight = fake_weight(model.table.weight.detach(), 4, 32)
    expected = F.linear(torch.tanh(weight[ids]), weight)
    assert torch.allclose(quantized.module(ids), expected, atol=1e-5)
    state = [v for v in quantized.module.state_dict().values() if v.numel() == 640]
    assert len(state) == 1
    assert state[0].dtype == torch.int8


@pytest.mark.parametrize("model_and_input", ["cnn", "transformer"])
def test_a_float_plan_changes_no_bit(model_and_input: str) -> None:
    cnn = model_and_input == "cnn"
    model = trained_cnn() if cnn else trained_transformer()
    x = images(6)[0] if cnn else sentences(6)[0]
    graph = capture(model, (x,), {})
    quantized = build(graph, assign(graph, "fp32"))
    assert torch.equal(quantized.module(x), graph.module(x))
    assert not quantized.weights
    assert not quantized.activations


def static_cnn(tmp_path: Path) -> tuple[Graph, QuantizedGraph]:
    graph = capture(trained_cnn(), (images(4)[0],), {})
    spool = Spool(tmp_path)
    spool.append([images(64)[0]], batch=64)
    regions = regions_of(graph, ORT)
    tensors = frozenset(site.tensor for site in regions.sites)
    seen = observe(graph, spool, tensors, [])
    params = {
        name: params_for(max(stats.maximum, -stats.minimum) / 127)
        for name, stats in seen.tensors.items()
    }
    return graph, build(graph, assign(graph, "w8a8", head="w8"), params)


def test_the_quantized_graph_is_exported_again_with_a_dynamic_batch(tmp_path: Path) -> None:
    graph, quantized = static_cnn(tmp_path)
    x = images(3, seed=4)[0]
    again = export(with_code(quantized.module), (x,), dynamic_shapes=({0: Dim("n", min=1)},))
    names = {str(node.target) for node in again.graph.nodes}
    assert "advisor.quantize_static.default" in names
    assert "advisor.dequantize_affine.default" in names
    module = again.module()
    for count in (1, 7):
        value = images(count, seed=6)[0]
        assert torch.equal(module(value), quantized.module(value))
    assert not torch.equal(quantized.module(x), graph.module(x))


def test_the_float_graph_is_left_alone(tmp_path: Path) -> None:
    graph, quantized = static_cnn(tmp_path)
    assert quantized.float_graph is graph
    before = [node.format_node() for node in graph.module.graph.nodes]
    static_cnn(tmp_path / "again")
    assert [node.format_node() for node in graph.module.graph.nodes] == before
    assert not any("advisor" in str(node.target) for node in graph.module.graph.nodes)


def means_of(graph: Graph, x: torch.Tensor, folder: Path) -> Observations:
    spool = Spool(folder)
    spool.append([x], batch=len(x))
    return observe(graph, spool, frozenset(), graph.layers)


BIASED: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(32, 16), (256, 32)),
    (nn.Conv2d(8, 12, 3, groups=4), (32, 8, 9, 9)),
    (nn.Conv1d(8, 8, 3, groups=8), (32, 8, 30)),
]


@pytest.mark.parametrize(("layer", "shape"), BIASED)
def test_bias_correction_cancels_the_mean_error(
    layer: nn.Conv2d, shape: tuple[int, ...], tmp_path: Path
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1
    x += torch.arange(shape[1]).reshape(1, -1, *[1] * (len(shape) - 2)) / shape[1]
    graph = single(layer, x)
    (only,) = graph.layers
    assignment = assign(graph, "w4")
    tables = round_weights(graph, assignment)
    means = means_of(graph, x, tmp_path).input_means
    biases = correct_biases(graph, assignment, tables, means)
    with torch.no_grad():
        plain = build(graph, assignment).module(x) - layer(x)
        corrected = build(graph, assignment, biases=biases).module(x) - layer(x)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    assert float(corrected.mean(axes).abs().max()) < 0.1 * float(plain.mean(axes).abs().max())
    # The formula, spelled per output channel.
    assert layer.bias is not None
    before = layer.bias.detach()
    change = (fake_weight(layer.weight.detach(), 4) - layer.weight.detach()).numpy()
    mean = x.numpy().mean(axis=tuple(axes))
    per_group = len(change) // only.groups
    for output, kernel in enumerate(change):
        inputs = np.split(mean, only.groups)[output // per_group]
        summed = kernel.reshape(len(inputs), -1).sum(axis=1)
        expected = float(before[output]) - float(summed @ inputs)
        assert float(biases[only.name][output]) == pytest.approx(expected, abs=1e-5)


def test_only_layers_with_a_bias_and_integers_are_corrected(tmp_path: Path) -> None:
    graph = capture(trained_cnn(), (images(4)[0],), {})
    assignment = assign(graph, "w8", stem="fp16", head="fp32")
    tables = round_weights(graph, assignment)
    means = means_of(graph, images(16)[0], tmp_path).input_means
    corrected = correct_biases(graph, assignment, tables, means)
    assert "stem" not in corrected
    assert "head" not in corrected
    assert "narrow" in corrected


def test_a_dead_channels_bias_fits_int32() -> None:
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    graph = single(layer, x)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight[1] *= 1e-12
        layer.bias[1] = 0.7
    (only,) = graph.layers
    params = {only.input: params_for(0.03), only.output: params_for(0.02)}
    assignment = assign(graph, "w8a8")
    tables = round_weights(graph, assignment)
    fitted = fit_biases(graph, assignment, tables, params, RULES)
    table, before = fitted[only.weight], tables[only.weight]
    assert table.scale is not None
    assert before.scale is not None
    steps = layer.bias.detach() / (table.scale * params[only.input].scale)
    assert float(steps.abs().max()) < 2**31 - 1
    kept = [0, 2, 3]
    assert torch.equal(table.values[kept], before.values[kept])
    assert torch.equal(table.scale[kept], before.scale[kept])
    assert not table.values[1].any()
    again = fit_biases(graph, assignment, fitted, params, RULES)
    assert torch.equal(again[only.weight].values, table.values)
    untouched = fit_biases(graph, assign(graph, "w8"), tables, params, RULES)
    assert untouched[only.weight] is before


def test_tables_survive_as_they_are() -> None:
    """What is simulated is what is stored: integers come from the tables, not from the weight."""
    layer, x = nn.Linear(4, 2, bias=False), torch.eye(4)
    graph = single(layer, x)
    weight = graph.layers[0].weight
    table = WeightTable(
        values=torch.tensor([[1, -2, 3, 127], [0, 5, -127, 1]], dtype=torch.int8),
        scale=torch.tensor([0.5, 0.25]),
    )
    quantized = quantize(
        graph,
        assign(graph, "w8"),
        weights={weight: table},
        params={},
        regions=regions_of(graph, ORT),
        rules=RULES,
    )
    expected = table.values.float() * torch.tensor([[0.5], [0.25]])
    assert torch.equal(quantized.module(x).T, expected)
