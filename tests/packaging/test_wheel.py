"""What a user installs: the wheel and the editable install, each in an environment of its own."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

MAPPED = ("passes", "targets", "profiles")
NOT_SOURCE = shutil.ignore_patterns(
    *(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
)


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Output of ``command``, without any PYTHONPATH but the one given."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command,
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, so that builds leave nothing behind in the real one."""
    copy = tmp_path_factory.mktemp("source") / "quantadvisor"
    shutil.copytree(root, copy, symlinks=True, ignore=NOT_SOURCE)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the source distribution, which checks that one too."""
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source], cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """The interpreter of an empty virtual environment."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    return tmp_path / "venv" / "bin" / "python"


def pip_install(python: Path, *what: str | Path, **environment: str) -> None:
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install"]
    run([*pip, "--quiet", "--no-deps", "--no-build-isolation", *what], python.parent, **environment)


def imported_from(python: Path, cwd: Path) -> list[Path]:
    """Where the four parts of the package come from, seen from the folder ``cwd``."""
    names = ["advisor", *(f"advisor.{name}" for name in MAPPED), "advisor.passes.graph"]
    code = f"import {', '.join(names)}\nfor m in ({', '.join(names)},): print(m.__file__)"
    return [Path(line) for line in run([python, "-c", code], cwd).splitlines()]


def metadata_file(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (each for each in archive.namelist() if each.endswith(f".dist-info/{name}"))
        return archive.read(member)


def test_wheel_holds_every_file_of_the_product_and_nothing_else(source: Path, wheel: Path) -> None:
    expected = {
        "/".join((*prefix, *path.relative_to(source).parts))
        for top, prefix in (("advisor", ()), *((name, ("advisor",)) for name in MAPPED))
        for folder, _, names in os.walk(source / top)
        for path in (Path(folder) / name for name in names if not name.endswith(".pyc"))
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {"advisor/py.typed", "advisor/passes/graph.py"} <= names
    assert any(name.endswith(".toml") for name in names)
    assert any(name.endswith(".safetensors") for name in names)


def test_wheel_owns_one_top_level_name(wheel: Path) -> None:
    assert metadata_file(wheel, "top_level.txt").split() == [b"advisor"]
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"advisor"}


def test_metadata_says_what_pyproject_says(wheel: Path) -> None:
    metadata: Message = message_from_bytes(metadata_file(wheel, "METADATA"))
    assert metadata["Name"] == "quantadvisor"
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = {"onnxruntime", "tflite", "coreml", "coreai", "tensorrt", "hf", "dev"}
    assert extras <= set(metadata.get_all("Provides-Extra", []))


def test_entry_points(wheel: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(metadata_file(wheel, "entry_points.txt").decode())
    assert parser["console_scripts"]["advisor"] == "advisor.cli:main"
    assert parser["advisor.targets"]["onnxruntime"] == "advisor.targets.onnxruntime:TARGET"


def test_installed_wheel_imports_beside_a_users_own_targets(
    wheel: Path, environment: Path, tmp_path: Path
) -> None:
    pip_install(environment, wheel)
    for name in MAPPED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')")
    site = tmp_path / "venv" / "lib"
    assert all(path.is_relative_to(site) for path in imported_from(environment, tmp_path))


def test_editable_install_imports_from_the_checkout(
    source: Path, environment: Path, tmp_path: Path
) -> None:
    # The build backend alone is lent to the empty environment.
    backend = tmp_path / "backend"
    backend.mkdir()
    site = Path(sysconfig.get_path("purelib"))
    for part in (site / "_distutils_hack", *site.glob("setuptools*")):  # code and metadata
        (backend / part.name).symlink_to(part)
    pip_install(environment, "--editable", source, PYTHONPATH=str(backend))
    for cwd in (tmp_path, source):
        paths = imported_from(environment, cwd)
        assert all(path.resolve().is_relative_to(source) for path in paths)
    (source / "passes" / "added_later.py").write_text("HERE = True\n", encoding="utf-8")
    try:
        assert run([environment, "-c", "import advisor.passes.added_later"], tmp_path) == ""
    finally:
        (source / "passes" / "added_later.py").unlink()
