import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import OutputError, PlanError
from advisor.plan import SCHEMA, Metrics, Plan
from advisor.planfile import (
    Measurement,
    append_measurement,
    load_measurements,
    plan_from_json,
    plan_to_json,
    read_plan,
    save_plan,
)
from tests.unit.plans import make_plan, measured, modelled

TEXT = plan_to_json(make_plan())

Place = tuple[str | int, ...]


def document() -> Any:
    return json.loads(TEXT)


def places(value: Any, here: Place = ()) -> list[Place]:
    """Every place in a JSON document, the document itself left out."""
    if type(value) not in (dict, list):
        return []
    keys: list[str | int] = (
        list(value.keys()) if hasattr(value, "keys") else list(range(len(value)))
    )
    inner = [place for key in keys for place in places(value[key], (*here, key))]
    return [(*here, key) for key in keys] + inner


def changed(place: Place, value: Any) -> Any:
    result = document()
    parent = result
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    return result


def parse(value: Any) -> Plan:
    return plan_from_json(json.dumps(value), "some/plan.json")


def refusal(value: Any) -> str:
    with pytest.raises(PlanError) as caught:
        parse(value)
    return str(caught.value)


PLACES = places(document())

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def test_round_trip_is_byte_identical() -> None:
    plan = plan_from_json(TEXT, "plan.json")
    assert plan_to_json(plan) == TEXT
    assert dataclasses.asdict(plan) == dataclasses.asdict(make_plan())


def test_json_is_canonical() -> None:
    assert json.dumps(document(), sort_keys=True, indent=2) + "\n" == TEXT
    assert list(document()) == sorted(field.name for field in dataclasses.fields(Plan))


def test_order_of_mappings_does_not_show() -> None:
    versions = make_plan().provenance.versions
    backwards = dict(reversed(list(versions.items())))
    provenance = dataclasses.replace(make_plan().provenance, versions=backwards)
    assert plan_to_json(make_plan(provenance=provenance)) == TEXT


def test_whole_number_in_a_float_field_is_written_as_a_float() -> None:
    predicted = Metrics(size_bytes=modelled(138448), latency_s=modelled(1.0))
    as_float = Metrics(size_bytes=modelled(138448.0), latency_s=modelled(1))
    assert plan_to_json(make_plan(predicted=predicted)) == plan_to_json(
        make_plan(predicted=as_float)
    )


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_survives(value: float) -> None:
    plan = plan_from_json(plan_to_json(make_plan(model_gap=value)), "plan.json")
    assert repr(plan.model_gap) == repr(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_is_refused_when_written(value: float) -> None:
    plan = make_plan(measured=Metrics(metric=measured(value)))
    with pytest.raises(PlanError, match=r"measured\.metric\.value: expected a finite number"):
        plan_to_json(plan)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("layers", 2, "scheme"), "w8a9", "layers[2].scheme: unknown scheme 'w8a9'; did you mean"),
        (
            ("layers", 0, "options", 1, "scheme"),
            "w3",
            "layers[0].options[1].scheme: unknown scheme",
        ),
        (("layers", 0, "params"), "144", "layers[0].params: expected a whole number, found '144'"),
        (("layers", 0, "params"), 144.0, "layers[0].params: expected a whole number, found 144.0"),
        (("layers", 0, "params"), True, "layers[0].params: expected a whole number, found True"),
        (("layers", 0, "params"), -1, "layers[0].params: expected at least 0, found -1"),
        (("layers", 0, "weight_shape", 1), "1", "layers[0].weight_shape[1]: expected a whole"),
        (("layers", 1, "latency_s"), None, "layers[1].latency_s: expected a number, found null"),
        (("layers", 1, "latency_s"), float("nan"), "layers[1].latency_s: expected a finite number"),
        (("layers", 1, "latency_s"), 10**400, "layers[1].latency_s: expected a finite number"),
        (("layers", 2, "reason"), "", "layers[2].reason: a layer kept in fp32 must say why"),
        (("layers", 1, "name"), "features.0", "layers[1].name: 'features.0' is there twice"),
        (("layers",), {}, "layers: expected a list, found an object"),
        (("layers", 0), [], "layers[0]: expected an object with LayerDecision's fields"),
        (("tensors", 0, "dtype"), "int9", "tensors[0].dtype: unknown dtype 'int9'"),
        (("tensors", 0, "scale"), -0.5, "tensors[0].scale: a scale is positive"),
        (("tensors", 0, "quantized"), 1, "tensors[0].quantized: expected true or false"),
        (("measured", "metric", "origin"), "guessed", "measured.metric.origin: expected one of"),
        (("baselines", 0, "schemes", "features.0"), "w9", "schemes['features.0']: unknown scheme"),
        (("baselines", 0, "schemes"), {"head": "w8"}, "no layer of that name"),
        (("pins", "classifier.3"), "fp31", "pins['classifier.3']: unknown scheme"),
        (("provenance", "versions", "torch"), 2, "provenance.versions.torch: expected a text"),
        (("provenance", "seed"), None, "provenance.seed: expected a whole number, found null"),
        (("batch",), 0, "batch: expected at least 1, found 0"),
        (("budget",), "12 potatoes", "budget: "),
        (("schema",), "1", "schema: expected a whole number"),
    ],
)
def test_a_bad_field_is_named_by_its_path(place: Place, value: Any, expected: str) -> None:
    message = refusal(changed(place, value))
    assert expected in message
    assert message.startswith("some/plan.json is not a valid plan: ")


