"""The repository keeps the promises of docs/adr/0001-one-import-name.md and of CONTRIBUTING.md."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

MAPPED = ("passes", "targets", "profiles")
MAX_LINES = 400


@pytest.fixture(scope="module")
def setuptools_config(root: Path) -> dict[str, Any]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    config: dict[str, Any] = project["tool"]["setuptools"]
    return config


def python_files(root: Path) -> list[Path]:
    """Every module of the product, each once: links are not followed."""
    return [
        Path(folder) / name
        for top in ("advisor", *MAPPED)
        for folder, _, names in os.walk(root / top)
        for name in names
        if name.endswith(".py")
    ]


def package_of(folder: Path, root: Path) -> str:
    parts = folder.relative_to(root).parts
    return ".".join(parts if parts[0] == "advisor" else ("advisor", *parts))


def test_every_folder_with_python_files_is_a_listed_package(
    root: Path, setuptools_config: dict[str, Any]
) -> None:
    folders = {path.parent for path in python_files(root)}
    assert {package_of(folder, root) for folder in folders} == set(setuptools_config["packages"])


def test_every_package_has_an_init(root: Path) -> None:
    folders = {path.parent for path in python_files(root)}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_data_file_matches_package_data(
    root: Path, setuptools_config: dict[str, Any]
) -> None:
    declared: dict[str, list[str]] = setuptools_config["package-data"]
    stray = [
        str(path.relative_to(root))
        for folder in {path.parent for path in python_files(root)}
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in {".py", ".pyc"}
        if not any(path.match(glob) for glob in declared.get(package_of(folder, root), []))
    ]
    assert stray == [], "a file that no package-data pattern names is not in the wheel"


@pytest.mark.parametrize("name", MAPPED)
def test_link_and_mapping_name_the_same_folder(
    root: Path, setuptools_config: dict[str, Any], name: str
) -> None:
    link = root / "advisor" / name
    # Without symlinks git checks a link out as a text file that holds the path.
    target = link.readlink().as_posix() if link.is_symlink() else link.read_text(encoding="utf-8")
    assert target == f"../{name}"
    assert setuptools_config["package-dir"][f"advisor.{name}"] == name


@pytest.mark.parametrize("name", MAPPED)
def test_import_by_folder_name_is_refused(root: Path, name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert f"ImportError: import advisor.{name}, not the folder {name}/" in result.stderr


def test_no_module_is_longer_than_the_limit(root: Path) -> None:
    lengths = {
        str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files(root)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
