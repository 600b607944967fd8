"""Render docs/targets.md from the capability data, so that page and data cannot disagree.

Write it anew after a change of the data::

    python -c "from pathlib import Path; from advisor.targets import support_page as p;
    Path('docs/targets.md').write_text(p.render_support_page(), encoding='utf-8')"
"""

from itertools import groupby

from advisor.formats import SCHEMES
from advisor.targets.capability import (
    Capability,
    DynamicRules,
    SchemeSupport,
    capability_names,
    load_capability,
)

_INTRODUCTION = """\
# What each runtime supports

<!-- Made by advisor/targets/support_page.py from targets/*.toml. Change those, not this page. -->

Every line below is data in `targets/<runtime>.toml`: the planner offers a layer only the schemes
listed here, and gives the reason when one is not. A runtime without an emitter can be planned for,
but not compiled for.

Names of schemes: `w4-g32` is a 4-bit weight with a scale for every 32 inputs, activations in
float; `w8a8` is static int8 for both; `-dynamic` finds the activations' scale while running; `lut4`
is a table of 16 values; `fp16`, `bf16` and `fp8` are floats.

"Bytes only" names the operators on which a scheme makes the file smaller but nothing faster,
because the weight is expanded to float before use.
"""


def render_support_page() -> str:
    """The whole of docs/targets.md."""
    capabilities = [load_capability(name) for name in capability_names()]
    parts = [_INTRODUCTION, _render_overview(capabilities)]
    parts += [_render_runtime(capability) for capability in capabilities]
    return "\n".join(parts)


def _render_overview(capabilities: list[Capability]) -> str:
    used = [
        name for name in SCHEMES if any(name in capability.schemes for capability in capabilities)
    ]
    lines = ["## Overview", ""]
    lines += _table_head("scheme", *(capability.title for capability in capabilities))
    for name in used:
        cells = (capability.schemes.get(name) for capability in capabilities)
        lines.append(_row(f"`{name}`", *(_overview_cell(cell) for cell in cells)))
    return "\n".join([*lines, ""])


def _overview_cell(entry: SchemeSupport | None) -> str:
    if entry is None:
        return ""
    ops = ", ".join(entry.ops)
    return f"{ops} ({entry.minimum})" if entry.minimum else ops


def _render_runtime(capability: Capability) -> str:
    emitter = "can be compiled for" if capability.emitter else "no emitter yet"
    if capability.minimum:
        emitter += f" from {capability.minimum} on ({capability.minimum_source})"
    lines = [
        f"## {capability.title}",
        "",
        f"`{capability.name}`, {capability.version}; {emitter}; floats are "
        f"{capability.float_dtype}, {_scales(capability)}.",
        "",
    ]
    lines += _table_head("schemes", "operators", "from", "bytes only", "note", "source")
    # Entries that differ only in the scheme stand in one line, as in the TOML file.
    for _, group in groupby(capability.schemes.values(), key=_without_name):
        entries = list(group)
        entry = entries[0]
        names = ", ".join(f"`{each.scheme}`" for each in entries)
        note = entry.note
        if entry.zero_points:
            note = f"{note}; zero points possible" if note else "zero points possible"
        lines.append(
            _row(
                names,
                _operators(entry),
                entry.minimum,
                ", ".join(entry.storage_only),
                note,
                entry.source,
            )
        )
    lines += ["", *_activation_lines(capability), *_delegate_lines(capability)]
    if capability.refused:
        lines += ["Not offered:", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in capability.refused.items()]
        lines.append("")
    if capability.notes:
        lines += ["What to know:", "", *(f"- {note}" for note in capability.notes), ""]
    return "\n".join(lines)


def _operators(entry: SchemeSupport) -> str:
    ops = ", ".join(entry.ops)
    return f"{ops}; {', '.join(entry.follows)} of such a layer's weight" if entry.follows else ops


def _delegate_lines(capability: Capability) -> list[str]:
    rules = capability.delegate
    if rules is None:
        return []
    layers = [
        f"`{scheme}` of {', '.join(entry.left_out)}"
        for scheme, entry in capability.schemes.items()
        if entry.left_out
    ]
    operators = ", ".join(f"`{name}`" for name in rules.left_out)
    return [
        f"{rules.name} computes everything but {', '.join(layers)}, {operators}, and what is not "
        f"floats. Such a layer takes {rules.slowdown:g} times as long, and each tensor that passes "
        f"from one side to the other {rules.launches:g} launch ({rules.source}).",
        "",
    ]


def _without_name(entry: SchemeSupport) -> tuple[object, ...]:
    return (
        entry.ops,
        entry.follows,
        entry.minimum,
        entry.storage_only,
        entry.note,
        entry.source,
    )


def _scales(capability: Capability) -> str:
    text = f"scales {capability.scale_dtype}"
    if capability.block_scale_dtype != capability.scale_dtype:
        text += f" (of blocks {capability.block_scale_dtype}"
        if capability.block_scale_rounding != capability.block_scale_dtype:
            text += f", rounded to {capability.block_scale_rounding}"
        text += ")"
    return text


def _activation_lines(capability: Capability) -> list[str]:
    lines: list[str] = []
    static = capability.static
    if static is not None:
        lines.append(
            f"Static activations are {_symmetry(static.symmetric)} {static.dtype}, one scale per "
            f"tensor ({static.source})."
        )
        lines.append("")
        for text, ops in (
            ("Integers only when the output is quantized too", static.quantized_output),
            ("Folded into the operator before", static.fused),
            ("Integers when all inputs are", static.followers),
            ("Input and output share scale and zero point", static.shared),
            ("Bias rounded to int32", static.int32_bias),
        ):
            if ops:
                lines.append(f"- {text}: {', '.join(ops)}.")
        if lines[-1]:
            lines.append("")
    for source, names in _by_source(capability).items():
        dynamic = capability.dynamic[names[0]]
        schemes = ", ".join(f"`{name}`" for name in names)
        lines += [
            f"Dynamic activations of {schemes} are {_symmetry(dynamic.symmetric)} "
            f"{dynamic.dtype}, {dynamic.granularity}{_of_convolutions(dynamic)} ({source}).",
            "",
        ]
    return lines


def _of_convolutions(rules: DynamicRules) -> str:
    return f"; of convolutions {rules.convolution}" if rules.convolution else ""


def _by_source(capability: Capability) -> dict[str, list[str]]:
    """Dynamic schemes that one table of the file describes, by that table's source."""
    found: dict[str, list[str]] = {}
    for name, rules in capability.dynamic.items():
        found.setdefault(rules.source, []).append(name)
    return found


def _symmetry(symmetric: bool) -> str:
    return "symmetric" if symmetric else "asymmetric"


def _table_head(*titles: str) -> list[str]:
    return [_row(*titles), _row(*("---" for _ in titles))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
