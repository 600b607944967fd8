"""The conformance suite that every target passes."""

from __future__ import annotations

from typing import ClassVar

from advisor.testing import TargetContract


class TestTensorrt(TargetContract):
    runtime: ClassVar[str] = "tensorrt"
    profile: ClassVar[str] = "l4"
