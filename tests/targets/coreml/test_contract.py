"""The conformance suite that every target has to pass."""

from advisor.testing import TargetContract


class TestCoreml(TargetContract):
    runtime = "coreml"
    profile = "m2"

    def schemes(self) -> list[str]:
        """One of every kind; that every single one is written right is test_schemes.py's."""
        kinds = {"fp32", "fp16", "w8", "w4", "w4-g32", "lut4", "lut3-c16", "lut6-i8", "w8a8"}
        return [scheme for scheme in super().schemes() if scheme in kinds]
