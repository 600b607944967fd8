"""Plan one model at several budgets, ship each plan, and print a Markdown table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from advisor import advise
from advisor.demo import model_bytes

if TYPE_CHECKING:
    from advisor.plan import Plan

Encode = Callable[..., object]
Quality = Callable[[Encode], Mapping[str, str]]
"""Measures a model, simulation or artifact: heading to text, the same headings every time."""


def plan_at_budgets(
    model: nn.Module,
    *,
    target: str,
    budgets: Sequence[str],
    inputs: object,
    calibration: Sequence[object],
    quality: Quality,
    out: Path,
    objective: str = "accuracy",
    metric: Callable[[nn.Module], object] | None = None,
) -> list[dict[str, str]]:
    """One row for the float model and one per budget; artifacts and reports go under ``out``.

    objective: "accuracy" takes the best plan that each budget allows; "auto" would take the same
    fastest plan at every budget that admits it.
    """
    float_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    rows = [{"budget": "float32 (PyTorch)", "weights": megabytes(float_bytes), **quality(model)}]
    for budget in budgets:
        plan = advise(
            model,
            target=target,
            budget=budget,
            inputs=inputs,
            calibration=calibration,
            metric=metric,
            objective=objective,
        )
        folder = out / budget.replace("=", "-")
        artifact = plan.compile(folder)
        check = artifact.verify()
        plan.save(folder / "plan.json")
        plan.report(folder / "report.md")
        rows.append(
            {
                "budget": budget,
                "weights": megabytes(size_of(plan)),
                **quality(artifact.run),
                "model file": megabytes(model_bytes(artifact)),
                "schemes": schemes_of(plan),
                "read back": f"{check.layers_matched} of {check.layers_total}",
                "agrees": "yes" if check.ok else "NO",
            }
        )
    return rows


def size_of(plan: Plan) -> float:
    """Bytes of the plan's weights."""
    size = plan.measured.size_bytes or plan.predicted.size_bytes
    if size is None:
        raise ValueError("the plan has no size")
    return size.value


def schemes_of(plan: Plan) -> str:
    """How many layers take each scheme, such as "9 w8a8, 2 fp16"."""
    names = [layer.scheme for layer in plan.layers]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def megabytes(size: float) -> str:
    """Bytes as megabytes of 10^6, three decimals."""
    return f"{size / 1e6:.3f} MB"


def to_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table with the columns of the longest row."""
    columns = list(dict.fromkeys(column for row in reversed(rows) for column in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[row.get(column, "") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse_arguments(description: str, default_out: str) -> argparse.Namespace:
    """--out and --target of an example's command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(default_out))
    parser.add_argument("--target", default="intel-vnni")
    return parser.parse_args()
