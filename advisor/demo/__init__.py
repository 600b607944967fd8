"""The main job on real input: plan, compile, verify and time a small trained network.

Everything it needs comes with the package; it uses no network and no data set library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Final

from advisor.errors import VerificationError

if TYPE_CHECKING:
    from rich.console import Console

    from advisor.plan import Plan
    from advisor.targets.base import Artifact, Verification

MODEL: Final = "advisor.demo.digits:build"
"""Named rather than given, so that ``advisor compile`` finds it again from plan.json alone."""

TARGET: Final = "intel-vnni"
BUDGET: Final = "size=230kB"
"""About 38 % of the network in float32: less than float16, more than all in int8."""

THREADS: Final = 2
"""Of the deployment that is planned for: a small slice of the server."""

ROUNDS, CALLS = 15, 40


def run_demo(out_dir: Path, console: Console) -> None:
    """Advise for ``intel-vnni``, compile the plan and its float twin, and compare them.

    Writes ``plan.json``, ``report.md``, ``report.html`` and the two artifacts into ``out_dir``.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        OutputError: ``out_dir`` cannot be written.
        VerificationError: an artifact does not carry or compute its plan.
    """
    from advisor import advise
    from advisor.demo import digits

    images = digits.data()
    example = images.test[:1]

    def plan_for(budget: str | None, pin: Mapping[str, str] | None) -> Plan:
        return advise(
            MODEL,
            target=TARGET,
            budget=budget,
            inputs=example,
            calibration=images.calibration_batches(),
            metric=images.calibration_correct,
            pin=pin,
            threads=THREADS,
        )

    console.print(f"Planning a digits network for {TARGET} with {BUDGET} ...")
    plans = {"float32": plan_for(None, {"*": "fp32"}), "plan": plan_for(BUDGET, None)}
    artifacts: dict[str, Artifact] = {}
    checks: dict[str, Verification] = {}
    for name, plan in plans.items():
        artifacts[name] = plan.compile(out_dir / name)
        checks[name] = artifacts[name].verify()
        _require(name, checks[name])
    seconds = time_interleaved(
        {name: _caller(artifact, example) for name, artifact in artifacts.items()}
    )
    accuracies = {name: images.accuracy(artifact.run) for name, artifact in artifacts.items()}
    saved = plans["plan"].save(out_dir / "plan.json")
    _record_latency(saved, seconds["plan"], checks["plan"].executed_by)
    written = [plans["plan"].report(out_dir / f"report.{suffix}") for suffix in ("md", "html")]

    from advisor.report.terminal import print_plan

    print_plan(console, plans["plan"])
    _print_comparison(console, artifacts, checks, accuracies, seconds)
    console.print(f"The whole report: {', '.join(str(path) for path in written)}")


def _record_latency(plan_path: Path, seconds: float, runtime: str) -> None:
    """Keep what was timed beside the plan, never in it: the plan must stay reproducible."""
    from advisor.doctor import read_cpu
    from advisor.planfile import Measurement, append_measurement

    record = Measurement(
        quantity="latency_s",
        value=seconds,
        when=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        machine=f"{read_cpu().model}, {runtime}",
        how=f"median of {ROUNDS} rounds of {CALLS} calls at batch 1, in turns with float32",
    )
    append_measurement(plan_path, record)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS, per_round: int = CALLS
) -> dict[str, float]:
    """Median seconds of one call of each, taken in turns.

    Taking turns exposes every candidate to the same drift of clock and load; the median over
    rounds discards the rounds that something else disturbed.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = perf_counter()
            for _ in range(per_round):
                call()
            times[name].append((perf_counter() - started) / per_round)
    return {name: median(values) for name, values in times.items()}


def model_bytes(artifact: Artifact) -> int:
    """Bytes of the model's own files, without what is kept beside them for acceptance."""
    return sum(file.stat().st_size for file in artifact.path.glob("*.onnx*"))


def _caller(artifact: Artifact, example: object) -> Callable[[], object]:
    return lambda: artifact.run(example)


def _require(name: str, check: Verification) -> None:
    if not check.ok:
        first = check.mismatches[0] if check.mismatches else None
        detail = (
            f"{first.name}: expected {first.expected}, found {first.found}" if first else "none"
        )
        raise VerificationError(
            f"the {name} artifact matches {check.layers_matched} of {check.layers_total} layers; "
            f"first mismatch: {detail}; run `advisor doctor` and report this with its output"
        )


def _print_comparison(
    console: Console,
    artifacts: Mapping[str, Artifact],
    checks: Mapping[str, Verification],
    accuracies: Mapping[str, float],
    seconds: Mapping[str, float],
) -> None:
    from rich import box
    from rich.table import Table

    from advisor.report.units import format_bytes, format_seconds

    table = Table(
        title="Float against the plan: all columns measured here, on the compiled files",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("")
    for title in ("files", "test accuracy", "batch 1", "speed", "layers read back", "executed by"):
        table.add_column(title, justify="right")
    for name, artifact in artifacts.items():
        table.add_row(
            name,
            format_bytes(model_bytes(artifact)),
            f"{accuracies[name]:.2%}",
            format_seconds(seconds[name]),
            f"{seconds['float32'] / seconds[name]:.2f}x",
            f"{checks[name].layers_matched} of {checks[name].layers_total}",
            checks[name].executed_by,
        )
    console.print(table)
