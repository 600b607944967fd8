"""What architectures brought up: large kernels, results that no input changes, tiny numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advisor.api import advise
from advisor.targets.agreement import compare_floats


class Kernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Conv2d(32, 32, 5, padding=2)
        self.large = nn.Conv2d(32, 32, 7, padding=3, groups=32)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.large(torch.relu(self.small(x))))


def test_float8_is_not_planned_for_large_kernels() -> None:
    made = advise(
        Kernels().eval(), target="l4", inputs=torch.randn(2, 32, 8, 8), trials=1, cache=False
    )
    small, large = ({o.scheme: o.reason for o in layer.options} for layer in made.layers)
    assert not small["fp8"]
    assert "kernels of up to 25 positions, and this one has 49" in large["fp8"]
    assert not large["w8a8"]


class Decoder(nn.Module):
    """The values of its first layer come from zeros, as in DETR."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.head = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.value(torch.zeros_like(x)) + x)
        return result


def test_what_no_input_changes_may_be_computed_by_the_compiler(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    torch.manual_seed(0)
    plan = advise(
        Decoder().eval(),
        target="l4",
        calibration=[torch.randn(4, 32) for _ in range(2)],
        pin={"value": "fp16", "head": "fp16"},
        trials=1,
        cache=False,
    )
    artifact = plan.compile(tmp_path)
    assert artifact.verify().ok
    read = json.loads((tmp_path / "acceptance.json").read_text())
    kernels = {row["name"]: row["kernel"] for row in read["layers"]}
    assert kernels["head"] == "float16 weight, float16 input"
    assert kernels.get("value", "none: ").startswith("none: ")


def test_numbers_too_small_for_a_dtype_are_no_mismatch() -> None:
    expected = np.array([1e-7, -4e-8], np.float32)
    found = expected.astype(np.float16).astype(np.float32)
    assert compare_floats("layer", found, expected, 2e-3).problem
    assert not compare_floats("layer", found, expected, 2e-3, floor=2.0**-23).problem
    assert compare_floats("layer", found + 1e-5, expected, 2e-3, floor=2.0**-23).problem
