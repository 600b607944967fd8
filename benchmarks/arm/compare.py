"""Emitted TFLite files on emulated ARM cores: the same numbers, and how many instructions.

    python -m benchmarks.arm.compare [--folder FOLDER] [MODEL ...]

Every file runs on a Cortex-A57, which has no dot product, and on a Cortex-A76, which has. The
results of a model replace those in results.json. The folder keeps the machine, and the files that
plans became, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from advisor import advise
from advisor.errors import UnsupportedError
from advisor.plan import Plan
from advisor.targets.tflite import TfliteOptions
from advisor.targets.tflite.artifact import TfliteArtifact
from advisor.targets.tflite.emit import MODEL_FILE
from advisor.targets.tflite.interpreter import LiteModel
from advisor.targets.tflite.ports import to_file
from benchmarks.arm.machine import CORES, Machine, build
from benchmarks.arm.models import MODELS
from benchmarks.models import Case

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results.json"

UNIFORM: Final = ("fp32", "w8a8", "w8a8-dynamic", "w4a8-dynamic")
"""Plans of one scheme wherever a layer can take it."""

MIXED: Final = "mixed"
"""What ``advise`` answers for 60 % of the bytes of all-int8 weights."""

SHARE: Final = 0.6
PLANS: Final = (*UNIFORM, MIXED)
GUEST_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One file on one core.

    schemes: layers by scheme. instructions: of one run, by the plugin; dot_products: those of them
    that are SDOT or UDOT. identical: whether every number that comes out is this machine's.
    difference: the largest absolute one, of integers in steps.
    """

    model: str
    plan: str
    core: str
    schemes: Mapping[str, int]
    file_bytes: int
    integer_ends: bool
    instructions: int
    dot_products: int
    identical: bool
    difference: float


def main() -> None:
    """Run the models that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--folder", type=Path, default=Path("build/arm"))
    chosen = parser.parse_args()
    unknown = set(chosen.models) - set(MODELS)
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}; models: {', '.join(MODELS)}")
    folder: Path = chosen.folder.absolute()
    machine = build(folder)
    for name in chosen.models or MODELS:
        case, made = MODELS[name](1), folder / "plans" / name
        keep(name, rows_of(case, {plan: artifact_of(case, plan, made) for plan in PLANS}, machine))


def keep(name: str, rows: list[Row]) -> None:
    """Replace a model's rows in the file of results."""
    before: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    others = [row for row in before["rows"] if row["model"] != name]
    order = list(MODELS)
    kept = sorted(
        [*others, *(asdict(row) for row in rows)], key=lambda row: order.index(row["model"])
    )
    versions = {each: version(each) for each in ("ai-edge-litert", "litert-torch", "torch")}
    document = {"versions": versions | {"qemu": "7.2 (Debian 12)"}, "rows": kept}
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def rows_of(case: Case, artifacts: Mapping[str, TfliteArtifact], machine: Machine) -> list[Row]:
    """Every plan of a model on every core."""
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        expected = {name: _place(case, found, files, name) for name, found in artifacts.items()}
        return [
            row
            for core in CORES
            for row in _run(case.name, machine, core, files, artifacts, expected)
        ]


def artifact_of(case: Case, name: str, folder: Path) -> TfliteArtifact:
    """The file of a plan, made where the folder has none yet; integers at both ends if it can."""
    out = folder / name
    if not out.exists():
        plan = _mixed(case, folder) if name == MIXED else _uniform(case, name)
        try:
            plan.compile(out, options=TfliteOptions(io="int8", layout="channels_last"))
        except UnsupportedError:  # an end is float under this plan
            plan.compile(out)
    return TfliteArtifact.load(out)


def _mixed(case: Case, folder: Path) -> Plan:
    size = Plan.load(artifact_of(case, "w8a8", folder).path).predicted.size_bytes
    assert size is not None
    return _advise(case, budget={"size": f"{int(SHARE * size.value)}B"}, trials=6)


def _uniform(case: Case, scheme: str) -> Plan:
    if scheme == "fp32":
        return _advise(case, schemes=["fp32"], trials=1)
    free = _advise(case, schemes=[scheme], trials=1)
    able = {
        layer.name: scheme
        for layer in free.layers
        if any(option.scheme == scheme and not option.reason for option in layer.options)
    }
    if {layer.name for layer in free.layers if layer.scheme == scheme} == set(able):
        return free
    return _advise(case, schemes=[scheme], pin=able, trials=1)


def _advise(case: Case, **asked: Any) -> Plan:
    return advise(
        case.model,
        target="arm-neon",
        inputs=case.example,
        calibration=case.calibration,
        output=case.kind,
        cache=False,
        **asked,
    )


def _place(
    case: Case, artifact: TfliteArtifact, files: Path, name: str
) -> list[np.ndarray[Any, Any]]:
    """Put a file and its inputs where the guest looks; what comes out of it on this machine."""
    content = (artifact.path / MODEL_FILE).read_bytes()
    (files / f"{name}.tflite").write_bytes(content)
    tensors = case.example
    given = [tensors[record.argument].numpy() for record in artifact.manifest.inputs]
    arrays = to_file(artifact.manifest.ports, given)
    ports = [port for port in artifact.manifest.ports if port.kind == "input"]
    model = LiteModel(content, threads=1)
    fed = [
        np.ascontiguousarray(array, dtype=port.dtype)
        for array, port in zip(arrays, ports, strict=True)
    ]
    np.savez(files / f"{name}.in.npz", *fed)
    return model.run(arrays)


def _run(
    model: str,
    machine: Machine,
    core: str,
    files: Path,
    artifacts: Mapping[str, TfliteArtifact],
    expected: Mapping[str, list[np.ndarray[Any, Any]]],
) -> list[Row]:
    counts = files / "counts.txt"
    counts.unlink(missing_ok=True)
    guest = shutil.copy(HERE / "guest.py", files)
    machine.run(core, [str(guest), str(files)], counts=counts, timeout_s=GUEST_S)
    marks = [tuple(map(int, line.split())) for line in counts.read_text().splitlines()]
    rows: list[Row] = []
    for number, name in enumerate(sorted(artifacts)):
        first, second, third = marks[3 * number : 3 * number + 3]
        with np.load(files / f"{name}.out.npz") as outputs:
            found = [outputs[f"arr_{index}"] for index in range(len(expected[name]))]
        pairs = list(zip(found, expected[name], strict=True))
        rows.append(
            Row(
                model=model,
                plan=name,
                core=core,
                schemes=_schemes(artifacts[name]),
                file_bytes=(files / f"{name}.tflite").stat().st_size,
                integer_ends=artifacts[name].options.io != "float",
                instructions=min(second[0] - first[0], third[0] - second[0]),
                dot_products=min(second[1] - first[1], third[1] - second[1]),
                identical=all(np.array_equal(a, b) for a, b in pairs),
                difference=max(float(np.abs(a.astype(float) - b).max()) for a, b in pairs),
            )
        )
    return rows


def _schemes(artifact: TfliteArtifact) -> dict[str, int]:
    return dict(sorted(Counter(layer.scheme for layer in artifact.manifest.layers).items()))


if __name__ == "__main__":
    main()
