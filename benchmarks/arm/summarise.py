"""Write README.md from results.json.

python -m benchmarks.arm.summarise
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from benchmarks.arm.compare import MIXED, RESULTS, UNIFORM
from benchmarks.arm.machine import CORES

README: Final = Path(__file__).parent / "README.md"

Rows = list[dict[str, Any]]

HEAD: Final = """# TFLite files on emulated ARM cores

This page is written by `summarise.py` from `results.json`. It answers two questions without a
phone: do our files compute the same on ARM, and which plan takes the fewest instructions there?

## Set-up

```sh
pip install "quantadvisor[tflite,examples,hf]"
python -m benchmarks.arm.compare           # makes the machine in build/arm (350 MB), then all
python -m benchmarks.arm.compare encoder   # one model
python -m benchmarks.arm.summarise
```

It needs Debian 12 or one of its kin on x86-64, with Python 3.11, gcc, and configured apt and pip;
nothing is installed. `machine.py` puts into one folder:

- `qemu-user` of Debian, by `apt-get download` and `dpkg -x`, with the libraries that it lacks. It
  must be the dynamically linked one: `qemu-user-static` loads no plugins.
- a guest: Debian's arm64 Python and its libraries, by an apt with lists of its own
  (`APT::Architecture=arm64`).
- aarch64 wheels of `ai-edge-litert` and what it imports, by `pip download --platform`, in the
  versions installed here.
- `/proc/cpuinfo` and `/sys/devices/system/cpu` of the emulated core, below the guest's root:
  LiteRT's libraries read what the core can do there, and crash without it.
- `count.so`, the plugin in `count.c`, made by gcc. It counts the guest's instructions between two
  calls of `getsid`, which `guest.py` makes around every run, so that starting Python counts for
  nothing.

The cores are `cortex-a57` (no dot product) and `cortex-a76` (SDOT and UDOT). `-cpu max` is not
used: int8 results were wrong with it.

## What it says, and what not

Instructions are no time: nothing here knows of caches, of memory, or that an SDOT takes as long
as a load. Ratios of plans of one model on one core are a hint at their order, and the kernels
that XNNPACK chose are the real ones: that SDOTs are counted shows that they ran.

{checked}

## Instructions

Millions for one run of one sample with one thread (a second run of the whole differed by less than
0.01 %), and float32's over the plan's: 2.00 is half
the instructions.

{table}

Each plan's layers by scheme, and the bytes of its file:

{plans}

Measured with {versions}.
"""


def main() -> None:
    """Write the page."""
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    README.write_text(page(document), encoding="utf-8")


def page(document: dict[str, Any]) -> str:
    """The page as Markdown."""
    rows: Rows = document["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return HEAD.format(
        checked=_checked(rows), table=_table(rows), plans=_plans(rows), versions=versions
    )


def _checked(rows: Rows) -> str:
    static = [row for row in rows if set(row["schemes"]) == {"w8a8"} and row["integer_ends"]]
    same = sum(row["identical"] for row in static)
    lines = [
        f"Of {len(static)} runs of files that are int8 from end to end, {same} gave the same "
        "integers as on x86, every one of them.",
        "",
        "| model | plan | largest difference from x86, of floats |",
        "|---|---|---|",
    ]
    others = [row for row in rows if row not in static]
    for model, plan in dict.fromkeys((row["model"], row["plan"]) for row in others):
        worst = max(r["difference"] for r in others if (r["model"], r["plan"]) == (model, plan))
        lines.append(f"| {model} | {plan} | {worst:.2g} |")
    return "\n".join(lines)


def _table(rows: Rows) -> str:
    cores = list(CORES)
    lines = [
        f"| model | plan | {' | '.join(f'{core} | ratio' for core in cores)} | SDOT, UDOT |",
        "|---|---|" + "---:|---:|" * len(cores) + "---:|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        by_plan = {(r["plan"], r["core"]): r for r in rows if r["model"] == model}
        for plan in (*UNIFORM, MIXED):
            cells: list[str] = []
            for core in cores:
                count = by_plan[plan, core]["instructions"]
                ratio = by_plan["fp32", core]["instructions"] / count
                cells += [f"{count / 1e6:.2f}", f"{ratio:.2f}"]
            dots = by_plan[plan, cores[-1]]["dot_products"] / 1e6
            lines.append(f"| {model} | {plan} | {' | '.join(cells)} | {dots:.2f} |")
    return "\n".join(lines)


def _plans(rows: Rows) -> str:
    lines = ["| model | plan | layers | bytes |", "|---|---|---|---:|"]
    for row in rows:
        if row["core"] == next(iter(CORES)):
            layers = ", ".join(f"{count} {scheme}" for scheme, count in row["schemes"].items())
            lines.append(f"| {row['model']} | {row['plan']} | {layers} | {row['file_bytes']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
