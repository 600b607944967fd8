"""Inputs quantized at run time: against numpy, against ONNX Runtime's own kernels, and measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advisor.errors import UsageError
from advisor.formats import scheme_named
from advisor.passes import ops
from advisor.passes.apply import quantize_dequantize_samples
from advisor.passes.batching import Place, join_samples, split_samples
from advisor.passes.candidates import can_take, regions_of
from advisor.passes.capture import capture
from advisor.passes.divergence import measure_powers
from advisor.passes.graph import (
    ROLE_KEY,
    ActivationParams,
    Graph,
    LayerAssignment,
    QuantizedGraph,
    name_of,
)
from advisor.passes.layers import LAYER_OPS, input_argument
from advisor.passes.quantize import quantize, round_weights
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.sensitivity import Question, probe
from advisor.passes.spool import Spool
from advisor.search.problem import Choice
from advisor.setting import Setting
from advisor.targets.capability import DynamicRules, load_capability
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.manifest import SESSION_ENTRIES
from tests.graph.small import (
    images,
    make_setting,
    make_workbench,
    sentences,
    trained_cnn,
    trained_transformer,
)

ORT = load_capability("onnxruntime")
FloatArray = npt.NDArray[np.float32]
ONE = np.float32(1)

DYNAMIC = (
    "w8a8-dynamic",
    *(f"w{bits}a8-dynamic-g{block}" for bits in (8, 4) for block in (32, 64, 128)),
)


def fake_asymmetric(x: FloatArray, low: int, high: int) -> FloatArray:
    """The formula of ONNX DynamicQuantizeLinear, for one scale."""
    least, most = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    scale = np.float32((most - least) / np.float32(high - low)) or ONE
    zero = np.clip(np.rint(low - least / scale), low, high)
    q = np.clip(np.rint(x / scale) + zero, low, high)
    restored: FloatArray = ((q - zero) * scale).astype(np.float32)
    return restored


def fake_xnnpack(x: FloatArray) -> FloatArray:
    """The formula of XNNPACK's src/xnnpack/quantization.h, for one scale of int8."""
    least, most = np.minimum(x.min(), 0), np.maximum(x.max(), 0)
    scale = np.float32(255) / (most - least) if most != least else ONE
    ends = np.float32(-128) + least * scale, np.float32(127) + most * scale
    zero = -128 - least * scale if ends[0] + ends[1] > 0 else 127 - most * scale
    zero = np.rint(np.clip(zero, -128, 127))
    q = np.clip(np.rint(x * scale) + zero, -128, 127)
    restored: FloatArray = ((q - zero) * (ONE / scale)).astype(np.float32)
    return restored


def fake_symmetric(x: FloatArray) -> FloatArray:
    """One scale of int8: largest magnitude over 127."""
    largest = np.abs(x).max()
    if not largest:
        return np.zeros_like(x)
    q = np.rint(x * (np.float32(127) / largest))
    restored: FloatArray = (q * (largest / np.float32(127))).astype(np.float32)
    return restored


def fake_blocks(x: FloatArray, block: int) -> FloatArray:
    """A scale for every run of ``block`` in the last dimension, one run after the other."""
    found = np.empty_like(x)
    for row, out in zip(x.reshape(-1, x.shape[-1]), found.reshape(-1, x.shape[-1]), strict=True):
        for start in range(0, len(row), block):
            out[start : start + block] = fake_symmetric(row[start : start + block])
    return found


def samples_of(kind: str) -> FloatArray:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "normal": rng.normal(0, 3, (6, 7, 80)),
        "positive": rng.uniform(1, 2, (6, 80)),
        "negative": -rng.uniform(1, 2, (6, 80)),
        "zero": np.zeros((2, 80)),
        "halves": np.arange(-127, 128, 0.5)[None],
        "wide": rng.normal(0, 1, (6, 80)) * np.exp(rng.normal(0, 8, (6, 80))),
    }
    return np.asarray(made[kind], np.float32)


