"""Calibration data from a file of arrays, as batches for ``advise``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from advisor.errors import CalibrationError

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray[Any, Any] | torch.Tensor

_POSITIONAL: Final = re.compile(r"arr_(\d+)")
_LABELS: Final = frozenset({"label", "labels", "target", "targets"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibrationFile:
    """Arrays with one sample per index of the first dimension, cut into batches when iterated.

    A single array is the model's only input. Arrays named arr_0, arr_1, ... (what ``numpy.savez``
    calls them) are positional inputs; any other names are parameters of ``forward``. An array
    named label, labels, target or targets goes with the inputs as their label.
    """

    arrays: Mapping[str, Array]
    batch: int

    def __iter__(self) -> Iterator[object]:
        count = len(next(iter(self.arrays.values())))
        for start in range(0, count, self.batch):
            yield _as_item({name: a[start : start + self.batch] for name, a in self.arrays.items()})


def read_calibration(path: Path, batch: int) -> CalibrationFile:
    """The arrays of an .npz or .safetensors file, to be given ``batch`` samples at a time.

    Raises:
        CalibrationError: no such file, another suffix, unreadable, no arrays, or arrays whose
            first dimensions differ.
    """
    if path.suffix not in _READERS:
        raise CalibrationError(
            f"calibration file {path}: the suffix must be one of {', '.join(_READERS)}; write one "
            f'with numpy.savez("data.npz", pixel_values=array)'
        )
    if not path.is_file():
        raise CalibrationError(f"there is no calibration file {path}; check the path")
    arrays = _READERS[path.suffix](path)
    if not arrays:
        raise CalibrationError(f"the calibration file {path} holds no arrays; save at least one")
    sizes = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
        raise CalibrationError(
            f"the arrays of {path} must have the samples as their first dimension, as many in each "
            f"and at least one; found {found}"
        )
    return CalibrationFile(arrays=arrays, batch=batch)


def _as_item(batch: dict[str, Array]) -> object:
    labels = [name for name in batch if name in _LABELS]
    inputs = [name for name in batch if name not in _LABELS]
    if len(labels) == 1 and inputs and all(map(_POSITIONAL.fullmatch, inputs)):
        return _positional(batch, inputs), batch[labels[0]]
    if len(labels) == 1 and len(inputs) == 1:
        return (batch[inputs[0]],), batch[labels[0]]
    if labels:
        return batch
    if len(inputs) == 1:
        return batch[inputs[0]]
    if all(map(_POSITIONAL.fullmatch, inputs)):
        return _positional(batch, inputs)
    return batch


def _positional(batch: dict[str, Array], names: list[str]) -> tuple[Array, ...]:
    return tuple(batch[name] for name in sorted(names, key=lambda each: int(each[4:])))


def _read_npz(path: Path) -> dict[str, Array]:
    from zipfile import BadZipFile

    import numpy as np

    try:
        # Without pickles: a data file must not run code.
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise CalibrationError(f"cannot read the calibration file {path}: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError

    # safetensors types its path as a bare PathLike.
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CalibrationError(f"cannot read the calibration file {path}: {error}") from error


_READERS: Final = {".npz": _read_npz, ".safetensors": _read_safetensors}
