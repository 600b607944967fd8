"""What every test may rely on: nothing outside the test's own folders is touched or reached."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# Set at import, before any library reads them: models and data come from installed packages only.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Timing never decides a test, and a failure must come back on the next run.
settings.register_profile("advisor", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("advisor")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the test session's own, for subprocesses too."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ADVISOR_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def modelled_costs() -> None:
    """Plans of the tests do not depend on how fast this machine is; subprocesses' neither."""
    os.environ["ADVISOR_MEASURE"] = "never"


@pytest.fixture
def brief_rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Rates of this machine are one short look at each kernel, kept in a cache of the test's own.

    Gives the folder that has the cache.
    """
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("advisor.profiles.rates.PASSES", 1)
    monkeypatch.setattr("advisor.targets.onnxruntime.rates.BUDGET_S", 0.01)
    monkeypatch.setattr("advisor.targets.onnxruntime.rates.LEAST_RUNS", 1)
    monkeypatch.setattr("advisor.measure.rates.LIMIT_S", 0.01)
    monkeypatch.setenv("ADVISOR_CACHE", str(tmp_path / "cache"))
    return tmp_path
