"""The terms that a plan's latency is the sum of, and the plans that are timed to find them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np

from advisor.assemble import build_problem
from advisor.formats import scheme_named
from advisor.indicators import Indicators
from advisor.passes.graph import Layer
from advisor.passes.regions import All
from advisor.profiles.cost import is_storage_only
from advisor.search.problem import Choice, FloatArray, Problem, holding
from advisor.setting import Setting

Term = tuple[str, str, str]
"""(kind, what, scheme): ("layer", class of alike layers, scheme), ("quantize", tensor, ""),
("dequantize", tensor, ""), ("integer", tensor, "") or ("rest", "", "")."""

REST: Final[Term] = ("rest", "", "")

MIXED: Final = 16
"""Plans of mixed schemes that are timed besides the uniform ones: only they hold tensors that
pass from one scheme to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Every term of one setting.

    columns: term to column. kinds: by layer name, the class of layers that do the same work.
    indicators: column by index of the problem's indicator.
    """

    setting: Setting
    problem: Problem
    columns: dict[Term, int]
    kinds: dict[str, str]
    indicators: dict[int, int]

    def row(self, choice: Choice) -> FloatArray:
        """How often each term occurs in the plan ``choice``; shape (terms,)."""
        row = np.zeros(len(self.columns))
        row[self.columns[REST]] = 1.0
        for layer, scheme in schemes_of(self.setting, choice):
            row[self.columns[self.term(layer, scheme)]] += 1.0
        holds = holding(self.problem, choice)
        for indicator, column in self.indicators.items():
            row[column] = float(holds[indicator])
        return row

    def term(self, layer: Layer, scheme: str) -> Term:
        """The term of a layer under a scheme."""
        return ("layer", self.kinds[layer.name], runs_as(self.setting, layer, scheme))


def find_terms(setting: Setting) -> Terms:
    """The terms that plans of this setting are made of."""
    indicators = Indicators(setting)
    kinds = {layer.name: _kind(setting, layer) for layer in setting.graph.layers}
    columns: dict[Term, int] = {REST: 0}
    for group in setting.groups:
        for option in setting.space.candidates[group.name]:
            for layer in setting.layers_of(group):
                scheme = runs_as(setting, layer, option.scheme)
                columns.setdefault(("layer", kinds[layer.name], scheme), len(columns))
    found: dict[int, int] = {}
    followers = {
        tensor: indicators.produced[tensor]
        for tensor, when in setting.regions.produced.items()
        if isinstance(when, All)
    }
    tables = {
        "quantize": indicators.enters,
        "dequantize": indicators.leaves,
        "integer": followers,
    }
    for kind, table in tables.items():
        for tensor, indicator in table.items():
            columns[kind, tensor, ""] = found[indicator] = len(columns)
    return Terms(
        setting=setting,
        problem=build_problem(setting),
        columns=columns,
        kinds=kinds,
        indicators=found,
    )


def schemes_of(setting: Setting, choice: Choice) -> list[tuple[Layer, str]]:
    """Every layer with its scheme under a choice."""
    return [
        (layer, setting.space.candidates[group.name][index].scheme)
        for group, index in zip(setting.groups, choice, strict=True)
        for layer in setting.layers_of(group)
    ]


def runs_as(setting: Setting, layer: Layer, scheme: str) -> str:
    """The scheme whose kernel runs: float32 for weights expanded when the model is opened.

    Those are weights in other floats, and integers of convolutions, unless a delegate leaves them
    out, whose runtime expands them at every call. Integers of a linear layer take 3 to 5 % longer
    on LiteRT than floats do, so they are a term of their own.
    """
    found = setting.capability.taken(layer, scheme_named(scheme))
    scheme = found.name
    if not is_storage_only(layer, found, setting.capability) or layer.op == "embedding":
        return scheme
    if not found.weight.is_float and not layer.op.startswith("conv"):
        return scheme
    return scheme if setting.capability.leaves_out(layer, found) else "fp32"


def designs(setting: Setting) -> tuple[Choice, ...]:
    """The plans to time: float32 first, then each other scheme wherever it can be, then mixed.

    Half of the mixed plans switch between float32 and the static scheme, the others draw from
    all schemes. Always the same for one setting.
    """
    options = [_by_scheme(setting, group.name) for group in setting.groups]
    schemes = dict.fromkeys(scheme for each in options for scheme in each)
    plans = [tuple(each.get(s, next(iter(each.values()))) for each in options) for s in schemes]
    distinct = {
        tuple(sorted((layer.name, runs_as(setting, layer, s)) for layer, s in pairs)): plan
        for plan in reversed(plans)
        for pairs in [schemes_of(setting, plan)]
    }
    kept = [plan for plan in plans if plan in distinct.values()]
    draw = random.Random(0)  # a fixed sequence, not a secret
    for number in range(MIXED):
        allowed = [scheme for scheme in schemes if scheme_named(scheme).is_static] + ["fp32"]
        if number % 2 or len(allowed) < 2:
            allowed = list(schemes)
        kept.append(
            tuple(
                each[draw.choice([s for s in allowed if s in each] or list(each))]
                for each in options
            )
        )
    return tuple(dict.fromkeys(kept))


def _by_scheme(setting: Setting, group: str) -> dict[str, int]:
    """Index of the first candidate of each scheme: how weights are rounded costs no time."""
    found: dict[str, int] = {}
    for index, option in enumerate(setting.space.candidates[group]):
        found.setdefault(option.scheme, index)
    return found


def _kind(setting: Setting, layer: Layer) -> str:
    """Layers of one kind run the same kernel on the same shapes."""
    count = setting.count_of
    sizes = (*layer.weight_shape, layer.groups, layer.macs, count(layer.input), count(layer.output))
    return f"{layer.op} {' '.join(map(str, sizes))} {'bias' if layer.bias else ''}"
