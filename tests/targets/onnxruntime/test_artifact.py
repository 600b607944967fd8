"""The artifact as a user meets it: run, verify, debug, load, tampering, refusals."""

from __future__ import annotations

import json
import pickle  # noqa: TID251  # to show that it is never loaded
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from advisor.doctor import read_cpu
from advisor.errors import InputError, MissingDependencyError, ModelError, PlanError
from advisor.targets.base import Artifact
from advisor.targets.onnxruntime import TARGET
from advisor.targets.onnxruntime.artifact import OnnxRuntimeArtifact
from advisor.targets.onnxruntime.manifest import SESSION_ENTRIES
from advisor.targets.onnxruntime.session import open_session, require

SCHEMES = {"table": "w8", "first": "w8a8", "second": "w4-g32", "third": "w8a8", "head": "fp32"}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 64)
        self.norm = nn.LayerNorm(64)
        self.first = nn.Linear(64, 64)
        self.second = nn.Linear(64, 64)
        self.third = nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(self.first(self.norm(self.table(ids))))
        x = torch.tanh(self.third(torch.tanh(self.second(x)))).mean(1)
        return self.head(x) * gain, x


def example(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 40, (batch, 6)), torch.rand(batch, 5) + 1


@pytest.fixture(scope="module")
def graph(make_quantized: Any) -> Any:
    torch.manual_seed(1)
    return make_quantized(Model(), example(), SCHEMES)


@pytest.fixture(scope="module")
def artifact(graph: Any, tmp_path_factory: pytest.TempPathFactory) -> OnnxRuntimeArtifact:
    return TARGET.emit(graph, tmp_path_factory.mktemp("artifact"))


@pytest.fixture
def copy(artifact: OnnxRuntimeArtifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.path, tmp_path / "copy"))


def tamper(folder: Path, change: Callable[[onnx.ModelProto], None]) -> OnnxRuntimeArtifact:
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")
    return TARGET.load(folder)


