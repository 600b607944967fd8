"""The float model as litert-torch writes it: what the peers quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import litert_torch

from advisor.targets.packages import quiet
from benchmarks.measure import calibration_feeds
from benchmarks.models import Case
from benchmarks.peers import save_feeds

FEEDS: Final = "calibration.npz"


def export_float(case: Case, path: Path) -> Path:
    """Convert the model at the deployment's shapes; ``calibration.npz`` is written beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with quiet():
        model: Any = litert_torch.convert(case.model, sample_kwargs=dict(case.example))
        model.export(str(path))
    save_feeds(calibration_feeds(case), path.parent / FEEDS)
    return path
