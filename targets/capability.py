"""What a runtime supports, as data: one ``<runtime>.toml`` beside this file.

Nothing here loads torch. The question every part of the product asks is ``support(...)``.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final, Self

from advisor.errors import UsageError
from advisor.formats import PerBlock, ScaleRounding, Scheme, weight_alone
from advisor.passes.graph import Layer
from advisor.targets.fit import misfit
from advisor.targets.platforms import shortfall
from advisor.targets.rules import DelegateRules, FileRules, FixedOutput, FusionRules, MemoryRules

WEIGHTED_OPS: Final = (
    "linear",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "embedding",
    "lstm",
    "gru",
    "attention",
    "matmul",
)
"""Operators that a scheme can apply to. Layers have the first kinds only; the others are known so
that the data can speak of them."""

TENSOR_OPS: Final = (
    "relu",
    "relu6",
    "hardtanh",
    "clamp",
    "add",
    "sub",
    "mul",
    "sigmoid",
    "hardsigmoid",
    "tanh",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "mean",
    "cat",
    "pad",
    "slice",
    "view",
    "reshape",
    "flatten",
    "transpose",
    "permute",
    "unsqueeze",
    "squeeze",
)
"""Operators without weights that static rules speak of: ATen names without the overload."""

POINTWISE_OPS: Final = (
    "relu",
    "relu6",
    "hardtanh",
    "clamp",
    "sigmoid",
    "tanh",
    "gelu",
    "silu",
    "hardswish",
    "hardsigmoid",
    "leaky_relu",
    "elu",
    "mish",
    "erf",
    "exp",
    "sqrt",
    "rsqrt",
    "abs",
    "neg",
    "pow",
    "add",
    "sub",
    "mul",
    "div",
    "rsub",
    "maximum",
    "minimum",
    "where",
    "_to_copy",
)
"""Operators without weights that compute every element alone, which runtimes fuse: ATen names
without the overload."""

PRODUCT_SCHEME: Final = "a8a8"
"""The scheme of products of two activations, in attention and elsewhere."""

_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """Whether something can be done, and if not, why."""

    ok: bool
    reason: str = ""


ANY_TAPS: Final = 2**31 - 1
"""Of a scheme that takes kernels of any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeSupport:
    """Where one scheme is available.

    ops: operators (Layer.op) that take it. minimum: lowest platform that has it, such as "iOS18",
    "sm80", "vnni1" or "opset 25"; empty when every supported version does. ragged: whether a block
    size need not divide the inputs. depthwise: whether convolutions with one input channel per
    group take it as others do. odd_rows: whether embeddings of an odd width do. tied: whether
    layers that read one weight do. multiple: what the outputs and the inputs of a layer must be a
    multiple of. least_blocks: how many blocks of inputs it must have. most_taps: largest kernel of
    a convolution, height times width. follows: operators that take the weight of the scheme alone,
    without its activations, where another layer that reads the same weight takes the scheme.
    zero_points: whether the runtime also takes a zero point for the weights; a scheme's own weights
    are symmetric. storage_only: operators on which the scheme saves bytes but not time, because the
    weight is expanded to float before use. left_out: operators that the runtime's delegate leaves
    to its own kernels under this scheme. note: what a user should know. source: where the fact is
    from.
    """

    scheme: str
    ops: tuple[str, ...]
    minimum: str = ""
    ragged: bool = False
    depthwise: bool = True
    odd_rows: bool = True
    tied: bool = True
    multiple: int = 1
    least_blocks: int = 1
    most_taps: int = ANY_TAPS
    follows: tuple[str, ...] = ()
    zero_points: bool = False
    storage_only: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    note: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticRules:
    """How a runtime computes with statically quantized activations.

    dtype, symmetric: format of an activation tensor, always per tensor. second_operand: dtype of a
    tensor that is only read as the second operand of products, where another than ``dtype`` is
    faster ("" where none is). quantized_output: operators that run in integers only when their
    output is quantized too. fused: activation functions folded into the operator before them, so
    that the quantized output is the function's. followers: operators without weights that run in
    integers when all their inputs do. shared: operators whose input and output must share scale and
    zero point. fixed_outputs: of followers whose output the runtime allows one scale only.
    int32_bias: operators whose bias is rounded to int32 at input scale x weight scale; elsewhere it
    stays float. scale_dtype: what the scales are rounded to.
    """

    dtype: str
    symmetric: bool
    second_operand: str = ""
    quantized_output: tuple[str, ...] = ()
    fused: tuple[str, ...] = ()
    followers: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    fixed_outputs: tuple[FixedOutput, ...] = ()
    int32_bias: tuple[str, ...] = ()
    scale_dtype: str = "float32"
    source: str = ""

    def fixed_output(self, operator: str) -> FixedOutput | None:
        """What an operator's output is fixed to; None where its scale may be any."""
        return next((each for each in self.fixed_outputs if operator in each.operators), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRules:
    """How a runtime quantizes a layer's input while it runs, under one scheme.

    granularity: "per-tensor" (one scale for the whole batch, so that a sample's result depends on
    its neighbours), "per-row" (one for every vector of inputs) or "per-block" (one for every
    ``block`` inputs of a row; the blocks are the weight's own), of images also "per-sample" (one
    for every image) or "per-pixel" (one for the channels of every pixel). convolution: what it is
    for two-dimensional convolutions, "" where they cannot be dynamic. Equal rules give equal
    numbers, whatever their ``source``.
    """

    dtype: str
    symmetric: bool
    granularity: str
    block: int = 0
    convolution: str = ""
    source: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """ "asymmetric uint8 per-tensor", "symmetric int8 per-block 32"."""
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        size = f" {self.block}" if self.block else ""
        return f"{symmetry} {self.dtype} {self.granularity}{size}"

    def of(self, layer: Layer) -> Self:
        """The rules for one layer's input.

        A convolution that computes every pixel alone is a matrix product over rows of channels.
        """
        if layer.op != "conv2d":
            return replace(self, convolution="")
        granularity = "per-pixel" if layer.is_pointwise else self.convolution
        return replace(self, granularity=granularity, convolution="")

    @property
    def couples_samples(self) -> bool:
        """Whether a sample's integers depend on the rest of its batch."""
        return self.granularity == "per-tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """What is reported to go wrong on a device under ``schemes``, and cannot be found out here.

    unit: compute unit it is about ("npu", "gpu", "cpu"), "" for all.
    """

    schemes: tuple[str, ...]
    unit: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Everything the planner must know of a runtime.

    emitter: whether this package can write the runtime's files. minimum: lowest platform that the
    runtime's ``version`` builds for, empty when there is none; minimum_source: of that fact; plans
    for older ones can be made, not compiled. float_dtype: what "float" means
    in a scheme's ``compute``. scale_dtype: how scales are stored; block_scale_dtype: the same for
    per-block scales; block_scale_rounding: dtype that the runtime rounds per-block scales to
    before it computes. schemes: what is supported, by scheme. refused: schemes that a user might
    expect, and why the runtime does not really have them. fuse_siblings: operators that the
    runtime merges when they read the same tensor (their layers must take one scheme). static:
    None when static activations are not supported. dynamic: by scheme, every one that quantizes
    activations at run time. memory: None when nothing was measured.
    delegate: None where there is none. fusion: what costs no pass of its own; none named where
    nothing is known. traps: reported faults of devices, for warnings. caution:
    what every plan for this runtime should say; empty when there is nothing.
    """

    name: str
    title: str
    version: str
    float_dtype: str
    scale_dtype: str
    schemes: dict[str, SchemeSupport]
    emitter: bool = False
    minimum: str = ""
    minimum_source: str = ""
    block_scale_dtype: str = "float32"
    block_scale_rounding: str = "float32"
    refused: dict[str, str] = field(default_factory=dict[str, str])
    fuse_siblings: tuple[str, ...] = ()
    static: StaticRules | None = None
    dynamic: dict[str, DynamicRules] = field(default_factory=dict[str, DynamicRules])
    memory: MemoryRules | None = None
    file: FileRules | None = None
    delegate: DelegateRules | None = None
    fusion: tuple[FusionRules, ...] = ()
    traps: tuple[Trap, ...] = ()
    caution: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def scale_rounding(self) -> ScaleRounding:
        """What scales are rounded to before the runtime computes."""
        return ScaleRounding(channel=self.scale_dtype, block=self.block_scale_rounding)

    @property
    def quantizes_products(self) -> bool:
        """Whether some scheme quantizes products of two activations."""
        return PRODUCT_SCHEME in self.schemes

    def support(
        self,
        layer: Layer,
        scheme: Scheme,
        platform: Mapping[str, str] | None = None,
    ) -> Support:
        """Whether the runtime runs ``layer`` under ``scheme``; the reason when it does not.

        platform: versions of the machine, such as ``{"compute_capability": "sm80"}`` or
        ``{"ios": "17", "macos": "14"}``; a scheme that needs a newer one is refused.

        Raises:
            UsageError: ``platform`` has an unknown key or a version that cannot be read.
        """
        if layer.frozen and not scheme.is_float:
            return Support(ok=False, reason=layer.frozen)
        if scheme.name in self.refused:
            return Support(ok=False, reason=self.refused[scheme.name])
        entry = self.schemes.get(scheme.name)
        if entry is None:
            return Support(ok=False, reason=f"{self.title} has no {scheme.name}")
        if layer.op not in entry.ops:
            return Support(
                ok=False,
                reason=f"{self.title} runs {scheme.name} only on {', '.join(entry.ops)}",
            )
        if reason := misfit(self.title, layer, scheme, entry):
            return Support(ok=False, reason=reason)
        if missing := shortfall(entry.minimum, platform or {}):
            return Support(ok=False, reason=f"{scheme.name} {missing}")
        return Support(ok=True)

    def taken(self, layer: Layer, scheme: Scheme) -> Scheme:
        """What the layer itself has of a scheme that it may only follow another layer in."""
        entry = self.schemes.get(scheme.name)
        return weight_alone(scheme) if entry and layer.op in entry.follows else scheme

    def leaves_out(self, layer: Layer, scheme: Scheme) -> bool:
        """Whether the runtime's delegate leaves the layer to the runtime's own kernels."""
        if self.delegate is None:
            return False
        entry = self.schemes.get(scheme.name)
        return layer.op in self.delegate.left_out or (
            entry is not None and layer.op in entry.left_out
        )

    def slowdown(self, layer: Layer, scheme: Scheme) -> float:
        """How many times longer the layer takes than the delegate would take for it."""
        if self.delegate is None or layer.op in self.delegate.left_out:
            return 1.0
        return self.delegate.slowdown if self.leaves_out(layer, scheme) else 1.0

    def outdated(self, platform: Mapping[str, str]) -> str:
        """Why this version of the runtime cannot build for ``platform`` at all; "" when it can.

        Raises:
            UsageError: ``platform`` has an unknown key or a version that cannot be read.
        """
        missing = shortfall(self.minimum, platform)
        return f"{self.title} {self.version} {missing} ({self.minimum_source})" if missing else ""

    def warnings(
        self,
        schemes: Collection[str],
        units: Collection[str],
        platform: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """What every plan for this runtime should say, and what is reported to go wrong with these
        schemes on these compute units.

        units: those of the device; none where it does not say, when every trap counts. platform:
        versions of the device; None where it does not say.
        """
        found = [f"{self.title}: {self.caution}"] if self.caution else []
        outdated = self.outdated(platform or {})
        if outdated:
            found.append(f"cannot be compiled for this device: {outdated}")
        for trap in self.traps:
            hit = [scheme for scheme in trap.schemes if scheme in schemes]
            if hit and (not trap.unit or not units or trap.unit in units):
                found.append(f"reported for {', '.join(hit)}: {trap.text}")
        return tuple(found)

    def scale_dtype_of(self, scheme: Scheme) -> str:
        """How the scales of a weight under ``scheme`` are stored."""
        blocked = isinstance(scheme.weight.granularity, PerBlock)
        return self.block_scale_dtype if blocked else self.scale_dtype


def capability_names() -> tuple[str, ...]:
    """The runtimes described by a TOML file beside this module, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


@cache
def load_capability(name: str) -> Capability:
    """The capability in ``<name>.toml`` beside this module.

    Raises:
        UsageError: no such runtime, or a malformed file (the message has the field's path).
    """
    # The parser needs the classes above, so it can only be imported once they exist.
    from advisor.targets.capability_toml import parse_capability

    names = capability_names()
    if name not in names:
        close = get_close_matches(name, names)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"unknown runtime {name!r}{hint}; known runtimes: {', '.join(names)}")
    text = (_FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    return parse_capability(text, name=name)
