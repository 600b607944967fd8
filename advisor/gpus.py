"""NVIDIA GPUs of this machine, asked of the driver's own tool; nothing heavy is imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

from advisor.profiles.nearest import SMI_QUERY, Gpu, nearest_gpu, read_gpus

TOOL: Final = "nvidia-smi"
LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """found: in the driver's order. problem: why the driver did not answer, else empty."""

    found: tuple[Gpu, ...] = ()
    problem: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of them, one sentence each."""
        said = tuple(dict.fromkeys(gpu.says for gpu in self.found))
        return (*said, self.problem) if self.problem else said


def find_gpus() -> Gpus:
    """The GPUs that ``nvidia-smi`` lists; without it those that PyTorch sees, if it is loaded."""
    tool = shutil.which(TOOL)
    if tool is None:
        return Gpus(found=_seen_by_torch())
    try:
        answer = subprocess.run(  # the driver's own tool, and no word of a user's
            [tool, *SMI_QUERY], capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Gpus(
            found=_seen_by_torch(),
            problem=f"{TOOL} is here and does not list a GPU ({error}): is its driver loaded?",
        )
    return Gpus(found=read_gpus(answer.stdout))


def _seen_by_torch() -> tuple[Gpu, ...]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return ()
    found: list[Gpu] = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        found.append(Gpu(name=name, nearest=nearest_gpu(name, capability)))
    return tuple(found)