def test_unknown_field_names_the_nearest() -> None:
    bad = document()
    bad["layers"][0]["sceme"] = bad["layers"][0].pop("scheme")
    assert "layers[0].sceme: unknown field; did you mean 'scheme'?" in refusal(bad)


@pytest.mark.parametrize("place", [each for each in PLACES if isinstance(each[-1], str)])
def test_a_missing_field_is_refused_unless_it_is_a_free_key(place: Place) -> None:
    bad = document()
    parent = bad
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    if any(each in ("versions", "schemes", "pins", "outputs", "arithmetic") for each in place[:-1]):
        parse(bad)
    else:
        assert f"{place[-1]}: missing field" in refusal(bad)


@pytest.mark.parametrize(
    ("schema", "cure"),
    [
        (SCHEMA + 1, "install a newer quantadvisor"),
        (1, "make the plan again, or install the older quantadvisor that wrote it"),
        (0, "make the plan again"),
    ],
)
def test_another_schema_is_refused_before_its_fields_are_read(schema: int, cure: str) -> None:
    message = refusal({"schema": schema, "a_field_of_the_future": 1})
    assert f"schema {schema}" in message
    assert cure in message


@given(st.sampled_from(PLACES), JSON_VALUES)
def test_any_change_is_refused_or_kept_exactly(place: Place, value: Any) -> None:
    bad = changed(place, value)
    try:
        plan = parse(bad)
    except PlanError:
        return
    assert json.loads(plan_to_json(plan)) == bad


@given(st.integers(min_value=0, max_value=len(TEXT) - 2))
def test_a_file_cut_short_is_refused(length: int) -> None:
    with pytest.raises(PlanError, match=r"plan\.json is not valid JSON: .* line \d+, column"):
        plan_from_json(TEXT[:length], "plan.json")


@given(st.text())
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        plan_from_json(text, "plan.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"batch": 1, "batch": 2}', "[]"]
)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        plan_from_json(text, "plan.json")


def test_parsing_does_not_change_the_document() -> None:
    given_document = document()
    before = copy.deepcopy(given_document)
    parse(given_document)
    assert given_document == before


def test_save_to_a_file_and_to_a_folder(tmp_path: Path) -> None:
    plan = make_plan()
    assert save_plan(plan, tmp_path / "deep" / "m2.json") == tmp_path / "deep" / "m2.json"
    assert plan.save(str(tmp_path / "folder")) == tmp_path / "folder" / "plan.json"
    for path in (tmp_path / "deep" / "m2.json", tmp_path / "folder" / "plan.json"):
        assert path.read_bytes() == TEXT.encode()
        assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert plan_to_json(read_plan(tmp_path / "folder")) == TEXT


def test_save_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("old")
    save_plan(make_plan(), path)
    assert path.read_text() == TEXT


@pytest.mark.parametrize("name", ["file/plan.json", "file"])
def test_unwritable_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match=r"cannot write .*choose a folder"):
        save_plan(make_plan(), tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_plan_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = save_plan(make_plan(), tmp_path)
    with pytest.raises(PlanError):
        save_plan(make_plan(model_gap=float("nan")), tmp_path)
    assert path.read_text() == TEXT
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("path", ["nowhere/plan.json", "nowhere"])
def test_missing_file(tmp_path: Path, path: str) -> None:
    with pytest.raises(PlanError, match=r"there is no plan at .*plan\.json; give the path"):
        Plan.load(tmp_path / path)


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="not UTF-8"):
        Plan.load(tmp_path)


def test_missing_safetensors(tmp_path: Path) -> None:
    plan = make_plan(tensors_sha256="a" * 64)
    (tmp_path / "m2.json").write_text(plan_to_json(plan))
    with pytest.raises(PlanError, match=r"m2\.safetensors beside it, which is missing; copy it"):
        Plan.load(tmp_path / "m2.json")


def test_measurements_belong_to_the_plan_as_it_is(tmp_path: Path) -> None:
    path = save_plan(make_plan(), tmp_path)
    assert load_measurements(path) == ()
    record = Measurement(
        quantity="latency_s",
        value=0.0021,
        when="2026-05-04T10:11:12Z",
        machine="Xeon 6248, onnxruntime 1.31.1",
        how="median of 50 runs",
    )
    written = append_measurement(path, record)
    append_measurement(path, dataclasses.replace(record, value=0.0022))
    assert written == tmp_path / "plan.measured.json"
    assert [each.value for each in load_measurements(tmp_path)] == [0.0021, 0.0022]
    assert path.read_text() == TEXT
    save_plan(make_plan(batch=2), tmp_path)
    assert load_measurements(path) == ()
    assert len(json.loads(written.read_text())["records"]) == 2


def test_corrupt_measurements_are_refused(tmp_path: Path) -> None:
    path = save_plan(make_plan(), tmp_path)
    (tmp_path / "plan.measured.json").write_text('{"schema": 1, "records": [{"value": 1}]}')
    with pytest.raises(PlanError, match=r"records\[0\]\.quantity: missing field"):
        load_measurements(path)
    (tmp_path / "plan.measured.json").write_text('{"schema": 0, "records": []}')
    with pytest.raises(PlanError, match=r"has schema 0.*move it away and measure again"):
        load_measurements(path)
