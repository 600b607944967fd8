"""An ARM machine to run TFLite files on: an emulator, a Python and LiteRT, unpacked into a folder.

Everything comes from Debian's packages and from wheels by this machine's own configuration of apt
and pip; nothing is installed. Needs Debian or one of its kin on x86-64, apt-get, dpkg and gcc.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

EMULATOR: Final = "qemu-user"
"""The dynamically linked one: a static one loads no plugins."""

GUEST_PACKAGES: Final = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0"),
    *("liblzma5", "libssl3", "libcrypt1", "libuuid1", "libtirpc3", "libnsl2"),
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
)
WHEELS: Final = ("ai-edge-litert", "numpy", "flatbuffers", "protobuf", "backports.strenum")
"""Wheels of the guest, in the versions that are installed here."""

PLATFORMS: Final = ("manylinux_2_27_aarch64", "manylinux_2_28_aarch64", "manylinux2014_aarch64")

CORES: Final = {
    "cortex-a57": ("0xd07", "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"),
    "cortex-a76": (
        "0xd0b",
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
    ),
}
"""Part number and features by core, as Linux lists them; asimddp is the dot product."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What ``build`` made. emulator, libraries: of this machine. root: of the guest. site: its
    wheels. plugin: counts the guest's instructions."""

    emulator: Path
    libraries: Path
    root: Path
    site: Path
    plugin: Path

    def run(self, core: str, arguments: Sequence[str], *, counts: Path, timeout_s: float) -> None:
        """Run Python on an emulated core; the plugin writes its counts into a file."""
        self._describe(core)
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.libraries),
            "PYTHONPATH": str(self.site),
            "PYTHONHASHSEED": "0",
            "COUNTS": str(counts),
        }
        command = [
            *(str(self.emulator), "-cpu", core, "-plugin", str(self.plugin)),
            *("-E", "LD_LIBRARY_PATH=", "-L", str(self.root)),
            *(str(self.root / "usr/bin/python3.11"), *arguments),
        ]
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the guest failed ({done.returncode}):\n{done.stderr[-4000:]}")

    def _describe(self, core: str) -> None:
        """What the guest's libraries read to find out where they run; without it they crash."""
        part, features = CORES[core]
        lines = [
            *("processor\t: 0", f"Features\t: {features}", "CPU implementer\t: 0x41"),
            *("CPU architecture: 8", "CPU variant\t: 0x1", f"CPU part\t: {part}"),
            "CPU revision\t: 0",
        ]
        _write(self.root / "proc/cpuinfo", "\n".join(lines) + "\n\n")
        cpus = self.root / "sys/devices/system/cpu"
        for name in ("possible", "present", "online"):
            _write(cpus / name, "0\n")
        _write(cpus / "kernel_max", "0\n")


def build(folder: Path) -> Machine:
    """The machine in ``folder``, made where it is not there yet."""
    _check()
    made = Machine(
        emulator=folder / "host/usr/bin/qemu-aarch64",
        libraries=folder / f"host/usr/lib/{platform.machine()}-linux-gnu",
        root=folder / "root",
        site=folder / "site",
        plugin=folder / "count.so",
    )
    if not made.emulator.exists():
        _unpack_emulator(folder, made)
    if not (made.root / "usr/bin/python3.11").exists():
        _unpack_guest(folder, made.root)
    if not (made.site / "ai_edge_litert").exists():
        _unpack_wheels(folder, made.site)
    _call("gcc", "-O2", "-shared", "-fPIC", "-o", made.plugin, Path(__file__).parent / "count.c")
    return made


def _check() -> None:
    missing = [tool for tool in ("apt-get", "dpkg", "gcc") if shutil.which(tool) is None]
    if missing or platform.machine() != "x86_64":
        raise SystemExit(
            f"needs Debian on x86-64 with {', '.join(missing) or 'apt-get, dpkg and gcc'}"
        )


def _unpack_emulator(folder: Path, made: Machine) -> None:
    host = folder / "host"
    _fetch(folder / "debs", [EMULATOR], [])
    _unpack(folder / "debs", f"{EMULATOR}_*.deb", host)
    for _ in range(5):  # libraries of libraries
        lacking = _lacking(made)
        if not lacking:
            return
        _fetch(folder / "debs", sorted({_package_of(library) for library in lacking}), [])
        _unpack(folder / "debs", "lib*.deb", host)
    raise SystemExit(f"the emulator lacks {', '.join(_lacking(made))}; install their packages")


def _lacking(made: Machine) -> list[str]:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(made.libraries)}
    listed = subprocess.run(
        ["ldd", str(made.emulator)], env=environment, capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"(\S+) => not found", listed)


def _package_of(library: str) -> str:
    """Debian's name for the package of a shared library: libgmodule-2.0.so.0 is in libglib2.0-0."""
    known = {"libgmodule-2.0.so.0": "libglib2.0-0", "libglib-2.0.so.0": "libglib2.0-0"}
    name, _, number = library.partition(".so.")
    dash = "-" if name[-1].isdigit() else ""
    return known.get(library, f"{name}{dash}{number}")


def _unpack_guest(folder: Path, root: Path) -> None:
    state = folder / "apt"
    for part in ("state/lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = [
        *("-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"),
        *("-o", f"Dir::State={state / 'state'}", "-o", f"Dir::State::status={state / 'status'}"),
        *("-o", f"Dir::Cache={state / 'cache'}", "-o", "APT::Sandbox::User=root"),
    ]
    _call("apt-get", *options, "update")
    _fetch(folder / "debs-arm64", GUEST_PACKAGES, options)
    _unpack(folder / "debs-arm64", "*.deb", root)


def _fetch(folder: Path, packages: Sequence[str], options: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _call("apt-get", *options, "download", *packages, cwd=folder)


def _unpack(folder: Path, pattern: str, into: Path) -> None:
    for deb in sorted(folder.glob(pattern)):
        _call("dpkg", "-x", deb, into)


def _unpack_wheels(folder: Path, site: Path) -> None:
    tags = [argument for tag in PLATFORMS for argument in ("--platform", tag)]
    pinned = [f"{name}=={version(name)}" for name in WHEELS]
    _call(
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--python-version", "3.11", *tags, "-d", folder / "wheels", *pinned),
    )
    site.mkdir(exist_ok=True)
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        shutil.unpack_archive(wheel, site, "zip")


def _call(*command: object, cwd: Path | None = None) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
