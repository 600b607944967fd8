"""What a runtime does with memory, files, single operators and the parts of a delegate, as data."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from advisor.passes.graph import ActivationParams
from advisor.targets.platforms import shortfall


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedOutput:
    """Operators whose integers always have this scale and zero point, whatever they compute."""

    operators: tuple[str, ...]
    scale: float
    zero_point: int
    source: str = ""

    def params(self, dtype: str) -> ActivationParams:
        """The scale, as float32 has it, and zero point, of integers of ``dtype``."""
        scale = float(np.float32(self.scale))
        return ActivationParams(scale=scale, zero_point=self.zero_point, dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightMemory:
    """What a weight takes in memory where that is not its bytes, once.

    ops, schemes: the layers this is about. resident: while the model is open, opening: at the
    highest moment of opening it, both as multiples of the bytes on disk, or of the weight in the
    runtime's float dtype where it is expanded (``storage_only``). scratch: while the layer runs,
    as a multiple of the weight in the runtime's float dtype. below: on platforms below this
    minimum alone, such as "vnni1"; empty for all.
    """

    ops: tuple[str, ...]
    schemes: tuple[str, ...]
    resident: float = 1.0
    opening: float = 1.0
    scratch: float = 0.0
    below: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRules:
    """What a process takes beyond the weights on disk and the activations alive.

    runtime_bytes: the runtime itself with an empty model. operator_bytes: each operator's node,
    kernel and plan. activations: bytes that the allocator takes per byte alive. inside_bytes:
    weights smaller than that are in the file itself, which is read as a whole to open it. planned:
    bytes besides per byte of a buffer that is planned for every run at once; 0 where none is.
    unplanned: operators whose float outputs are not planned, when what they read is not either.
    absorbed: operators on floats that become part of the layers reading them. weights: where a
    weight takes other than its bytes on disk.
    """

    runtime_bytes: float
    operator_bytes: float
    activations: float
    inside_bytes: float = 0.0
    planned: float = 0.0
    unplanned: tuple[str, ...] = ()
    absorbed: tuple[str, ...] = ()
    weights: tuple[WeightMemory, ...] = ()
    source: str = ""

    def weight(self, op: str, scheme: str, platform: Mapping[str, str]) -> WeightMemory:
        """What a weight of this operator takes under this scheme, by the first rule about it."""
        for rule in self.weights:
            here = not rule.below or shortfall(rule.below, platform)
            if here and op in rule.ops and scheme in rule.schemes:
                return rule
        return WeightMemory(ops=(op,), schemes=(scheme,), source=self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """What a file holds beside a layer's weight and scales: operators, zero points, a bias's scale.

    layer_bytes: of each layer, and how often its name is written besides. channel_bytes: of each of
    its outputs, or rows of a table.
    """

    ops: tuple[str, ...]
    schemes: tuple[str, ...]
    layer_bytes: float = 0.0
    layer_names: float = 0.0
    channel_bytes: float = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerTensor:
    """What a file holds for a tensor of integers, by how it comes to be.

    produced: whether an operator computes the integers; if not, they are quantized on their own for
    static layers. readers: kinds of those layers; none for whatever they are. bytes: operators,
    scale and zero point. names: how often the tensor's name is written besides.
    """

    produced: bool
    readers: tuple[str, ...] = ()
    bytes: float = 0.0
    names: float = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRules:
    """How large a file is beyond a plan's constants.

    operator_bytes: per operator of the captured graph, in float32. operator_names, layer_names: how
    often the name of an operator is written, and of one that is a layer, whose constants have it in
    theirs. layers, tensors: what quantizing adds to that. page_bytes: where weights are in a file
    of their own (``MemoryRules.inside_bytes``), each of at least ``page_from`` bytes starts at a
    multiple of this, as do its scales.
    """

    operator_bytes: float
    operator_names: float = 0.0
    layer_names: float = 0.0
    page_bytes: int = 1
    page_from: float = 0.0
    layers: tuple[Companions, ...] = ()
    tensors: tuple[IntegerTensor, ...] = ()
    source: str = ""

    def companions(self, op: str, scheme: str) -> Companions:
        """What such a layer adds."""
        for rule in self.layers:
            if op in rule.ops and scheme in rule.schemes:
                return rule
        return Companions(ops=(op,), schemes=(scheme,))

    def integers(self, *, produced: bool, readers: Collection[str]) -> IntegerTensor:
        """What such a tensor adds; readers: kinds of the static layers that read it."""
        for rule in self.tensors:
            if rule.produced == produced and (
                not rule.readers or not set(rule.readers).isdisjoint(readers)
            ):
                return rule
        return IntegerTensor(produced=produced)


@dataclass(frozen=True, slots=True, kw_only=True)
class DelegateRules:
    """How a runtime shares a model with a delegate that takes what it can.

    left_out: operators (ATen names, and kinds of layers) that the delegate does not compute; it
    takes all others on floats and on the integers of static schemes, and nothing else. launches:
    operators' overheads that passing from one to the other costs. slowdown: how many times longer
    a layer takes that the delegate leaves out under one scheme only.
    """

    name: str
    left_out: tuple[str, ...]
    launches: float
    slowdown: float
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionRules:
    """Operators that the runtime computes inside the one before them.

    after: kinds of layers, and ATen names, that can take one in. operators: ATen names of what they
    take in, alone or in a chain. source: where the fact is from.
    """

    after: tuple[str, ...]
    operators: tuple[str, ...]
    source: str = ""
