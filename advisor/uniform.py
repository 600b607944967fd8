"""Uniform plans: one scheme wherever a group of layers can take it."""

from __future__ import annotations

from advisor.budget import Budget
from advisor.search.problem import Choice, Problem, evaluate
from advisor.setting import Setting


def uniform_choices(setting: Setting) -> dict[str, tuple[Choice, int]]:
    """By scheme, the choice that uses it wherever a group can, and how many layers cannot."""
    candidates = [setting.space.candidates[group.name] for group in setting.groups]
    schemes = dict.fromkeys(option.scheme for options in candidates for option in options)
    found: dict[str, tuple[Choice, int]] = {}
    for scheme in schemes:
        choice: list[int] = []
        unable = 0
        for group, options in zip(setting.groups, candidates, strict=True):
            able = [i for i, option in enumerate(options) if option.scheme == scheme]
            if not able:
                unable += len(group.layers)
            # The last algorithm listed is the better rounding; a group that cannot take the
            # scheme stays in its widest float, which is listed first.
            choice.append(able[-1] if able else 0)
        found[scheme] = (tuple(choice), unable)
    return found


def resolve(budget: Budget, setting: Setting, problem: Problem) -> Budget:
    """The budget with a latency in seconds where it is a multiple of a uniform plan's.

    Raises:
        BudgetError: no layer can take the scheme.
    """
    if budget.latency_multiple is None:
        return budget
    choices = uniform_choices(setting)
    return budget.resolved(
        {scheme: evaluate(problem, choice).latency_s for scheme, (choice, _) in choices.items()}
    )
