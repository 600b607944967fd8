"""The plan on disk: ``plan.json``, ``plan.safetensors`` and ``plan.measured.json``.

``plan.json`` is canonical: equal plans give equal bytes, and no wall-clock value enters it. What
was timed or measured later, when and on what, is kept apart in ``plan.measured.json``.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

from advisor.atomic import replacing, write_text
from advisor.errors import OutputError, PlanError
from advisor.parse import FieldError, dump_record, parse_record
from advisor.plan import SCHEMA, Plan
from advisor.plancheck import check_plan

if TYPE_CHECKING:
    import torch

MEASURED_SCHEMA = 1
"""Version of plan.measured.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number that was timed or measured for a saved plan.

    quantity: a field of ``Metrics``, such as "latency_s" (its unit is in the name). when: UTC, ISO
    8601. machine: the hardware and runtime it ran on. how: what was run. subject: "plan", or the
    name of a baseline. plan_sha256: of the plan.json it belongs to; filled in when it is written.
    """

    quantity: str
    value: float
    when: str
    machine: str
    how: str
    subject: str = "plan"
    plan_sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """The content of plan.measured.json."""

    schema: int
    records: tuple[Measurement, ...]


_NOTED: Final[WeakKeyDictionary[Plan, tuple[Measurement, ...]]] = WeakKeyDictionary()
"""Outside the plan, which holds no wall-clock value."""


def plan_to_json(plan: Plan) -> str:
    """Canonical JSON of a plan: sorted keys, two spaces, shortest exact floats, a final newline.

    Raises:
        PlanError: a number of the plan is not finite or a field has the wrong type.
    """
    try:
        return _canonical(dump_record(plan))
    except FieldError as error:
        raise PlanError(f"the plan cannot be written: {error}") from error


def plan_from_json(text: str, source: str) -> Plan:
    """The plan in ``text``; ``source`` (a path) is named in errors.

    Raises:
        PlanError: not JSON, of another schema, a field unknown, missing or of the wrong type
            (with its path, such as ``layers[3].scheme``), or fields that contradict each other.
    """
    try:
        document = _parse_json(text, source)
        _check_schema(document, source, SCHEMA, "make the plan again")
        plan = parse_record(Plan, document)
        check_plan(plan)
    except FieldError as error:
        raise PlanError(f"{source} is not a valid plan: {error}") from error
    return plan


def plan_paths(path: str | Path) -> tuple[Path, Path, Path]:
    """The three files of a plan saved at ``path``: JSON, safetensors, measurements.

    A path that ends in .json and is no folder is the JSON itself; any other is a folder, in which
    the file is ``plan.json``.
    """
    base = Path(path)
    if base.suffix != ".json" or base.is_dir():
        base = base / "plan.json"
    return base, base.with_suffix(".safetensors"), base.with_suffix(".measured.json")


def save_plan(plan: Plan, path: str | Path) -> Path:
    """Write the plan's files at ``path`` (see ``plan_paths``); returns the JSON's path.

    Measurements already beside it stay; those of another plan are told apart by their digest.

    Raises:
        OutputError: the folder cannot be written; nothing half-written is left.
        PlanError: the plan's tensors are not at hand, or are not the ones that it names.
    """
    json_path, tensors_path, measured_path = plan_paths(path)
    text = plan_to_json(plan)
    digest = hashlib.sha256(text.encode()).hexdigest()
    noted = tuple(replace(each, plan_sha256=digest) for each in noted_measurements(plan))
    if noted:
        kept = _read_measurements(measured_path)
        added = tuple(each for each in noted if each not in kept)
        _write_measurements(measured_path, (*kept, *added))
    tensors = _bound_tensors(plan) if plan.tensors_sha256 else None
    with ExitStack() as files:
        # The last one entered is renamed first: plan.json appears only once its tensors have.
        json_file = files.enter_context(replacing(json_path))
        json_file.write_bytes(text.encode())
        if tensors is not None:
            _write_tensors(tensors, files.enter_context(replacing(tensors_path)))
    return json_path


def read_plan(path: str | Path) -> Plan:
    """The plan in a JSON file or folder, without its tensors: enough for a report or a diff.

    Raises:
        PlanError: no such file, not readable, or not a valid plan.
    """
    json_path, _, _ = plan_paths(path)
    plan = plan_from_json(_read_text(json_path), str(json_path))
    note_measurements(plan, load_measurements(path))
    return plan


def load_plan(path: str | Path, model: Any = None) -> Plan:
    """The plan at ``path``, tied to its tensors and, when given, to ``model`` (the float model).

    Without a model the tensors are only located; they are read when first needed.

    Raises:
        PlanError: no such file, corrupt, of a newer schema, tensors missing or altered, or for
            another model than ``model``.
    """
    json_path, tensors_path, _ = plan_paths(path)
    plan = read_plan(json_path)
    if plan.tensors_sha256 and not tensors_path.is_file():
        raise PlanError(
            f"{json_path} needs the file {tensors_path.name} beside it, which is missing; copy it "
            f"there from where the plan was saved, or make the plan again"
        )
    from advisor.binding import register_files

    register_files(plan, tensors_path, model)
    return plan


def read_tensors(plan: Plan, tensors_path: Path) -> dict[str, torch.Tensor]:
    """The plan's tensors from their file, held against the digest in the plan.

    Raises:
        PlanError: the file is missing, corrupt, or not the one that the plan was saved with.
    """
    from safetensors import SafetensorError

    # safetensors types its path as a bare PathLike.
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    from advisor.binding import content_digest

    try:
        tensors = load_file(tensors_path)
    except (OSError, SafetensorError) as error:
        raise PlanError(
            f"cannot read the plan's tensors from {tensors_path}: {error}; copy the file again "
            f"from where the plan was saved"
        ) from error
    found = content_digest(tensors)
    if found != plan.tensors_sha256:
        raise PlanError(
            f"{tensors_path} is not the file that the plan was saved with (its content has SHA-256 "
            f"{found}, the plan says {plan.tensors_sha256}); copy both files from the same folder"
        )
    return tensors


def append_measurement(path: str | Path, record: Measurement) -> Path:
    """Add one record to plan.measured.json of the plan at ``path``; returns that file's path.

    Raises:
        PlanError: the plan or its measurements cannot be read.
        OutputError: the folder cannot be written.
    """
    _, _, measured_path = plan_paths(path)
    digest = _file_sha256(path)
    kept = _read_measurements(measured_path)
    return _write_measurements(measured_path, (*kept, replace(record, plan_sha256=digest)))


def note_measurements(plan: Plan, records: tuple[Measurement, ...]) -> None:
    """Remember what was timed for a plan, to be shown in its report and saved beside it."""
    _NOTED[plan] = records


def noted_measurements(plan: Plan) -> tuple[Measurement, ...]:
    """What was timed for a plan: when it was made, or read from beside it."""
    return _NOTED.get(plan, ())


def load_measurements(path: str | Path) -> tuple[Measurement, ...]:
    """The records that belong to the plan at ``path`` as it is now; empty when there are none.

    Raises:
        PlanError: the plan or its measurements cannot be read.
    """
    _, _, measured_path = plan_paths(path)
    digest = _file_sha256(path)
    return tuple(each for each in _read_measurements(measured_path) if each.plan_sha256 == digest)


def _write_measurements(path: Path, records: tuple[Measurement, ...]) -> Path:
    try:
        document = dump_record(Measurements(schema=MEASURED_SCHEMA, records=records))
    except FieldError as error:
        raise PlanError(f"the measurement cannot be written: {error}") from error
    return write_text(path, _canonical(document))


def _canonical(document: object) -> str:
    return json.dumps(document, sort_keys=True, indent=2, allow_nan=False) + "\n"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(
            f"there is no plan at {path}; give the path of a plan.json or of the folder it is in"
        ) from None
    except UnicodeDecodeError as error:
        raise PlanError(f"{path} is not a plan: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise PlanError(f"cannot read the plan {path}: {error.strerror or error}") from error


def _parse_json(text: str, source: str) -> object:
    try:
        return cast("object", json.loads(text, object_pairs_hook=_object_without_repeats))
    except json.JSONDecodeError as error:
        raise PlanError(
            f"{source} is not valid JSON: {error.msg} at line {error.lineno}, column "
            f"{error.colno}; it may be cut short: copy or make it again"
        ) from error
    except FieldError:
        raise
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or nesting beyond the interpreter's stack.
        raise PlanError(f"{source} is not a plan: {error}") from error


def _object_without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise FieldError(key, "the field is given twice")
        result[key] = value
    return result


def _check_schema(document: object, source: str, known: int, renew: str) -> None:
    """Refuse another version; ``renew`` is how to replace an older file."""
    if not isinstance(document, dict):
        raise FieldError("", "expected an object at the top")
    schema = cast("dict[str, object]", document).get("schema", known)
    if isinstance(schema, int) and not isinstance(schema, bool) and schema != known:
        cure = (
            "install a newer quantadvisor"
            if schema > known
            else f"{renew}, or install the older quantadvisor that wrote it"
        )
        raise PlanError(f"{source} has schema {schema}, this quantadvisor reads {known}; {cure}")


def _read_measurements(path: Path) -> tuple[Measurement, ...]:
    if not path.exists():
        return ()
    try:
        document = _parse_json(_read_text(path), str(path))
        _check_schema(document, str(path), MEASURED_SCHEMA, "move it away and measure again")
        return parse_record(Measurements, document).records
    except FieldError as error:
        raise PlanError(f"{path} is not a valid list of measurements: {error}") from error


def _file_sha256(path: str | Path) -> str:
    json_path, _, _ = plan_paths(path)
    return hashlib.sha256(_read_text(json_path).encode()).hexdigest()


def _bound_tensors(plan: Plan) -> dict[str, torch.Tensor]:
    from advisor.binding import content_digest, tensors_of

    tensors = tensors_of(plan)
    found = content_digest(tensors)
    if found != plan.tensors_sha256:
        raise PlanError(
            f"the plan's tensors have content SHA-256 {found} but the plan says "
            f"{plan.tensors_sha256}; make the plan again"
        )
    return tensors


def _write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors import SafetensorError

    # safetensors types its path as a bare PathLike.
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        # The writer reports a full disk or a refused folder as its own error type.
        raise OutputError(f"cannot write {path.parent}: {error}; choose another folder") from error
