"""What a model's forward takes, read from its signature without running it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from torch import nn
from torch.export import ExportedProgram

Model = nn.Module | ExportedProgram

# An optional parameter with a default of these types is a switch, not a tensor.
_SWITCHES = (bool, int, float, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The parameters of ``forward``.

    names: every parameter that can be given by name, in order. positional: those that can also
    be given by position. required: those without a default. tensors: those that may be tensors
    (required, or with a default that is no bool, number or string). open_args, open_kwargs:
    whether it ends in ``*args``, ``**kwargs``.
    """

    names: tuple[str, ...]
    positional: tuple[str, ...]
    required: tuple[str, ...]
    tensors: tuple[str, ...]
    open_args: bool = False
    open_kwargs: bool = False

    @property
    def least(self) -> int:
        """The fewest positional inputs; at least 1, since a model without inputs has no data."""
        return max(1, sum(name in self.required for name in self.positional))

    @property
    def most(self) -> int | None:
        """The most positional tensors; None when ``forward`` takes ``*args``."""
        return None if self.open_args else sum(name in self.tensors for name in self.positional)

    def takes(self, count: int) -> bool:
        """Whether ``count`` tensors can be given by position."""
        return self.least <= count and (self.most is None or count <= self.most)

    def __str__(self) -> str:
        words = [name if name in self.required else f"{name}=..." for name in self.names]
        words += ["*args"] if self.open_args else []
        words += ["**kwargs"] if self.open_kwargs else []
        return f"forward({', '.join(words)})"


def read_signature(model: Model) -> Signature:
    """The signature of ``model.forward``, or of an exported program's inputs."""
    if isinstance(model, ExportedProgram):
        return _of_program(model)
    parameters = list(inspect.signature(model.forward).parameters.values())
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = tuple(p.name for p in plain if p.default is p.empty)
    return Signature(
        names=tuple(p.name for p in plain),
        positional=tuple(p.name for p in plain if p.kind is not p.KEYWORD_ONLY),
        required=required,
        tensors=tuple(
            p.name for p in plain if p.name in required or not isinstance(p.default, _SWITCHES)
        ),
        open_args=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        open_kwargs=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _of_program(program: ExportedProgram) -> Signature:
    """An exported program needs exactly the inputs that it was exported with."""
    spec = program.call_spec.in_spec
    assert spec is not None  # torch.export always records it
    by_position, by_name = spec.children()
    keywords = tuple(str(key) for key in by_name.context)
    recorded = program.module_call_graph[0].signature
    names = tuple(recorded.forward_arg_names or ()) if recorded is not None else ()
    count = by_position.num_children
    positional = names[:count] or tuple(f"input_{index}" for index in range(count))
    everything = (*positional, *(key for key in keywords if key not in positional))
    return Signature(
        names=everything, positional=positional, required=everything, tensors=everything
    )
