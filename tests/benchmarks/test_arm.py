"""The committed results on emulated ARM cores, their page, and the plugin that counts."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.arm import compare, machine, models, summarise

DOCUMENT = json.loads(compare.RESULTS.read_text(encoding="utf-8"))


def test_the_page_is_what_the_results_say() -> None:
    assert summarise.README.read_text(encoding="utf-8") == summarise.page(DOCUMENT)


def test_every_model_ran_with_every_plan_on_every_core() -> None:
    found = {(row["model"], row["plan"], row["core"]) for row in DOCUMENT["rows"]}
    plans = (*compare.UNIFORM, compare.MIXED)
    assert found == {(m, p, c) for m in models.MODELS for p in plans for c in machine.CORES}


def test_static_int8_is_the_same_on_arm() -> None:
    whole = [row for row in DOCUMENT["rows"] if row["integer_ends"] and row["plan"] == "w8a8"]
    assert {row["model"] for row in whole} >= {"digits_cnn", "digits_mobilenet"}
    assert all(row["identical"] and row["difference"] == 0 for row in whole)


def test_dot_products_run_where_the_core_has_them() -> None:
    for row in DOCUMENT["rows"]:
        if row["core"] == "cortex-a57":
            assert row["dot_products"] == 0
        elif row["plan"] in ("w8a8", "w8a8-dynamic"):
            assert row["dot_products"] > 0


WORDS = {
    0x4E829420: True,  # sdot v0.4s, v1.16b, v2.16b
    0x6E829420: True,  # udot v0.4s, v1.16b, v2.16b
    0x0E829420: True,  # sdot v0.2s, v1.8b, v2.8b
    0x4F82E020: True,  # sdot v0.4s, v1.16b, v2.4b[0]
    0x6FA2E820: True,  # udot v0.4s, v1.16b, v2.4b[3]
    0x4E22CC20: False,  # fmla v0.4s, v1.4s, v2.4s
    0x0E22C020: False,  # smull v0.8h, v1.8b, v2.8b
    0x4E228420: False,  # add v0.16b, v1.16b, v2.16b
    0xD65F03C0: False,  # ret
}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_plugin_knows_dot_products(tmp_path: Path) -> None:
    source = (Path(machine.__file__).parent / "count.c").read_text(encoding="utf-8")
    stubs = "int known(unsigned word) { return is_dot_product(word); }\n"
    (tmp_path / "count.c").write_text(source + stubs, encoding="utf-8")
    library = tmp_path / "count.so"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(tmp_path / "count.c")], check=True)
    # What QEMU itself provides stays open: nothing here calls it.
    loaded = ctypes.CDLL(str(library), mode=1)  # RTLD_LAZY
    for word, expected in WORDS.items():
        assert bool(loaded.known(ctypes.c_uint32(word))) is expected, hex(word)


def test_packages_of_libraries_have_debians_names() -> None:
    assert machine._package_of("libcapstone.so.4") == "libcapstone4"
    assert machine._package_of("libglib-2.0.so.0") == "libglib2.0-0"
