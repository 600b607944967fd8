"""What a whole plan's modelled time is spent on."""

from __future__ import annotations

from advisor.assemble import boundary_terms, switch_terms
from advisor.indicators import Indicators
from advisor.otherops import other_parts
from advisor.profiles.timeparts import TimeParts
from advisor.search.problem import Choice, Evaluation, Problem, holding
from advisor.setting import Setting


def break_down(
    setting: Setting, problem: Problem, choice: Choice, evaluation: Evaluation
) -> TimeParts:
    """The parts of ``evaluation.latency_s``, which they add up to.

    Where layers were timed on this machine, the whole is: what they spend it on is not known.
    """
    if setting.measured is not None:
        return TimeParts(timed_s=evaluation.latency_s)
    total = other_parts(setting)
    for group, index in zip(setting.groups, choice, strict=True):
        scheme = setting.space.candidates[group.name][index].scheme
        for layer in setting.layers_of(group):
            total += setting.cost(layer, scheme).parts
    indicators = Indicators(setting)
    most_s, fewer = switch_terms(setting, indicators)
    terms = boundary_terms(setting, indicators) + fewer
    held = holding(problem, choice)
    return total + TimeParts(boundary_s=most_s + float(terms[held].sum()))
