"""Words for precisions: tensor formats, schemes, and what a tensor costs to store.

``TensorFormat`` says how one tensor is represented; ``Scheme`` says what a layer computes with.
``storage_bits`` is the only place that knows the size of a stored tensor, scales and padding
included; a test holds it against bytes on disk for every target.
"""

from dataclasses import dataclass
from math import ceil, prod
from typing import Final

from advisor.errors import UsageError

LUT_BITS: Final = (1, 2, 3, 4, 6, 8)
"""Bits of the indices of lookup tables."""

DTYPE_BITS: Final[dict[str, int]] = {
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3": 8,
    "float8_e5m2": 8,
    "float8_e8m0": 8,
    "int32": 32,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
    "uint4": 4,
    "nf4": 4,
    "fp4": 4,
    "int2": 2,
    "ternary": 2,
    "int1": 1,
    **{f"lut{bits}": bits for bits in LUT_BITS},
}

FLOAT_DTYPES: Final = frozenset({"float32", "float16", "bfloat16"})


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole tensor: shape (O, I) has a scale of shape ()."""


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale per index of ``axis``: shape (O, I) with axis 0 has a scale of shape (O,)."""

    axis: int = 0


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale per row and block of ``size`` inputs: (O, I) has a scale of (O, I / size).

    A weight of more than two dimensions is flattened to (O, rest) first.
    """

    size: int


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One table per ``size`` outputs: (O, ...) has O / size tables. Only tables have groups."""

    size: int


Granularity = PerTensor | PerChannel | PerBlock | PerGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRounding:
    """Float dtypes that a runtime rounds scales to before it computes.

    channel: of one scale per tensor or channel, and of tables. block: of one per block.
    """

    channel: str = "float32"
    block: str = "float32"

    def of(self, granularity: Granularity) -> str:
        """The dtype for scales of that granularity."""
        return self.block if isinstance(granularity, PerBlock) else self.channel


EXACT: Final = ScaleRounding()
"""Scales as they are: float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFormat:
    """How the numbers of one tensor are represented.

    table: dtype of the entries of a lookup table; "" for the runtime's scale dtype. A table of
    integers has one scale. scale: dtype of the scales where the format says it; "" for the
    runtime's scale dtype.
    """

    dtype: str
    granularity: Granularity = PerTensor()
    symmetric: bool = True
    dynamic: bool = False
    table: str = ""
    scale: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BITS:
            raise UsageError(f"unknown dtype {self.dtype!r}; known: {', '.join(DTYPE_BITS)}")

    @property
    def bits(self) -> int:
        """Bits of one element, without scales."""
        return DTYPE_BITS[self.dtype]

    @property
    def is_float(self) -> bool:
        """True for a format that needs no scale."""
        return self.dtype in FLOAT_DTYPES

    @property
    def is_table(self) -> bool:
        """True when elements are indices into a table of values."""
        return self.dtype.startswith("lut")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What a layer computes with; the name is the contract.

    weight: storage of the weight (float32 where there is none, in a product of two activations).
    activation: format of the layer's input, or of both operands of a product; None when it stays
    in the runtime's float dtype. compute: dtype of the arithmetic; "float" means the float dtype
    of the runtime, which the plan names.
    """

    name: str
    weight: TensorFormat
    activation: TensorFormat | None = None
    compute: str = "float"

    @property
    def is_static(self) -> bool:
        """True when activations are quantized with parameters fixed at calibration."""
        return self.activation is not None and not self.activation.dynamic

    @property
    def is_dynamic(self) -> bool:
        """True when activations are quantized with parameters found at run time."""
        return self.activation is not None and self.activation.dynamic

    @property
    def is_float(self) -> bool:
        """True when no integer (or table) is involved: fp32, fp16, bf16, a16a16."""
        return self.weight.is_float and self.activation is None


def _fmt(dtype: str, granularity: Granularity | None = None) -> TensorFormat:
    return TensorFormat(dtype=dtype, granularity=granularity or PerTensor())


def _microscaled(name: str, dtype: str, size: int, scale: str) -> Scheme:
    """Weights and activations in narrow floats with a scale per block of ``size`` inputs."""
    return Scheme(
        name=name,
        weight=TensorFormat(dtype=dtype, granularity=PerBlock(size), scale=scale),
        activation=TensorFormat(dtype=dtype, granularity=PerBlock(size), dynamic=True, scale=scale),
        compute=dtype,
    )


