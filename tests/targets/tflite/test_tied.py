"""A head that reads the table of tokens runs on integers, and the table keeps the same ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from advisor.targets.tflite.artifact import TfliteArtifact
from tests.targets.tied import VOCABULARY, WIDTH, batches, plan_of


@pytest.mark.parametrize(
    ("scheme", "alone", "row_bytes"),
    [
        ("w8a8", "w8", WIDTH + 4),
        ("w8a8-dynamic", "w8", WIDTH + 4),
        ("w4a8-dynamic", "w4", WIDTH // 2 + 4),
    ],
)
def test_head_and_table_share_integers(
    scheme: str, alone: str, row_bytes: int, tmp_path: Path
) -> None:
    plan = plan_of(scheme, target="arm-neon")
    decided = {layer.name: layer for layer in plan.layers}
    assert decided["table"].scheme == decided["head"].scheme == scheme
    assert decided["table"].size_bytes + decided["head"].size_bytes == VOCABULARY * row_bytes
    artifact = plan.compile(tmp_path / "build")  # verifies, or raises
    assert isinstance(artifact, TfliteArtifact)
    formats = artifact.read_back()
    assert (formats["table"].scheme, formats["head"].scheme) == (alone, scheme)
    assert formats["table"].weight_sha256 == formats["head"].weight_sha256
    x = batches(1)[0]
    # Static outputs are integers, a few of which round the other way in the simulation.
    apart = (artifact.run(x) - plan.apply()(x)).abs() > 1e-3
    assert float(apart.float().mean()) < 1e-3
