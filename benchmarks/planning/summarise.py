"""Check the claims on the committed results and write README.md.

python -m benchmarks.planning.summarise [--results FOLDER] [--out README.md]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from advisor.atomic import write_text
from benchmarks.page import table
from benchmarks.planning.plans import PEERS, RESULTS
from benchmarks.planning.questions import BUDGETS, MODELS, SEEDS

OWN: Final = ("diagonal", "sqnr", "direct", "scores")
"""Methods made here that plans are held against, all with our quantizer and exact solver."""

OURS: Final = {"half": "from scores alone", "learned": "with 48 measurements as in a search"}
"""Predictions of ours that claims are about."""

RANKED: Final = {**OURS, "ledoit-wolf": "from scores alone, share by Ledoit-Wolf"}
"""Those that are ranked, the one that is not used yet among them."""

KEPT: Final = ("ledoit-wolf", "cross-validated")
"""Estimates of the share of the interactions to keep."""

INTRODUCTION: Final = Path(__file__).with_name("introduction.md")


def render(results: Path) -> str:
    """The page."""
    plans = {model: _load(results / f"{model}.plans.json") for model in MODELS}
    judged = {m: r["cells"] for m, r in plans.items() if r and "methods" in r["cells"][0]}
    ranking = {m: r for m in MODELS if (r := _load(results / f"{m}.ranking.json"))}
    optima = [r for path in sorted(results.glob("optimum-*.json")) if (r := _load(path))]
    parts = [
        "## Claims\n",
        table(["claim", "holds", "numbers"], _claims(judged, ranking, optima)),
    ]
    parts += ["## Plans at equal bytes\n", _missing(judged), _quality(judged)]
    parts += ["### By budget\n", _by_budget(judged)]
    bounds = {m: r["clairvoyant"] for m, r in plans.items() if r and "clairvoyant" in r}
    if bounds:
        parts += ["### How good a plan could be\n", _clairvoyant(judged, bounds)]
    if ranking:
        parts += ["## Ranking\n", _ranking(ranking)]
    if any("cost" in each for each in ranking.values()):
        parts += ["## Cost of scoring\n", _cost(ranking)]
    solver = _load(results / "solver.json")
    if solver is not None:
        parts += ["## Solver\n", _solver(solver)]
    if optima:
        parts += ["## Distance from the best assignment\n", _optimum(optima)]
    failed = [
        f"- {name} on {model}: {seed['failure']}"
        for model in MODELS
        for name in PEERS
        if (found := _load(results / f"{model}.{name}.json"))
        for seed in found["seeds"].values()
        if "failure" in seed
    ]
    if failed:
        parts += ["## Tools that gave no answer\n", "\n".join(failed) + "\n"]
    text = INTRODUCTION.read_text(encoding="utf-8")
    return text.replace("<!-- results -->", "\n".join(parts).rstrip("\n"))


def _load(path: Path) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    return found


def _claims(
    judged: Mapping[str, Sequence[Mapping[str, Any]]],
    ranking: Mapping[str, Mapping[str, Any]],
    optima: Sequence[Mapping[str, Any]],
) -> list[list[str]]:
    rows: list[list[str]] = []

    def claim(text: str, holds: bool, numbers: str) -> None:
        rows.append([text, "yes" if holds else "**no**", numbers])

    cells = [cell for each in judged.values() for cell in each]
    if cells:
        best = [ratio for cell in cells if (ratio := _over_best(cell, PEERS)) is not None]
        if best:
            mean = _geometric(best)
            text = "ours over the best other tool of each cell: at most 0.70"
            claim(text, mean <= 0.70, f"{mean:.3f} over {len(best)} cells")
        direct = _geometric(_over(cells, "direct"))
        claim("ours over direct measurement: at most 0.85", direct <= 0.85, f"{direct:.3f}")
        worst = {
            f"{name} on {model}": _geometric(ratios)
            for model, own in judged.items()
            for name in (*PEERS, "direct")
            if (ratios := _over(own, name))
        }
        bad = {name: value for name, value in worst.items() if value > 1.05}
        said = ", ".join(f"{value:.2f} of {name}" for name, value in bad.items()) or "none"
        claim("on no model worse than 1.05 of any of them", not bad, said)
        used = [min(_usage(cell), 1.0) for cell in cells]
        unused = [cell for cell in cells if _usage(cell) < 0.99]
        # Nothing was measured where a layer wider had been better; where none fits, nothing can be.
        better = [c for c in unused if "wider" not in c or (c["wider"] and c["wider"][0] < 1)]
        text = "at least 99 % of every budget is used, or no layer wider would measure better"
        said = f"mean {fmean(used):.2%}, least {min(used):.2%}; {len(better)} of {len(unused)} "
        claim(text, not better, said + "cells below 99 % could be better")
        claim(
            "every start is proven optimal",
            all(c["model_gap"] <= 1e-3 for c in cells),
            f"largest gap {max(c['model_gap'] for c in cells):.1e}",
        )
    if ranking:
        for part, least in (("random", 0.97), ("equal", 0.85)):
            known = {m: r[part]["spearman"] for m, r in ranking.items() if part in r}
            for name, how in RANKED.items() if known else ():
                mean = fmean(each[name] for each in known.values())
                said = ", ".join(f"{m} {each[name]:.3f}" for m, each in known.items())
                what = "random plans" if part == "random" else "plans of equal bytes"
                claim(
                    f"Spearman over {what}, {how}: at least {least}",
                    mean >= least,
                    f"mean {mean:.3f}: {said}",
                )
        for name, how in OURS.items():
            low = [
                m
                for m, r in ranking.items()
                if "random" in r and r["random"]["less_direct"][name][2] < 0
            ]
            text = f"never below direct measurement beyond the interval, {how}"
            claim(text, not low, ", ".join(low) or "none")
        costs = {
            m: r["cost"]["ratio"]
            for m, r in ranking.items()
            if "cost" in r and r["cost"]["groups"] >= 30
        }
        if costs:
            claim(
                "scoring costs at most a tenth of direct measurement, from 30 groups on",
                max(costs.values()) <= 0.1,
                ", ".join(f"{m} {v:.3f}" for m, v in costs.items()),
            )
        sizes = {
            m: r["cost"]["scoring_bytes"] / r["cost"]["step_bytes"]
            for m, r in ranking.items()
            if "cost" in r
        }
        if sizes:
            claim(
                "scoring takes at most twice the memory of a forward and backward pass",
                max(sizes.values()) <= 2,
                ", ".join(f"{m} {v:.2f}" for m, v in sizes.items()),
            )
    if optima:
        for part in ("planning", "unused"):
            mean = fmean(cell[part] for each in optima for cell in each["cells"])
            claim(
                f"within 2 % of the best assignment on {part} samples, averaged",
                mean <= 0.02,
                f"{mean:.2%}",
            )
        broken = [
            c
            for each in optima
            for c in each["cells"]
            if c["bound"] > c["least_predicted"] * (1 + 1e-9)
        ]
        claim(
            "the certified bound is never violated",
            not broken,
            f"{len(broken)} of {sum(len(e['cells']) for e in optima)}",
        )
    return rows


def _over(cells: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    """Ours over that method, of the cells in which it answered."""
    found = (cell["methods"].get(name) for cell in cells)
    return [each["ours_over_it"][0] for each in found if each is not None]


def _over_best(cell: Mapping[str, Any], names: Sequence[str]) -> float | None:
    found = [cell["methods"][name] for name in names if cell["methods"].get(name) is not None]
    return max((each["ours_over_it"][0] for each in found), default=None)


def _usage(cell: Mapping[str, Any]) -> float:
    used: float = cell["methods"]["ours"]["bytes"] / cell["budget_bytes"]
    return used


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def _missing(judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    wanted = len(SEEDS) * len(BUDGETS)
    short = [
        f"{m}: {len(judged.get(m, ()))} of {wanted}"
        for m in MODELS
        if len(judged.get(m, ())) < wanted
    ]
    return (
        f"Cells that were run (model x budget x seed): {', '.join(short)}; the others in full.\n"
        if short
        else ""
    )


def _quality(judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Geometric mean of our divergence over each method's."""
    rows: list[list[str]] = []
    for name in (*OWN, *PEERS):
        row = [name]
        for cells in judged.values():
            ratios = _over(cells, name)
            row.append(_cell_text(ratios, was_run=any(name in cell["methods"] for cell in cells)))
        every = [ratio for cells in judged.values() for ratio in _over(cells, name)]
        rows.append([*row, f"{_geometric(every):.3f}" if every else ""])
    best = ["best other tool of each cell"]
    for cells in judged.values():
        ratios = [r for cell in cells if (r := _over_best(cell, PEERS)) is not None]
        best.append(f"{_geometric(ratios):.3f}" if ratios else "")
    every = [
        r for cells in judged.values() for c in cells if (r := _over_best(c, PEERS)) is not None
    ]
    rows.append([*best, f"{_geometric(every):.3f}" if every else ""])
    said = "Our divergence over each method's, geometric mean (cells); below 1 ours loses less.\n\n"
    return said + table(["method", *judged, "all"], rows)


