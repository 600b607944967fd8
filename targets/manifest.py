"""artifact.json: what an artifact should contain and how its model is called. Plain data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from advisor.errors import PlanError

SCHEMA: Final = 2
MANIFEST_FILE: Final = "artifact.json"
CHECK_FOLDER: Final = "check"

Record = TypeVar(
    "Record", "LayerRecord", "TensorRecord", "InputRecord", "OutputRecord", "PortRecord"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """One layer as planned. weight_sha256: digest of its integers and scales, torch layout; ""
    for a product of activations, as ``weight`` is.

    node: name of the operator that computes it. operand: which of that operator's weights it is.
    """

    name: str
    op: str
    scheme: str
    weight: str
    weight_shape: tuple[int, ...]
    weight_sha256: str
    node: str
    operand: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRecord:
    """Static quantization of one activation tensor as planned."""

    name: str
    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRecord:
    """One tensor input. path: where it sits in the call, [0, position, ...] or [1, name, ...].

    shape: a number, or the name of a dimension that may change. dtype: numpy's name.
    argument: name of the parameter of the model's own forward.
    """

    name: str
    argument: str
    path: tuple[int | str, ...]
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRecord:
    """One tensor output."""

    name: str
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRecord:
    """An input or an output as the runtime's own file has it.

    kind: "input" or "output"; name: of its ``InputRecord`` or ``OutputRecord``. dtype: numpy's
    name. shape: in the file. order: axes of the model's tensor in the file's order, so that the
    file's is ``model.transpose(order)``. scale, zero_point: of integers that stand for reals,
    real = (integer - zero_point) * scale; None and 0 where the numbers are the model's own.
    """

    kind: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything needed to run and check the artifact. structure: see ``signature.describe``.

    ports: what a runtime's file takes and gives, of every input and output in the file's order;
    empty where a target writes them as the model has them.
    """

    layers: tuple[LayerRecord, ...]
    tensors: tuple[TensorRecord, ...]
    inputs: tuple[InputRecord, ...]
    outputs: tuple[OutputRecord, ...]
    structure: Any
    ports: tuple[PortRecord, ...] = ()


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write artifact.json into ``folder``."""
    write_json(folder / MANIFEST_FILE, {"schema": SCHEMA, **asdict(manifest)})


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON that is the same bytes for the same value."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file of an artifact.

    Raises:
        PlanError: missing or damaged.
    """
    try:
        kept: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    table = _table(kept)
    if table is None:
        raise damaged(path, TypeError("not a table"))
    return table


def damaged(path: Path, error: Exception) -> PlanError:
    """What to raise about a file of an artifact that cannot be read."""
    return PlanError(f"{path} cannot be read ({error}); compile the plan again")


def read_manifest(folder: Path) -> Manifest:
    """Read artifact.json.

    Raises:
        PlanError: missing, corrupt, of a newer schema, or with fields that are not known.
    """
    path = folder / MANIFEST_FILE
    try:
        read: object = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(
            f"{folder} holds no {MANIFEST_FILE}, so it is no artifact; "
            "pass the folder that plan.compile wrote"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is corrupt ({error}); compile the plan again") from error
    data = _table(read)
    if data is None or data.get("schema") != SCHEMA:
        found = None if data is None else data.get("schema")
        raise PlanError(
            f"{path} has schema {found!r}, this version reads {SCHEMA}; "
            "compile the plan again or update quantadvisor"
        )
    expected = {"schema", *(field.name for field in fields(Manifest))}
    _refuse_others(path, "", data, expected)
    return Manifest(
        layers=_records(path, data, "layers", LayerRecord),
        tensors=_records(path, data, "tensors", TensorRecord),
        inputs=_records(path, data, "inputs", InputRecord),
        outputs=_records(path, data, "outputs", OutputRecord),
        structure=data["structure"],
        ports=_records(path, data, "ports", PortRecord),
    )


def _table(value: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _records(path: Path, data: dict[str, Any], key: str, kind: type[Record]) -> tuple[Record, ...]:
    rows = data[key]
    if not isinstance(rows, list):
        raise PlanError(f"{path}: {key} should be a list; compile the plan again")
    names = {field.name for field in fields(kind)}
    made: list[Record] = []
    for index, item in enumerate(cast("list[object]", rows)):
        row = _table(item)
        if row is None:
            raise PlanError(f"{path}: {key}[{index}] should be a table; compile the plan again")
        _refuse_others(path, f"{key}[{index}].", row, names)
        made.append(kind(**{name: _frozen(value) for name, value in row.items()}))
    return tuple(made)


def _frozen(value: object) -> Any:
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _refuse_others(path: Path, prefix: str, data: dict[str, Any], names: set[str]) -> None:
    unknown = [f"{prefix}{name}" for name in data if name not in names]
    missing = [f"{prefix}{name}" for name in sorted(names) if name not in data]
    if unknown or missing:
        raise PlanError(
            f"{path}: unknown fields {unknown}, missing fields {missing}; compile the plan again"
        )
