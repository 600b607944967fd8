"""This machine, as far as it decides how fast a model runs."""

from __future__ import annotations

from advisor.doctor import read_cpu


def describe_machine(runtime: str) -> dict[str, str]:
    """What costs depend on besides the model. runtime: its name and version."""
    cpu = read_cpu()
    return {
        "runtime": runtime,
        "cpu": cpu.model,
        "cores": str(cpu.cores),
        "features": " ".join(cpu.features or ()),
    }