def _cell_text(ratios: Sequence[float], *, was_run: bool) -> str:
    if ratios:
        return f"{_geometric(ratios):.3f} ({len(ratios)})"
    return "no answer" if was_run else "not run"


def _by_budget(judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows: list[list[str]] = []
    for model, cells in judged.items():
        for share in BUDGETS:
            own = [cell for cell in cells if cell["share"] == share]
            if not own:
                continue
            ours = _geometric([cell["methods"]["ours"]["divergence"] for cell in own])
            better = sum(
                1 for c in own if (m := c["methods"]["direct"])["ours_over_it"][2] < 1 and m
            )
            worse = sum(1 for c in own if c["methods"]["direct"]["ours_over_it"][1] > 1)
            peers = [r for c in own if (r := _over_best(c, PEERS)) is not None]
            rows.append(
                [
                    model,
                    f"{share:g}",
                    f"{ours:.3g}",
                    f"{_geometric(_over(own, 'direct')):.3f}",
                    f"{better} better, {worse} worse of {len(own)}",
                    f"{_geometric(peers):.3f}" if peers else "",
                ]
            )
    heads = [
        "model",
        "budget",
        "our divergence",
        "over direct",
        "cells beyond their interval",
        "over best tool",
    ]
    return table(heads, rows)


def _clairvoyant(
    judged: Mapping[str, Sequence[Mapping[str, Any]]], bounds: Mapping[str, Mapping[str, Any]]
) -> str:
    """Ratios to a plan that was searched for on the judge's own samples."""
    rows: list[list[str]] = []
    over_direct: list[float] = []
    over_best: list[float] = []
    for model, found in bounds.items():
        for share in BUDGETS:
            own = [cell for cell in judged[model] if cell["share"] == share]
            least = found[f"{share:g}"]["divergence"]
            ours = _geometric([cell["methods"]["ours"]["divergence"] for cell in own])
            direct = _geometric([cell["methods"]["direct"]["divergence"] for cell in own])
            peers = [
                min(each)
                for cell in own
                if (
                    each := [
                        cell["methods"][name]["divergence"]
                        for name in PEERS
                        if cell["methods"].get(name) is not None
                    ]
                )
            ]
            best = f"{least / _geometric(peers):.3f}" if peers else ""
            over_direct.append(least / direct)
            over_best += [least / _geometric(peers)] if peers else []
            rows.append([model, f"{share:g}", f"{least / ours:.3f}", f"{least / direct:.3f}", best])
    means = f"{_geometric(over_best):.2f} of the best other tool, {_geometric(over_direct):.2f} of"
    said = (
        "The plan that a local search on the unused samples themselves ends with, which no planner "
        "sees: its divergence over ours, over direct measurement and over the best other tool of "
        "each cell. Nothing that plans from other samples can be expected below it. Geometric "
        f"means of these cells: {means} direct measurement.\n\n"
    )
    return said + table(["model", "budget", "over ours", "over direct", "over best tool"], rows)


def _ranking(ranking: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("diagonal", "half", "whole", *KEPT, *("checked", "learned", "direct", "measured"))
    rows = [
        [
            model,
            part,
            f"{found[part]['factor']:.3g}",
            *(f"{found[part]['spearman'][n]:.3f}" for n in names),
            " and ".join(f"{found[part]['kept'][name]:.2f}" for name in KEPT),
        ]
        for model, found in ranking.items()
        for part in ("random", "equal")
        if part in found
    ]
    said = (
        "Spearman's coefficient of predicted with measured divergence of 100 plans. After the "
        "factor that they span: scores with a share of the interactions (none, half, all, the "
        "shares by Ledoit-Wolf and by cross-validation, which the last column has); half of them "
        "with at most 24 choices measured alone; with 24 other plans measured too; all choices "
        "measured alone and summed; and the plans themselves measured on the samples that the "
        "others predict from, which is as good as those samples can be.\n\n"
    )
    heads = ["model", "plans", "factor", *names, "kept"]
    return said + table(heads, rows)


def _cost(ranking: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [
            model,
            str(c["groups"]),
            str(c["choices"]),
            f"{c['samples']} x {c['probes']}",
            f"{c['scoring_s']:.2f}",
            f"{c['direct_s']:.2f}",
            f"{c['ratio']:.3f}",
            f"{c['scoring_bytes'] / 1e6:.0f}",
            f"{c['step_bytes'] / 1e6:.0f}",
        ]
        for model, found in ranking.items()
        if (c := found.get("cost"))
    ]
    heads = [
        "model",
        "groups",
        "choices",
        "samples x probes",
        "scoring, s",
        "direct, s",
        "ratio",
        "scoring, MB",
        "training step, MB",
    ]
    return table(heads, rows)


def _solver(solver: Mapping[str, Any]) -> str:
    rows = [
        [
            str(each["groups"]),
            str(each["seed"]),
            each["limits"],
            f"{each['cpu_s']:.2f}",
            "no plan fits" if each["gap"] is None else f"{each['gap']:.1e}",
        ]
        for each in solver["rows"]
    ]
    each_has, gap, large = solver["candidates"], solver["relative_gap"], solver["large"]
    said = f"Problems of {each_has} candidates per group, as the search solves them: to {gap:g} "
    said += f"from more than {large} groups on, to 1e-06 below.\n\n"
    return said + table(["groups", "seed", "limits", "processor seconds", "proven gap"], rows)


def _optimum(optima: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            each["model"],
            str(each["assignments"]),
            f"{c['share']:g}",
            f"{c['planning']:.2%}",
            f"{c['unused']:.2%}",
            f"{c['unused_of_best_by_planning']:.2%}",
        ]
        for each in optima
        for c in each["cells"]
    ]
    heads = [
        "model",
        "assignments",
        "budget",
        "above the best, planning samples",
        "unused samples",
        "best by planning, on unused",
    ]
    return table(heads, rows)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description="Claims and tables of the planning benchmark.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("README.md"))
    arguments = parser.parse_args()
    write_text(arguments.out, render(arguments.results))


if __name__ == "__main__":
    main()