def _schemes() -> dict[str, Scheme]:
    channel = PerChannel()
    int8_static = TensorFormat(dtype="int8", symmetric=False)
    int8_dynamic = TensorFormat(dtype="int8", symmetric=False, dynamic=True)
    table = [
        Scheme(name="fp32", weight=_fmt("float32"), compute="float32"),
        Scheme(name="fp16", weight=_fmt("float16")),
        Scheme(name="bf16", weight=_fmt("bfloat16")),
        Scheme(
            name="fp8",
            weight=_fmt("float8_e4m3", channel),
            activation=_fmt("float8_e4m3"),
            compute="float8_e4m3",
        ),
        Scheme(name="w8a8", weight=_fmt("int8", channel), activation=int8_static, compute="int8"),
        Scheme(
            name="w8a8-dynamic",
            weight=_fmt("int8", channel),
            activation=int8_dynamic,
            compute="int8",
        ),
        # A product of two activations has no weight: both operands are in float16, static int8 or
        # static float8.
        Scheme(name="a16a16", weight=_fmt("float32"), compute="float16"),
        Scheme(name="a8a8", weight=_fmt("float32"), activation=int8_static, compute="int8"),
        Scheme(
            name="a8a8-fp8",
            weight=_fmt("float32"),
            activation=_fmt("float8_e4m3"),
            compute="float8_e4m3",
        ),
        _microscaled("mxfp8", "float8_e4m3", 32, "float8_e8m0"),
        _microscaled("nvfp4", "fp4", 16, "float8_e4m3"),
        Scheme(name="w8", weight=_fmt("int8", channel)),
        Scheme(name="w4", weight=_fmt("int4", channel)),
        Scheme(
            name="w4a8-dynamic",
            weight=_fmt("int4", channel),
            activation=int8_dynamic,
            compute="int8",
        ),
        Scheme(name="ternary", weight=_fmt("ternary", channel)),
    ]
    for size in (16, 32, 64, 128):
        block = PerBlock(size)
        table += [
            Scheme(name=f"w8-g{size}", weight=_fmt("int8", block)),
            Scheme(name=f"w4-g{size}", weight=_fmt("int4", block)),
            Scheme(name=f"w2-g{size}", weight=_fmt("int2", block)),
            Scheme(name=f"nf4-g{size}", weight=_fmt("nf4", block)),
            Scheme(name=f"fp4-g{size}", weight=_fmt("fp4", block)),
            Scheme(
                name=f"w8a8-dynamic-g{size}",
                weight=_fmt("int8", block),
                activation=int8_dynamic,
                compute="int8",
            ),
            Scheme(
                name=f"w4a8-dynamic-g{size}",
                weight=_fmt("int4", block),
                activation=int8_dynamic,
                compute="int8",
            ),
        ]
    for bits in LUT_BITS:
        lut = f"lut{bits}"
        table += [
            Scheme(name=lut, weight=_fmt(lut)),
            Scheme(name=f"{lut}-c16", weight=_fmt(lut, PerGroup(16))),
            Scheme(name=f"{lut}-i8", weight=TensorFormat(dtype=lut, table="int8")),
        ]
    return {scheme.name: scheme for scheme in table}


SCHEMES: Final[dict[str, Scheme]] = _schemes()


def scheme_named(name: str) -> Scheme:
    """The scheme of that name.

    Raises:
        UsageError: no such scheme; the message lists all of them.
    """
    if name not in SCHEMES:
        raise UsageError(f"unknown scheme {name!r}; known schemes: {', '.join(SCHEMES)}")
    return SCHEMES[name]


def weight_alone(scheme: Scheme) -> Scheme:
    """The scheme with the same weight and float activations; itself where there is none."""
    alone = (s for s in SCHEMES.values() if s.weight == scheme.weight and s.activation is None)
    return next(alone, scheme)


def scale_count(shape: tuple[int, ...], granularity: Granularity) -> int:
    """Number of scales (or tables) of a tensor of ``shape`` under ``granularity``."""
    match granularity:
        case PerTensor():
            return 1
        case PerChannel(axis=axis):
            return shape[axis]
        case PerBlock(size=size):
            return shape[0] * ceil(prod(shape[1:]) / size)
        case PerGroup(size=size):
            return ceil(shape[0] / size)


def storage_bits(
    shape: tuple[int, ...],
    fmt: TensorFormat,
    *,
    scale_dtype: str = "float32",
) -> int:
    """Bits that a tensor occupies on disk: packed elements, scales, zero points, table, padding.

    Elements narrower than a byte are packed without gaps and padded to a whole byte, which is
    what ONNX, TFLite and Core ML all do. A symmetric format stores no zero point; an asymmetric
    one stores one of the element's own dtype per scale.
    """
    elements = ceil(prod(shape) * fmt.bits / 8) * 8
    if fmt.is_float:
        return elements
    scales = scale_count(shape, fmt.granularity)
    if fmt.is_table:
        table = scales * (1 << fmt.bits) * DTYPE_BITS[fmt.table or scale_dtype]
        return elements + table + (scales * DTYPE_BITS[scale_dtype] if fmt.table else 0)
    if fmt.scale:
        unit = 0 if fmt.scale == "float8_e8m0" else DTYPE_BITS["float32"]  # powers of two need none
        return elements + scales * DTYPE_BITS[fmt.scale] + unit
    zero_points = 0 if fmt.symmetric else ceil(scales * fmt.bits / 8) * 8
    return elements + scales * DTYPE_BITS[scale_dtype] + zero_points
