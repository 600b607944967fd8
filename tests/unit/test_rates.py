"""What is fitted to the times of single kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from advisor.doctor import Cpu, read_cpu
from advisor.measure.rates import CHAIN, SAYS, Kernel, kernels_of, timer
from advisor.passes.graph import QuantizedGraph
from advisor.profiles.host import write_profile
from advisor.profiles.parse import parse_profile
from advisor.profiles.rates import fit_family, fit_rates, least_seconds
from advisor.targets.base import Timing

CPU = Cpu(model="Some CPU", cores=4, features=("avx2",))
SPEED = {"linear": 1e11, "conv": 5e10, "depthwise": 1e10, "int8": 3e11, "elementwise": 2e10}
START = 1e-6


def seconds_of(name: str, kernel: Kernel) -> float:
    if name in ("single", "chain"):
        return START * (1 + (kernel.amount - 1) / 2)
    return START + kernel.amount / SPEED.get(name, 1e10)


def test_kernels_of_known_speed_are_found() -> None:
    kernels = kernels_of()
    found = fit_rates(
        kernels,
        {name: [seconds_of(name, kernel) for kernel in each] for name, each in kernels.items()},
        SAYS,
    )
    assert found.float32_ops_per_s == pytest.approx(1e11)
    assert found.int8_ops_per_s == pytest.approx(3e11)
    assert found.conv_ops_per_s == pytest.approx(5e10)
    assert found.depthwise_ops_per_s == pytest.approx(1e10)
    assert found.elementwise_ops_per_s == pytest.approx(2e10)
    assert found.bandwidth_bytes_per_s == pytest.approx(1e10)
    assert found.launch_s == pytest.approx(START / 2)
    assert found.dispatch_s == START
    assert "1.00 to 1.00 of it" in found.says["conv_ops_per_s"]
    assert len(kernels["chain"]) == 1
    assert kernels["chain"][0].amount == CHAIN
    profile = parse_profile(write_profile(found, CPU, "LiteRT 2", "tflite"), "here.toml")
    assert profile.runtime == "tflite"
    assert profile.efficiency["conv"].value == pytest.approx(0.5)
    assert "1.00 to 1.00 of it" in profile.efficiency["conv"].says


def test_a_start_that_is_most_of_the_time_hides_no_more_than_half() -> None:
    kernels = kernels_of()
    found = fit_rates(kernels, {name: [1e-6] * len(each) for name, each in kernels.items()}, SAYS)
    amounts = [kernel.amount for kernel in kernels["linear"]]
    assert found.float32_ops_per_s == pytest.approx(max(amounts) / 0.5e-6)


@pytest.mark.parametrize("fast", [0, 3, 5])
def test_the_cache_holds_what_is_added_faster(fast: int) -> None:
    """A memory of 10 GB/s behind a cache of 40 GB/s that the smallest arrays fit into."""
    kernels = kernels_of()
    seconds = {name: [seconds_of(name, each) for each in group] for name, group in kernels.items()}
    for place in range(fast):
        seconds["cached"][place] = START + kernels["cached"][place].amount / 4e10
    found = fit_rates(kernels, seconds, SAYS)
    profile = parse_profile(write_profile(found, CPU, "LiteRT 2", "tflite"), "here.toml")
    cache = profile.memory.cache_bytes
    assert (cache is None) == (not fast)
    if cache is not None:
        assert cache.value == pytest.approx(kernels["cached"][fast - 1].amount, rel=1e-5)


def test_a_family_is_fitted_as_least_squares_in_the_logarithm() -> None:
    """Against numpy's own least squares and its covariance of the one coefficient."""
    rates = [3e10, 5e10, 4.2e10, 9e10]
    found = fit_family(rates)
    logs = np.log(rates)
    (coefficient,), (squares,), *_ = np.linalg.lstsq(np.ones((4, 1)), logs, rcond=None)
    residual = np.sqrt(squares / 3)
    assert found.value == pytest.approx(np.exp(coefficient))
    assert found.error == pytest.approx(np.sqrt(residual**2 + residual**2 / 4))
    assert (found.lowest, found.highest) == pytest.approx((3e10 / found.value, 9e10 / found.value))
    assert f"within a factor of {np.exp(found.error):.2f}" in found.describe("products")