KINDS = ("normal", "positive", "negative", "zero", "halves", "wide")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_asymmetric_equals_the_formula(kind: str, dtype: str) -> None:
    """Of ONNX for uint8 and of XNNPACK for int8."""
    x, (low, high) = samples_of(kind), ops.INTEGER_RANGE[dtype]
    formula = partial(fake_asymmetric, low=low, high=high) if dtype == "uint8" else fake_xnnpack
    whole = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.from_numpy(x), dtype, False, "per-tensor", 0)
    np.testing.assert_array_equal(whole.numpy(), formula(x))
    rows = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.from_numpy(x), dtype, False, "per-row", 0)
    np.testing.assert_array_equal(rows.numpy(), np.apply_along_axis(formula, -1, x))


def test_images_are_rounded_whole_or_pixel_by_pixel() -> None:
    """Against the same operator on the rows that share a scale, taken apart in NumPy."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    given = torch.from_numpy(x)
    whole = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(given, "int8", False, "per-sample", 0)
    pixels = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(given, "int8", False, "per-pixel", 0)
    assert whole.shape == pixels.shape == x.shape
    assert pixels.is_contiguous()
    for image in range(2):
        alone = torch.from_numpy(x[image].reshape(1, -1).copy())
        rounded = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(alone, "int8", False, "per-row", 0)
        np.testing.assert_array_equal(whole[image].numpy().reshape(1, -1), rounded.numpy())
        for row, column in product(range(4), range(5)):
            channels = torch.from_numpy(x[image, :, row, column][None].copy())
            rounded = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(channels, "int8", False, "per-row", 0)
            np.testing.assert_array_equal(pixels[image, :, row, column].numpy(), rounded.numpy()[0])


def test_convolutions_are_dynamic_where_the_runtime_has_rules_for_them() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 1, stride=2),
        nn.Conv2d(8, 8, 3, groups=8),
    ).eval()
    graph = capture(model, (torch.zeros(2, 3, 8, 8),), {})
    tflite = load_capability("tflite")
    scheme = scheme_named("w8a8-dynamic")
    rules = {layer.name: tflite.dynamic[scheme.name].of(layer) for layer in graph.layers}
    assert {name: found.granularity for name, found in rules.items()} == {
        "0": "per-sample",
        "1": "per-pixel",
        "2": "per-sample",
        "3": "per-sample",
    }
    taken = [can_take(graph, layer, scheme, tflite, {}) for layer in graph.layers]
    assert [support.ok for support in taken] == [True, True, True, False]
    assert taken[3].reason == (
        "LiteRT (TFLite) runs w8a8-dynamic on no convolution with one input channel per group "
        "(depthwise)"
    )
    other = load_capability("onnxruntime")
    assert not any(can_take(graph, layer, scheme, other, {}).ok for layer in graph.layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [16, 32, 80])
def test_symmetric_equals_the_formula(kind: str, block: int) -> None:
    """80 inputs are no multiple of 32: the last block is shorter."""
    x = samples_of(kind)
    found = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.from_numpy(x), "int8", True, "per-block", block)
    np.testing.assert_array_equal(found.numpy(), fake_blocks(x, block))
    rows = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.from_numpy(x), "int8", True, "per-row", 0)
    np.testing.assert_array_equal(rows.numpy(), fake_blocks(x, x.shape[-1]))


def test_vanishing_values_stay_finite() -> None:
    x = torch.tensor([[1e-40, -1e-41, 0.0, 1e-45]])
    for args in (("uint8", False, "per-tensor", 0), ("int8", True, "per-block", 2)):
        found = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(x, *args)
        assert bool(found.isfinite().all())
        assert float(found.abs().max()) <= 2e-40


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("int3", True, "per-row", 0), "'int3' is not an integer dtype"),
        (("int8", True, "per-column", 0), "'per-column' with block 0; possible: per-tensor, per-r"),
        (("int8", True, "per-block", 0), "and a block above 0 for per-block alone"),
        (("int8", True, "per-row", 32), "and a block above 0 for per-block alone"),
    ],
)
def test_bad_arguments_are_refused(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.ones(2, 4), *args)


def test_the_fake_kernel_promises_what_the_real_one_gives() -> None:
    x = torch.randn(3, 5, 8).transpose(0, 1)
    for args in (("uint8", False, "per-tensor", 0), ("int8", True, "per-block", 3)):
        torch.library.opcheck(
            ops.QUANTIZE_DEQUANTIZE_DYNAMIC,  # type: ignore[arg-type]  # an OpOverload, typed as a call
            (x, *args),
            test_utils=("test_schema", "test_faketensor"),
        )


# ONNX Runtime's kernels


def run_node(op: str, x: FloatArray, constants: dict[str, Any], **attributes: int) -> list[Any]:
    """Outputs of ONNX Runtime for a model of this one node, of domain com.microsoft or ONNX's."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, kinds = onnx.helper, onnx.TensorProto
    own = op != "DynamicQuantizeLinear"
    outputs = {"y": kinds.FLOAT} if own else {"q": kinds.UINT8, "s": kinds.FLOAT, "z": kinds.UINT8}
    domain = "com.microsoft" if own else ""
    names = [name if value is not None else "" for name, value in constants.items()]
    node = helper.make_node(op, ["x", *names], list(outputs), domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kinds.FLOAT, None)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [onnx.numpy_helper.from_array(v, name) for name, v in constants.items() if v is not None],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    for key, value in SESSION_ENTRIES.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[Any] = session.run(None, {"x": x})
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_per_tensor_is_what_dynamic_quantize_linear_computes(kind: str) -> None:
    x = samples_of(kind)
    q, scale, zero = run_node("DynamicQuantizeLinear", x, {})
    found = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.from_numpy(x), "uint8", False, "per-tensor", 0)
    wanted = (q.astype(np.float32) - np.float32(zero)) * scale
    np.testing.assert_array_equal(found.numpy(), wanted)


