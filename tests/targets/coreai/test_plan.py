"""Core AI for a profile whose own runtime is Core ML."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from advisor import Artifact, advise
from advisor.errors import UsageError
from tests.targets.models import Chain, draw, seeded


def test_plan_compile_and_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = seeded(Chain(1))
    plan = advise(
        model,
        target="m2",
        runtime="coreai",
        calibration=[draw(8, 64), draw(8, 64, seed=1)],
        schemes=["w8", "w4-g32"],
        pin={"layers.0": "w4-g32"},
        trials=1,
        cache=False,
    )
    assert plan.runtime == "coreai"
    assert any(note.startswith("Core AI (experimental): Core AI is a beta") for note in plan.notes)
    with pytest.raises(UsageError, match="advise"):
        plan.compile(tmp_path / "other", runtime="coreml")
    plan.compile(tmp_path / "m2")
    artifact: Any = Artifact.load(tmp_path / "m2")
    assert artifact.verify().ok
    acceptance = (tmp_path / "m2" / "acceptance.json").read_text()
    assert '"experimental": "Core AI is a beta' in acceptance
    assert '"coreai-core": "1.0.0b3"' in acceptance
    x = draw(5, 64, seed=2)
    with torch.no_grad():
        expected = plan.apply()(x)

    async def inside_a_loop() -> Any:  # as in a notebook
        return artifact.run(x)

    torch.testing.assert_close(asyncio.run(inside_a_loop()), expected, rtol=1e-5, atol=1e-6)
    written = capfd.readouterr()
    assert written.out == ""
    assert "ODIE" not in written.err
