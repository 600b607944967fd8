"""What a user does with the artifact, and what happens when something is wrong."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.errors import (
    InputError,
    MissingDependencyError,
    PlanError,
    UnsupportedError,
)
from advisor.passes.graph import QuantizedGraph
from advisor.targets.tflite import TARGET
from advisor.targets.tflite.artifact import TfliteArtifact
from advisor.targets.tflite.emit import MODEL_FILE
from advisor.targets.tflite.flatbuffer import FlatModel
from tests.targets.tflite.models import Encoder, TwoInputs, images, seeded, tokens

Quantizer = Callable[..., QuantizedGraph]
SCHEMES = {"q": "w8a8-dynamic", "k": "w8a8", "up": "w8"}


@pytest.fixture(scope="module")
def encoder(
    make_quantized: Quantizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[QuantizedGraph, TfliteArtifact]:
    graph = make_quantized(seeded(Encoder()), (tokens(4),), SCHEMES, batch=2)
    return graph, TARGET.emit(graph, tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def two(
    make_quantized: Quantizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, TfliteArtifact]:
    model = seeded(TwoInputs())
    graph = make_quantized(model, (images(4), images(4, seed=2)), "fp32", batch=2)
    return model, TARGET.emit(graph, tmp_path_factory.mktemp("two"))


def open_plainly(artifact: TfliteArtifact) -> Any:
    """The file in LiteRT's own interpreter, without anything of ours."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(model_path=str(artifact.path / MODEL_FILE))
    interpreter.allocate_tensors()
    return interpreter


def test_the_runtime_itself_reads_the_planned_integers(
    encoder: tuple[QuantizedGraph, TfliteArtifact],
) -> None:
    graph, artifact = encoder
    interpreter = open_plainly(artifact)
    details = {entry["name"]: entry for entry in interpreter.get_tensor_details()}
    for layer in ("q", "k", "up"):
        table, found = graph.weights[f"{layer}.weight"], details[f"{layer}.weight"]
        assert found["dtype"] is np.int8
        np.testing.assert_array_equal(interpreter.get_tensor(found["index"]), table.values.numpy())
        assert table.scale is not None
        scales = found["quantization_parameters"]["scales"]
        np.testing.assert_array_equal(scales, table.scale.numpy())
    params = graph.activations["norm1"]
    scale, zero_point = details["norm1/int8"]["quantization"]
    assert np.float32(scale) == np.float32(params.scale)
    assert zero_point == params.zero_point


def test_float_weights_are_kept_byte_for_byte(
    encoder: tuple[QuantizedGraph, TfliteArtifact],
) -> None:
    """The converter folds a norm's gain and attention's scale into weights unless fenced off."""
    graph, artifact = encoder
    interpreter = open_plainly(artifact)
    details = {entry["name"]: entry for entry in interpreter.get_tensor_details()}
    for layer in ("v", "o", "down", "embed"):
        expected = graph.float_graph.module.get_parameter(f"{layer}.weight").detach().numpy()
        found = interpreter.get_tensor(details[f"{layer}.weight"]["index"])
        np.testing.assert_array_equal(found, expected)


