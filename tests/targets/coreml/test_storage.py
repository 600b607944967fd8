"""``storage_bits`` against the weight file of a written package."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from advisor.formats import scheme_named, storage_bits
from advisor.targets.capability import load_capability
from advisor.targets.coreml import TARGET
from tests.targets.making import Quantizer
from tests.targets.models import draw, mark_slow, seeded

CAPABILITY = load_capability("coreml")
SHAPE = (768, 1024)


@pytest.mark.parametrize(
    "scheme",
    mark_slow(CAPABILITY.schemes, fast={"w8", "w4-g32", "lut3"}),
)
def test_bytes_on_disk(scheme: str, make_quantized: Quantizer, tmp_path: Path) -> None:
    model = seeded(nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0])))
    TARGET.emit(make_quantized(model, (draw(2, SHAPE[1]),), scheme), tmp_path)
    (weights,) = tmp_path.rglob("weight.bin")
    fmt = scheme_named(scheme).weight
    scales = CAPABILITY.scale_dtype_of(scheme_named(scheme))
    expected = storage_bits(SHAPE, fmt, scale_dtype=scales) // 8
    bias = SHAPE[0] * (4 if scheme == "fp32" else 2)
    assert weights.stat().st_size - bias == pytest.approx(expected, rel=0.005)
