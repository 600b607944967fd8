"""Plans for the Edge TPU, and the lint of their files against its documentation."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from advisor import advise
from advisor.cli.app import app
from advisor.errors import PlanError, UnsupportedError, UsageError
from advisor.plan import Plan
from advisor.targets.tflite import TARGET
from advisor.targets.tflite.artifact import TfliteArtifact
from advisor.targets.tflite.edge_tpu import lint
from advisor.testing import SequenceNet, make_models
from tests.targets.tflite.flat import Shape, one_operator


def plan_for(model: nn.Module, batches: list[Tensor], **asked: Any) -> Plan:
    return advise(model, target="edge-tpu", calibration=batches, trials=1, cache=False, **asked)


@pytest.fixture(scope="module")
def plan() -> Plan:
    _, model, batches = next(make_models())
    return plan_for(model, batches)


@pytest.fixture(scope="module")
def artifact(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> TfliteArtifact:
    found = plan.compile(tmp_path_factory.mktemp("edge") / "build")
    assert isinstance(found, TfliteArtifact)
    return found


def test_all_layers_are_int8_and_say_why(plan: Plan) -> None:
    assert {layer.scheme for layer in plan.layers} == {"w8a8"}
    assert plan.runtime == "tflite"
    for layer in plan.layers:
        refused = {option.scheme: option.reason for option in layer.options if option.reason}
        assert refused["fp32"] == "edge-tpu itself runs only w8a8"
        assert "edge-tpu itself runs only w8a8" in layer.reason


def test_a_convolutional_network_is_clean_as_it_is_compiled(artifact: TfliteArtifact) -> None:
    found = artifact.edge_tpu()
    assert found.ok, found.describe()
    assert not {fate.operator for fate in found.operators} & {"TRANSPOSE", "QUANTIZE", "DEQUANTIZE"}
    verification = artifact.verify()
    assert verification.ok
    count = len(found.operators)
    assert verification.notes[0].startswith(f"Edge TPU: {count} of {count} operators would run")
    assert "its compiler, which is not here, has the last word" in verification.notes[0]
    accepted = json.loads((artifact.path / "acceptance.json").read_text())
    assert {row["reason"] for row in accepted["edge_tpu"]["operators"]} == {""}


def test_run_still_takes_the_models_own_images(plan: Plan, artifact: TfliteArtifact) -> None:
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(artifact.run(x), plan.apply()(x), rtol=0, atol=0)


def test_options_given_beat_those_of_the_profile(plan: Plan, tmp_path: Path) -> None:
    artifact = plan.compile(tmp_path / "build", options={"layout": "model", "io": "float"})
    notes = artifact.verify().notes
    operators = TARGET.load(tmp_path / "build").edge_tpu().operators
    assert notes[0].startswith(f"Edge TPU: 0 of {len(operators)} operators")
    assert any("TRANSPOSE" in note and "layout=channels_last" in note for note in notes)
    assert any("behind TRANSPOSE" in note for note in notes)


def test_other_profiles_lint_nothing(plan: Plan, tmp_path: Path) -> None:
    artifact = plan.compile(tmp_path / "build", options={"accelerator": "none"})
    assert artifact.verify().notes == ()
    assert "edge_tpu" not in json.loads((tmp_path / "build" / "acceptance.json").read_text())


def test_wrong_options_are_refused_before_anything_is_written(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tflite has no option 'input'.*io: float or int8"):
        plan.compile(tmp_path / "build", options={"input": "int8"})
    with pytest.raises(UsageError, match="io='int16' of tflite: possible are float, int8, uint8"):
        plan.compile(tmp_path / "build", options={"io": "int16"})
    assert list(tmp_path.iterdir()) == []


def build_convnet() -> nn.Module:
    """What the command line names to load the model again."""
    return next(make_models())[1]


def test_the_command_line_takes_options_and_tells_the_lint(plan: Plan, tmp_path: Path) -> None:
    saved = plan.save(tmp_path / "plan.json")
    model = f"{__name__}:{build_convnet.__name__}"
    arguments = ["compile", str(saved), "-o", str(tmp_path / "build"), "--model", model]
    made = CliRunner().invoke(app, [*arguments, "--option", "io=uint8"])
    assert made.exit_code == 0, made.stderr
    assert "operators would run on it" in made.stdout
    assert "verified: yes" in made.stdout
    assert {port.dtype for port in TARGET.load(tmp_path / "build").manifest.ports} == {"uint8"}
    refused = CliRunner().invoke(app, [*arguments, "--option", "io=uint4"])
    assert refused.exit_code == 2
    assert "possible are float, int8, uint8" in refused.stderr
    listed = CliRunner().invoke(app, ["targets", "--show", "tflite"])
    assert "--option io=float (default), or int8, uint8" in listed.stdout


def test_damaged_options_are_found(artifact: TfliteArtifact, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(artifact.path, tmp_path / "copy")
    (tmp_path / "copy" / "options.json").write_text('{"ways": 3}')
    with pytest.raises(PlanError, match=r"options\.json"):
        TARGET.load(tmp_path / "copy")


def test_what_cannot_be_int8_stays_in_float_on_the_processor(tmp_path: Path) -> None:
    _, model, batches = list(make_models())[1]
    assert isinstance(model, SequenceNet)
    plan = plan_for(model, batches)
    schemes = {layer.name: layer.scheme for layer in plan.layers}
    assert schemes == {"embedding": "fp32", "up": "w8a8", "down": "w8a8"}
    found = plan.compile(tmp_path / "build")
    assert isinstance(found, TfliteArtifact)
    assert found.verify().ok
    fates = found.edge_tpu().operators
    assert "EMBEDDING_LOOKUP" in {fate.operator for fate in fates}
    assert all(fate.reason for fate in fates)


def test_schemes_that_it_cannot_run_are_refused() -> None:
    _, model, batches = next(make_models())
    with pytest.raises(UnsupportedError, match="edge-tpu itself runs only w8a8; leave schemes out"):
        plan_for(model, batches, schemes=["w4"])
    with pytest.raises(UnsupportedError, match="head cannot be pinned to fp32: edge-tpu itself"):
        plan_for(model, batches, pin={"head": "fp32"})


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


def weights(*shape: int) -> np.ndarray[Any, Any]:
    return np.full(shape, 3, np.int8)


IMAGE: Shape = (1, 8, 8, 16)
CONV = {"dilationWFactor": 1, "dilationHFactor": 1, "fusedActivationFunction": 1}
POOL = {"fusedActivationFunction": 0}
DENSE = {"weightsFormat": 0}
SLICE = {"ellipsisMask": 0, "newAxisMask": 0}


def case(says: str, code: str, *arguments: Any, **named: Any) -> Any:
    return pytest.param(code, arguments, named, says, id=f"{code}: {says or 'taken'}")


@pytest.mark.parametrize(
    ("code", "arguments", "named", "says"),
    [
        case("", "CONV_2D", [IMAGE, weights(4, 3, 3, 16)], IMAGE, options=CONV,
             kind="Conv2DOptions"),
        case(
            "dilation differs",
            "CONV_2D",
            [IMAGE, weights(4, 3, 3, 16)],
            IMAGE,
            options=CONV | {"dilationWFactor": 2},
            kind="Conv2DOptions",
        ),
        case(
            "grouped",
            "CONV_2D",
            [IMAGE, weights(4, 3, 3, 4)],
            IMAGE,
            options=CONV,
            kind="Conv2DOptions",
        ),
        case("computes in float32", "ADD", [IMAGE, IMAGE], IMAGE, "FLOAT32"),
        case("", "ADD", [IMAGE, IMAGE], IMAGE, "UINT8"),
        case("plan with batch=1", "ADD", [(2, 8, 8, 16), IMAGE], (2, 8, 8, 16)),
        case("", "MAX_POOL_2D", [IMAGE], IMAGE, options=POOL, kind="Pool2DOptions"),
        case(
            "fused activation",
            "MAX_POOL_2D",
            [IMAGE],
            IMAGE,
            options={"fusedActivationFunction": 1},
            kind="Pool2DOptions",
        ),
        case("", "MEAN", [IMAGE, ints(1, 2)], (1, 16)),
        case("over the batch", "MEAN", [IMAGE, ints(0)], (8, 8, 16)),
        case("multiple of 4", "MEAN", [(1, 8, 8, 6), ints(-1)], (1, 8, 8)),
        case("", "FULLY_CONNECTED", [(1, 16), weights(5, 16)], (1, 5), options=DENSE,
             kind="FullyConnectedOptions"),
        case("more than one row", "FULLY_CONNECTED", [(7, 16), weights(5, 16)], (7, 5),
             options=DENSE, kind="FullyConnectedOptions"),
        case("", "PAD", [IMAGE, ints(0, 0, 1, 1, 1, 1, 0, 0)], (1, 10, 10, 16)),
        case("pads the batch", "PAD", [IMAGE, ints(0, 1, 0, 0, 0, 0, 0, 0)], IMAGE),
        case("only PAD is documented", "PADV2", [IMAGE, ints(0, 0, 1, 1, 1, 1, 0, 0)], IMAGE),
        case("compiler 14 does not know it", "TRANSPOSE", [IMAGE, ints(0, 3, 1, 2)], IMAGE),
        case("", "SOFTMAX", [(1, 1000)], (1, 1000)),
        case("one row of 16000", "SOFTMAX", [(4, 10)], (4, 10)),
        case("", "CONCATENATION", [IMAGE, weights(1, 8, 8, 4)], IMAGE, options=POOL,
             kind="ConcatenationOptions"),
        case("joins a constant", "CONCATENATION", [IMAGE, weights(1, 8, 8, 4) + np.int8(1)], IMAGE,
             options=POOL, kind="ConcatenationOptions"),
        case("", "STRIDED_SLICE", [IMAGE, ints(0, 0, 0, 0), ints(1, 4, 4, 16), ints(1, 1, 1, 1)],
             IMAGE, options=SLICE, kind="StridedSliceOptions"),
        case("strides are not 1", "STRIDED_SLICE",
             [IMAGE, ints(0, 0, 0, 0), ints(1, 8, 8, 16), ints(1, 2, 2, 1)], IMAGE, options=SLICE,
             kind="StridedSliceOptions"),
        case("splits the batch", "SPLIT", [ints(0), IMAGE], IMAGE),
        case("packs along the batch", "PACK", [IMAGE, IMAGE], IMAGE, options={"axis": 0},
             kind="PackOptions"),
        case("over the batch", "SUM", [IMAGE, ints(0)], IMAGE),
        case("one per channel", "PRELU", [IMAGE, weights(8, 8, 16)], IMAGE),
        case("not among the operators", "HARD_SWISH", [IMAGE], IMAGE),
    ],
)  # fmt: skip
def test_every_documented_limit_is_known(
    code: str, arguments: tuple[Any, ...], named: dict[str, Any], says: str
) -> None:
    (fate,) = lint(one_operator(code, *arguments, **named)).operators
    assert fate.operator == code
    if says:
        assert says in fate.reason
    else:
        assert fate.reason == ""


def test_doubts_are_said() -> None:
    found = lint(one_operator("RESHAPE", [IMAGE, ints(1, 1024)], (1, 1024)))
    assert found.ok
    assert found.describe()[1] == "in doubt: RESHAPE: of large tensors it may stay on the processor"


def test_everything_behind_the_first_is_left_out() -> None:
    model = one_operator("ADD", [IMAGE, IMAGE], IMAGE)
    (written,) = model.operators[0].outputs
    for code in ("HARD_SWISH", "RELU"):
        made = model.add_tensor(f"{code.lower()}", IMAGE, "INT8")
        model.operators.append(model.make_operator(code, [written], [made]))
        written = made
    found = lint(model)
    assert [bool(fate.reason) for fate in found.operators] == [False, True, True]
    assert found.operators[2].reason == (
        "behind HARD_SWISH (hard_swish), the first one that the Edge TPU does not take"
    )


def test_a_float_input_is_quantized_by_the_processor_without_a_stop() -> None:
    model = one_operator("ADD", [IMAGE, IMAGE], IMAGE)
    floats = model.add_tensor("floats", IMAGE, "FLOAT32")
    model.graph.inputs = [floats]
    first = int(model.operators[0].inputs[0])
    model.operators.insert(0, model.make_operator("QUANTIZE", [floats], [first]))
    entry, add = lint(model).operators
    assert "float32" in entry.reason
    assert add.reason == ""


def test_weights_beyond_the_chips_memory_are_said() -> None:
    big = np.zeros((3000, 3000), np.int8)
    model = one_operator(
        "FULLY_CONNECTED", [(1, 3000), big], (1, 3000), options=DENSE, kind="FullyConnectedOptions"
    )
    found = lint(model)
    assert found.ok
    assert "its weights are 9.0 MB: what is beyond about 8 MB" in found.describe()[-1]


def test_the_operators_are_those_of_the_schema() -> None:
    from advisor.targets.tflite.edge_tpu import DOUBTS, OPERATORS, REFUSED

    litert: Any = importlib.import_module("ai_edge_litert.schema_py_generated")
    known = vars(litert.BuiltinOperator)
    assert {*OPERATORS, *REFUSED, *DOUBTS} <= set(known)
