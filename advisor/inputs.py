"""A model's inputs in one form: what the user gave, made positional and keyword arguments.

The rules, for example inputs and calibration batches alike:

- a tensor (or NumPy array) is the only positional argument;
- a tuple or list holds the positional arguments;
- a mapping whose keys are parameters of ``forward`` holds keyword arguments; a mapping none of
  whose keys is one is a single positional argument.

A calibration batch may also carry a label, see ``split_label``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advisor.errors import CalibrationError, InputError
from advisor.signature import Model, Signature, read_signature

LABEL_KEYS: Final = ("label", "labels", "target", "targets")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """Arguments for one call of the model: ``model(*args, **kwargs)``.

    names: the parameter that each positional argument goes to. note: where the inputs are from,
    when the user did not give them.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    names: tuple[str, ...] = ()
    note: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; one inside a container is ``parameter_key`` or ``parameter_0``."""
        named = [*zip(self._arg_names(), self.args, strict=True), *self.kwargs.items()]
        return {name: leaf for root, value in named for name, leaf in _leaves(root, value)}

    def map_tensors(self, values: Mapping[str, Tensor]) -> Inputs:
        """The same structure with the tensors of ``values`` (names as in ``tensors``)."""
        args = zip(self._arg_names(), self.args, strict=True)
        return replace(
            self,
            args=tuple(_rebuild(name, value, values) for name, value in args),
            kwargs={name: _rebuild(name, value, values) for name, value in self.kwargs.items()},
        )

    @property
    def batch(self) -> int:
        """First dimension of the first tensor that has one; 1 when none has."""
        return next((t.shape[0] for t in self.tensors().values() if t.ndim), 1)

    def _arg_names(self) -> tuple[str, ...]:
        extra = range(len(self.names), len(self.args))
        return (*self.names[: len(self.args)], *(f"input_{index}" for index in extra))


def normalise_inputs(model: Model, inputs: object) -> Inputs:
    """``inputs`` as arguments of ``model``.

    inputs: tensor, NumPy array, tuple, list, mapping (a Hugging Face ``BatchEncoding`` too), or
    ``Inputs``. A float64 NumPy array takes the model's float dtype, since NumPy has no other
    default; every other dtype is kept.

    Raises:
        InputError: nothing tensor-like, too few or too many, or names that forward has not.
    """
    if isinstance(inputs, Inputs):
        return inputs
    signature = read_signature(model)
    convert = _Converter(model)
    if isinstance(inputs, Tensor) or is_array(inputs):
        return _positional(signature, (convert(inputs),))
    if is_mapping(inputs):
        return _named(signature, inputs, convert)
    if is_sequence(inputs):
        return _positional(signature, tuple(convert(value) for value in inputs))
    raise InputError(
        f"inputs of type {type(inputs).__name__} cannot be given to a model; pass a tensor, "
        f"a tuple of tensors, or a dict of tensors by parameter name of {signature}"
    )


def split_label(
    model: Model, item: object, *, reference: Inputs | None = None
) -> tuple[Inputs, object | None]:
    """One calibration item as (inputs, label); the label is None when the item has none.

    A mapping carries its label under "label", "labels", "target" or "targets" (unless forward
    requires that name). A tuple or list of two is (inputs, label) when its first element is
    itself a mapping, tuple or list; otherwise its length is compared with the number of tensors
    that forward takes: one means (inputs, label), two means both are inputs. Every other length
    is all inputs.

    reference: the example inputs; their number decides where forward alone allows both readings
    (an optional second tensor).

    Raises:
        InputError: both readings or neither fits; the message says how to write the item.
    """
    if is_mapping(item):
        return _split_mapping(model, item)
    if not is_sequence(item) or len(item) != 2:
        return normalise_inputs(model, item), None
    first, label = item
    if is_mapping(first) or is_sequence(first):
        return normalise_inputs(model, first), label
    signature = read_signature(model)
    if reference is not None:
        count = len(reference.args) + len(reference.kwargs)
        alone, both = count == 1, count == 2
    else:
        alone, both = signature.takes(1), signature.takes(2)
    if alone and not both:
        return normalise_inputs(model, first), label
    if both and not alone:
        return normalise_inputs(model, item), None
    names = signature.positional[:2]
    by_name = ", ".join(f'"{name}": ...' for name in names) or '"name": ...'
    why = "could be two inputs or (inputs, label)" if alone else "fits neither way"
    raise InputError(
        f"a calibration item of two elements {why} for {signature}; "
        f"write inputs as a dict {{{by_name}}}, and inputs with a label as ((inputs,), label)"
    )


def check_inputs(
    reference: Inputs, given: Inputs, *, dynamic: Mapping[str, Mapping[int, str]] | None = None
) -> None:
    """Refuse inputs that differ from the example in names, dtype or a fixed dimension.

    dynamic: which dimensions may change, by tensor name, with a symbol; dimensions of the same
    symbol must stay equal within one call. None: the first dimension of every tensor whose first
    dimension is the example's batch.

    Raises:
        InputError: names the input, what was expected and what was given.
    """
    expected, found = reference.tensors(), given.tensors()
    if set(expected) != set(found):
        missing = ", ".join(sorted(set(expected) - set(found))) or "none"
        surplus = ", ".join(sorted(set(found) - set(expected))) or "none"
        raise InputError(
            f"the model was planned for the inputs {', '.join(expected)}; missing: {missing}; "
            f"not expected: {surplus}; pass the same names as the example inputs"
        )
    free = _batch_dimensions(reference) if dynamic is None else dynamic
    sizes: dict[str, tuple[int, str]] = {}
    for name, example in expected.items():
        _check_tensor(name, example, found[name], free.get(name, {}))
        for dim, symbol in free.get(name, {}).items():
            size = found[name].shape[dim]
            first, where = sizes.setdefault(symbol, (size, name))
            if size != first:
                raise InputError(
                    f"input {name!r} has {symbol} {size} (dimension {dim}), but {where!r} has "
                    f"{first}; give both the same {symbol}"
                )


def check_finite(inputs: Inputs, batch_index: int) -> None:
    """Refuse calibration data with NaN or infinite values.

    Raises:
        CalibrationError: names the input, the batch and how many values are not finite.
    """
    for name, tensor in inputs.tensors().items():
        if not tensor.is_floating_point():
            continue
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CalibrationError(
                f"calibration batch {batch_index}: input {name!r} has {bad} of {tensor.numel()} "
                "values that are NaN or infinite; remove or clean that batch"
            )


def float_dtype(model: Model) -> torch.dtype:
    """Dtype of the model's first floating-point parameter; float32 when it has none."""
    parameters = model.parameters()
    return next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)


