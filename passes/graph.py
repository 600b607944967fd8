"""The values that flow between passes: Layer, Graph, QuantizedGraph.

Importing this module does not load torch, so that costs, search and reports can describe layers
without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any, Final

from advisor.formats import PerChannel, Scheme, TensorFormat

if TYPE_CHECKING:
    import torch
    from torch.fx import GraphModule, Node

    from advisor.targets.capability import DynamicRules

NAME_KEY: Final = "advisor_name"
"""Key inside ``node.meta["custom"]`` (which survives re-export) of the node's stable name."""

PASS_KEY: Final = "advisor_pass"
"""Key inside ``node.meta["custom"]`` of the pass that made the node."""

ROLE_KEY: Final = "advisor_role"
"""Key inside ``node.meta["custom"]`` of a node's part in a layer: "op", "weight", "dynamic",
"output"."""


def name_of(node: Node) -> str:
    """The stable name of a node: module path, ``#k`` for the k-th call, or the input's name."""
    custom: dict[str, Any] = node.meta.get("custom") or {}
    return str(custom.get(NAME_KEY, node.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What can be quantized: one call of an operator with a weight, or one product of two
    activations.

    name: module path, ``#k`` for the k-th call. op: "linear", "conv1d", "conv2d",
    "conv_transpose1d", "conv_transpose2d", "embedding", "lstm", "gru", or "matmul" for a product;
    a recurrent operator has two layers, for the input's and for the recurrent weight, named like
    these. weight: fully qualified name of the weight; equal for tied layers, "" for a product.
    weight_shape: torch layout (out, in, ...), of a transposed convolution (in, out / groups, ...),
    of a product (). input, output: names of the activation tensors read and written; for a layer
    followed by an activation function that runtimes fuse, ``output`` is still the layer's own.
    other: name of a product's second operand, None for a layer with a weight. macs:
    multiply-accumulates of one forward at the deployment shape. frozen: why this layer can take
    only float schemes, or None. scale_axis: axis of the weight whose every index has a scale of
    its own under a per-channel scheme: the outputs, of a grouped transposed convolution the
    inputs. is_pointwise: a convolution of one group whose every output pixel has one input pixel,
    its own.
    """

    name: str
    op: str
    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    groups: int = 1
    input: str
    other: str | None = None
    output: str
    macs: int = 0
    frozen: str | None = None
    scale_axis: int = 0
    is_pointwise: bool = False

    def weight_format(self, scheme: Scheme) -> TensorFormat:
        """The format of this layer's weight under ``scheme``."""
        fmt = scheme.weight
        if isinstance(fmt.granularity, PerChannel) and fmt.granularity.axis != self.scale_axis:
            return replace(fmt, granularity=PerChannel(self.scale_axis))
        return fmt

    @property
    def weight_count(self) -> int:
        """Number of weights."""
        return prod(self.weight_shape) if self.weight else 0

    @property
    def is_product(self) -> bool:
        """True for a product of two activations, which has no weight."""
        return self.other is not None

    @property
    def is_depthwise(self) -> bool:
        """True for a convolution with one input channel per group."""
        return self.op.startswith("conv") and self.groups > 1 and self.weight_shape[1] == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A captured, normalised model: functional ATen operators, weights as ``get_attr`` nodes.

    module: runs like the original model, same arguments and outputs. args, kwargs: example
    inputs at a batch the graph accepts. dynamic: for every input name the dimensions that may
    change, e.g. {"x": {0: "batch"}}. batch: the only batch size accepted, or None when dynamic.
    layers: in execution order. output_names: one per tensor of the flattened output.
    notes: what capture decided and a user should know. products: whether products of two
    activations are among the layers, which is so where a runtime can quantize them.
    """

    module: GraphModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: dict[str, dict[int, str]]
    batch: int | None
    layers: tuple[Layer, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    products: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightTable:
    """The quantized weight of one layer, as the runtimes must ship it.

    values: int8 tensor of the weight's shape (narrower integers are held in int8, unpacked), or
    the float tensor for float formats. scale: float32, shape () | (channels,) | (rows, blocks);
    None for floats. zero_point: None when symmetric. table: None but for lookup tables, whose
    values are indices (uint8): (tables, entries) of float32, or of int8 with one scale per table;
    every table is for an equal share of the outputs.
    """

    values: torch.Tensor
    scale: torch.Tensor | None = None
    zero_point: torch.Tensor | None = None
    table: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationParams:
    """Static quantization of one activation tensor: real = (integer - zero_point) * scale."""

    scale: float
    zero_point: int
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAssignment:
    """What one layer does in a quantized graph."""

    scheme: str
    algorithm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedGraph:
    """The graph with a plan applied; running ``module`` in torch *is* the simulation.

    module: weights are ``advisor::dequantize_affine`` of integer buffers (or a cast of float16
    ones), statically quantized tensors pass ``advisor::quantize_static`` then
    ``advisor::dequantize_static``, the inputs of dynamic layers
    ``advisor::quantize_dequantize_dynamic`` (role "dynamic", named like the first layer that reads
    it). float_graph: the graph it was made from. assignment: by layer name. weights: by weight
    name. activations: by tensor name, exactly the quantized ones. dynamic: by layer name, exactly
    the dynamic layers. biases: corrected biases by name. batch, sequence: of the deployment, for
    runtimes whose files have fixed shapes; None: as in the graph's example inputs.
    """

    module: GraphModule
    float_graph: Graph
    assignment: dict[str, LayerAssignment]
    weights: dict[str, WeightTable]
    activations: dict[str, ActivationParams]
    dynamic: dict[str, DynamicRules] = field(default_factory=dict[str, "DynamicRules"])
    biases: dict[str, torch.Tensor] = field(default_factory=dict[str, "torch.Tensor"])
    batch: int | None = None
    sequence: int | None = None
