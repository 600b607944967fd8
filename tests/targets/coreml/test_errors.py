"""What cannot be done is said before it is tried, with what to change."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import pytest
from torch import nn

from advisor import advise
from advisor.errors import MissingDependencyError, PlanError, UnsupportedError, UsageError
from advisor.formats import scheme_named
from advisor.passes.capture import capture
from advisor.profiles import loader
from advisor.targets.capability import load_capability
from advisor.targets.coreml import TARGET, CoremlOptions
from advisor.targets.coreml.deployment import for_platform
from tests.targets.making import Quantizer
from tests.targets.models import Chain, Eigen, draw, seeded


def test_a_missing_package_names_the_command(
    make_quantized: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = make_quantized(seeded(Chain(1)), (draw(2, 64),), "fp32")
    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name == "coremltools" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(MissingDependencyError, match=r'pip install "quantadvisor\[coreml\]"'):
        TARGET.emit(quantized, tmp_path)


def test_an_unsupported_operator_names_its_module(
    make_quantized: Quantizer, tmp_path: Path
) -> None:
    quantized = make_quantized(seeded(Eigen()), (draw(2, 8),), "fp32")
    with pytest.raises(UnsupportedError, match=r"bessel_j0.*module 'solver'"):
        TARGET.emit(quantized, tmp_path)


def test_a_block_that_does_not_divide_is_a_reason() -> None:
    graph = capture(nn.Sequential(nn.Linear(80, 8)), (draw(2, 80),), {})
    capability = load_capability("coreml")
    (layer,) = graph.layers
    reason = capability.support(layer, scheme_named("w4-g32")).reason
    assert reason == "block 32 does not divide 80 inputs"
    reason = capability.support(layer, scheme_named("lut4-c16")).reason
    assert reason == "16 does not divide 8 outputs"


def test_a_block_that_does_not_divide_cannot_be_asked_for() -> None:
    with pytest.raises(UnsupportedError, match="block 32 does not divide 80 inputs"):
        advise(
            nn.Sequential(nn.Linear(80, 8)),
            target="m2",
            calibration=[draw(4, 80), draw(4, 80, seed=1)],
            schemes=["w4-g32"],
            pin={"0": "w4-g32"},
            trials=1,
            cache=False,
        )


@pytest.mark.parametrize(
    ("scheme", "needed", "asked"),
    [("w4", "iOS18", "iOS17"), ("w8a8", "iOS17", "iOS16"), ("w8", "iOS16", "iOS15")],
)
def test_a_target_too_old_names_what_is_needed(
    scheme: str,
    needed: str,
    asked: Literal["iOS15", "iOS16", "iOS17"],
    make_quantized: Quantizer,
    tmp_path: Path,
) -> None:
    quantized = make_quantized(seeded(Chain(1)), (draw(2, 64),), scheme)
    target = TARGET.with_options(CoremlOptions(deployment=asked))
    message = rf"{asked} .* was asked for, but layers\.0 \({scheme}\).* need {needed}"
    with pytest.raises(UnsupportedError, match=message):
        target.emit(quantized, tmp_path)
    assert not any(tmp_path.iterdir())


def test_schemes_of_newer_systems_are_not_planned_for_older_ones() -> None:
    graph = capture(nn.Sequential(nn.Linear(64, 64)), (draw(2, 64),), {})
    capability, (layer,) = load_capability("coreml"), graph.layers
    support = capability.support(layer, scheme_named("w4"), {"ios": "17", "macos": "14"})
    assert support.reason == "w4 needs iOS18, the profile has iOS17"


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ({"ios": "18", "macos": "15"}, "iOS18"),
        ({"ios": "17.4"}, "iOS17"),
        ({"macos": "13"}, "iOS16"),
        ({"ios": "18", "macos": "14"}, "iOS17"),  # one file for both
        ({"ios": "26"}, "iOS26"),
    ],
)
def test_the_profile_decides_the_deployment(platform: dict[str, str], expected: str) -> None:
    assert for_platform(platform) == expected
    assert TARGET.options_for(platform) == {"deployment": expected}


def test_compile_keeps_to_the_deployment_and_the_profile(tmp_path: Path) -> None:
    model, data = seeded(Chain(1)), [draw(8, 64), draw(8, 64, seed=1)]
    plan = advise(
        model,
        target="m2",
        calibration=data,
        schemes=["w4"],
        pin={"layers.0": "w4"},
        trials=1,
        cache=False,
    )
    artifact: Any = plan.compile(tmp_path / "m2")
    assert artifact.settings.deployment == "iOS18"  # the profile's
    assert artifact.verify().ok
    with pytest.raises(UnsupportedError, match="iOS17"):
        plan.compile(tmp_path / "old", options={"deployment": "iOS17"})
    with pytest.raises(UsageError, match="possible are"):
        plan.compile(tmp_path / "old", options={"deployment": "iOS3"})
    with pytest.raises(MissingDependencyError, match="on the device itself"):
        artifact.benchmark()


def test_a_profile_of_the_users_own_decides_the_deployment_too(tmp_path: Path) -> None:
    """The plan keeps the systems it was made for: the file need not be there any more."""
    own = tmp_path / "own.toml"
    text = (Path(loader.__file__).parent / "m2.toml").read_text()
    older = text.replace('macos = "15"\nios = "18"', 'macos = "14"\nios = "17"')
    own.write_text(older.replace('"m2"', '"own-m2"').replace('"apple-m2"', '"own-apple-m2"'))
    data = [draw(8, 64), draw(8, 64, seed=1)]
    plan = advise(
        seeded(Chain(1)), target=str(own), calibration=data, schemes=["w8"], trials=1, cache=False
    )
    own.unlink()
    artifact: Any = plan.compile(tmp_path / "build")
    assert artifact.settings.deployment == "iOS17"


def test_a_damaged_package_is_said(make_quantized: Quantizer, tmp_path: Path) -> None:
    TARGET.emit(make_quantized(seeded(Chain(1)), (draw(2, 64),), "fp32"), tmp_path)
    (spec,) = tmp_path.rglob("model.mlmodel")
    spec.unlink()
    with pytest.raises(PlanError, match="compile the plan again"):
        TARGET.load(tmp_path).read_back()
    (tmp_path / "coreml.json").write_text("[]")
    with pytest.raises(PlanError, match=r"coreml\.json cannot be read"):
        TARGET.load(tmp_path)
