"""The conformance suite that every target has to pass."""

from advisor.testing import TargetContract


class TestCoreai(TargetContract):
    runtime = "coreai"
    profile = "m2"

    def schemes(self) -> list[str]:
        """One of them: test_schemes has them all."""
        return ["w8a8"]
