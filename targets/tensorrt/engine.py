"""What an engine is made of, from the list of kernels that TensorRT-RTX's builder logs.

The list is not a documented format, so the package is pinned to one version; what it does not
tell is never taken for a match.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from advisor.targets.manifest import LayerRecord

_NAME: Final = re.compile(r"Name: (.*?), LayerType: (\w+)")
_TACTIC: Final = re.compile(r"TacticName: (\S*?),")
_SOURCE: Final = re.compile(r"\[ONNX Layer: (.*?)\]")
_TENSOR: Final = re.compile(
    r"\{ Name: .*?, (?:Location: \w+, )?Dimensions: \[([\d,\-]*)\].*?"
    r"Datatype: ([\w ]+?)(?:,| Format)"
)
_MULTIPLIES: Final = re.compile(r"gemm|mha|conv|fc", re.IGNORECASE)
_HASH: Final = re.compile(r"_0x[0-9a-f]+$")
"""Ends the name of a generated kernel, and may spell "fc"."""

GENERATED: Final = "kgen"
"""Kind of a kernel that the compiler wrote for everything between products."""

DTYPES: Final = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Int8": "int8",
    "Int4": "int4",
    "FP8": "float8",
    "FP4": "float4",
    "FP4E2M1": "float4",
}

EXPECTED: Final = {
    "fp32": "float32 weight, float32 input",
    "fp16": "float16 weight, float16 input",
    "bf16": "bfloat16 weight, bfloat16 input",
    "w8a8": "int8 weight, int8 input",
    "fp8": "float8 weight, float8 input",
    "nvfp4": "float4 weight, float4 input",
    "w8": "int8 weight, float16 input",
    "w4-g64": "int4 weight, float16 input",
    "w4-g128": "int4 weight, float16 input",
}
"""What ``describe_kernel`` must say of a layer's kernel, by scheme."""

_PRODUCTS: Final = {
    "fp32": "float32",
    "a16a16": "float16",
    "a8a8": "int8",
    "a8a8-fp8": "float8",
}
NARROW: Final = frozenset({"float16", "bfloat16"})
"""What the file casts a layer's input to."""

_READERS: Final = frozenset({"linear", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"})
"""Operators whose kernels read the planned types. What others, such as recurrent ones or the Add of
a table of positions, read is not checked: they have no scheme but float32, and the compiler may
write what comes before or after a table into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """What a kernel reads or writes. elements: of a dynamic shape those of one row."""

    dtype: str
    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One line of the list. sources: names of the ONNX nodes that it computes."""

    name: str
    kind: str
    tactic: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sources: frozenset[str]

    @property
    def multiplies(self) -> bool:
        """Whether it is a product's kernel and not what was generated around products."""
        return self.kind != GENERATED or bool(_MULTIPLIES.search(_HASH.sub("", self.tactic)))


def parse_kernels(lines: Iterable[str]) -> tuple[Kernel, ...]:
    """The kernels of an engine in order."""
    kernels: list[Kernel] = []
    for line in lines:
        named = _NAME.match(line)
        if named is None:
            continue
        tactic = _TACTIC.search(line)
        kernels.append(
            Kernel(
                name=named[1],
                kind=named[2],
                tactic=tactic[1] if tactic else "",
                inputs=_tensors(line, "Inputs"),
                constants=_tensors(line, "Constants"),
                outputs=_tensors(line, "Outputs"),
                sources=frozenset(_SOURCE.findall(line)),
            )
        )
    return tuple(kernels)


def _tensors(line: str, section: str) -> tuple[Tensor, ...]:
    found = re.search(rf"{section}: \[ (\{{.*?\}})\](?=, \w+:)", line)
    if found is None:
        return ()
    return tuple(
        Tensor(
            dtype=DTYPES.get(match[2], match[2].lower()),
            elements=prod(abs(int(size)) for size in match[1].split(",") if size),
        )
        for match in _TENSOR.finditer(found[1])
    )


def kernels_by_layer(kernels: Sequence[Kernel], layers: Iterable[LayerRecord]) -> dict[str, str]:
    """What the kernel of every layer reads, in words; layers that are in no kernel are left out."""
    found: dict[str, str] = {}
    for layer in layers:
        own = [kernel for kernel in kernels if layer.node in kernel.sources]
        if own:
            found[layer.name] = describe_kernel(layer, own)
    return found


def describe_kernel(layer: LayerRecord, own: Sequence[Kernel]) -> str:
    """The types of the weight and of the input in that of a layer's kernels which multiplies.

    A weight that no constant of the kernel is large enough to be was turned into something else
    by another kernel before, and comes as the last input. What an Add in the kernel adds is an
    input too, before the layer's own. A product of one row or of few inputs is written out in a
    generated kernel, which may round its own input and cut the weight into columns.
    """
    size = prod(layer.weight_shape)

    def rank(kernel: Kernel) -> tuple[bool, bool]:
        return kernel.multiplies, any(each.elements >= size for each in kernel.constants)

    kernel = max(own, key=rank)
    read = [tensor.dtype for tensor in kernel.inputs]
    if layer.op == "matmul":
        return " and ".join(dict.fromkeys(read[:2]))
    large = [each for each in kernel.constants if each.elements >= size]
    if not large and not kernel.multiplies:
        large = [each for each in _joined(kernel.constants) if each.elements >= size]
    wanted_weight, _, wanted = EXPECTED.get(layer.scheme, "").partition(" weight, ")
    if large:
        # The scales of a small float4 weight are padded to more than it has, and those of the
        # layer before may be in the kernel and as many as a weight with one output has elements.
        weight = max(
            large,
            key=lambda each: (
                each.dtype == "float4",
                each.elements,
                each.dtype == wanted_weight,
            ),
        ).dtype
    else:
        weight = read.pop() if len(read) > 1 else "no"
    if layer.op not in _READERS:
        return f"{weight} table"
    wanted = wanted.removesuffix(" input")
    is_read = wanted in read or (wanted in NARROW and _rounds_input(layer, kernel))
    found = wanted if is_read else (read or ["no"])[0]
    return f"{weight} weight, {found} input"


def _joined(constants: Iterable[Tensor]) -> list[Tensor]:
    """Those of one dtype as one: a weight that was cut into columns."""
    elements: Counter[str] = Counter()
    for each in constants:
        elements[each.dtype] += each.elements
    return [Tensor(dtype=dtype, elements=count) for dtype, count in elements.items()]


def _rounds_input(layer: LayerRecord, kernel: Kernel) -> bool:
    """Whether the cast of the layer's input is part of a kernel that was generated."""
    cast = f"{layer.node}/input"
    return not kernel.multiplies and any(
        source == cast or source.startswith(f"{cast}/") for source in kernel.sources
    )


def acceptable_kernels(layer: LayerRecord) -> frozenset[str]:
    """What ``describe_kernel`` may say of a layer; empty when anything."""
    if layer.op == "matmul":
        wanted = _PRODUCTS.get(layer.scheme)
        return frozenset() if wanted is None else frozenset({wanted})
    if layer.op == "embedding":
        wanted = {"fp32": "float32 table", "fp16": "float16 table"}.get(layer.scheme)
        return frozenset() if wanted is None else frozenset({wanted})
    if layer.op not in _READERS:
        return frozenset()
    wanted = EXPECTED.get(layer.scheme)
    return frozenset() if wanted is None else frozenset({wanted})
