"""Pictures in, labels out: what the package says, what it computes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from advisor import advise
from advisor.cli import app
from advisor.demo import digits
from advisor.errors import InputError, UnsupportedError, UsageError
from advisor.passes.graph import QuantizedGraph
from advisor.plan import Plan
from advisor.targets.coreml import TARGET, CoremlOptions, ondevice
from advisor.targets.coreml.artifact import CoremlArtifact
from advisor.targets.coreml.runtime import picture_of
from tests.targets.making import Quantizer
from tests.targets.models import Chain, Mixed, draw, seeded

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SCALE, BIAS = (1 / 58, 1 / 57, 0.0175), (-2.1, -2.0, -1.8)


class Colors(nn.Module):
    """(B, 3, 8, 12) to probabilities (B, 4) that depend on the order of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(functional.relu(self.stem(x)).mean(dim=(2, 3)))
        return scores.softmax(dim=-1)


def pixels(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def scaled(images: Tensor) -> Tensor:
    """By the definition: pixel * scale + bias of its channel."""
    scale, bias = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (SCALE, BIAS))
    return images.float() * scale + bias


def label_file(folder: Path, *labels: str) -> str:
    path = folder / "labels.txt"
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def digit_reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, CoremlArtifact]:
    """The trained digits network, through the command line; its inputs are ink in [0, 1]."""
    folder = tmp_path_factory.mktemp("digits")
    model, example, batches = digits.build()
    plan = advise(
        model,
        target="m2",
        inputs=example,
        calibration=batches[:2],
        schemes=["w8"],
        pin={"*": "w8"},
        trials=1,
        cache=False,
    )
    plan.save(folder / "plan")
    options = ("image=x", "image_scale=1/255", "compute=float32")
    labels = f"labels={label_file(folder, *NAMES)}"
    command = ["compile", str(folder / "plan"), "-o", str(folder / "made")]
    command += ["--model", "advisor.demo.digits:build"]
    for option in (*options, labels):
        command += ["--option", option]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "no probabilities" in result.output  # the network ends in logits
    return plan, CoremlArtifact.load(folder / "made")


@pytest.fixture(scope="module")
def colors(
    make_quantized: Quantizer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, CoremlArtifact]:
    """A plan of integer activations whose package computes in float16 and takes blue first."""
    folder = tmp_path_factory.mktemp("colors")
    graph = make_quantized(seeded(Colors()), (scaled(pixels(4, 3, 8, 12)),), "w8a8", batch=1)
    options = CoremlOptions(
        image="x",
        image_color="BGR",
        image_scale=",".join(map(repr, SCALE)),
        image_bias=",".join(map(repr, BIAS)),
        labels=label_file(folder, "a", "b", "c", "d"),
    )
    out = folder / "made"
    out.mkdir()
    return graph, TARGET.with_options(options).emit(graph, out)


def test_digits_are_read_from_gray_pixels(digit_reader: tuple[Plan, CoremlArtifact]) -> None:
    plan, artifact = digit_reader
    images = digits.data()
    shown = (images.test[:40] * 255).round().to(torch.uint8)
    with torch.no_grad():
        expected = plan.apply()(shown.float() / 255)
    torch.testing.assert_close(artifact.run(shown), expected, rtol=0, atol=1e-4)
    # The model's own numbers are the same pictures as far as eight bits go.
    assert torch.equal(artifact.run(shown[:3].float() / 255), artifact.run(shown[:3]))
    found = artifact.classify(shown)
    assert [each.label for each in found] == [NAMES[int(row.argmax())] for row in expected]
    assert list(found[0].scores) == list(NAMES)
    assert list(found[0].scores.values()) == pytest.approx(expected[0].tolist(), abs=1e-4)
    right = [NAMES[int(label)] for label in images.test_labels[:40]]
    assert sum(a.label == b for a, b in zip(found, right, strict=True)) >= 37


def test_the_package_says_what_it_takes_and_gives(
    digit_reader: tuple[Plan, CoremlArtifact], colors: tuple[Any, CoremlArtifact]
) -> None:
    import coremltools

    for artifact, color, size, count in (
        (digit_reader[1], "GRAYSCALE", (8, 8), 10),
        (colors[1], "BGR", (12, 8), 4),
    ):
        path = str(artifact.path / "model.mlpackage")
        spec = coremltools.models.MLModel(path, skip_model_load=True).get_spec()
        (given,) = spec.description.input
        held = given.type.imageType
        assert held.ColorSpace.Name(held.colorSpace) == color
        assert (held.width, held.height) == size
        kinds = {each.name: each.type.WhichOneof("Type") for each in spec.description.output}
        assert kinds == {"classLabel": "stringType", "classLabel_probs": "dictionaryType"}
        main = spec.mlProgram.functions["main"]
        (block,) = main.block_specializations.values()
        (last,) = [op for op in block.operations if op.type == "classify"]
        classes = last.inputs["classes"].arguments[0].value.immediateValue.list.values
        assert len(classes) == count


