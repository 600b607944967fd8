"""Model in, ``Graph`` out: torch.export, the explicit decompositions, normalisation, layers."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from advisor.errors import CaptureError, InputError, ModelError
from advisor.passes.blame import explain
from advisor.passes.decompositions import DECOMPOSITIONS
from advisor.passes.fx import flatten_inputs, output_nodes, placeholders
from advisor.passes.graph import Graph
from advisor.passes.layers import find_layers
from advisor.passes.normalise import normalise
from advisor.passes.shapes import infer_shapes
from advisor.passes.verify import verify

EXPORT_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)
"""What torch.export is known to raise for models it cannot trace; the model's own errors surface
earlier, when it is run once."""


def capture(
    model: torch.nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Graph:
    """Capture ``model`` on example inputs.

    args, kwargs: example inputs; a batch of 1 is doubled, because torch.export would fix it.
    The first dimension of every input that has the batch's size becomes dynamic where the model
    allows it, as does the second of integer inputs (token ids) and of masks beside them.

    Raises:
        CaptureError: the model cannot be traced; names the module, the line and what to do.
        InputError: the model does not run on the inputs.
        ModelError: a weight is not finite.
    """
    if isinstance(model, ExportedProgram):
        check_weights(dict(model.named_parameters()) | dict(model.named_buffers()))
        return _finish(model, args, kwargs, notes=("given as an ExportedProgram",))
    check_weights(dict(model.named_parameters()) | dict(model.named_buffers()))
    model, args, kwargs, notes = _in_float32(model, args, kwargs)
    args, kwargs = _doubled(args, kwargs)
    modes = {module: module.training for module in model.modules()}
    if model.training:
        notes = (*notes, "the model was in training mode; it is planned in evaluation mode")
    model.eval()
    try:
        _run_once(model, args, kwargs)
        program, fixed = _export(model, args, kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return _finish(program, args, kwargs, notes=(*notes, *fixed))


def check_weights(tensors: dict[str, torch.Tensor]) -> None:
    """Refuse weights that are not finite.

    Raises:
        ModelError: names the tensors (at most five) and how many values are NaN or infinite.
    """
    broken = [
        f"{name} ({int((~torch.isfinite(value)).sum())} of {value.numel()})"
        for name, value in tensors.items()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ModelError(
            f"weights are NaN or infinite: {', '.join(broken[:5])}{more}; "
            "a plan needs finite weights: check the checkpoint or the training run"
        )


@contextmanager
def quiet_export() -> Iterator[None]:
    """Silence torch's own deprecations and graph dumps: nothing a user can act on.

    What fails is raised as an error of ours, with the place in the user's model.
    """
    chatty = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)


def _in_float32(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any], tuple[str, ...]]:
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    others = sorted(str(dtype) for dtype in dtypes - {torch.float32})
    if not others:
        return model, args, kwargs, ()
    as_float = pytree.tree_map_only(
        torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, (args, kwargs)
    )
    note = f"weights are {', '.join(others)}; sensitivities and integers are computed from float32"
    return copy.deepcopy(model).float(), as_float[0], as_float[1], (note,)


def _doubled(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    batch = _batch_of((args, kwargs))
    if batch != 1:
        return args, kwargs
    doubled = pytree.tree_map_only(
        torch.Tensor,
        lambda t: torch.cat([t, t]) if t.ndim and t.shape[0] == 1 else t,
        (args, kwargs),
    )
    return doubled[0], doubled[1]


def _batch_of(tree: Any) -> int | None:
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    sized = [tensor for tensor in tensors if tensor.ndim]
    return sized[0].shape[0] if sized else None


def _run_once(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with torch.no_grad():
        try:
            model(*args, **kwargs)
        except EXPORT_ERRORS as error:
            described = _describe((args, kwargs))
            raise InputError(
                f"the model does not run on the inputs ({described}): {explain(error, model)}; "
                "pass inputs= that model(*inputs) accepts"
            ) from error


def _describe(tree: Any) -> str:
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return ", ".join(f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in leaves) or "none"


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The program with dynamic dimensions, or with fixed ones and a note that says why."""
    with quiet_export():
        try:
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=_dynamic_spec(args, kwargs)
            ), ()
        except EXPORT_ERRORS as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        try:
            program = torch.export.export(model, args, kwargs)
        except EXPORT_ERRORS as error:
            raise CaptureError(
                f"torch.export cannot capture {type(model).__name__}: {explain(error, model)}; "
                "rewrite a branch on tensor values with torch.where or torch.cond, or export "
                "the traceable part yourself and pass the ExportedProgram"
            ) from error
    return program, (f"batch and sequence are fixed, since a dynamic export failed: {reason}",)


