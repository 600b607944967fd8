"""How the model is called: its arguments to flat named arrays, flat arrays to its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
import torch
from torch.utils import _pytree as pytree

from advisor.errors import InputError, UnsupportedError
from advisor.passes.fx import placeholders
from advisor.passes.graph import Graph
from advisor.targets.manifest import InputRecord, Manifest, OutputRecord
from advisor.targets.reexport import argument_names

Array = np.ndarray[Any, Any]


class Runs(Protocol):
    """An artifact that can be executed."""

    manifest: Manifest

    def run_flat(self, arrays: Mapping[str, Array]) -> Sequence[Array]:
        """Outputs in order for arrays by input name."""
        ...


def run_named(artifact: Runs, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Execute with flat named inputs; flat named outputs."""
    results = artifact.run_flat(bind(artifact.manifest, (), inputs))
    names = (record.name for record in artifact.manifest.outputs)
    return {name: torch.as_tensor(result) for name, result in zip(names, results, strict=True)}


def run_called(artifact: Runs, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Execute as the model itself is called; the structure of the model's own outputs.

    Torch tensors give torch tensors, copied out of the runtime's memory; numpy arrays give arrays.

    Raises:
        InputError: an input is missing, unknown, or of another shape or dtype.
    """
    results: Sequence[Any] = artifact.run_flat(bind(artifact.manifest, inputs, named))
    if any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves((inputs, dict(named)))):
        results = [torch.as_tensor(np.array(result)) for result in results]
    return build_outputs(artifact.manifest.structure, results)


def feed_of(manifest: Manifest, flat: Sequence[torch.Tensor]) -> dict[str, Array]:
    """Arrays by input name, from one tensor per input."""
    pairs = zip(manifest.inputs, flat, strict=True)
    return {record.name: tensor.numpy() for record, tensor in pairs}


def describe_inputs(graph: Graph) -> tuple[InputRecord, ...]:
    """One record per tensor input, in the order of the graph's placeholders."""
    flat, _ = pytree.tree_flatten_with_path((tuple(graph.args), dict(graph.kwargs)))
    leaves = [(path, leaf) for path, leaf in flat if isinstance(leaf, torch.Tensor)]
    names = _tensor_inputs(graph, len(leaves))
    arguments = argument_names(graph.module)
    records: list[InputRecord] = []
    for name, (keys, leaf) in zip(names, leaves, strict=True):
        path = tuple(_key(key) for key in keys)
        first = path[1]
        argument = arguments[first] if isinstance(first, int) and first < len(arguments) else first
        dims = graph.dynamic.get(name, {})
        shape = tuple(dims.get(axis, size) for axis, size in enumerate(leaf.shape))
        records.append(
            InputRecord(
                name=name,
                argument=str(argument),
                path=path,
                dtype=str(leaf.dtype).removeprefix("torch."),
                shape=shape,
            )
        )
    return tuple(records)


def _tensor_inputs(graph: Graph, count: int) -> tuple[str, ...]:
    if len(graph.input_names) == count:
        return graph.input_names
    tensors = {
        node.name
        for node in placeholders(graph.module)
        if isinstance(node.meta.get("val"), torch.Tensor)
    }
    return tuple(name for name in graph.input_names if name in tensors)


def _key(key: Any) -> int | str:
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            value = getattr(key, attribute)
            return value if isinstance(value, int) else str(value)
    raise UnsupportedError(f"inputs nest in a container this target cannot name: {key!r}")


def describe_outputs(outputs: Any, names: Sequence[str]) -> tuple[tuple[OutputRecord, ...], Any]:
    """Records of the tensors in ``outputs`` and the structure around them, as plain data.

    The structure is {"kind": "tensor", "index": i} | {"kind": "dict", "items": [[key, s], ...]} |
    {"kind": "tuple" or "list", "items": [s, ...]} | {"kind": "value", "value": v}. A Hugging Face
    ModelOutput is a dict.
    """
    leaves: list[torch.Tensor] = []
    structure = _structure(outputs, leaves)
    if len(leaves) != len(names):
        raise UnsupportedError(
            f"the model returns {len(leaves)} tensors but {len(names)} are named ({names})"
        )
    records = tuple(
        OutputRecord(name=name, dtype=str(leaf.dtype).removeprefix("torch."))
        for name, leaf in zip(names, leaves, strict=True)
    )
    return records, structure


def _structure(value: object, leaves: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        leaves.append(value)
        return {"kind": "tensor", "index": len(leaves) - 1}
    if isinstance(value, Mapping):
        table = cast("Mapping[object, object]", value)
        items = [[str(key), _structure(item, leaves)] for key, item in table.items()]
        return {"kind": "dict", "items": items}
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        row = cast("Sequence[object]", value)
        return {"kind": kind, "items": [_structure(item, leaves) for item in row]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"kind": "value", "value": value}
    raise UnsupportedError(
        f"outputs of type {type(value).__name__} cannot be rebuilt from an artifact; "
        "return tensors in dicts, tuples or lists"
    )


def build_outputs(structure: Any, arrays: Sequence[Any]) -> Any:
    """The model's own output around flat ``arrays``."""
    match structure["kind"]:
        case "tensor":
            return arrays[structure["index"]]
        case "dict":
            return {key: build_outputs(item, arrays) for key, item in structure["items"]}
        case "list":
            return [build_outputs(item, arrays) for item in structure["items"]]
        case "tuple":
            return tuple(build_outputs(item, arrays) for item in structure["items"])
        case _:
            return structure["value"]


def bind(manifest: Manifest, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Array]:
    """Flat arrays by input name from a call in the model's own way.

    Tensors may come by position, by the name of the parameter, by the input's flat name, or as
    one dict when the model takes keywords.

    Raises:
        InputError: an input is missing, unknown, or of another shape or dtype.
    """
    order = list(dict.fromkeys(record.argument for record in manifest.inputs))
    if len(args) == 1 and isinstance(args[0], Mapping) and not named:
        table = cast("Mapping[str, Any]", args[0])
        if set(table) <= {*order, *(record.name for record in manifest.inputs)}:
            args, named = (), table
    arrays: dict[str, Array] = {}
    used: set[int | str] = set()
    for record in manifest.inputs:
        for key, value in _candidates(record, order, args, named):
            used.add(key)
            arrays[record.name] = _checked(record, value)
            break
        else:
            raise InputError(f"input {record.name!r} is missing; {takes(manifest)}")
    extra = [key for key in [*range(len(args)), *named] if key not in used]
    if extra:
        raise InputError(f"no such input: {extra[0]!r}; {takes(manifest)}")
    return arrays


def _candidates(
    record: InputRecord, order: Sequence[str], args: Sequence[Any], named: Mapping[str, Any]
) -> Iterator[tuple[int | str, Any]]:
    """Where a value for ``record`` may be in the call, likeliest first."""
    place, first, rest = record.path[0], record.path[1], record.path[2:]
    position = first if place == 0 and isinstance(first, int) else order.index(record.argument)
    if position < len(args):
        yield position, _follow(record, args[position], rest)
    if record.argument in named:
        yield record.argument, _follow(record, named[record.argument], rest)
    if record.name in named:
        yield record.name, named[record.name]


def _follow(record: InputRecord, value: Any, rest: Sequence[int | str]) -> Any:
    for key in rest:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"input {record.name!r} should be at {list(record.path)} of the call's "
                f"arguments, but there is no {key!r} in {type(value).__name__}"
            ) from error
    return value


def _checked(record: InputRecord, value: Any) -> Array:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    if not _is_array(array):
        raise InputError(
            f"input {record.name!r} should be a torch tensor or numpy array of {record.dtype} "
            f"{_shape(record)}, not {type(value).__name__}"
        )
    fits = len(array.shape) == len(record.shape) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(record.shape, array.shape, strict=True)
    )
    if str(array.dtype) != record.dtype or not fits:
        raise InputError(
            f"input {record.name!r} should be {record.dtype} {_shape(record)}, "
            f"not {array.dtype} {list(array.shape)}"
        )
    return np.ascontiguousarray(array)


def _is_array(value: object) -> TypeGuard[Array]:
    return isinstance(value, np.ndarray)


def takes(manifest: Manifest) -> str:
    """What the model takes, for messages."""
    inputs = ", ".join(f"{r.name}: {r.dtype} {_shape(r)}" for r in manifest.inputs)
    return f"the model takes {inputs}"


def _shape(record: InputRecord) -> str:
    return f"[{', '.join(str(size) for size in record.shape)}]"