def layer_with(model: nn.Module, x: torch.Tensor, scheme: str) -> tuple[Graph, QuantizedGraph]:
    graph = capture(model.eval(), (x,), {})
    return graph, build(graph, dict.fromkeys((layer.name for layer in graph.layers), scheme))


def build(graph: Graph, schemes: dict[str, str], **options: Any) -> QuantizedGraph:
    assignment = {
        name: LayerAssignment(scheme=scheme, algorithm="rtn") for name, scheme in schemes.items()
    }
    settings: dict[str, Any] = {"params": {}, **options}
    return quantize(
        graph,
        assignment,
        weights=round_weights(graph, assignment),
        regions=regions_of(graph, ORT),
        rules=ORT.static,
        dynamic=ORT.dynamic,
        **settings,
    )


@pytest.mark.parametrize("rows", [1, 9])
def test_the_simulated_layer_is_dynamic_quantize_matmul(rows: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(100, 33), torch.randn(rows, 100) + 0.3
    _, quantized = layer_with(nn.Sequential(layer), x, "w8a8-dynamic")
    table = quantized.weights["0.weight"]
    assert table.scale is not None
    constants: dict[str, Any] = {
        "w": np.ascontiguousarray(table.values.numpy().T),
        "ws": table.scale.numpy(),
        "wz": None,
        "b": layer.bias.detach().numpy(),
    }
    (wanted,) = run_node("DynamicQuantizeMatMul", x.numpy(), constants)
    np.testing.assert_allclose(quantized.module(x).numpy(), wanted, rtol=0, atol=3e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("rows", [1, 9])
def test_the_simulated_layer_is_matmul_nbits_at_level_4(bits: int, block: int, rows: int) -> None:
    torch.manual_seed(0)
    inputs, outputs = 384, 40
    layer, x = nn.Linear(inputs, outputs, bias=False), torch.randn(rows, inputs)
    _, quantized = layer_with(nn.Sequential(layer), x, f"w{bits}a8-dynamic-g{block}")
    table = quantized.weights["0.weight"]
    assert table.scale is not None
    codes = (table.values.numpy().astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8)
    codes = codes.reshape(outputs, inputs // block, block)
    packed = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block}
    constants = {"w": packed, "s": table.scale.numpy()}
    (wanted,) = run_node("MatMulNBits", x.numpy(), constants, accuracy_level=4, **sizes)
    found = quantized.module(x).numpy()
    distance = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    (weight_only,) = run_node("MatMulNBits", x.numpy(), constants, accuracy_level=0, **sizes)
    assert distance < 2e-6
    assert np.linalg.norm(found - weight_only) / np.linalg.norm(wanted) > 1e-3


@pytest.mark.parametrize("scheme", ["w4a8-dynamic-g32", "w8a8-dynamic-g32"])
def test_long_sums_of_one_sign_verify(scheme: str, tmp_path: Path) -> None:
    """MatMulNBits takes off 8 or 128 times the sum of its inputs, far more than what is left."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sigmoid(), nn.Linear(16_384, 64))
    _, quantized = layer_with(model, torch.randn(16, 16_384), scheme)
    verified = TARGET.emit(quantized, tmp_path).verify()
    assert verified.ok, verified.mismatches


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 300])
def test_matmul_nbits_rounds_as_the_operator_does(bits: int, rows: int) -> None:
    """An identity weight of one block gives the kernel's own integers back, halves among them."""
    block = 32
    rng = np.random.default_rng(rows)
    x = (rng.normal(0, 1, (rows, block)) * np.exp(rng.normal(0, 3, (rows, 1)))).astype(np.float32)
    x[0, :6] = np.array([127, 0.5, 1.5, 2.5, -126.5, -0.5]) / 8
    x[0, 6:] = np.clip(x[0, 6:], -10, 10)
    codes = (np.eye(block, dtype=np.uint8) + np.uint8(2 ** (bits - 1))).reshape(block, 1, block)
    packed = codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)
    sizes = {"K": block, "N": block, "bits": bits, "block_size": block}
    constants = {"w": packed, "s": np.ones((block, 1), np.float32)}
    (y,) = run_node("MatMulNBits", x, constants, accuracy_level=4, **sizes)
    scale = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    found = ops.QUANTIZE_DEQUANTIZE_DYNAMIC(torch.from_numpy(x), "int8", True, "per-block", block)
    # Steps, not exact floats: 8 bits lose digits when 128 times the block's sum is taken off.
    np.testing.assert_array_equal(np.rint(y / scale), np.rint(found.numpy() / scale))
    assert np.rint(y / scale)[0, :6].tolist() == [127, 0, 2, 2, -126, 0]


# The quantized graph


class Heads(nn.Module):
    """Three layers that read one tensor, one that reads their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(64, 32)
        self.d = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(x)
        y: torch.Tensor = self.d(self.a(h) + self.b(h) * self.c(h))
        return y


def dynamic_nodes(quantized: QuantizedGraph) -> dict[str, Any]:
    return {
        name_of(node): node
        for node in quantized.module.graph.nodes
        if node.target is ops.QUANTIZE_DEQUANTIZE_DYNAMIC
    }


def test_layers_that_read_a_tensor_alike_share_one_operator() -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 64)
    graph = capture(Heads().eval(), (x,), {})
    schemes = {
        "a": "w8a8-dynamic",
        "b": "w8a8-dynamic",
        "c": "w4a8-dynamic-g64",
        "d": "w4-g32",
    }
    quantized = build(graph, schemes)
    assert quantized.dynamic == {name: ORT.dynamic[schemes[name]] for name in "abc"}
    nodes = dynamic_nodes(quantized)
    assert set(nodes) == {"a", "c"}
    assert {node.meta["custom"][ROLE_KEY] for node in nodes.values()} == {"dynamic"}
    calls = {name_of(n): n for n in quantized.module.graph.nodes if n.target in LAYER_OPS}
    assert input_argument(calls["a"]) is input_argument(calls["b"]) is nodes["a"]
    assert input_argument(calls["c"]) is nodes["c"]
    assert not dynamic_nodes(build(graph, dict.fromkeys("abcd", "w8")))


@pytest.mark.parametrize("scheme", DYNAMIC)
def test_a_dynamic_linear_computes_what_numpy_does(scheme: str) -> None:
    torch.manual_seed(2)
    layer, x = nn.Linear(128, 12), torch.randn(2, 5, 128)
    graph, quantized = layer_with(nn.Sequential(layer), x, scheme)
    rules = ORT.dynamic[scheme]
    wide = x.numpy()
    rounded = fake_blocks(wide, rules.block) if rules.block else fake_asymmetric(wide, 0, 255)
    weight_only = build(graph, {"0": scheme.replace("a8-dynamic", "")})
    torch.testing.assert_close(
        quantized.module(x), weight_only.module(torch.from_numpy(rounded)), rtol=0, atol=2e-6
    )


def test_a_dynamic_layer_behind_integers_reads_them_as_floats() -> None:
    """A static convolution hands its integers on; the linear layer quantizes them once more."""
    torch.manual_seed(3)
    x = torch.randn(2, 1, 4, 4)
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    setting = make_setting(model.eval(), x)
    known = ActivationParams(scale=0.05, zero_point=128, dtype="uint8")
    params = {site.tensor: known for site in setting.regions.sites}
    quantized = build(setting.graph, {"0": "w8a8", "3": "w8a8-dynamic"}, params=params)
    (node,) = dynamic_nodes(quantized).values()
    source = node.args[0]
    while source.target is not ops.DEQUANTIZE_STATIC:
        source = source.all_input_nodes[0]
    assert quantized.module(x).shape == (2, 3)


# Samples and batches


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        ((6, 5, 4), Place(index=0)),
        ((5, 6, 4), Place(index=1)),
        ((30, 4), Place(index=0)),
        ((30, 4), Place(index=0, outer=5)),
    ],
)
def test_samples_are_taken_apart_and_put_together(shape: tuple[int, ...], place: Place) -> None:
    x = torch.randn(shape)
    rows = split_samples(x, place, 6)
    assert rows.shape == (6, x.numel() // 6)
    assert torch.equal(join_samples(rows, place, x.shape), x)


@pytest.mark.parametrize("batch", [1, 2, 4, 6, 9])
def test_a_scale_is_of_one_batch(batch: int) -> None:
    """Six samples, in batches with a rest, in a layout with time first."""
    rules = ORT.dynamic["w8a8-dynamic"]
    x = torch.randn(6, 3, 8) * torch.tensor([1, 2, 4, 8, 16, 32.0]).reshape(6, 1, 1)
    wanted = np.concatenate(
        [fake_asymmetric(part.numpy(), 0, 255) for part in torch.split(x, batch)]
    )
    found = quantize_dequantize_samples(
        x.transpose(0, 1), rules, place=Place(index=1), samples=6, batch=batch
    )
    np.testing.assert_array_equal(found.transpose(0, 1).numpy(), wanted)


def kl(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Per sample, by torch's own function."""
    return F.kl_div(
        F.log_softmax(output, -1), F.log_softmax(reference, -1), reduction="none", log_target=True
    ).sum(-1)


def pick(setting: Setting, scheme: str) -> Choice:
    """The scheme wherever a group can take it, float32 elsewhere."""
    options = [setting.space.candidates[group.name] for group in setting.groups]
    return tuple(
        next((i for i, option in enumerate(each) if option.scheme == scheme), 0) for each in options
    )


LAYOUTS: Sequence[dict[str, bool]] = (
    {},
    {"sequence_first": True},
    {"flat": True},
    {"sequence_first": True, "flat": True},
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 5])
def test_plans_are_measured_at_the_deployment_batch(
    layout: dict[str, bool], batch: int, tmp_path: Path
) -> None:
    """One run of a large calibration batch measures what many runs of the deployment's would."""
    example, data = sentences(4)[0], sentences(48, seed=8)[0]
    setting = make_setting(trained_transformer(**layout), example, batch=batch)
    bench = make_workbench(setting, data, tmp_path, size=12)
    choice = pick(setting, "w8a8-dynamic")
    quantized = bench.simulator.quantized(choice, {})
    assert len(quantized.dynamic) == 7
    losses: list[torch.Tensor] = []
    together: list[torch.Tensor] = []
    with torch.no_grad():
        for index in range(len(bench.data.held_out)):
            (ids,) = bench.data.held_out.read(index)
            losses += [
                kl(quantized.module(part), bench.graph.module(part))
                for part in torch.split(ids, batch)
            ]
            together.append(kl(quantized.module(ids), bench.graph.module(ids)))
    found = bench.simulator.measure(choice, {})
    assert found == pytest.approx(float(torch.cat(losses).mean()), rel=1e-3)
    assert found != pytest.approx(float(torch.cat(together).mean()), rel=1e-2)


