"""Importing costs nothing: each check runs in a fresh interpreter and looks at what got loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "optuna", "scipy", "networkx", "onnx", "onnxruntime", "transformers")

# What a user's editor, `advisor --help` and the search load before any model is there.
TORCH_FREE = (
    "advisor",
    "advisor.budget",
    "advisor.cli",
    "advisor.doctor",
    "advisor.errors",
    "advisor.formats",
    "advisor.passes",
    "advisor.passes.graph",
    "advisor.plan",
    "advisor.profiles",
    "advisor.report",
    "advisor.search.problem",
    "advisor.targets",
    "advisor.targets.base",
    "advisor.targets.capability",
    "advisor.targets.onnxruntime",
)


def run(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` from the root without site packages' own start-up hooks deciding anything."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )


def loaded(root: Path, code: str, modules: tuple[str, ...]) -> list[str]:
    """Which of ``modules`` are loaded after ``code`` ran."""
    report = f"import json, sys; print(json.dumps([m for m in {modules!r} if m in sys.modules]))"
    result = run(root, f"{code}\n{report}")
    assert result.returncode == 0, result.stderr
    names: list[str] = json.loads(result.stdout.splitlines()[-1])
    return names


def test_the_check_itself_sees_a_heavy_module(root: Path) -> None:
    assert loaded(root, "import networkx", HEAVY) == ["networkx"]


def test_import_advisor_loads_nothing_heavy(root: Path) -> None:
    assert loaded(root, "import advisor", ("numpy", *HEAVY)) == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_free_module_loads_nothing_heavy(root: Path, module: str) -> None:
    assert loaded(root, f"import {module}", HEAVY) == []


def test_help_loads_nothing_heavy(root: Path) -> None:
    code = """
import sys
from advisor.cli import main
sys.argv = ["advisor", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert loaded(root, code, ("numpy", *HEAVY)) == []


def test_public_names_resolve(root: Path) -> None:
    code = "import advisor; print([n for n in advisor.__all__ if getattr(advisor, n) is None])"
    result = run(root, code)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_public_names_are_listed_before_they_are_loaded(root: Path) -> None:
    result = run(root, "import advisor; print(set(advisor.__all__) - set(dir(advisor)))")
    assert result.stdout.strip() == "set()"


def test_unknown_name_is_an_attribute_error(root: Path) -> None:
    result = run(root, "import advisor; advisor.advice")
    assert "AttributeError: module 'advisor' has no attribute 'advice'" in result.stderr


def test_library_logs_nothing_unless_asked(root: Path) -> None:
    result = run(root, "import advisor, logging; logging.getLogger('advisor.x').error('loud')")
    assert (result.stdout, result.stderr) == ("", "")
