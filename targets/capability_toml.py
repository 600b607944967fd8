"""Read ``<runtime>.toml`` into a ``Capability``, checking every field.

A scheme or operator that the product does not know, a field that nothing reads, and rules that
contradict each other are errors with the path of the field, such as ``scheme[3].ops[1]``.
"""

import tomllib
from collections.abc import Collection
from typing import Final

from advisor.errors import UsageError
from advisor.formats import DTYPE_BITS, FLOAT_DTYPES, SCHEMES, PerBlock, Scheme
from advisor.targets.capability import (
    ANY_TAPS,
    POINTWISE_OPS,
    TENSOR_OPS,
    WEIGHTED_OPS,
    Capability,
    DynamicRules,
    SchemeSupport,
    StaticRules,
    Trap,
)
from advisor.targets.capability_table import CapabilityTable
from advisor.targets.platforms import MINIMUM
from advisor.targets.rules import (
    Companions,
    DelegateRules,
    FileRules,
    FixedOutput,
    FusionRules,
    IntegerTensor,
    MemoryRules,
    WeightMemory,
)

_GRANULARITIES: Final = ("per-block", "per-row", "per-tensor")


def parse_capability(text: str, *, name: str) -> Capability:
    """The capability that ``text`` (TOML) describes; ``name`` is the runtime's.

    Raises:
        UsageError: not TOML, a field is missing, unknown or of the wrong kind, or a scheme or
            operator is unknown; the message has the path of the field.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}.toml: not valid TOML: {error}") from error
    top = CapabilityTable(tables, file=name)
    if top.text("name") != name:
        top.fail("name", f"is {top.text('name')!r}, but the file describes {name!r}")
    schemes = _read_schemes(top)
    minimum = _read_minimum(top)
    static = top.optional_table("static")
    memory = top.optional_table("memory")
    delegate = top.optional_table("delegate")
    file = top.optional_table("file")
    scale_dtype = top.choice("scale_dtype", FLOAT_DTYPES)
    block_scale_dtype = top.choice("block_scale_dtype", FLOAT_DTYPES, default=scale_dtype)
    capability = Capability(
        name=name,
        title=top.text("title"),
        version=top.text("version"),
        emitter=top.get("emitter", bool),
        minimum=minimum,
        minimum_source=top.text("minimum_source") if minimum else "",
        float_dtype=top.choice("float_dtype", FLOAT_DTYPES),
        scale_dtype=scale_dtype,
        block_scale_dtype=block_scale_dtype,
        block_scale_rounding=top.choice(
            "block_scale_rounding", FLOAT_DTYPES, default=block_scale_dtype
        ),
        schemes=schemes,
        refused=_read_refused(top, schemes),
        fuse_siblings=top.names("fuse_siblings", WEIGHTED_OPS, "operator", default=()),
        static=None if static is None else _read_static(static, schemes),
        dynamic=_read_dynamic(top, schemes),
        memory=None if memory is None else _read_memory(memory, schemes),
        file=None if file is None else _read_file(file, schemes),
        delegate=None if delegate is None else _read_delegate(delegate),
        fusion=_read_fusion(top),
        traps=_read_traps(top, schemes),
        caution=top.text("caution", default=""),
        notes=top.texts("notes", default=()),
    )
    top.finish()
    _check_activations(top, capability)
    if delegate is None and any(entry.left_out for entry in schemes.values()):
        top.fail("delegate", "missing table; left_out is about what a delegate takes")
    return capability


def _read_schemes(top: CapabilityTable) -> dict[str, SchemeSupport]:
    schemes: dict[str, SchemeSupport] = {}
    for table in top.tables("scheme"):
        names = table.names("names", SCHEMES, "scheme")
        ops = table.names("ops", WEIGHTED_OPS, "operator")
        minimum = _read_minimum(table)
        ragged = table.get("ragged", bool, default=False)
        depthwise = table.get("depthwise", bool, default=True)
        odd_rows = table.get("odd_rows", bool, default=True)
        tied = table.get("tied", bool, default=True)
        multiple = table.whole("multiple", default=1)
        least_blocks = table.whole("least_blocks", default=1)
        most_taps = table.whole("most_taps", default=ANY_TAPS)
        follows = table.names("follows", WEIGHTED_OPS, "operator", default=())
        zero_points = table.get("zero_points", bool, default=False)
        storage_only = table.names("storage_only", ops, "operator of this entry", default=())
        left_out = table.names("left_out", ops, "operator of this entry", default=())
        note = table.text("note", default="")
        source = table.text("source")
        table.finish()
        for position, name in enumerate(follows):
            if name in ops:
                table.fail(f"follows[{position}]", f"{name!r} is among ops: it takes all of it")
        for position, scheme in enumerate(names):
            if scheme in schemes:
                table.fail(f"names[{position}]", f"scheme {scheme!r} is described twice")
            schemes[scheme] = SchemeSupport(
                scheme=scheme,
                ops=ops,
                minimum=minimum,
                ragged=ragged,
                depthwise=depthwise,
                odd_rows=odd_rows,
                tied=tied,
                multiple=multiple,
                least_blocks=least_blocks,
                most_taps=most_taps,
                follows=follows,
                zero_points=zero_points,
                storage_only=storage_only,
                left_out=left_out,
                note=note,
                source=source,
            )
    return schemes


def _read_minimum(table: CapabilityTable, field: str = "minimum") -> str:
    minimum = table.text(field, default="")
    if minimum and MINIMUM.fullmatch(minimum) is None:
        table.fail(field, f"{minimum!r} is not like 'iOS18', 'sm80', 'vnni1' or 'opset 25'")
    return minimum


def _read_fusion(top: CapabilityTable) -> tuple[FusionRules, ...]:
    rules: list[FusionRules] = []
    for table in top.tables("fusion", optional=True):
        operators = table.names("operators", POINTWISE_OPS, "operator")
        after = table.names("after", (*WEIGHTED_OPS, *POINTWISE_OPS), "operator")
        rules.append(FusionRules(after=after, operators=operators, source=table.text("source")))
        table.finish()
    return tuple(rules)


def _read_traps(top: CapabilityTable, schemes: Collection[str]) -> tuple[Trap, ...]:
    traps: list[Trap] = []
    for table in top.tables("trap", optional=True):
        traps.append(
            Trap(
                schemes=table.names("schemes", schemes, "scheme of this file"),
                unit=table.choice("unit", ("", "cpu", "gpu", "npu"), default=""),
                text=f"{table.text('text')} ({table.text('source')})",
            )
        )
        table.finish()
    return tuple(traps)


def _read_refused(top: CapabilityTable, schemes: Collection[str]) -> dict[str, str]:
    refused: dict[str, str] = {}
    for table in top.tables("refused", optional=True):
        reason = f"{table.text('reason')} ({table.text('source')})"
        for position, scheme in enumerate(table.names("names", SCHEMES, "scheme")):
            if scheme in schemes or scheme in refused:
                table.fail(f"names[{position}]", f"scheme {scheme!r} is described twice")
            refused[scheme] = reason
        table.finish()
    return refused


def _read_static(table: CapabilityTable, schemes: dict[str, SchemeSupport]) -> StaticRules:
    ops = [op for name, entry in schemes.items() if SCHEMES[name].is_static for op in entry.ops]
    followers = table.names("followers", TENSOR_OPS, "operator", default=())
    rules = StaticRules(
        dtype=table.choice("dtype", DTYPE_BITS),
        symmetric=table.get("symmetric", bool),
        second_operand=table.choice("second_operand", (*DTYPE_BITS, ""), default=""),
        quantized_output=table.names("quantized_output", ops, "statically quantized operator"),
        fused=table.names("fused", TENSOR_OPS, "operator", default=()),
        followers=followers,
        shared=table.names("shared", followers, "follower", default=()),
        fixed_outputs=tuple(
            _read_fixed(each, followers) for each in table.tables("fixed_output", optional=True)
        ),
        int32_bias=table.names("int32_bias", ops, "statically quantized operator"),
        scale_dtype=table.choice("scale_dtype", ("float32", "float16"), default="float32"),
        source=table.text("source"),
    )
    table.finish()
    return rules


def _read_fixed(table: CapabilityTable, followers: Collection[str]) -> FixedOutput:
    found = FixedOutput(
        operators=table.names("operators", followers, "follower"),
        scale=table.number("scale"),
        zero_point=table.get("zero_point", int),
        source=table.text("source"),
    )
    if not found.scale:
        table.fail("scale", "a scale of 0 holds no numbers")
    table.finish()
    return found


def _read_dynamic(top: CapabilityTable, schemes: Collection[str]) -> dict[str, DynamicRules]:
    known = [name for name in schemes if SCHEMES[name].is_dynamic]
    rules: dict[str, DynamicRules] = {}
    for table in top.tables("dynamic", optional=True):
        names = table.names("schemes", known, "dynamic scheme of this file")
        granularity = table.choice("granularity", _GRANULARITIES)
        convolution = table.choice("convolution", ("", "per-sample"), default="")
        dtype = table.choice("dtype", ("int8", "uint8", "fp4"))
        symmetric = table.get("symmetric", bool)
        source = table.text("source")
        table.finish()
        if not names:
            table.fail("schemes", "must not be empty")
        if symmetric and dtype == "uint8":
            table.fail("dtype", "symmetric integers are signed: 'int8'")
        for position, name in enumerate(names):
            if name in rules:
                table.fail(f"schemes[{position}]", f"scheme {name!r} is described twice")
            block = 0
            if granularity == "per-block":
                blocks = SCHEMES[name].weight.granularity
                if not isinstance(blocks, PerBlock):
                    table.fail(f"schemes[{position}]", f"the weights of {name} have no blocks")
                block = blocks.size
            rules[name] = DynamicRules(
                dtype=dtype,
                symmetric=symmetric,
                granularity=granularity,
                convolution=convolution,
                block=block,
                source=source,
            )
    return rules


def _read_memory(table: CapabilityTable, schemes: Collection[str]) -> MemoryRules:
    weights: list[WeightMemory] = []
    for rule in table.tables("weight", optional=True):
        weights.append(
            WeightMemory(
                ops=rule.names("ops", WEIGHTED_OPS, "operator"),
                schemes=rule.names("schemes", schemes, "scheme"),
                resident=rule.number("resident", default=1.0),
                opening=rule.number("opening", default=1.0),
                scratch=rule.number("scratch", default=0.0),
                below=_read_minimum(rule, "below"),
                source=rule.text("source"),
            )
        )
        rule.finish()
    rules = MemoryRules(
        runtime_bytes=table.number("runtime_bytes"),
        operator_bytes=table.number("operator_bytes"),
        activations=table.number("activations"),
        inside_bytes=table.number("inside_bytes", default=0.0),
        planned=table.number("planned", default=0.0),
        unplanned=table.names("unplanned", (*WEIGHTED_OPS, *TENSOR_OPS), "operator", default=()),
        absorbed=table.names("absorbed", TENSOR_OPS, "operator", default=()),
        weights=tuple(weights),
        source=table.text("source"),
    )
    table.finish()
    return rules


def _read_file(table: CapabilityTable, schemes: Collection[str]) -> FileRules:
    layers: list[Companions] = []
    for rule in table.tables("layer", optional=True):
        layers.append(
            Companions(
                ops=rule.names("ops", WEIGHTED_OPS, "operator"),
                schemes=rule.names("schemes", schemes, "scheme"),
                layer_bytes=rule.number("layer_bytes", default=0.0),
                layer_names=rule.number("layer_names", default=0.0),
                channel_bytes=rule.number("channel_bytes", default=0.0),
                source=rule.text("source"),
            )
        )
        rule.finish()
    tensors: list[IntegerTensor] = []
    for rule in table.tables("tensor", optional=True):
        tensors.append(
            IntegerTensor(
                produced=rule.get("produced", bool),
                readers=rule.names("readers", WEIGHTED_OPS, "operator", default=()),
                bytes=rule.number("bytes"),
                names=rule.number("names", default=0.0),
                source=rule.text("source"),
            )
        )
        rule.finish()
    rules = FileRules(
        operator_bytes=table.number("operator_bytes"),
        operator_names=table.number("operator_names", default=0.0),
        layer_names=table.number("layer_names", default=0.0),
        page_bytes=table.whole("page_bytes", default=1),
        page_from=table.number("page_from", default=0.0),
        layers=tuple(layers),
        tensors=tuple(tensors),
        source=table.text("source"),
    )
    table.finish()
    return rules


def _read_delegate(table: CapabilityTable) -> DelegateRules:
    rules = DelegateRules(
        name=table.text("name"),
        left_out=table.texts("left_out"),
        launches=table.number("launches"),
        slowdown=table.number("slowdown"),
        source=table.text("source"),
    )
    table.finish()
    if rules.slowdown < 1:
        table.fail("slowdown", f"{rules.slowdown} is below 1, but a delegate is there for speed")
    return rules


def _check_activations(top: CapabilityTable, capability: Capability) -> None:
    """A scheme that quantizes activations needs the rules that say how, and the reverse."""

    def is_static(scheme: Scheme) -> bool:
        # float8 activations have a format of their own; the integer rules do not describe them.
        return (
            scheme.is_static
            and scheme.activation is not None
            and scheme.activation.dtype.endswith("int8")
        )

    static = [name for name in capability.schemes if is_static(SCHEMES[name])]
    if static and capability.static is None:
        top.fail("static", f"missing table; {', '.join(static)} need it")
    if capability.static is not None and not static:
        top.fail("static", "no scheme uses this table")
    lacking = [
        name
        for name in capability.schemes
        if SCHEMES[name].is_dynamic and name not in capability.dynamic
    ]
    if lacking:
        top.fail("dynamic", f"missing table; {', '.join(lacking)} need one")