def _dynamic_spec(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    batch = _batch_of((args, kwargs))
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    tokens = {t.shape[1] for t in leaves if t.ndim == 2 and not t.is_floating_point()}

    def spec(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        dims = {0: Dim.AUTO} if value.ndim and value.shape[0] == batch else {}
        if value.ndim == 2 and value.shape[1] in tokens and value.shape[1] > 1:
            dims[1] = Dim.AUTO
        return dims

    trees = pytree.tree_map(spec, (args, kwargs), is_leaf=lambda leaf: leaf is None)
    return (*trees[0], *trees[1].values()) if not kwargs else {**_positional(args, trees), **trees[1]}


def _positional(args: tuple[Any, ...], trees: Any) -> dict[str, Any]:
    if args:
        raise InputError(
            "inputs mix positional and keyword tensors; pass all of them by keyword in one dict"
        )
    return {}


def _finish(
    program: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    notes: tuple[str, ...],
) -> Graph:
    with quiet_export():
        module = program.run_decompositions(dict(DECOMPOSITIONS)).module(check_guards=False)
    assert isinstance(module, GraphModule)  # what ExportedProgram.module returns
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    dynamic = _dynamic_dims(module)
    output_names = _output_names(program, module)
    module = normalise(module)
    batch = None
    sized = [node.meta["val"] for node in placeholders(module) if _is_sized(node.meta.get("val"))]
    if not any("batch" in dims.values() for dims in dynamic.values()):
        batch = int(sized[0].shape[0]) if sized else 1
    flat = [
        node.meta["val"] if not _is_sized(node.meta.get("val")) else value
        for node, value in zip(
            placeholders(module), flatten_inputs(module, args, kwargs), strict=True
        )
    ]
    shapes = {name: info.shape for name, info in infer_shapes(module, flat).items()}
    graph = Graph(
        module=module,
        args=args,
        kwargs=kwargs,
        dynamic=dynamic,
        batch=batch,
        layers=find_layers(module, shapes),
        input_names=tuple(node.name for node in placeholders(module)),
        output_names=output_names,
        notes=notes,
    )
    verify(graph)
    return graph


def _is_sized(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0


def _dynamic_dims(module: GraphModule) -> dict[str, dict[int, str]]:
    """Which dimensions torch.export left symbolic: the first is the batch, the second a sequence."""
    labels = {0: "batch", 1: "sequence"}
    found: dict[str, dict[int, str]] = {}
    for node in placeholders(module):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        dims = {
            index: labels.get(index, f"dim_{index}")
            for index, size in enumerate(value.shape)
            if isinstance(size, torch.SymInt)
        }
        if dims:
            found[node.name] = dims
    return found


def _output_names(program: ExportedProgram, module: GraphModule) -> tuple[str, ...]:
    """Dict keys and tuple positions where the output has them, else "output", "output_1", ..."""
    spec = program.call_spec.out_spec
    count = len(output_nodes(module))
    placeholder_tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names: list[str] = []
    for path, _ in pytree.tree_flatten_with_path(placeholder_tree)[0]:
        keys = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        words = [key for key in keys if key]
        names.append("_".join(words) if words and not words[0].isdigit() else "")
    if len(names) != count:  # outputs that are no tensors
        names = [""] * count
    return tuple(
        name or ("output" if index == 0 else f"output_{index}") for index, name in enumerate(names)
    )