def test_names_and_signature_are_the_models(two: tuple[nn.Module, TfliteArtifact]) -> None:
    _, artifact = two
    (signature,) = open_plainly(artifact).get_signature_list().values()
    assert signature == {"inputs": ["left", "right"], "outputs": ["label", "score"]}
    model = FlatModel((artifact.path / MODEL_FILE).read_bytes())
    names = {model.name(index) for index in range(len(model.graph.tensors))}
    assert {"conv.weight", "conv.bias", "head.weight", "head", "label"} <= names


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_any_number_of_rows_runs_in_pieces(
    rows: int, two: tuple[nn.Module, TfliteArtifact]
) -> None:
    model, artifact = two
    left, right = images(rows), images(rows, seed=3)
    found = artifact.run(left=left, right=right)
    with torch.no_grad():
        expected = model(left, right)
    assert list(found) == ["score", "label"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_numpy_in_gives_numpy_out(two: tuple[nn.Module, TfliteArtifact]) -> None:
    _, artifact = two
    found = artifact.run(images(2).numpy(), images(2).numpy())
    assert isinstance(found["score"], np.ndarray)
    assert found["label"].dtype == np.int64  # the file computes int32


def test_wrong_inputs_are_refused(two: tuple[nn.Module, TfliteArtifact]) -> None:
    _, artifact = two
    with pytest.raises(InputError, match="missing"):
        artifact.run(images(2))
    with pytest.raises(InputError, match="should be float32"):
        artifact.run(images(2), images(2)[:, :2])
    with pytest.raises(InputError, match="2 and 4 rows"):
        artifact.run(images(2), images(4))


def test_another_sequence_is_refused(encoder: tuple[QuantizedGraph, TfliteArtifact]) -> None:
    _, artifact = encoder
    with pytest.raises(InputError, match=r"\[batch, 6\]"):
        artifact.run(tokens(2)[:, :5])


def test_debug_says_that_all_layers_agree(
    encoder: tuple[QuantizedGraph, TfliteArtifact],
) -> None:
    _, artifact = encoder
    assert artifact.debug().startswith("all 7 layers agree")
    assert artifact.debug(tokens(3)).startswith("all 7 layers agree")


def test_a_changed_integer_is_found(
    encoder: tuple[QuantizedGraph, TfliteArtifact], tmp_path: Path
) -> None:
    import shutil

    graph, artifact = encoder
    folder = tmp_path / "changed"
    shutil.copytree(artifact.path, folder)
    content = (folder / MODEL_FILE).read_bytes()
    weight = graph.weights["q.weight"].values.numpy().tobytes()
    assert content.count(weight) == 1
    other = bytes([weight[0] ^ 64]) + weight[1:]
    (folder / MODEL_FILE).write_bytes(content.replace(weight, other))
    damaged = TARGET.load(folder)
    verification = damaged.verify()
    assert not verification.ok
    assert verification.layers_matched == verification.layers_total - 1
    assert {mismatch.name for mismatch in verification.mismatches} >= {"q"}
    assert damaged.debug().startswith("q: differs by")


def test_other_files_are_refused(tmp_path: Path, two: tuple[nn.Module, TfliteArtifact]) -> None:
    with pytest.raises(PlanError, match=r"artifact\.json"):
        TARGET.load(tmp_path)
    with pytest.raises(PlanError, match="no TFLite model"):
        FlatModel(b"something else")
    import shutil

    shutil.copytree(two[1].path, tmp_path / "copy")
    (tmp_path / "copy" / "shapes.json").write_text("{}")
    with pytest.raises(PlanError, match=r"shapes\.json"):
        TARGET.load(tmp_path / "copy")


def test_a_missing_package_says_what_to_install(
    make_quantized: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_quantized(seeded(nn.Linear(4, 4)), (torch.ones(2, 4),), "fp32")
    known = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name == "litert_torch" else known(name),
    )
    with pytest.raises(MissingDependencyError, match=r'pip install "quantadvisor\[tflite\]"'):
        TARGET.emit(graph, tmp_path)


def test_a_missing_runtime_says_what_to_install(
    two: tuple[nn.Module, TfliteArtifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = TARGET.load(two[1].path)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for use in (fresh.verify, lambda: fresh.run(images(2), images(2))):
        with pytest.raises(MissingDependencyError, match=r"needs ai_edge_litert.*run: pip install"):
            use()


class Spectrum(nn.Module):
    """An operator that litert-torch has no form of."""

    def forward(self, x: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(x)
        return values


class Odd(nn.Module):
    """It is deep inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.tail = nn.Sequential(nn.ReLU(), Spectrum())

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.tail(self.layer(x)))


def test_an_unknown_operator_is_named_with_its_module(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(seeded(Odd()), (torch.randn(2, 4, 4),), "fp32")
    with pytest.raises(UnsupportedError) as caught:
        TARGET.emit(graph, tmp_path)
    assert "svd" in str(caught.value)
    assert "in module 'tail.1' at test_artifact.py" in str(caught.value)
    assert "runtime='onnxruntime'" in str(caught.value)


class Stuck(nn.Module):
    """Written for four rows, and for no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        pairs: Tensor = self.layer(x).view(2, 2, 6).sum(1)
        return pairs


class Overall(nn.Module):
    """One number for all rows together."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        number: Tensor = self.layer(x).mean()
        return number


@pytest.mark.parametrize("model", [Stuck, Overall])
def test_another_number_of_rows_is_refused_where_it_is_impossible(
    model: Callable[[], nn.Module], make_quantized: Quantizer, tmp_path: Path
) -> None:
    x = torch.randn(4, 6)
    artifact = TARGET.emit(make_quantized(seeded(model()), (x,), "fp32", batch=4), tmp_path)
    assert artifact.verify().ok
    artifact.run(x)
    with pytest.raises(InputError, match=r"4, 6\]|compiled for 4"):
        artifact.run(torch.randn(3, 6))


def test_a_batch_that_the_model_does_not_take_is_refused(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    graph = make_quantized(seeded(Stuck()), (torch.randn(4, 6),), "fp32", batch=2)
    with pytest.raises(InputError, match="batch"):
        TARGET.emit(graph, tmp_path)


class Transposed(nn.Module):
    """A weight that is read the other way round, which the converter writes out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


def test_a_layer_that_cannot_be_matched_is_refused(
    make_quantized: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_quantized(seeded(Transposed()), (torch.randn(2, 4),), "w8a8-dynamic")
    monkeypatch.setattr("advisor.targets.tflite.skeleton._find_weight", lambda *_: None)
    with pytest.raises(UnsupportedError, match=r"layer \(linear\) should be w8a8-dynamic"):
        TARGET.emit(graph, tmp_path)


@pytest.mark.slow
def test_benchmark_times_both_models(encoder: tuple[QuantizedGraph, TfliteArtifact]) -> None:
    _, artifact = encoder
    measured = artifact.benchmark(rounds=6, seconds=0.2)
    assert measured.batch == 2
    assert measured.shapes == {"input_ids": (2, 6)}
    assert measured.plan.file_bytes < measured.float_model.file_bytes
    assert measured.plan.latency_s > 0
    with pytest.raises(InputError, match="compiled for batch 2"):
        artifact.benchmark(batch=3, rounds=6, seconds=0.2)
