"""Integer products of two activations: written, read back, executed, compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor import advise
from advisor.doctor import read_cpu
from advisor.passes.attention import open_products
from advisor.passes.candidates import regions_of
from advisor.passes.capture import capture
from advisor.passes.graph import ActivationParams, Graph, LayerAssignment, QuantizedGraph, name_of
from advisor.passes.observers import activation_params
from advisor.passes.quantize import quantize, round_weights
from advisor.targets.capability import StaticRules, load_capability
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact
from advisor.targets.onnxruntime.readback import read_layers

CAPABILITY = load_capability("onnxruntime")
KERNEL = "MatMulIntegerToFloat"
needs_vnni = pytest.mark.skipif(
    read_cpu().lacks_vnni, reason="this processor adds products of activations in 16 bits"
)


class Mixer(nn.Module):
    """Masked attention over token ids, then a square matrix times itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, ids: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(ids)
        q, k, v = (
            layer(x).reshape(*ids.shape, 2, 16).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mask = seen.bool()[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y: Tensor = self.o(mixed.transpose(1, 2).flatten(2))
        near = torch.tanh(y @ y.transpose(1, 2))
        return y, near @ near


def inputs(batch: int, length: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    seen = torch.ones(batch, length, dtype=torch.long)
    seen[0, -2:] = 0
    return torch.randint(0, 11, (batch, length), generator=generator), seen


class Ranges(torch.fx.Interpreter):
    """Static parameters of every tensor, from its extremes on one batch."""

    def __init__(self, graph: Graph, rules: StaticRules) -> None:
        super().__init__(graph.module)
        self.rules, self.found = rules, dict[str, ActivationParams]()

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            low, high = float(value.min()), float(value.max())
            self.found[name_of(n)] = activation_params(low, high, self.rules)
        return value


def quantized(schemes: Mapping[str, str]) -> QuantizedGraph:
    """schemes: by Layer.op."""
    torch.manual_seed(0)
    graph = open_products(capture(Mixer().eval(), inputs(3), {}))
    assert CAPABILITY.static is not None
    regions = regions_of(graph, CAPABILITY)
    params: dict[str, ActivationParams] = {}
    for dtype in ("uint8", "int8"):
        rules = StaticRules(dtype=dtype, symmetric=False)
        ranges = Ranges(graph, rules)
        with torch.no_grad():
            ranges.run(*inputs(3))
        params.update({s.tensor: ranges.found[s.tensor] for s in regions.sites if s.dtype == dtype})
    assignment = {
        layer.name: LayerAssignment(scheme=schemes.get(layer.op, "fp32"), algorithm="rtn")
        for layer in graph.layers
    }
    return quantize(
        graph,
        assignment,
        weights=round_weights(graph, assignment),
        params=params,
        regions=regions,
        rules=CAPABILITY.static,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("products") / "artifact"


@pytest.fixture(scope="module")
def artifact(folder: Path) -> OnnxRuntimeArtifact:
    folder.mkdir()
    return TARGET.emit(quantized({"matmul": "a8a8", "linear": "w8a8", "embedding": "w8"}), folder)


@needs_vnni
def test_products_are_read_back_executed_and_agree(artifact: OnnxRuntimeArtifact) -> None:
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert verification.layers_matched == verification.layers_total == 9
    products = {n: f for n, f in artifact.read_back().items() if f.scheme == "a8a8"}
    assert list(products) == ["sdpa.qk", "sdpa.pv", "matmul", "matmul#2"]
    assert {found.kernel for found in products.values()} == {KERNEL}
    assert {found.weight_sha256 for found in products.values()} == {""}


@pytest.mark.skipif(not read_cpu().lacks_vnni, reason="products are exact on this processor")
def test_without_vnni_the_acceptance_says_why_products_differ(
    artifact: OnnxRuntimeArtifact,
) -> None:
    verification = artifact.verify()
    assert {mismatch.name for mismatch in verification.mismatches} <= {
        *("sdpa.qk", "sdpa.pv", "matmul", "output_0", "output_1"),
    }
    (note,) = verification.notes
    assert note.startswith("4 a8a8 layers: this processor has no VNNI")


@needs_vnni
def test_other_sizes_run(artifact: OnnxRuntimeArtifact) -> None:
    """Against the simulation: a rounding that falls the other way spreads a little."""
    simulation = quantized({"matmul": "a8a8", "linear": "w8a8", "embedding": "w8"}).module
    found = artifact.run(*inputs(2, length=5))
    for one, other in zip(found, simulation(*inputs(2, length=5)), strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_second_operands_are_int8(artifact: OnnxRuntimeArtifact) -> None:
    model = onnx.load(artifact.path / "model.onnx")
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    found = {
        node.name: (kinds[node.input[4]], kinds[node.input[5]])
        for node in model.graph.node
        if node.op_type == KERNEL and node.name in ("sdpa.qk", "sdpa.pv", "matmul", "matmul#2")
    }
    assert found == {
        "sdpa.qk": ("UINT8", "INT8"),
        "sdpa.pv": ("UINT8", "INT8"),
        "matmul": ("UINT8", "INT8"),
        "matmul#2": ("UINT8", "UINT8"),  # a tensor times itself
    }


def test_a_foreign_scale_is_no_product_of_ours(artifact: OnnxRuntimeArtifact) -> None:
    model = ir.load(artifact.path / "model.onnx")
    node = next(node for node in model.graph if node.name == "sdpa.pv")
    other = next(node for node in model.graph if node.name == "sdpa.qk")
    node.replace_input_with(3, other.inputs[3])
    found = read_layers(model, artifact.manifest.layers)
    assert "sdpa.pv" not in found
    assert found["sdpa.qk"].scheme == "a8a8"


def test_products_in_float_beside_narrow_weights(tmp_path: Path) -> None:
    artifact = TARGET.emit(quantized({"linear": "w4-g32"}), tmp_path)
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert artifact.read_back()["sdpa.qk"].scheme == "fp32"


def test_a_product_is_the_textbooks(artifact: OnnxRuntimeArtifact) -> None:
    """The first product of the file's own graph, in integers, by numpy."""
    model = onnx.load(artifact.path / "model.onnx")
    node = next(node for node in model.graph.node if node.name == "matmul#2")
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    scale, zero = constants[node.input[2]], constants[node.input[4]].astype(np.int64)
    quantizer = next(n for n in model.graph.node if node.input[0] in n.output)
    graph = onnx.helper.make_graph(
        [quantizer, node],
        "product",
        [onnx.helper.make_tensor_value_info(quantizer.input[0], onnx.TensorProto.FLOAT, [2, 4, 4])],
        [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [2, 4, 4])],
        [t for t in model.graph.initializer if t.name in (*node.input, *quantizer.input)],
    )
    part = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    part.ir_version = model.ir_version
    x = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4)).astype(np.float32)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        part.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = np.asarray(session.run(None, {quantizer.input[0]: x})[0])
    integers = np.clip(np.rint(x / scale).astype(np.int64) + zero, 0, 255) - zero
    np.testing.assert_allclose(found, integers @ integers * scale**2, rtol=1e-5, atol=1e-6)


def transformers_models() -> list[tuple[str, Any, list[Any]]]:
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 60, (4, 12), generator=generator) for _ in range(4)]
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[0, 9:] = 0
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=60, intermediate_size=64, **sizes)
    vit = transformers.ViTConfig(image_size=16, patch_size=8, intermediate_size=64, **sizes)
    gpt2 = transformers.GPT2Config(
        vocab_size=60, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    gpt2.use_cache = False
    images = [torch.randn(4, 3, 16, 16, generator=generator) for _ in range(4)]
    return [
        (
            "bert",
            transformers.BertForSequenceClassification(bert),
            [{"input_ids": each, "attention_mask": mask} for each in ids],
        ),
        ("vit", transformers.ViTForImageClassification(vit), images),
        ("gpt2", transformers.GPT2LMHeadModel(gpt2), [{"input_ids": each} for each in ids]),
    ]


@needs_vnni
@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 2], ids=["bert", "vit", "gpt2"])
@pytest.mark.parametrize("scheme", ["fp32", "w8a8", "w8", "w4-g32"])
def test_transformers_with_integer_products(index: int, scheme: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    name, model, batches = transformers_models()[index]
    projections = {
        layer: scheme
        for layer, module in model.named_modules()
        if isinstance(module, nn.Linear) and layer != "lm_head"
    }
    if name == "gpt2":  # its projections are Conv1D modules, which are products with weights
        projections = {"transformer.h.*": scheme}
    plan = advise(
        model.eval(),
        target="intel-vnni",
        runtime="onnxruntime",
        calibration=batches,
        pin={"*": "fp32", **projections, "op:matmul": "a8a8"},
        trials=1,
        cache=False,
    )
    assert [d.scheme for d in plan.layers if d.op == "matmul"] == ["a8a8", "a8a8"]
    artifact = plan.compile(tmp_path / "artifact")
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert isinstance(artifact, OnnxRuntimeArtifact)
    found = artifact.read_back()
    assert {found[d.name].kernel for d in plan.layers if d.op == "matmul"} == {KERNEL}
