"""ONNX Runtime keeps the contract that every target must keep."""

from __future__ import annotations

from advisor.testing import TargetContract


class TestOnnxRuntime(TargetContract):
    runtime = "onnxruntime"
    profile = "intel-vnni"