def is_array(value: object) -> TypeGuard[npt.NDArray[Any]]:
    """A NumPy array."""
    return isinstance(value, np.ndarray)


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """A dict or what behaves like one, such as a Hugging Face ``BatchEncoding``."""
    return isinstance(value, Mapping)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """A tuple or list; a string is no container of inputs."""
    return isinstance(value, (tuple, list))


class _Converter:
    """Arrays to tensors, containers element by element, everything else as it is."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __call__(self, value: Any) -> Any:
        if is_array(value):
            return self._tensor(value)
        if is_mapping(value):
            return {key: self(item) for key, item in value.items()}
        if is_sequence(value):
            items = [self(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"a NumPy array of dtype {array.dtype} cannot become a tensor; "
                "convert it to floats, integers or booleans first"
            )
        # Not from_numpy, which shares memory that a data loader may write to again.
        tensor = torch.tensor(array)
        return tensor.to(float_dtype(self._model)) if tensor.dtype == torch.float64 else tensor


def _positional(signature: Signature, args: tuple[Any, ...]) -> Inputs:
    if not any(True for value in args for _ in _leaves("", value)):
        raise InputError(f"inputs hold no tensor; pass at least one for {signature}")
    most = None if signature.open_args else len(signature.positional)
    if len(args) < signature.least or (most is not None and len(args) > most):
        limit = str(signature.least) if most == signature.least else f"{signature.least} to {most}"
        raise InputError(
            f"{len(args)} positional inputs given, but {signature} takes {limit}; pass one "
            "element per parameter, or a dict by parameter name"
        )
    return Inputs(args=args, names=signature.positional[: len(args)])


def _named(signature: Signature, inputs: Mapping[Any, Any], convert: _Converter) -> Inputs:
    known = [key for key in inputs if key in signature.names]
    unknown = [str(key) for key in inputs if key not in signature.names]
    if not known and not (signature.open_kwargs and not signature.required):
        return _positional(signature, (convert(dict(inputs)),))
    if unknown and not signature.open_kwargs:
        close = difflib.get_close_matches(unknown[0], signature.names, n=2)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise InputError(
            f"inputs name {', '.join(unknown)}, which {signature} does not take; {hint}"
            f"possible names: {', '.join(signature.names)}"
        )
    missing = [name for name in signature.required if name not in inputs]
    if missing:
        raise InputError(
            f"inputs lack {', '.join(missing)}, which {signature} requires; add the missing names"
        )
    kwargs = {str(key): convert(value) for key, value in inputs.items()}
    if not any(True for key, value in kwargs.items() for _ in _leaves(key, value)):
        raise InputError(f"inputs hold no tensor; pass at least one for {signature}")
    return Inputs(kwargs=kwargs)


def _split_mapping(model: Model, item: Mapping[Any, Any]) -> tuple[Inputs, object | None]:
    required = read_signature(model).required
    labels = [key for key in LABEL_KEYS if key in item and key not in required]
    if len(labels) > 1:
        raise InputError(
            f"a calibration item has more than one label: {', '.join(labels)}; keep one of them"
        )
    rest = {key: value for key, value in item.items() if key not in labels}
    return normalise_inputs(model, rest), item[labels[0]] if labels else None


def _check_tensor(name: str, example: Tensor, given: Tensor, free: Mapping[int, str]) -> None:
    if given.dtype != example.dtype:
        raise InputError(
            f"input {name!r} is {dtype_name(given)}, expected {dtype_name(example)}; "
            f"convert it with .to(torch.{dtype_name(example)})"
        )
    fits = given.ndim == example.ndim and all(
        dim in free or size == wanted
        for dim, (size, wanted) in enumerate(zip(given.shape, example.shape, strict=True))
    )
    if not fits:
        wanted = [free.get(dim, str(size)) for dim, size in enumerate(example.shape)]
        raise InputError(
            f"input {name!r} has shape {shape_text(given.shape)}, expected "
            f"({', '.join(wanted)}); reshape it, or plan with inputs= of that shape"
        )


def _batch_dimensions(reference: Inputs) -> dict[str, dict[int, str]]:
    return {
        name: {0: "batch"}
        for name, tensor in reference.tensors().items()
        if tensor.ndim and tensor.shape[0] == reference.batch
    }


def dtype_name(tensor: Tensor) -> str:
    """Dtype without the module: "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def shape_text(shape: Sequence[int]) -> str:
    """A shape as it is written in messages: (2, 1, 8, 8)."""
    return f"({', '.join(str(size) for size in shape)})"


def _leaves(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif is_mapping(value):
        for key, item in value.items():
            yield from _leaves(f"{name}_{key}", item)
    elif is_sequence(value):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}_{index}", item)


def _rebuild(name: str, value: Any, values: Mapping[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return values.get(name, value)
    if is_mapping(value):
        return {key: _rebuild(f"{name}_{key}", item, values) for key, item in value.items()}
    if is_sequence(value):
        items = [_rebuild(f"{name}_{index}", item, values) for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


__all__ = [
    "Inputs",
    "check_finite",
    "check_inputs",
    "dtype_name",
    "float_dtype",
    "normalise_inputs",
    "shape_text",
    "split_label",
]
