"""How fast a runtime's kernels are on this machine, from small models of one kind of operator.

Any runtime that can time models gives its rates so. A family's rate is fitted to layers of several
shapes, what starting an operator takes off each; how far off an unseen shape may be is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from advisor.doctor import read_cpu
from advisor.errors import UsageError
from advisor.measure.measure import workbench
from advisor.passes.candidates import find_candidates
from advisor.passes.capture import capture
from advisor.passes.group import group_layers
from advisor.passes.shapes import deployment_inputs
from advisor.profiles.cost import EXPONENTIAL
from advisor.profiles.loader import load_profile
from advisor.profiles.rates import Rates, fit_rates, least_seconds
from advisor.setting import Deployment, graph_for, make_setting
from advisor.targets.base import Stopwatch
from advisor.targets.registry import capability_named, target_named

LIMIT_S: Final = 0.2
"""Time to spend on one kernel in each pass."""

STAND_IN: Final = "arm-neon"
"""A profile is needed to set a kernel up; none of its figures is used."""

CHAIN: Final = 100
SOFTMAX: Final = EXPONENTIAL + 4

LINEAR: Final = ((128, 768, 768), (128, 768, 3072), (64, 256, 1024), (512, 512, 512))
"""Rows, inputs, outputs."""
CONV: Final = ((64, 64, 3, 56), (256, 64, 1, 28), (128, 128, 3, 28), (32, 192, 1, 56))
"""Inputs, outputs, pixels a side of the kernel and of the picture."""
DEPTHWISE: Final = ((192, 3, 56), (384, 3, 14), (240, 5, 28))
"""Channels, pixels a side of the kernel and of the picture."""
TABLE: Final = 30_000
LOOKUPS: Final = ((4096, 384), (1024, 768), (16384, 128))
"""Rows that are looked up, and their width."""
LARGE: Final = 2**22
SMALLER: Final = (2**17, 2**18, 2**19, 2**20, 2**21)
"""Elements of arrays that may fit into a cache."""

SAYS: Final = {
    "linear": "products in float32",
    "conv": "convolutions in float32",
    "depthwise": "depthwise convolutions in float32",
    "gather": "lookups of rows",
    "elementwise": f"softmaxes over 128, {SOFTMAX} operations an element",
    "int8": "products in static int8",
    "bandwidth": f"adding two arrays of {4 * LARGE / 1e6:.0f} MB",
    "core": "the same with one thread",
    "cached": "smaller sums",
    "chain": f"per operator of a chain of {CHAIN} tiny additions",
    "single": "a model of one tiny addition",
}
"""What the kernels are, by what they tell."""


class _Adds(nn.Module):
    """A chain of additions of one tensor."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(self.count):
            x = x + y
        return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One operator to time. amount: operations, or bytes moved where it has none. threads: as many
    as there are cores where it is not said, whatever the runtime itself would take."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    amount: float
    scheme: str = "fp32"
    threads: int | None = None


def rates_of(runtime: str, say: Callable[[int, int], None]) -> Rates:
    """Time a runtime's kernels on this machine; a minute or two.

    Raises:
        MissingDependencyError: the runtime is not installed.
        UsageError: the runtime cannot be timed.
    """
    stopwatch = target_named(runtime)
    if not isinstance(stopwatch, Stopwatch):
        raise UsageError(f"{runtime} cannot be timed")
    kernels = kernels_of()
    timers = {
        name: [timer(kernel, stopwatch, runtime) for kernel in each]
        for name, each in kernels.items()
    }
    return fit_rates(kernels, least_seconds(timers, say), SAYS)


def kernels_of() -> dict[str, list[Kernel]]:
    """What is timed, by what it tells."""
    one = torch.randn(1, 4)
    return {
        "linear": [_linear(*shape) for shape in LINEAR],
        "conv": [_conv(*shape) for shape in CONV],
        "depthwise": [_depthwise(*shape) for shape in DEPTHWISE],
        "int8": [_linear(*shape, scheme="w8a8") for shape in LINEAR[1:]],
        "bandwidth": [_sum(LARGE)],
        "core": [_sum(LARGE, threads=1)],
        "cached": [_sum(count) for count in SMALLER],
        "chain": [Kernel(model=_Adds(CHAIN), inputs=(one, one), amount=CHAIN)],
        "single": [Kernel(model=_Adds(1), inputs=(one, one), amount=1)],
        "gather": [
            Kernel(
                model=nn.Embedding(TABLE, width),
                inputs=(torch.randint(TABLE, (1, rows)),),
                amount=2 * 4 * rows * width,
            )
            for rows, width in LOOKUPS
        ],
        "elementwise": [
            Kernel(
                model=nn.Softmax(dim=-1),
                inputs=(torch.randn(1, rows, 128),),
                amount=SOFTMAX * rows * 128,
            )
            for rows in (256, 1024, 4096)
        ],
    }


def timer(kernel: Kernel, stopwatch: Stopwatch, runtime: str) -> Callable[[], float]:
    """What gives the seconds of one forward, each time it is called."""
    threads = kernel.threads or read_cpu().cores
    capability = capability_named(runtime)
    deployment = Deployment(
        profile=load_profile(STAND_IN),
        capability=capability,
        batch=kernel.inputs[0].shape[0],
        sequence=None,
        threads=threads,
    )
    graph = graph_for(capture(kernel.model.eval(), kernel.inputs, {}), capability)
    groups = group_layers(graph, capability)
    space = find_candidates(graph, groups, capability, platform=deployment.profile.platform)
    setting = make_setting(graph, groups, space, deployment)
    choice = tuple(
        [option.scheme for option in setting.space.candidates[group.name]].index(kernel.scheme)
        for group in groups
    )
    bench, inputs = workbench(setting), deployment_inputs(graph, deployment.batch, None)

    def time_once() -> float:
        (timing,) = stopwatch.time_models(
            [partial(bench.build, choice)],
            inputs,
            threads=threads,
            limit_s=LIMIT_S,
            with_parts=False,
            say=lambda _done, _count: None,
        )
        return timing.seconds

    return time_once


def _linear(rows: int, inputs: int, outputs: int, scheme: str = "fp32") -> Kernel:
    return Kernel(
        model=nn.Linear(inputs, outputs),
        inputs=(torch.randn(rows, inputs),),
        amount=2 * rows * inputs * outputs,
        scheme=scheme,
    )


def _sum(count: int, threads: int | None = None) -> Kernel:
    array = torch.randn(1, count)
    return Kernel(model=_Adds(1), inputs=(array, array), amount=3 * array.nbytes, threads=threads)


def _conv(inputs: int, outputs: int, kernel: int, side: int, groups: int = 1) -> Kernel:
    model = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    return Kernel(
        model=model,
        inputs=(torch.randn(1, inputs, side, side),),
        amount=2 * side**2 * model.weight.numel(),
    )


def _depthwise(channels: int, kernel: int, side: int) -> Kernel:
    return _conv(channels, channels, kernel, side, groups=channels)
