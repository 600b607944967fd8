"""The float model as PyTorch's own exporter writes it: what the peers quantize."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.measure import calibration_feeds
from benchmarks.models import Case
from benchmarks.peers import save_feeds

FEEDS: Final = "calibration.npz"
_CHATTY: Final = "torch.onnx._internal.exporter._registration"


def export_float(case: Case, path: Path) -> Path:
    """Write the model at the deployment's fixed shapes, which suits ONNX Runtime best.

    ``calibration.npz`` is written beside it: the calibration data, cut to the deployment's batch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger(_CHATTY).setLevel(logging.ERROR)  # it would report that torchvision is absent
    exporter: Any = torch.onnx  # the types of its parameters are incomplete
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = exporter.export(
            case.model,
            (),
            kwargs=dict(case.example),
            input_names=list(case.example),
            dynamo=True,
            verbose=False,
        )
    program.save(str(path), external_data=False)
    save_feeds(calibration_feeds(case), path.parent / FEEDS)
    return path
