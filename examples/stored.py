"""Trained weights of the example models: safetensors in float16, beside the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from advisor.errors import ModelError

WEIGHTS: Final = Path(__file__).with_name("weights")

Model = TypeVar("Model", bound=nn.Module)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the parameters and buffers, floats rounded to float16; tied ones once."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        stored[name] = tensor.detach().half() if tensor.is_floating_point() else tensor
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, path)


def load_weights(model: Model, path: Path) -> Model:
    """Fill ``model`` with the stored weights, in float32; in evaluation mode.

    Raises:
        ModelError: the file is missing, damaged, or made for another architecture.
    """
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be read ({error}); examples/README.md says which script writes it"
        ) from error
    own = dict([*model.named_parameters(), *model.named_buffers()])
    if own.keys() != stored.keys():
        different = sorted(own.keys() ^ stored.keys())
        raise ModelError(f"{path.name} does not fit: {', '.join(different[:5])}; train it again")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != stored[name].shape:
                raise ModelError(
                    f"{path.name} does not fit: {name} is {tuple(stored[name].shape)}, and "
                    f"{tuple(tensor.shape)} is needed; train it again"
                )
            tensor.copy_(stored[name])
    return model.eval()
