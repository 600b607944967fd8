"""Compile a model with TensorRT-RTX, which needs no GPU for that, and say what for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from advisor.targets.tensorrt.build_engine import build
from advisor.targets.tensorrt.engine import Kernel, parse_kernels
from advisor.targets.tensorrt.shapes import Ranges

PACKAGE: Final = "tensorrt_rtx"
COMPILABLE: Final = ("75", "80", "86", "89", "120", "121")
"""Compute capabilities that TensorRT-RTX 1.7 has kernels for."""

PROXIES: Final = {"87": "86", "90": "89", "100": "120"}
"""What it lacks, and the one that stands for it: the nearest with the same number formats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What TensorRT-RTX refuses for a compute capability although TensorRT has it there.

    says: its error has these words. why: in a note. proxy: the capability compiled for instead.
    """

    says: str
    why: str
    proxy: str


GAPS: Final = {
    "75": Gap(
        says="FP32 GEMM is not supported",
        why="TensorRT-RTX has no products in float32 for sm75, so no kernel of sm75 was seen",
        proxy="80",
    )
}
"""By compute capability. Convolutions in float32, and products in float16, compile for sm75
(measured, TensorRT-RTX 1.7.1.116)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The outcome of a compile. by: compiler and version, "" when nothing was compiled. sm: the
    compute capability that it was compiled for. stands_for: the one that was asked for. size_bytes:
    of the engine. listed: kernels that the compiler listed; ``kernels`` are those that could be
    read. problems: what was refused. reason: why nothing was compiled, or why not for what was
    asked although there are kernels for it."""

    by: str = ""
    sm: str = ""
    stands_for: str = ""
    size_bytes: int = 0
    listed: int = 0
    kernels: tuple[Kernel, ...] = ()
    problems: tuple[str, ...] = ()
    reason: str = ""

    @property
    def note(self) -> str:
        """One line of what was done."""
        if not self.by:
            return f"not compiled: {self.reason}"
        proxy = "" if self.sm == self.stands_for else f", which stands for sm{self.stands_for}"
        proxy += f" ({self.reason})" if self.reason else ""
        outcome = "refused" if self.problems else self.unread or f"{len(self.kernels)} kernels"
        return f"compiled by {self.by} for sm{self.sm}{proxy}: {outcome}"

    @property
    def unread(self) -> str:
        """What is missing of the list of an engine's kernels; empty when nothing is."""
        if not self.by or self.problems or len(self.kernels) == self.listed > 0:
            return ""
        return f"{len(self.kernels)} of {self.listed} kernels listed could be read"


def compile_model(model: Path, ranges: Ranges, *, sm: str, tf32: bool) -> Compiled:
    """Compile for a compute capability; not at all where TensorRT-RTX is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        return Compiled(
            stands_for=sm,
            reason=f'{PACKAGE} is not installed; run: pip install "quantadvisor[tensorrt]"',
        )
    proxy, reason = PROXIES.get(sm, sm), ""
    built = build(model, ranges, backend="rtx", sm=proxy, tf32=tf32)
    gap = GAPS.get(proxy)
    if gap is not None and any(gap.says in problem for problem in built.problems):
        proxy, reason = gap.proxy, gap.why
        built = build(model, ranges, backend="rtx", sm=proxy, tf32=tf32)
    return Compiled(
        by=f"TensorRT-RTX {version(PACKAGE)}",
        sm=proxy,
        stands_for=sm,
        size_bytes=len(built.engine or b""),
        listed=len(built.layers),
        kernels=parse_kernels(built.layers),
        problems=built.problems,
        reason=reason,
    )
