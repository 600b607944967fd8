"""Inputs for a user who gave none: example inputs read off the model, synthetic calibration.

Everything is drawn from seeded generators, and every result is tried on the model before it is
returned. What was chosen is said in ``Inputs.note``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from advisor.errors import InputError
from advisor.inputs import Inputs, dtype_name, float_dtype, is_mapping, normalise_inputs
from advisor.signature import Model, Signature, read_signature

SIZES: Final = (224, 128, 64, 32, 28, 16, 8)
"""Spatial sizes tried for a convolution, largest first: most networks with a fixed size are
trained at 224, and a network with pooling accepts any."""

LAYERS_TRIED: Final = 3
"""How many layers, in registration order, are taken for the entrance of the model."""

SEQUENCE: Final = 16

# What a forward pass raises when shapes or types do not fit; anything else is the model's fault.
FORWARD_ERRORS: Final = (
    RuntimeError,
    TypeError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)

Attempt = tuple[str, Callable[[], object]]
"""Where inputs come from, and what makes them (it may raise ``InputError``)."""


def infer_inputs(model: Model, *, batch: int = 2, sequence: int | None = None) -> Inputs:
    """Example inputs found on the model itself, tried once in evaluation mode.

    In this order: an exported program's own example, Hugging Face ``dummy_inputs``, Lightning
    ``example_input_array``, timm ``pretrained_cfg["input_size"]``, then the first layer that says
    what it takes (embedding, linear, convolution, recurrent).

    batch: first dimension. sequence: tokens per row; 16 when None.

    Raises:
        InputError: nothing fits; says what was tried and what to pass.
    """
    signature = read_signature(model)
    tried: list[str] = []
    for source, make in _attempts(model, signature, batch, sequence):
        try:
            inputs = normalise_inputs(model, make())
            run_once(model, inputs)
        except (InputError, *FORWARD_ERRORS) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            tried.append(f"{source}: {reason[0][:160]}")
        else:
            shapes = ", ".join(_describe(*named) for named in inputs.tensors().items())
            return replace(inputs, note=f"inputs inferred from {source}: {shapes}")
    attempts = "; ".join(tried) or "the model has no layer that tells its input's shape"
    names = ", ".join(signature.required) or ", ".join(signature.names[:3]) or "inputs"
    raise InputError(
        f"the inputs of {type(model).__name__} cannot be inferred (tried: {attempts}); pass "
        f"inputs= a tensor, a tuple or a dict for {names} that model(*inputs) accepts"
    )


def synthetic_calibration(
    inputs: Inputs, samples: int, seed: int, *, model: Model | None = None
) -> list[Inputs]:
    """Random batches shaped like the example, at least ``samples`` rows in all.

    Floats are normal with the example's mean and deviation (standard normal when it is constant),
    token ids uniform over the vocabulary (the embedding's when ``model`` is given), other integers
    uniform up to the example's largest; masks and positions are the example's own.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = _vocabulary(model) if isinstance(model, nn.Module) else None
    tensors = inputs.tensors()
    ids = _token_ids(tensors)
    note = "synthetic calibration: random values shaped like the example inputs"

    def draw(name: str, example: Tensor) -> Tensor:
        if _is_kept(name, example):
            return example
        if example.is_floating_point():
            return _draw_floats(example, generator)
        top = int(example.max()) + 1 if example.numel() else 1
        limit = vocabulary if name in ids and vocabulary else max(top, 1)
        values = torch.randint(0, limit, tuple(example.shape), generator=generator)
        return values.to(example.dtype).to(example.device)

    return [
        replace(inputs.map_tensors({name: draw(name, t) for name, t in tensors.items()}), note=note)
        for _ in range(ceil(samples / inputs.batch))
    ]


def run_once(model: Model, inputs: Inputs) -> object:
    """One forward in evaluation mode without gradients; the model's modes are restored."""
    module = model.module() if isinstance(model, ExportedProgram) else model
    modes = {part: part.training for part in module.modules()}
    try:
        if not isinstance(model, ExportedProgram):  # an exported module refuses eval()
            module.eval()
        with torch.no_grad():
            return module(*inputs.args, **inputs.kwargs)
    finally:
        for part, training in modes.items():
            part.training = training


def _attempts(
    model: Model, signature: Signature, batch: int, sequence: int | None
) -> Iterator[Attempt]:
    if isinstance(model, ExportedProgram):
        if model.example_inputs is not None:
            args, kwargs = model.example_inputs
            own = Inputs(args=tuple(args), kwargs=dict(kwargs), names=signature.positional)
            yield "the exported program's example", lambda: own
        return
    make = _Maker(model, signature, batch, sequence)
    yield from _hugging_face(model, signature, make)
    example = getattr(model, "example_input_array", None)
    if example is not None:
        yield "example_input_array", lambda: example
    yield from _timm(model, make)
    yield from _first_layers(model, make)


class _Maker:
    """Random tensors of the model's dtype and device, the same in every run."""

    def __init__(
        self, model: nn.Module, signature: Signature, batch: int, sequence: int | None
    ) -> None:
        self.batch, self.sequence = batch, sequence
        self._signature = signature
        self._generator = torch.Generator().manual_seed(0)
        self._dtype = float_dtype(model)
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def floats(self, *shape: int) -> Tensor:
        values = torch.randn(self.batch, *shape, generator=self._generator)
        return values.to(self._device, self._dtype)

    def ids(self, vocabulary: int) -> Tensor:
        shape = (self.batch, self.sequence or SEQUENCE)
        return torch.randint(0, vocabulary, shape, generator=self._generator).to(self._device)

    def all_required(self, first: Tensor) -> tuple[Tensor, ...]:
        """``first`` and, for what else forward requires, masks of ones and segments of zeros."""
        others = [name for name in self._signature.positional if name in self._signature.required]
        rest: list[Tensor] = []
        for name in others[1:]:
            if "mask" in name:
                rest.append(torch.ones_like(first, dtype=torch.long))
            elif "token_type" in name:
                rest.append(torch.zeros_like(first, dtype=torch.long))
            else:
                raise InputError(f"nothing tells the shape of the required input {name!r}")
        return (first, *rest)


def _hugging_face(model: nn.Module, signature: Signature, make: _Maker) -> Iterator[Attempt]:
    """``dummy_inputs`` with this model's own vocabulary, a mask, and images for vision models."""
    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    size = getattr(config, "image_size", None)
    if main == "pixel_values" and size is not None:
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        pixels = make.floats(getattr(config, "num_channels", 3), height, width)
        yield "config.image_size", lambda: {"pixel_values": pixels}
        return
    try:
        dummy = getattr(model, "dummy_inputs", None)
    except FORWARD_ERRORS:  # a property of the model's own, free to fail
        dummy = None
    if not is_mapping(dummy) or (main is not None and main not in dummy):
        return
    vocabulary = _vocabulary(model)
    inputs: dict[str, Tensor] = {
        name: make.ids(vocabulary) if name.endswith("ids") and vocabulary else value
        for name, value in dummy.items()
        if "mask" not in name
    }
    for ids, mask in (
        ("input_ids", "attention_mask"),
        ("decoder_input_ids", "decoder_attention_mask"),
    ):
        if ids in inputs and mask in signature.names:
            inputs[mask] = torch.ones_like(inputs[ids])
    yield "model.dummy_inputs", lambda: inputs


def _timm(model: nn.Module, make: _Maker) -> Iterator[Attempt]:
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        size = config.get("input_size") if is_mapping(config) else None
        if size:
            yield f"{attribute}['input_size']", partial(make.floats, *size)
            return


def _first_layers(model: nn.Module, make: _Maker) -> Iterator[Attempt]:
    found = 0
    for name, layer in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        candidates = list(_for_layer(layer, make))
        if not candidates:
            continue
        for what, first in candidates:
            label = f"the first layer {name or 'of the model'} ({what})"
            yield label, partial(make.all_required, first)
        found += 1
        if found == LAYERS_TRIED:
            return


def _for_layer(layer: nn.Module, make: _Maker) -> Iterator[tuple[str, Tensor]]:
    match layer:
        case nn.Embedding() | nn.EmbeddingBag():
            kind = type(layer).__name__
            yield f"{kind}, {layer.num_embeddings} entries", make.ids(layer.num_embeddings)
        case nn.Linear():
            shapes: list[tuple[int, ...]] = [(), (make.sequence or SEQUENCE,)]
            for shape in reversed(shapes) if make.sequence else shapes:
                label = f"Linear, {layer.in_features} features"
                yield label, make.floats(*shape, layer.in_features)
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            dims = len(layer.kernel_size)
            channels = layer.in_channels
            label = f"{type(layer).__name__}, {channels} channel{'s' if channels > 1 else ''}"
            # A volume of 128^3 and two samples would already be 17 MB per channel.
            for size in SIZES if dims < 3 else SIZES[2:]:
                yield label, make.floats(channels, *([size] * dims))
        case nn.LSTM() | nn.GRU() | nn.RNN():
            steps = make.sequence or SEQUENCE
            value = make.floats(steps, layer.input_size)
            label = f"{type(layer).__name__}, {layer.input_size} features"
            yield label, value if layer.batch_first else value.transpose(0, 1).contiguous()
        case _:
            return


def _vocabulary(model: nn.Module) -> int | None:
    """Entries of the input embedding: Hugging Face's own, else the first registered."""
    getter = getattr(model, "get_input_embeddings", None)
    if callable(getter):
        try:
            embedding = getter()
        except FORWARD_ERRORS:  # Hugging Face raises for models without one
            embedding = None
        if isinstance(embedding, nn.Embedding):
            return embedding.num_embeddings
    first = (part for part in model.modules() if isinstance(part, nn.Embedding))
    embedding = next(first, None)
    return None if embedding is None else embedding.num_embeddings


def _token_ids(tensors: Mapping[str, Tensor]) -> set[str]:
    """Names that index the vocabulary: those called so, else the first integer input."""
    integers = [
        name
        for name, tensor in tensors.items()
        if not _is_kept(name, tensor) and not tensor.is_floating_point() and "type" not in name
    ]
    called = {name for name in integers if name.endswith("input_ids")}
    return called or set(integers[:1])


def _is_kept(name: str, example: Tensor) -> bool:
    """Masks, positions and flags: random ones would not be inputs that the model ever sees."""
    if example.dtype == torch.bool or "mask" in name or "position" in name:
        return True
    return not example.is_floating_point() and bool((example == 1).all())


def _draw_floats(example: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(tuple(example.shape), generator=generator)
    spread = float(example.double().std()) if example.numel() > 1 else 0.0
    if spread > 0.0:
        values = values * spread + float(example.double().mean())
    return values.to(example.device, example.dtype)


def _describe(name: str, tensor: Tensor) -> str:
    return f"{name} {dtype_name(tensor)} {'x'.join(str(size) for size in tensor.shape) or 'scalar'}"