def test_unseen_shapes_are_as_far_off_as_said() -> None:
    """Rates that scatter by a known factor: 68 % of unseen ones within one standard error."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        *seen, unseen = np.exp(rng.normal(24, 0.3, 21))
        found = fit_family([float(each) for each in seen])
        inside += abs(np.log(unseen / found.value)) <= found.error
    assert inside / 2000 == pytest.approx(0.68, abs=0.03)


def test_a_kernel_counts_with_its_least_time() -> None:
    """A second user of the processor, who is there for the whole of one pass and half of one."""
    slower, seen = iter([3, 3, 3, 1, 1, 3, 1, 1, 1]), list[tuple[int, int]]()

    def of(seconds: float) -> Callable[[], float]:
        return lambda: seconds * next(slower)

    timers = {"linear": [of(1.0), of(2.0)], "conv": [of(4.0)]}
    found = least_seconds(timers, lambda done, count: seen.append((done, count)))
    assert found == {"linear": [1.0, 2.0], "conv": [4.0]}
    assert seen == [(done, 9) for done in range(10)]


def test_every_family_has_three_shapes_or_more() -> None:
    from advisor.targets.onnxruntime import rates

    for kernels in (kernels_of(), rates.kernels_of(np.random.default_rng(0))):
        for name in ("linear", "int8", "conv", "depthwise", "gather", "elementwise"):
            assert len(kernels[name]) >= 3, name


def test_rates_of_onnx_runtimes_kernels() -> None:
    from advisor.targets.onnxruntime import rates

    kernels = rates.kernels_of(np.random.default_rng(0))
    start = 3e-6

    def taken(name: str, kernel: rates.Kernel) -> float:
        if name in ("single", "chain"):
            return start * (1 + (kernel.amount - 1) / 4)
        return start + kernel.amount / SPEED.get(name, 1e10)

    seconds = {name: [taken(name, each) for each in group] for name, group in kernels.items()}
    found = fit_rates(kernels, seconds, rates.SAYS)
    assert found.linear_ops_per_s == pytest.approx(1e11)
    assert found.float32_ops_per_s == pytest.approx(1e11)
    assert found.int8_ops_per_s == pytest.approx(3e11)
    assert found.conv_ops_per_s == pytest.approx(5e10)
    assert found.depthwise_ops_per_s == pytest.approx(1e10)
    assert found.bandwidth_bytes_per_s == pytest.approx(1e10)
    assert found.launch_s == pytest.approx(start / 4)
    profile = parse_profile(write_profile(found, CPU, "onnxruntime 1"), "here.toml")
    says = profile.efficiency["depthwise"].says
    assert "over 3 depthwise Convs, 1.00 to 1.00 of it" in says
    assert "an unseen shape is expected within a factor of 1.00" in says
    assert says.endswith("against the peak above")


class Noting:
    """A stopwatch that notes how many threads it was asked for."""

    def __init__(self) -> None:
        self.threads: list[int | None] = []

    def time_models(
        self,
        builders: Sequence[Callable[[], QuantizedGraph]],
        inputs: Sequence[Any],
        **asked: Any,
    ) -> tuple[Timing, ...]:
        self.threads.append(asked["threads"])
        return tuple(Timing(seconds=1.0, noise=0.0, parts={}) for _ in builders)

    def machine(self) -> Mapping[str, str]:
        return {}


def test_kernels_run_on_all_cores_but_the_one_that_says_otherwise() -> None:
    """LiteRT itself would take one thread, and a profile's figures are of all cores."""
    kernels, stopwatch = kernels_of(), Noting()
    for name in ("single", "core"):
        assert timer(kernels[name][0], stopwatch, "tflite")() == 1.0
    assert stopwatch.threads == [read_cpu().cores, 1]
