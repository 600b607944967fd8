"""What is fitted to the times of single kernels."""

from __future__ import annotations

import pytest

from advisor.doctor import Cpu
from advisor.measure.rates import CHAIN, Kernel, fit_rates, kernels_of
from advisor.profiles.host import write_profile
from advisor.profiles.parse import parse_profile

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
    found = fit_rates(kernels, {name: [1e-6] * len(each) for name, each in kernels.items()})
    amounts = [kernel.amount for kernel in kernels["linear"]]
    assert found.float32_ops_per_s == pytest.approx(max(amounts) / 0.5e-6)
