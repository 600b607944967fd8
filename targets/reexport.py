"""Export an edited graph through torch again, with the dimensions it was captured with."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from advisor.passes.fx import placeholders, with_code
from advisor.passes.graph import Graph

_CHATTY: Final = "torch.onnx._internal.exporter._registration"


def reexport(module: GraphModule, source: Graph) -> ExportedProgram:
    """Export an edited module again, with the inputs and dynamic dimensions of ``source``."""
    with quiet(), torch.no_grad():
        return torch.export.export(
            with_code(module),
            tuple(source.args),
            dict(source.kwargs),
            dynamic_shapes=_dynamic_shapes(source),
        )


def _dynamic_shapes(source: Graph) -> tuple[Any, ...] | dict[str, Any]:
    """torch.export's spec, in the structure of the arguments, from dimensions by input name."""
    dims: Mapping[str, Mapping[int, str]] = source.dynamic
    nodes = placeholders(source.module)
    specs = iter([dict.fromkeys(dims.get(node.name, {}), Dim.AUTO) for node in nodes])

    def spec(value: Any) -> Any:
        found = next(specs)
        return found if isinstance(value, torch.Tensor) else None

    args, kwargs = pytree.tree_map(spec, (tuple(source.args), dict(source.kwargs)))
    if not kwargs:
        return tuple(args)
    names = argument_names(source.module)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@contextmanager
def quiet() -> Generator[None]:
    """Silence what torch says about itself: a missing torchvision, a renamed pytree class."""
    logger = logging.getLogger(_CHATTY)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)


def argument_names(module: GraphModule) -> list[str]:
    """Names of the positional parameters of the model's own forward."""
    codegen: Any = module.graph._codegen  # pyright: ignore[reportPrivateUsage]  # no public way
    info = getattr(codegen, "pytree_info", None)
    return [] if info is None else list(info.orig_args)
