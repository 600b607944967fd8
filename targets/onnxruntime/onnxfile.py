"""ONNX files on disk. onnx_ir leaves its paths' type open, so it is met with types here only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from advisor.targets.onnxruntime.session import require

if TYPE_CHECKING:
    import onnx_ir as ir

LARGE_BYTES: Final = 1_500_000_000
"""From here on weights go to a file beside the model: protobuf ends at 2 GiB."""


def load_model(path: Path) -> ir.Model:
    """Read a model.

    Raises:
        MissingDependencyError: onnx_ir is not installed.
    """
    return cast("ir.Model", _onnx_ir().load(path))


def save_model(model: ir.Model, path: Path, external: str | None = None) -> None:
    """Write a model.

    external: name of a file beside it for the weights; without one they go to model.onnx.data
    only when protobuf could not hold them.
    """
    sizes = [value.const_value for value in model.graph.initializers.values()]
    size = sum(constant.nbytes for constant in sizes if constant is not None)
    if external is None and size > LARGE_BYTES:
        external = f"{path.name}.data"
    _onnx_ir().save(model, path, external_data=external)


def _onnx_ir() -> Any:
    require("onnx_ir")
    import onnx_ir

    return onnx_ir
