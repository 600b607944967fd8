"""TFLite keeps the contract that every target must keep."""

from __future__ import annotations

from advisor.testing import TargetContract


class TestTflite(TargetContract):
    runtime = "tflite"
    profile = "arm-neon"
