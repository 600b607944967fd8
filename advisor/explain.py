"""Why a layer has its scheme: what the next cheaper and the next better choice would change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from advisor.budget import format_amount
from advisor.formats import scheme_named
from advisor.passes.graph import Layer
from advisor.plan import Option
from advisor.search.milp import value_of, within
from advisor.search.objective import BINDING, LATENCY_SLACK
from advisor.search.problem import Candidate, Choice, Evaluation, Problem, evaluate

NOTICED: Final = 1e-3
"""Share of a plan's latency from which on a change of it is worth a word beside another limit."""

_OF_OBJECTIVE: Final = {
    "auto": "latency_s",
    "latency": "latency_s",
    "memory": "memory_bytes",
    "accuracy": "size_bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """In which terms choices are compared: changes of the whole plan, boundaries included.

    quantity: what is scarce. is_binding: because its limit binds; else because of the objective.
    bounds: limits that predictions are held against. has_slack: whether 2 % of latency are no
    reason to lose more.
    """

    problem: Problem
    choice: Choice
    here: Evaluation
    quantity: str
    is_binding: bool
    bounds: Mapping[str, float]
    has_slack: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """What another candidate of one group would change in the plan."""

    scheme: str
    amount: float
    seconds: float
    divergence: float
    fits: bool


def find_terms(
    problem: Problem,
    choice: Choice,
    *,
    objective: str,
    used: Mapping[str, float],
    bounds: Mapping[str, float],
) -> Terms:
    """The terms in which a plan's layers are explained.

    used: share of every limit that the plan uses, by quantity; the most used one decides if it
    binds. bounds: limits, without those that a clock keeps.
    """
    most = max(used, key=lambda name: used[name], default="")
    is_binding = used.get(most, 0.0) >= BINDING
    quantity = most if is_binding else _OF_OBJECTIVE[objective]
    return Terms(
        problem=problem,
        choice=choice,
        here=evaluate(problem, choice),
        quantity=quantity,
        is_binding=is_binding,
        bounds=bounds,
        has_slack=objective in ("auto", "latency"),
    )


def explain(
    layer: Layer,
    option: Candidate,
    options: Sequence[Option],
    pin: tuple[str, str] | None,
    terms: Terms,
    group: int,
) -> str:
    """Why the layer has this scheme, in a sentence. group: the layer's, in the problem's order."""
    if pin is not None:
        return f"pinned to {pin[0]} by {pin[1]!r}"
    if layer.frozen:
        return layer.frozen
    is_float = scheme_named(option.scheme).is_float
    possible = [o for o in options if not o.reason]
    if len({o.scheme for o in possible}) == 1:
        first = sorted((o for o in options if o.reason), key=lambda o: o.scheme != "fp32")
        refused = [f"{o.scheme}: {o.reason}" for o in first]
        why = "; ".join(refused[:3]) or "no other scheme was asked for"
        return f"{'kept in float' if is_float else 'the only one possible'}: {why}"
    name = terms.quantity.rpartition("_")[0]
    best = f"best under the {name} limit, which binds" if terms.is_binding else "best for its cost"
    trades = list_trades(terms, group)
    parts = [_say_cheaper(trades, terms), _say_better(trades, terms)]
    said = "; ".join(filter(None, parts)) or f"nothing else has less {name} or divergence"
    return f"{'kept in float' if is_float else best}: {said}"


def list_trades(terms: Terms, group: int) -> list[Trade]:
    """Every other candidate of a group, with what it would change in the whole plan."""
    here, at = terms.here, terms.choice[group]
    found: list[Trade] = []
    for index, candidate in enumerate(terms.problem.candidates[group]):
        if index == at:
            continue
        changed = (*terms.choice[:group], index, *terms.choice[group + 1 :])
        there = evaluate(terms.problem, changed)
        found.append(
            Trade(
                scheme=candidate.scheme,
                amount=value_of(there, terms.quantity) - value_of(here, terms.quantity),
                seconds=there.latency_s - here.latency_s,
                divergence=there.divergence - here.divergence,
                fits=within(there, terms.bounds),
            )
        )
    return found


def _say_cheaper(trades: Sequence[Trade], terms: Terms) -> str:
    """The next cheaper choice: of those with less of what is scarce the one that loses least."""
    cheaper = [trade for trade in trades if trade.amount < 0]
    if not cheaper:
        return ""
    best = min(cheaper, key=lambda trade: (trade.divergence, trade.amount))
    said = f"{best.scheme} would save {_change(best, terms)}"
    is_slack = terms.has_slack and terms.quantity == "latency_s" and best.divergence > 0
    if is_slack and -best.amount <= LATENCY_SLACK * terms.here.latency_s:
        said += f", and {LATENCY_SLACK:.0%} of latency are no reason to lose more"
    return said


def _say_better(trades: Sequence[Trade], terms: Terms) -> str:
    """The next better choice: of those that lose less the one that costs least."""
    better = [trade for trade in trades if trade.divergence < 0 and trade.amount > 0]
    if not better:
        return ""
    best = min(better, key=lambda trade: (trade.amount, trade.divergence))
    beyond = "" if best.fits else ", beyond the budget"
    return f"{best.scheme} would cost {_change(best, terms)}{beyond}"


def _change(trade: Trade, terms: Terms) -> str:
    """What is scarce (without its sign), seconds where they matter, and divergence."""
    words = [_amount(terms.quantity, trade.amount)]
    if terms.quantity.endswith("_bytes"):
        words = [f"{words[0]} of {terms.quantity.rpartition('_')[0]}"]
    if terms.quantity != "latency_s" and abs(trade.seconds) > NOTICED * terms.here.latency_s:
        verb = "add" if trade.seconds > 0 else "save"
        words.append(f"{verb} {_amount('latency_s', trade.seconds)}")
    verb = "add" if trade.divergence > 0 else "remove"
    words.append(f"{verb} divergence {abs(trade.divergence):.2g}")
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _amount(quantity: str, change: float) -> str:
    """Without its sign, and without the rounding of a difference that is just below a unit."""
    return format_amount(quantity, float(f"{abs(change):.3g}"))