def test_colors_have_numbers_of_their_own(colors: tuple[Any, CoremlArtifact]) -> None:
    graph, artifact = colors
    verification = artifact.verify()
    assert verification.ok, verification.mismatches
    assert not verification.notes  # calibrated on pictures, and the scores are probabilities
    images = pixels(5, 3, 8, 12)
    with torch.no_grad():
        expected = graph.module(scaled(images))
        swapped = graph.module(scaled(images.flip(1)))
    torch.testing.assert_close(artifact.run(images), expected, rtol=0, atol=2e-3)
    assert float((swapped - expected).abs().max()) > 0.004  # so the order was seen
    found = artifact.classify(x=images)
    assert [each.label for each in found] == ["abcd"[int(row.argmax())] for row in expected]
    assert sum(found[0].scores.values()) == pytest.approx(1, abs=2e-3)
    assert "agree" in artifact.debug(images)
    with pytest.raises(InputError, match="would be"):
        artifact.run(scaled(images) + 1)
    with pytest.raises(InputError, match="uint8"):
        artifact.run(images[:, :2])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"images": {"x": {"color": "RGB", "scale": SCALE, "bias": BIAS}}}, "picture BGR"),
        ({"images": {"x": {"color": "BGR", "scale": (0.1,) * 3, "bias": BIAS}}}, "scale"),
        ({"images": {"x": {"color": "BGR", "scale": SCALE, "bias": (0.5,) * 3}}}, "bias"),
        ({"images": {}}, "picture"),
        ({"labels": ["a", "b", "d", "c"]}, "'a', 'b', 'c', 'd'"),
        ({"labels": []}, "classLabel"),
    ],
)
def test_a_package_that_is_not_what_was_asked_for_is_found(
    change: dict[str, Any], says: str, colors: tuple[Any, CoremlArtifact]
) -> None:
    """What was asked is altered rather than the package, which comes to the same."""
    path = colors[1].path / "coreml.json"
    kept = path.read_text()
    path.write_text(json.dumps({**json.loads(kept), **change}))
    try:
        mismatches = CoremlArtifact.load(colors[1].path).compare_ports()
    finally:
        path.write_text(kept)
    assert len(mismatches) == 1
    assert says in mismatches[0].found
    assert mismatches[0].expected != mismatches[0].found


def test_benchmark_and_core_ml_get_pictures(colors: tuple[Any, CoremlArtifact]) -> None:
    fed = ondevice.make_inputs(colors[1].path / "model.mlpackage")
    assert (fed["x"].mode, fed["x"].size) == ("RGB", (12, 8))
    images = pixels(1, 3, 8, 12)
    for color, channels in (("RGB", images), ("BGR", images.flip(1))):
        shown = np.asarray(picture_of(images.numpy(), color))
        assert np.array_equal(shown, channels[0].permute(1, 2, 0).numpy())
    gray = np.asarray(picture_of(images[:, :1].numpy(), "GRAYSCALE"))
    assert np.array_equal(gray, images[0, 0].numpy())


@pytest.fixture(scope="module")
def mixed(make_quantized: Quantizer) -> QuantizedGraph:
    return make_quantized(seeded(Mixed()), (draw(2, 3, 16, 16),), "fp32", batch=1)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"image": "y"}, UsageError, "image='y': no such input; inputs: x"),
        ({"image_scale": "2"}, UsageError, "image_scale needs to know the picture"),
        ({"image": "x", "image_color": "GRAYSCALE"}, UsageError, "possible: RGB, BGR"),
        ({"image": "x", "image_bias": "1,2"}, UsageError, "2 numbers for 3 channel"),
        ({"labels": "nowhere.txt"}, UsageError, "nowhere.txt: cannot be read"),
        ({"labels": ("a", "b")}, UsageError, "2 labels for 5 classes"),
        ({"labels": ("a", "b", "", "c", "d")}, UsageError, "line 3 is empty"),
        ({"labels": ("a", "b", "a", "c", "d")}, UsageError, "lines 1 and 3 are both 'a'"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(
    options: dict[str, Any],
    error: type[Exception],
    says: str,
    mixed: QuantizedGraph,
    tmp_path: Path,
) -> None:
    given = dict(options)
    if isinstance(given.get("labels"), tuple):
        given["labels"] = label_file(tmp_path, *given["labels"])
    out = tmp_path / "made"
    out.mkdir()
    with pytest.raises(error, match=says):
        TARGET.with_options(CoremlOptions(**given)).emit(mixed, out)
    assert not any(out.iterdir())


def test_what_is_no_picture_or_classifier_is_refused(
    mixed: QuantizedGraph, make_quantized: Quantizer, tmp_path: Path
) -> None:
    rows = make_quantized(seeded(Chain(1)), (draw(2, 64),), "fp32", batch=1)
    with pytest.raises(UnsupportedError, match=r"float32 \[batch, 64\]; a picture is"):
        TARGET.with_options(CoremlOptions(image="x")).emit(rows, tmp_path)
    many = replace(mixed, batch=2)
    with pytest.raises(UnsupportedError, match="one picture per call"):
        TARGET.with_options(CoremlOptions(image="x")).emit(many, tmp_path)
    labels = label_file(tmp_path, *"abcde")
    with pytest.raises(UnsupportedError, match="names the class of one row"):
        TARGET.with_options(CoremlOptions(labels=labels)).emit(many, tmp_path)
    maps = make_quantized(nn.Sequential(nn.Conv2d(3, 5, 1)), (draw(2, 3, 4, 4),), "fp32", batch=1)
    with pytest.raises(UnsupportedError, match="a classifier gives one tensor"):
        TARGET.with_options(CoremlOptions(labels=labels)).emit(maps, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.txt"]
