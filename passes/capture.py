"""Model in, ``Graph`` out: torch.export, the explicit decompositions, normalisation, layers."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from advisor.errors import CaptureError, InputError, ModelError
from advisor.passes.batch import RUN_ERRORS, Batch, check_batch, find_batch, resize_batch
from advisor.passes.blame import explain, locate
from advisor.passes.decompositions import decompose
from advisor.passes.fx import detach_parameters, flatten_inputs, output_nodes, placeholders
from advisor.passes.graph import Graph
from advisor.passes.layers import find_layers
from advisor.passes.normalise import normalise
from advisor.passes.shapes import infer_shapes
from advisor.passes.traceable import describe_dropped, returning_tensors, without_mask_detection
from advisor.passes.verify import verify


def capture(
    model: torch.nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Graph:
    """Capture ``model`` on example inputs.

    args, kwargs: example inputs. Their first dimension becomes dynamic where running the model
    shows that it counts independent samples; so does the second of token ids, and of masks beside
    them, where the model allows it. A batch of 1 is then repeated, because torch.export would
    take it for a constant. Otherwise the batch stays fixed, and ``Graph.notes`` says why. The
    model is left as it was: mode, buffers, gradients.

    Raises:
        CaptureError: the model cannot be traced; names the module, the line and what to do.
        InputError: the model does not run on the inputs.
        ModelError: a weight is not finite.
    """
    check_weights(dict(model.named_parameters()) | dict(model.named_buffers()))
    if isinstance(model, ExportedProgram):
        return _capture_program(model, args, kwargs)
    # Of a slice torch.export makes guards on strides, which its own decompositions then fail.
    args, kwargs = pytree.tree_map_only(torch.Tensor, torch.Tensor.contiguous, (args, kwargs))
    model, args, kwargs, notes = _in_float32(model, args, kwargs)
    if model.training:
        notes = (*notes, "the model was in training mode; it is planned in evaluation mode")
    with untouched(model), torch.no_grad():
        model.eval()
        outputs = _run_once(model, args, kwargs)
        notes = (*notes, *describe_dropped(outputs))
        batch = check_batch(find_batch(args, kwargs), model, args, kwargs, outputs)
        with returning_tensors(model), without_mask_detection():
            program, batch = _export(model, args, kwargs, batch)
    return _finish(program, args, kwargs, batch, notes)


def _capture_program(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Graph:
    # With guards, so that inputs it was not exported for are refused with torch's reason.
    with torch.no_grad(), quiet_export():
        outputs = _run_once(program.module(), args, kwargs)
        batch = find_batch(args, kwargs)
        if _has_dynamic(program, batch):
            run = program.module(check_guards=False)
            batch = check_batch(batch, run, args, kwargs, outputs)
            if not batch.fixed and not _scales(program, args, kwargs, batch):
                batch = replace(batch, fixed="the program's code fixes it")
        else:
            batch = replace(batch, fixed="it was exported so")
    return _finish(program, args, kwargs, batch, ("given as an ExportedProgram",))


@contextmanager
def untouched(model: torch.nn.Module) -> Generator[None]:
    """Put back the training mode and every buffer of ``model`` at the end."""
    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


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
def quiet_export() -> Generator[None]:
    """Silence torch's own deprecations and graph dumps: nothing a user can act on.

    What fails is raised as an error of ours, with the place in the user's model.
    """
    chatty = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        # torch prints the graph so far to stderr when it gives up.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
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


def _run_once(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return model(*args, **kwargs)
    except RUN_ERRORS as error:
        described = _describe((args, kwargs))
        raise InputError(
            f"the model does not run on the inputs ({described}): {explain(error, model)}; "
            "pass inputs= that model(*inputs) accepts"
        ) from error


def _describe(tree: Any) -> str:
    leaves = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return ", ".join(f"{str(t.dtype)[6:]} {tuple(t.shape)}" for t in leaves) or "none"


def _export(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch
) -> tuple[ExportedProgram, Batch]:
    """The program with as many dynamic dimensions as it allows; else a fixed one and the reason."""
    if batch.size is not None and not batch.fixed:
        repeated = _exportable(args, kwargs, batch)
        for with_tokens in (True, False):
            spec = _dynamic_spec(model, *repeated, batch, with_tokens=with_tokens)
            try:
                with quiet_export():
                    program = torch.export.export(model, *repeated, dynamic_shapes=spec)
            except RUN_ERRORS as error:
                lines = str(error).strip().splitlines()
                reason = f"a dynamic export failed: {lines[0] if lines else type(error).__name__}"
            else:
                if _has_dynamic(program, batch) and _scales(program, args, kwargs, batch):
                    return program, batch
                reason = "the model's code fixes it"
            batch = replace(batch, fixed=reason)
    try:
        with quiet_export():
            return torch.export.export(model, args, kwargs), batch
    except RUN_ERRORS as error:
        raise CaptureError(
            f"torch.export cannot capture {type(model).__name__}: {explain(error, model)}; "
            "where a branch or a size depends on tensor values, rewrite it with torch.where on "
            "tensors of fixed shape, or export the traceable part yourself and pass the "
            "ExportedProgram"
        ) from error


def _dynamic_spec(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: Batch,
    *,
    with_tokens: bool,
) -> dict[str, Any]:
    """By parameter of ``forward``, the dimensions that torch.export shall keep symbolic."""
    leaves, tree = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    tokens = {t.shape[1] for t in tensors if t.ndim == 2 and not t.is_floating_point()} - {1}

    def choose(value: Any, is_batched: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        dims = {0: Dim.AUTO} if is_batched else {}
        if with_tokens and value.ndim == 2 and value.shape[1] in tokens:
            dims[1] = Dim.AUTO
        return dims

    chosen = [choose(*pair) for pair in zip(leaves, batch.batched, strict=True)]
    new_args, new_kwargs = pytree.tree_unflatten(chosen, tree)
    return dict(inspect.signature(model.forward).bind(*new_args, **new_kwargs).arguments)


def _exportable(
    args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch of 1 twice: torch.export takes 1 for a constant."""
    return resize_batch(args, kwargs, batch, 2) if batch.size == 1 else (args, kwargs)


