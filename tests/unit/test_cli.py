import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from advisor.cli import app
from advisor.cli.bounds import broken_gates, parse_gate
from advisor.cli.calibration import read_calibration
from advisor.cli.request import parse_output_kinds, parse_pins
from advisor.errors import (
    AdvisorError,
    BudgetError,
    CalibrationError,
    CaptureError,
    InfeasibleError,
    MissingDependencyError,
    UsageError,
    VerificationError,
)
from advisor.plan import Plan
from advisor.planfile import plan_to_json, save_plan
from tests.unit.plans import make_plan

Advise = Callable[..., Plan]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(name="calls")
def stand_in_for_planning(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the planner, which is slow and tested elsewhere; records what it was called with."""
    return planner(monkeypatch, make_plan)


def planner(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[], Plan]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def advise(model: object, **arguments: Any) -> Plan:
        calls.append({"model": model, **arguments})
        return outcome()

    api = types.ModuleType("advisor.api")
    vars(api)["advise"] = advise
    monkeypatch.setitem(sys.modules, "advisor.api", api)
    return calls


def test_help_imports_neither_rich_nor_anything_heavy(root: Path) -> None:
    code = (
        "import sys\nfrom advisor.cli import main\nsys.argv = ['advisor', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'optuna', 'numpy', 'rich', 'tomllib', 'asyncio') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in (
        *("plan", "compile", "bench", "report", "compare"),
        *("profiles", "targets", "doctor", "demo"),
    ):
        assert f"  {name} " in result.stdout


def test_version() -> None:
    import advisor

    assert run("--version").stdout == f"quantadvisor {advisor.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["plan"],
        ["plan", "m:f"],
        ["plan", "m:f", "--target", "m2", "--batch", "0"],
        ["plan", "m:f", "--target", "m2", "--batch", "one"],
        ["plan", "m:f", "--target", "m2", "--objective", "speed"],
        ["plan", "m:f", "--target", "m2", "--nonsense"],
        ["compile", "plan.json"],
        ["compare", "plan.json"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "m99"], "unknown target 'm99'"),
        (["--target", "m2", "--budget", "12 potatoes"], "potatoes"),
        (["--target", "m2", "--budget", "-4GB"], "not a positive"),
        (["--target", "m2", "--pin", "head"], "cannot read --pin 'head'; write GLOB=SCHEME"),
        (["--target", "m2", "--pin", "head=w9"], "unknown scheme 'w9'"),
        (["--target", "m2", "--schemes", "w8,w9"], "unknown scheme 'w9'"),
        (["--target", "m2", "--schemes", ","], "names no scheme"),
        (["--target", "m2", "--fail-if", "size=12MB"], "cannot read --fail-if"),
        (["--target", "m2", "--calibration", "none.npz"], "no calibration file none.npz"),
        (["--target", "m2", "--calibration", "none.csv"], "must be one of .npz, .safetensors"),
        (["--target", "m2", "--output-kind", "a=b", "--output-kind", "c"], "cannot read"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(
    calls: list[dict[str, Any]], tmp_path: Path, arguments: list[str], expected: str
) -> None:
    result = run("plan", "m:f", "-o", str(tmp_path / "plan.json"), *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert expected in result.stderr
    assert result.stdout == ""
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_is_refused_before_the_model_is_loaded(
    calls: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = run("plan", "m:f", "--target", "m2", "-o", str(tmp_path / "file" / "plan.json"))
    assert result.exit_code == 2
    assert "error: cannot write" in result.stderr
    assert calls == []


def test_a_refused_run_makes_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse() -> Plan:
        raise InfeasibleError("a")

    planner(monkeypatch, refuse)
    assert run("plan", "m:f", "--target", "m2", "-o", str(tmp_path / "new" / "p")).exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_plan_passes_everything_on_and_saves(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((5, 3), dtype=np.float32))
    saved = tmp_path / "out" / "plan.json"
    result = run(
        *("plan", "pkg.mod:make", "--target", "m2", "--budget", "4GB,8ms", "-o", str(saved)),
        *("--runtime", "coreml", "--objective", "latency", "--batch", "2", "--sequence", "64"),
        *("--context", "512", "--threads", "4"),
        *("--pin", "*.head=fp16", "--pin", "op:embedding=fp32"),
        *("--schemes", "w8, w4-g32", "--trials", "7", "--seed", "3", "--output-kind", "logits"),
        *("--calibration", str(tmp_path / "data.npz"), "--on-unsupported", "error", "--no-cache"),
    )
    assert result.exit_code == 0, result.stderr
    (call,) = calls
    assert call["budget"].describe() == "memory<=4000000000B,latency<=0.008s"
    assert [batch.shape for batch in call.pop("calibration")] == [(2, 3), (2, 3), (1, 3)]
    del call["budget"]
    assert call == {
        "model": "pkg.mod:make",
        "target": "m2",
        "runtime": "coreml",
        "objective": "latency",
        "batch": 2,
        "sequence": 64,
        "context": 512,
        "threads": 4,
        "pin": {"*.head": "fp16", "op:embedding": "fp32"},
        "schemes": ("w8", "w4-g32"),
        "on_unsupported": "error",
        "trials": 7,
        "seed": 3,
        "output": "logits",
        "cache": False,
        "progress": None,
    }
    assert saved.read_text() == plan_to_json(make_plan())
    assert "SYNTHETIC CALIBRATION" in result.stdout
    assert "plan written to" in result.stderr
    assert "plan written to" not in result.stdout


def test_what_was_not_said_is_left_to_advise(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    run("plan", "m:f", "--target", "m2", "-o", str(tmp_path))
    assert calls[0]["calibration"] is None
    assert calls[0]["budget"].describe() == "none"
    assert "trials" not in calls[0]


@pytest.mark.usefixtures("calls")
def test_json_is_all_there_is_on_stdout(tmp_path: Path) -> None:
    result = run("plan", "m:f", "--target", "m2", "-o", str(tmp_path), "--json")
    assert json.loads(result.stdout)["target"] == "intel-vnni"


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("bound", "code"),
    [("size>150kB", 0), ("size>100kB", 1), ("metric<0.99", 1), ("energy>1J", 1)],
)
def test_a_broken_bound_exits_with_1_after_saving(tmp_path: Path, bound: str, code: int) -> None:
    result = run("plan", "m:f", "--target", "m2", "-o", str(tmp_path), "--fail-if", bound)
    assert result.exit_code == code
    assert ("failed: " in result.stderr) is bool(code)
    assert (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("a"), 2),
        (CaptureError("a"), 2),
        (InfeasibleError("a"), 3),
        (MissingDependencyError("a"), 4),
        (VerificationError("a"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 4),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException, code: int
) -> None:
    def fail() -> Plan:
        raise error

    planner(monkeypatch, fail)
    result = run("plan", "m:f", "--target", "m2", "-o", str(tmp_path / "plan.json"))
    assert result.exit_code == code
    assert result.stdout == ""
    if isinstance(error, AdvisorError):
        assert result.stderr == "error: a\n"
    assert list(tmp_path.iterdir()) == []


def test_report_on_the_terminal_as_json_and_to_a_file(tmp_path: Path) -> None:
    plan = save_plan(make_plan(), tmp_path)
    assert "intel-vnni" in run("report", str(plan)).stdout
    assert json.loads(run("report", str(tmp_path), "--json").stdout)["schema"] == 3
    result = run("report", str(plan), "-o", str(tmp_path / "r.html"))
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert run("report", str(plan), "-o", str(tmp_path / "r.xml")).exit_code == 2


@pytest.mark.parametrize("text", ["", "{", '{"schema": 1}', '{"schema": 99}', "[]"])
def test_a_corrupt_plan_exits_with_2(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    for command in (["report"], ["compile", "-o", str(tmp_path / "out")]):
        result = run(*command, str(tmp_path / "plan.json"))
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_compare(tmp_path: Path) -> None:
    first = save_plan(make_plan(), tmp_path / "a.json")
    second = save_plan(make_plan(target="m2"), tmp_path / "b.json")
    assert run("compare", str(first), str(first)).stdout == "the plans are equal\n"
    assert run("compare", str(first), str(second)).stdout == "target: intel-vnni -> m2\n"
    as_json = run("compare", str(first), str(second), "--json").stdout
    assert json.loads(as_json) == {"differences": ["target: intel-vnni -> m2"]}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["profiles"], "intel-vnni"),
        (["profiles", "--show", "apple-m2"], "bandwidth"),
        (["targets"], "ONNX Runtime"),
        (["targets", "--show", "onnxruntime"], "w4-g32"),
        (["doctor"], "PyTorch"),
    ],
)
def test_listings(command: list[str], expected: str) -> None:
    result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert expected in result.stdout
    assert expected in json.dumps(json.loads(run(*command, "--json").stdout))


@pytest.mark.parametrize("command", [["profiles", "--show", "m99"], ["targets", "--show", "onnx"]])
def test_unknown_names_exit_with_2(command: list[str]) -> None:
    result = run(*command)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("size>138448B", False),
        ("size>=138448B", True),
        ("size > 138 kB", True),
        ("latency<50us", True),
        ("latency<=49us", False),
        ("divergence>0.001", True),
        ("accuracy_drop>1%", False),
        ("accuracy_drop>0.2%", True),
        ("memory>1GiB", False),
    ],
)
def test_gates(text: str, broken: bool) -> None:
    assert bool(broken_gates(make_plan(), (parse_gate(text),))) is broken


@pytest.mark.parametrize("text", ["", "size", "size>", "weight>1", "metric<abc", "metric<nan"])
def test_bad_gates(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-if"):
        parse_gate(text)


def test_gate_with_a_bad_unit() -> None:
    with pytest.raises(BudgetError):
        parse_gate("size>12ms")


def test_pins() -> None:
    assert parse_pins(("*.head=fp16", "a=b=w8")) == {"*.head": "fp16", "a=b": "w8"}
    assert parse_pins(("x=w8", "x=w8")) == {"x": "w8"}
    with pytest.raises(UsageError, match="two schemes, w8 and fp16"):
        parse_pins(("x=w8", "x=fp16"))


def test_output_kinds() -> None:
    assert parse_output_kinds(()) is None
    assert parse_output_kinds(("logits",)) == "logits"
    assert parse_output_kinds(("a=logits", "b=embedding")) == {"a": "logits", "b": "embedding"}


def test_calibration_of_one_array_is_the_only_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pixels=np.arange(6).reshape(3, 2))
    batches = list(read_calibration(tmp_path / "x.npz", 2))
    assert [np.asarray(batch).tolist() for batch in batches] == [[[0, 1], [2, 3]], [[4, 5]]]


def test_calibration_by_position_and_by_name(tmp_path: Path) -> None:
    ids, mask = np.arange(4).reshape(2, 2), np.ones((2, 2))
    np.savez(tmp_path / "position.npz", ids, mask)
    item: Any
    named: Any
    (item,) = read_calibration(tmp_path / "position.npz", 2)
    np.testing.assert_equal(item, (ids, mask))
    np.savez(tmp_path / "name.npz", input_ids=ids, mask=mask)
    (named,) = read_calibration(tmp_path / "name.npz", 2)
    assert list(named) == ["input_ids", "mask"]


def test_calibration_labels_go_with_the_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3)), labels=np.array([4, 5]))
    item: Any
    (item,) = read_calibration(tmp_path / "x.npz", 8)
    (inputs,), labels = item
    assert (inputs.shape, labels.tolist()) == ((2, 3), [4, 5])


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({}, "holds no arrays"),
        ({"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, r"a \(2, 1\), b \(3, 1\)"),
        ({"a": np.zeros((0, 4))}, "at least one"),
        ({"a": np.float32(1)}, "first dimension"),
        ({"a": np.array([{"x": 1}], dtype=object)}, "cannot read"),
    ],
)
def test_bad_calibration_arrays(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(CalibrationError, match=expected):
        read_calibration(tmp_path / "x.npz", 1)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04"])
def test_corrupt_calibration_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(CalibrationError, match="cannot read"):
        read_calibration(tmp_path / "x.npz", 1)


def test_output_without_unicode_does_not_fail(root: Path, tmp_path: Path) -> None:
    plan = save_plan(make_plan(), tmp_path)
    code = "from advisor.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "report", str(plan)],
        cwd=root,
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert b"intel-vnni" in result.stdout
