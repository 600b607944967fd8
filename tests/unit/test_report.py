import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from advisor.errors import OutputError, UsageError
from advisor.plan import Calibration, Drop, Metrics, Plan
from advisor.report import render_html, render_json, render_markdown, report_data, report_text
from advisor.report.page import lay_out
from advisor.report.units import (
    format_bytes,
    format_count,
    format_metric,
    format_number,
    format_percent,
    format_quantity,
    format_seconds,
)
from tests.unit.plans import make_layers, make_plan, measured, modelled

VOID = {"meta", "rect", "br", "link"}


class Checker(HTMLParser):
    """Fails on tags that do not nest; collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def real_calibration() -> Plan:
    provenance = make_plan().provenance
    calibration = Calibration(
        synthetic=False, batches=8, scoring_samples=128, held_out_samples=128, digest="c" * 64
    )
    return make_plan(provenance=dataclasses.replace(provenance, calibration=calibration))


RENDERERS = [render_html, render_markdown, report_text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(0), "0 B"),
        (format_bytes(999), "999 B"),
        (format_bytes(999_600), "1 MB"),
        (format_bytes(12_345_678), "12.3 MB"),
        (format_bytes(4e9), "4 GB"),
        (format_seconds(4.95e-05), "49.5 µs"),
        (format_seconds(0.0123), "12.3 ms"),
        (format_seconds(12.0), "12 s"),
        (format_count(144), "144"),
        (format_count(1_234_567), "1.23 M"),
        (format_percent(0.0031), "0.31 %"),
        (format_number(1234.0), "1234"),
        (format_number(0.00012), "0.00012"),
        (format_metric("energy_j", 0.0051), "5.1 mJ"),
        (format_metric("metric", 0.98612), "0.9861"),
        (format_metric("accuracy_drop", 0.01), "1 %"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected


def test_every_quantity_shows_its_origin() -> None:
    assert format_quantity("size_bytes", modelled(12_345_678)) == "≈ 12.3 MB"
    assert format_quantity("divergence", measured(0.00187)) == "0.00187 ᵐ"
    assert format_quantity("metric", None) == "-"


def test_bits_per_weight_counts_every_weight_once() -> None:
    data = report_data(make_plan())
    expected = 8 * (208 + 128000 + 10240) / (144 + 204800 + 2560)
    assert data.bits_per_weight == pytest.approx(expected)
    fp32, w8 = data.comparison[1:]
    assert fp32.bits_per_weight == 32
    assert w8.bits_per_weight == pytest.approx(8 * (208 + 205824 + 2600) / 207504)


def test_a_tied_weight_counts_once() -> None:
    conv, hidden, head = make_layers()
    tied = dataclasses.replace(head, name="again", size_bytes=0)
    assert (
        report_data(make_plan(layers=(conv, hidden, head, tied), baselines=())).bits_per_weight
        == report_data(make_plan()).bits_per_weight
    )


def test_bits_of_a_baseline_without_known_bytes_are_unknown() -> None:
    layers = tuple(dataclasses.replace(each, options=()) for each in make_layers())
    data = report_data(make_plan(layers=layers))
    assert data.bits_per_weight is not None
    assert data.comparison[1].bits_per_weight is None


def test_options_beside_the_chosen_one() -> None:
    conv, hidden, head = report_data(make_plan()).layers
    assert conv.cheaper is None
    assert conv.better is not None
    assert conv.better.scheme == "w8"
    assert hidden.cheaper is not None
    assert hidden.better is not None
    assert (hidden.cheaper.scheme, hidden.better.scheme) == ("w2-g32", "w8")
    assert head.cheaper is not None
    assert (head.cheaper.scheme, head.better) == ("w8", None)
    assert [option.reason for option in conv.excluded] == ["block 32 does not divide 9 inputs"]


def test_shares_have_their_error_and_the_metric_its_interval() -> None:
    """Divergences of 0.0004 and 0.0012: errors of 0.0002 and nothing known are 12.5 % and none."""
    first, *others = make_layers()
    plan = dataclasses.replace(
        make_plan(),
        layers=(dataclasses.replace(first, error=0.0002), *others),
        drop=Drop(value=0.0042, low=-0.001, high=0.0103, examples=397, limit=0.01),
    )
    rows = report_data(plan).layers
    assert rows[0].error_share == pytest.approx(0.125)
    assert rows[1].error_share is None
    for text in (render_html(plan), render_markdown(plan)):
        assert "25 % ± 12.5 %" in text
        assert "0.42 %, 95 % interval -0.1 % to 1.03 % over 397 examples" in text
    assert json.loads(render_json(plan))["drop"]["examples"] == 397
    # One number has no interval.
    single = dataclasses.replace(plan, drop=Drop(value=0.0042))
    assert "interval" not in dict(lay_out(report_data(single)).facts)["Drop of the metric"]


def test_divergence_shares_add_up() -> None:
    layers = report_data(make_plan()).layers
    assert [layer.divergence_share for layer in layers] == pytest.approx([0.25, 0.75, 0.0])


def test_measured_numbers_take_the_place_of_predicted_ones() -> None:
    plan = make_plan()
    own = report_data(plan).comparison[0].metrics
    assert own.divergence == plan.measured.divergence
    assert own.size_bytes == plan.predicted.size_bytes


@pytest.mark.parametrize(
    ("budget", "fits"),
    [
        ("none", None),
        ("size<=150000B", True),
        ("size<=138448B", True),
        ("size<=138447B", False),
        ("size<=150000B,latency<=0.00001s", False),
        ("energy<=1J", None),
        ("accuracy_drop<=0.003", True),
        ("accuracy_drop<=0.0028", False),
    ],
)
def test_fit_is_checked_against_every_limit(budget: str, fits: bool | None) -> None:
    # Accuracy drop of the plan: (0.9889 - 0.9861) / 0.9889 = 0.00283.
    data = report_data(make_plan(budget=budget))
    assert data.fits is fits
    assert any("OVER BUDGET" in alarm for alarm in lay_out(data).alarms) is (fits is False)


@pytest.mark.parametrize("render", RENDERERS)
def test_numbers_appear_with_their_origin(render: object) -> None:
    assert callable(render)
    text = " ".join(str(render(make_plan())).split())
    for expected in (
        *("≈ 138 kB", "≈ 830 kB", "0.00187 ᵐ", "0.9861 ᵐ", "0.9889 ᵐ", "≈ 5.34", "≈ 32"),
        *(
            "intel-vnni",
            "onnxruntime",
            "Fastest plan inside the budget",
            "ᵐ measured",
            "≈ modelled",
        ),
        *("w4-g32", "≈ 128 kB", "≈ 75 %", "pinned by classifier.3=fp32", "front 1", "fp32"),
        *("Model gap: 0.31 %", "Measured regret: 0.12", "The output was taken for logits."),
        *("Seed", "torch version", "c" * 64, "f" * 64, "Kept in floating point"),
    ):
        assert expected in text, expected


def test_files_also_hold_the_long_lists() -> None:
    for text in (render_html(make_plan()), render_markdown(make_plan())):
        assert "block 32 does not divide 9 inputs" in text
        assert "0.0123" in text
        assert "w2-g32/mse: ≈ 76.8 kB, divergence ≈ 0.21" in text


@pytest.mark.parametrize("render", RENDERERS)
def test_synthetic_calibration_is_said_loudly(render: object) -> None:
    assert callable(render)
    assert "SYNTHETIC CALIBRATION" in str(render(make_plan()))
    assert "SYNTHETIC" not in str(render(real_calibration()))


def test_html_nests_and_needs_nothing_from_elsewhere() -> None:
    page = Checker(render_html(make_plan()))
    assert page.tags.count("main") == 1
    assert {"src", "href", "srcset"}.isdisjoint(name for name, _ in page.attributes)
    assert ("name", "viewport") in page.attributes
    assert "url(" not in render_html(make_plan())
    assert "http" not in "".join(
        value or "" for name, value in page.attributes if name != "http-equiv"
    )
    # For readers that hear the page: row and column heads, and a name for every scrolling region.
    assert page.attributes.count(("scope", "row")) >= len(make_plan().layers)
    assert page.tags.count("caption") == page.tags.count("table")


HOSTILE = '<script>alert("x")</script>|`*\n# x [red]\x1b[31m'


def test_html_escapes_names_of_the_model() -> None:
    plan = make_plan(layers=make_layers(HOSTILE), baselines=(), pareto=(), notes=(HOSTILE,))
    text = render_html(plan)
    page = Checker(text)
    assert page.tags.count("script") == 1
    assert "<script>alert" not in text
    assert HOSTILE in page.text


def test_markdown_keeps_names_of_the_model_in_their_cell() -> None:
    text = render_markdown(make_plan(layers=make_layers(HOSTILE), baselines=(), pareto=()))
    row = next(line for line in text.splitlines() if "conv2d" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 13
    assert "<script>" not in re.sub(r"\\.", "", text)
    assert not any(line.startswith("# x") for line in text.splitlines())


def test_terminal_shows_names_of_the_model_as_they_are() -> None:
    text = report_text(make_plan(layers=make_layers(HOSTILE), baselines=(), pareto=()), width=400)
    assert "\x1b" not in text
    assert "[red]" in text
    assert "\\x1b" in text


def test_json_report() -> None:
    document = json.loads(render_json(make_plan()))
    assert document["schema"] == 3
    assert document["comparison"][0]["metrics"]["divergence"] == {
        "value": 0.00187,
        "origin": "measured",
        "how": "simulation, 128 held-out samples",
    }
    assert document["layers"][2]["kept_float"] is True
    assert document["model_gap"] == 0.0031


@pytest.mark.parametrize(
    ("suffix", "start"), [(".html", "<!doctype html>"), (".md", "# Plan for"), (".json", "{\n")]
)
def test_write_report_by_suffix(tmp_path: Path, suffix: str, start: str) -> None:
    path = make_plan().report(tmp_path / "new" / f"report{suffix}")
    assert path.read_text(encoding="utf-8").startswith(start)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["report.xml", "report", "report.pdf"])
def test_unknown_suffix_lists_the_possible_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.html, \.md, \.json"):
        make_plan().report(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_report(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        make_plan().report(tmp_path / "file" / "report.md")


def test_notebook_form_is_the_html_report() -> None:
    plan = make_plan()
    assert getattr(plan, "_repr_html_")() == render_html(plan)  # noqa: B009 - notebooks call it


def test_sections_without_content_are_left_out() -> None:
    plan = make_plan(tensors=(), pareto=(), notes=(), budget="none", layers=(), baselines=())
    titles = [section.title for section in lay_out(report_data(plan)).sections]
    assert titles == [
        "Comparison",
        "Predicted and measured",
        "Where the time goes",
        "Where the memory goes",
        "Where the energy goes",
        "Kept in floating point",
        "What the device computes in",
        "How good the search was",
        "Provenance",
    ]
    Checker(render_html(dataclasses.replace(plan, trials=(), predicted=Metrics())))


def test_memory_and_energy_are_told_by_their_parts() -> None:
    text = render_markdown(make_plan())
    for row in (
        "Weights | ≈ 140 kB | ≈ 85.6 %",
        "Activations | ≈ 19.5 kB | ≈ 11.9 %",
        "Working memory | ≈ 4 kB | ≈ 2.45 %",
        "Arithmetic | ≈ 300 µJ | ≈ 75 %",
        "Memory traffic | ≈ 100 µJ | ≈ 25 %",
    ):
        assert row in text
    assert "data take ≈ 20 MB on top" in text
    assert "Keys and values" not in text  # it keeps none
    unknown = dataclasses.replace(make_plan().memory_parts, runtime_bytes=None)
    text = render_markdown(make_plan(memory_parts=unknown, energy_parts=None))
    assert "take on top is not known" in text
    assert "Where the energy goes" not in text


def test_diff_of_equal_plans_is_empty() -> None:
    assert make_plan().diff(make_plan()) == ""


def test_diff_has_a_line_per_layer_or_number() -> None:
    plan = make_plan()
    conv, _, head = plan.layers
    other = make_plan(
        target="m2",
        layers=(dataclasses.replace(conv, scheme="w8", size_bytes=210), head),
        predicted=dataclasses.replace(plan.predicted, size_bytes=modelled(138449)),
        measured=dataclasses.replace(plan.measured, metric=measured(0.97)),
        pins={"classifier.3": "fp16"},
        notes=(),
    )
    assert plan.diff(other).splitlines() == [
        "target: intel-vnni -> m2",
        "layers[features.0]: scheme w8a8 -> w8, size_bytes 208 -> 210",
        "layers[classifier.1]: only in the first (w4-g32/mse)",
        "predicted.size_bytes: 138448 (modelled, roofline) -> 138449 (modelled, roofline)",
        "measured.metric: 0.9861 ᵐ -> 0.97 ᵐ",
        "notes[0]: only in the first (The output was taken for logits.)",
        "pins[classifier.3]: fp32 -> fp16",
    ]


def test_diff_sees_the_baselines_and_the_provenance() -> None:
    plan = make_plan()
    provenance = dataclasses.replace(plan.provenance, seed=7, versions={"torch": "2.14.0"})
    baselines = (dataclasses.replace(plan.baselines[0], fits=True, note=""), plan.baselines[1])
    assert plan.diff(make_plan(provenance=provenance, baselines=baselines)).splitlines() == [
        "baselines[fp32]: fits False -> True, note 830 kB is over the size budget of 150 kB -> ''",
        "provenance.seed: 0 -> 7",
        "provenance.versions[quantadvisor]: only in the first (0.1.0)",
        "provenance.versions[torch]: 2.13.0 -> 2.14.0",
    ]
