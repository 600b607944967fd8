"""The conformance suite that every target has to pass."""

from advisor.testing import TargetContract


class TestCoreml(TargetContract):
    runtime = "coreml"
    profile = "m2"