def _scales(
    program: ExportedProgram, args: tuple[Any, ...], kwargs: dict[str, Any], batch: Batch
) -> bool:
    """Whether the outputs follow the batch: a loop over samples is unrolled without a word."""
    module: Any = program.module(check_guards=False)
    for size, wanted in zip((1, 2), batch.shapes, strict=True):
        resized = resize_batch(args, kwargs, batch, size)
        try:
            found = infer_shapes(module, flatten_inputs(module, *resized))
        except InputError:
            return False
        names = [node.name for node in output_nodes(module)]
        shapes = tuple(found[name].shape for name in names if name in found)
        if shapes != wanted:
            return False
    return True


def _has_dynamic(program: ExportedProgram, batch: Batch) -> bool:
    """Whether every input that has the batch kept it symbolic."""
    nodes = {node.name: node for node in program.graph.nodes}
    # A constant input stands for itself instead of by its node's name.
    inputs: list[Any] = list(program.graph_signature.user_inputs)
    values = [nodes[name].meta.get("val") if name in nodes else None for name in inputs]
    if len(values) != len(batch.batched):
        return False
    sizes: list[int | torch.SymInt] = [
        value.shape[0]
        for value, is_batched in zip(values, batch.batched, strict=True)
        if is_batched and isinstance(value, torch.Tensor)
    ]
    return bool(sizes) and all(isinstance(size, torch.SymInt) for size in sizes)


def _finish(
    program: ExportedProgram,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batch: Batch,
    notes: tuple[str, ...],
) -> Graph:
    with quiet_export():
        program = decompose(program)
        _refuse_mutation(program)
        module: GraphModule = program.module(check_guards=False)
    _refuse_control_flow(module)
    detach_parameters(module)
    dynamic = _dynamic_dims(module)
    if batch.fixed:
        notes = (*notes, f"batch is fixed at {batch.size}: {batch.fixed}")
        dynamic = _without_batch(dynamic)
    is_dynamic = any("batch" in dims.values() for dims in dynamic.values())
    if is_dynamic:
        args, kwargs = _exportable(args, kwargs, batch)
    output_names = _output_names(program, module)
    module = normalise(module)
    flat = flatten_inputs(module, args, kwargs)
    shapes = {name: info.shape for name, info in infer_shapes(module, flat).items()}
    graph = Graph(
        module=module,
        args=args,
        kwargs=kwargs,
        dynamic=dynamic,
        batch=None if is_dynamic else batch.size or 1,
        layers=find_layers(module, shapes),
        input_names=tuple(node.name for node in placeholders(module)),
        output_names=output_names,
        notes=notes,
    )
    verify(graph)
    return graph


def _refuse_mutation(program: ExportedProgram) -> None:
    signature = program.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise CaptureError(
            f"the model changes {', '.join(changed)} while it runs; only a forward without side "
            "effects can be planned: call model.eval() before exporting, or return the new value "
            "as an output instead of storing it"
        )


def _refuse_control_flow(module: GraphModule) -> None:
    for node in module.graph.nodes:
        if isinstance(node.target, HigherOrderOperator):
            raise CaptureError(
                f"{node.target} in {locate(node)} runs a graph of its own, which cannot be "
                "planned; rewrite it with torch.where on tensors of fixed shape"
            )


def _dynamic_dims(module: GraphModule) -> dict[str, dict[int, str]]:
    """Which dimensions torch.export left symbolic: the first is the batch, the second a sequence.

    A dimension elsewhere that has the same symbol has the same label.
    """
    sizes = [
        (node.name, index, str(size))
        for node in placeholders(module)
        if isinstance(value := node.meta.get("val"), torch.Tensor)
        for index, size in enumerate(value.shape)
        if isinstance(size, torch.SymInt)
    ]
    labels: dict[str, str] = {}
    for _, index, symbol in sorted(sizes, key=lambda size: size[1]):
        labels.setdefault(symbol, {0: "batch", 1: "sequence"}.get(index, f"dim_{index}"))
    found: dict[str, dict[int, str]] = {}
    for name, index, symbol in sizes:
        found.setdefault(name, {})[index] = labels[symbol]
    return found


def _without_batch(dynamic: dict[str, dict[int, str]]) -> dict[str, dict[int, str]]:
    kept = {
        name: {index: label for index, label in dims.items() if label != "batch"}
        for name, dims in dynamic.items()
    }
    return {name: dims for name, dims in kept.items() if dims}


def _output_names(program: ExportedProgram, module: GraphModule) -> tuple[str, ...]:
    """Dict keys and tuple positions where the output has them, else "output", "output_1", ..."""
    spec: Any = program.call_spec.out_spec
    (returned,) = (node.args[0] for node in module.graph.nodes if node.op == "output")
    values = pytree.tree_leaves(returned)
    names = [""] * len(output_nodes(module))
    if len(values) == spec.num_leaves:
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
        named = [path for path, v in zip(paths, values, strict=True) if isinstance(v, Node)]
        words = [[word for word in map(_word, path) if word] for path in named]
        names = ["_".join(w) if w and not w[0].isdigit() else "" for w in words]
    return tuple(
        name or ("output" if index == 0 else f"output_{index}") for index, name in enumerate(names)
    )


def _word(key: Any) -> str:
    """A step into a container: mapping key, attribute name or index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return ""