def test_a_fixed_batch_is_measured_as_it_is(tmp_path: Path) -> None:
    class Mixer(nn.Module):
        """Normalises over the batch, which torch.export therefore keeps fixed."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flat = x.flatten(1)
            y: torch.Tensor = self.layer(flat - flat.mean(0))
            return y

    torch.manual_seed(4)
    setting = make_setting(Mixer().eval(), images(4)[0], batch=4)
    assert setting.graph.batch == 4
    bench = make_workbench(setting, images(16)[0], tmp_path, size=4)
    choice = pick(setting, "w8a8-dynamic")
    module = bench.simulator.quantized(choice, {}).module
    with torch.no_grad():
        held = [batch for (batch,) in bench.data.held_out]
        losses = [kl(module(batch), bench.graph.module(batch)) for batch in held]
    assert bench.simulator.measure(choice, {}) == pytest.approx(float(torch.cat(losses).mean()))


# Predictions


COARSE = {
    "per-tensor": DynamicRules(dtype="uint4", symmetric=False, granularity="per-tensor"),
    "per-block": DynamicRules(dtype="int4", symmetric=True, granularity="per-block", block=16),
}
"""Four bits: at eight, the divergence in float32 is mostly rounding noise."""


@pytest.mark.parametrize("granularity", list(COARSE))
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["transformer", "cnn"])
def test_dynamic_inputs_are_predicted(
    name: str, batch: int, granularity: str, tmp_path: Path
) -> None:
    """Each layer's own term within 30 % of what is measured with only that input quantized."""
    rules = COARSE[granularity]
    model, data = (
        (trained_transformer(), sentences(128, seed=8)[0])
        if name == "transformer"
        else (trained_cnn(), images(128, seed=8)[0])
    )
    graph = capture(model, (data[:4],), {})
    layers = [layer for layer in graph.layers if layer.op == "linear"]
    spool = Spool(tmp_path)
    spool.append([data], batch=len(data))
    with torch.no_grad():
        reference = graph.module(data)
    found = probe(
        graph,
        spool,
        Question(
            weights=(),
            dynamic=[(layer, rules) for layer in layers],
            batch=batch,
            sites=(),
            params={},
        ),
        rounded=RoundedWeights(graph),
        kinds=["logits"],
        powers=measure_powers([[reference]]),
        probes=32,
    )
    assert set(found.scores) == {("dynamic", layer.name, rules.label) for layer in layers}
    for layer in layers:
        runner = OneInput(graph, layer.name, rules)
        with torch.no_grad():
            parts = [
                runner.run(part, enable_io_processing=False)[0] for part in torch.split(data, batch)
            ]
        truth = float(kl(torch.cat(parts), reference).mean())
        guess = found.divergence(("dynamic", layer.name, rules.label))
        assert guess == pytest.approx(truth, rel=0.3), layer.name


class OneInput(torch.fx.Interpreter):
    """The float graph with one layer's input quantized, at the batch it is given."""

    def __init__(self, graph: Graph, layer: str, rules: DynamicRules) -> None:
        super().__init__(graph.module)
        self.layer, self.rules = layer, rules

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.target in LAYER_OPS and name_of(n) == self.layer:
            arguments = list(self.fetch_args_kwargs_from_env(n)[0])
            x = arguments[0].numpy()
            if self.rules.block:
                rows = x.reshape(-1, self.rules.block)
                scale = np.maximum(np.abs(rows).max(1, keepdims=True), 1e-30) / np.float32(7)
                rounded = (np.rint(rows / scale) * scale).reshape(x.shape)
            else:
                rounded = fake_asymmetric(x, 0, 15)
            arguments[0] = torch.from_numpy(rounded)
            operator: Any = n.target
            return operator(*arguments)
        return super().run_node(n)