def constant(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def test_loaded_artifact_verifies_and_records_it(artifact: OnnxRuntimeArtifact) -> None:
    loaded = TARGET.load(artifact.path)
    assert isinstance(loaded, Artifact)
    verification = loaded.verify()
    assert verification.ok
    assert verification.layers_matched == 5
    record = json.loads((artifact.path / "acceptance.json").read_text())
    assert record["ok"] is True
    assert {row["name"]: row["kernel"] for row in record["layers"]} == {
        "table": "DequantizeLinear",
        "first": "MatMulIntegerToFloat",
        "second": "MatMulNBits",
        "third": "MatMulIntegerToFloat",
        "head": "Gemm",
    }
    assert set(record["versions"]) == {"onnxruntime", "onnx", "torch"}
    assert str(artifact.path) not in json.dumps(record)
    assert loaded.debug(*example(3)).startswith("all 5 layers agree with the simulation")


def test_one_changed_integer_is_found_in_its_layer(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        weight = constant(model, "second.weight_quantized_blocks")
        raw = bytearray(weight.raw_data)
        raw[100] ^= 0x01  # one four-bit integer by one step
        weight.raw_data = bytes(raw)

    verification = tamper(copy, change).verify()
    assert not verification.ok
    assert verification.layers_matched == 4
    # Changed by one step, the integer shows in its layer, and may show in the output as well.
    assert {"second"} <= {m.name for m in verification.mismatches} <= {"second", "output"}
    assert any("an integer or a scale differs" in m.found for m in verification.mismatches)
    assert json.loads((copy / "acceptance.json").read_text())["ok"] is False


def test_swapped_scales_are_found_in_their_layer(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        scale = constant(model, "third.weight_scales")
        values = numpy_helper.to_array(scale).copy()
        values[[0, 1]] = values[[1, 0]]
        scale.raw_data = values.tobytes()

    altered = tamper(copy, change)
    verification = altered.verify()
    layers = {layer.name for layer in altered.manifest.layers}
    assert {m.name for m in verification.mismatches} & layers == {"third"}
    assert altered.debug().startswith("third: differs by")


def test_a_layer_moved_to_floats_is_found(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        nodes = {node.name: node for node in model.graph.node}
        first, quantize = nodes["first"], nodes["norm/quantize"]
        weight, scale, bias, source = first.input[1], first.input[3], first.input[6], quantize.input
        position = list(model.graph.node).index(first)
        floats = [
            helper.make_node("Cast", [weight], ["cast"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", scale], ["real"]),
            helper.make_node("MatMul", [source[0], "real"], ["product"], name="first"),
            helper.make_node("Add", ["product", bias], list(first.output)),
        ]
        floats[2].metadata_props.extend(first.metadata_props)
        model.graph.node.remove(quantize)
        model.graph.node.remove(first)
        for node in reversed(floats):
            model.graph.node.insert(position - 1, node)

    altered = tamper(copy, change)
    verification = altered.verify()
    assert {m.name for m in verification.mismatches} >= {"first", "norm"}
    layers = {layer.name for layer in altered.manifest.layers}
    assert {m.name for m in verification.mismatches} & layers == {"first"}
    found = {(m.expected, m.found) for m in verification.mismatches if m.name == "first"}
    assert ("w8a8", "w8") in found


def test_a_changed_activation_scale_is_found(copy: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        scale = constant(model, "norm.activation_scale")
        scale.raw_data = (numpy_helper.to_array(scale) * np.float32(2)).tobytes()

    verification = tamper(copy, change).verify()
    assert "norm" in {mismatch.name for mismatch in verification.mismatches}


@pytest.mark.parametrize("with_settings", [True, False])
def test_a_plain_session_runs_the_plan(artifact: OnnxRuntimeArtifact, with_settings: bool) -> None:
    """The file says by itself what is computed. Only where 8-bit products overflow does it need
    the settings beside it."""
    if not with_settings and read_cpu().lacks_vnni:
        pytest.skip("without VNNI the settings are needed")
    ids, gain = example(8)
    planned = artifact.run(ids, gain)[1].numpy()
    options = onnxruntime.SessionOptions()
    settings = json.loads((artifact.path / "session.json").read_text()) if with_settings else {}
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        artifact.path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"ids": ids.numpy(), "gain": gain.numpy()})[1]
    np.testing.assert_array_equal(found, planned)


def test_sums_of_large_products_are_exact_on_every_processor(tmp_path: Path) -> None:
    """AVX2 without VNNI adds two products in 16 bits: 255 x 127 x 2 does not fit."""
    rng = np.random.default_rng(0)
    x = rng.integers(200, 256, (8, 256)).astype(np.uint8)
    weight = rng.integers(100, 128, (256, 64)).astype(np.int8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "weight"], ["y"])],
        "sums",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, x.shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [8, 64])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "sums.onnx")
    (found,) = open_session(tmp_path / "sums.onnx", SESSION_ENTRIES).run(None, {"x": x})
    np.testing.assert_array_equal(found, x.astype(np.int64) @ weight)


def test_same_graph_gives_the_same_bytes(
    graph: Any, artifact: OnnxRuntimeArtifact, tmp_path: Path
) -> None:
    TARGET.emit(graph, tmp_path)
    for file in ("model.onnx", "artifact.json", "session.json", "check/examples.safetensors"):
        assert (tmp_path / file).read_bytes() == (artifact.path / file).read_bytes()


def test_flat_run_of_the_target(graph: Any, artifact: OnnxRuntimeArtifact) -> None:
    ids, gain = example(3)
    found = TARGET.run(artifact, {"ids": ids, "gain": gain})
    assert list(found) == ["output", "output_1"]
    wanted = graph.module(ids, gain)
    torch.testing.assert_close(found["output_1"], wanted[1], atol=0.02, rtol=0.0)
    formats = TARGET.read_back(artifact)
    assert formats["second"].scheme == "w4-g32"


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "input 'ids' is missing; the model takes ids: int64 \\[batch, 6\\]|sequence"),
        ((torch.zeros(2, 6, dtype=torch.int32), torch.ones(2, 5)), {}, "should be int64"),
        ((torch.zeros(2, dtype=torch.int64), torch.ones(2, 5)), {}, "not int64 \\[2\\]"),
        ((*example(), torch.ones(1)), {}, "no such input: 2"),
        (example(), {"mask": torch.ones(2)}, "no such input: 'mask'; the model takes ids"),
        (([1, 2], torch.ones(2, 5)), {}, "torch tensor or numpy array of int64"),
        ((example()[0], torch.ones(2, 4)), {}, "should be float32 \\[batch, 5\\]"),
    ],
)
def test_wrong_inputs_say_what_the_model_takes(
    artifact: OnnxRuntimeArtifact, args: Any, named: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        artifact.run(*args, **named)


def test_fixed_sizes_still_run_in_integers(make_quantized: Any, tmp_path: Path) -> None:
    """Known sizes make ONNX Runtime build Gemm nodes, which must not take these layers along."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.c(torch.relu(self.b(torch.tanh(self.a(x)))))
            return y

    schemes = {"a": "w8a8", "b": "w4-g32", "c": "w8a8"}
    found = make_quantized(Dense(), (torch.randn(2, 4, 32),), schemes, fixed=True)
    artifact = TARGET.emit(found, tmp_path)
    verification = artifact.verify()
    assert verification.mismatches == ()
    assert artifact.manifest.inputs[0].shape == (2, 4, 32)
    with pytest.raises(InputError, match="should be float32 \\[2, 4, 32\\], not float32 \\[3"):
        artifact.run(torch.randn(3, 4, 32))


@pytest.mark.parametrize("scheme", ["w8a8", "w4-g32"])
def test_tied_weights(make_quantized: Any, tmp_path: Path, scheme: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(33, 32)
            self.head = nn.Linear(32, 33, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(torch.tanh(self.table(ids)))
            return logits

    found = make_quantized(Tied(), (torch.randint(0, 33, (2, 5)),), scheme)
    artifact = TARGET.emit(found, tmp_path)
    verification = artifact.verify()
    assert verification.mismatches == ()
    model = onnx.load(tmp_path / "model.onnx")
    tables = [t for t in model.graph.initializer if t.data_type in (2, 3) and t.dims]
    # Packed blocks have another shape for each operator, integer kernels constants of their own.
    assert len(tables) == 2
    assert len({t.raw_data for t in tables}) == 1


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("between", [torch.relu, torch.clone, lambda x: x.reshape(2, -1, 32)])
def test_a_quantizer_behind_a_weight_only_layer_does_not_stop_its_kernel(
    make_quantized: Any, tmp_path: Path, bias: bool, between: Callable[..., torch.Tensor]
) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Linear(32, 32, bias=bias) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.b(between(self.a(x))))

    schemes = {"a": "w4-g32", "b": "w8a8"}
    found = make_quantized(Pair(), (torch.randn(2, 4, 32),), schemes, fixed=True)
    artifact = TARGET.emit(found, tmp_path)
    assert artifact.verify().mismatches == ()
    kernels = {name: layer.kernel for name, layer in artifact.read_back().items()}
    assert kernels == {"a": "MatMulNBits", "b": "MatMulIntegerToFloat"}


class LargeTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3072, 64)
        self.again = nn.Linear(64, 64)
        self.head = nn.Linear(64, 3072, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.table(ids))
        logits: torch.Tensor = self.head(torch.tanh(self.again(torch.tanh(self.again(x)))))
        return logits


@pytest.mark.parametrize(
    ("scheme", "table_bytes"),
    [("w8", 0), ("w4-g32", 3072 * 64 // 2), ("w8a8", 3072 * 64), ("w2-g32", 0)],
)
def test_large_tied_weights_are_stored_once(
    make_quantized: Any, tmp_path: Path, scheme: str, table_bytes: int
) -> None:
    found = make_quantized(LargeTied(), (torch.randint(0, 3072, (2, 5)),), scheme)
    artifact = TARGET.emit(found, tmp_path)
    verification = artifact.verify()
    assert verification.mismatches == ()
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    outside = [t for t in model.graph.initializer if t.external_data]
    if not table_bytes:  # one constant for both layers, or two too small to move
        assert outside == []
        assert not (tmp_path / "model.onnx.data").exists()
        return
    places = [{e.key: e.value for e in t.external_data} for t in outside]
    lengths = [int(place["length"]) for place in places]
    assert lengths.count(table_bytes) == 2
    distinct = {(place["offset"], place["length"]) for place in places}
    assert len(distinct) == len(places) - 1
    stored = sum(file.stat().st_size for file in tmp_path.glob("model.onnx*"))
    scales = 3072 * 4 * 2
    assert stored < table_bytes + 2 * scales + 40_000


def test_weights_beside_the_model_move_with_it(
    make_quantized: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a model that protobuf cannot hold, here with a lower bound."""
    monkeypatch.setattr("advisor.targets.onnxruntime.onnxfile.LARGE_BYTES", 100_000)
    found = make_quantized(LargeTied(), (torch.randint(0, 3072, (2, 5)),), "fp16")
    written = tmp_path / "written"
    written.mkdir()
    TARGET.emit(found, written)
    assert (written / "model.onnx").stat().st_size < 64 * 64 * 2 + 20_000
    assert (written / "model.onnx.data").stat().st_size == 3072 * 64 * 2
    artifact = TARGET.load(written.rename(tmp_path / "moved"))
    assert artifact.verify().mismatches == ()
    (artifact.path / "model.onnx.data").write_bytes(b"")
    with pytest.raises(PlanError, match=r"cannot open .*moved/model\.onnx \(.*out of bounds"):
        TARGET.load(artifact.path).verify()


@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_missing_or_damaged_model_is_refused(copy: Path, content: bytes | None) -> None:
    (copy / "model.onnx").unlink()
    if content is not None:
        (copy / "model.onnx").write_bytes(content)
    for use in (lambda artifact: artifact.run(*example()), OnnxRuntimeArtifact.verify):
        with pytest.raises(PlanError, match=r"cannot open .*model\.onnx .*compile the plan again"):
            use(TARGET.load(copy))


def test_missing_package_says_how_to_install() -> None:
    with pytest.raises(MissingDependencyError, match='pip install "quantadvisor\\[onnxruntime\\]"'):
        require("onnxruntime", "no_such_package")


def test_importing_the_target_is_light() -> None:
    code = (
        "import sys, advisor.targets.onnxruntime as t; t.TARGET; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'onnxruntime', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_not_an_artifact(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(PlanError, match="holds no artifact"):
        TARGET.load(tmp_path)
    (tmp_path / "artifact.json").write_text("{")
    with pytest.raises(PlanError, match="corrupt"):
        TARGET.load(tmp_path)
    data = json.loads((copy / "artifact.json").read_text())
    data["layers"][0]["colour"] = "red"
    (copy / "artifact.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"unknown fields \['layers\[0\].colour'\]"):
        TARGET.load(copy)
    (copy / "artifact.json").write_text(json.dumps(data | {"schema": 99}))
    with pytest.raises(PlanError, match="schema 99, this version reads 2"):
        TARGET.load(copy)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_pickles_in_the_simulation_are_never_loaded(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = "data/sample_inputs/model.pt"
    source, target = copy / "check" / "simulation.pt2", tmp_path / "bad.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            if not name.endswith(entry):
                new.writestr(name, old.read(name))
        new.writestr(f"{root}/{entry}", pickle.dumps(Bomb(), protocol=2))
    target.replace(source)
    with pytest.raises(ModelError, match="could run code on loading"):
        TARGET.load(copy).verify()
    assert not (tmp_path / "exploded").exists()


def test_wrong_wiring_is_no_rounding_error(copy: Path) -> None:
    """The bound that noise widens must still refuse an output that is computed otherwise."""

    def change(model: onnx.ModelProto) -> None:
        gain = next(
            node for node in model.graph.node if node.op_type == "Mul" and "gain" in node.input
        )
        gain.op_type = "Add"

    verification = tamper(copy, change).verify()
    assert [m.name for m in verification.mismatches] == ["output"]
    assert "of the simulation" in verification.mismatches[0].expected
