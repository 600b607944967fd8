"""The options of ``advisor plan``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from advisor.cli.output import MODEL_HELP, JsonFlag, print_report


class Objective(StrEnum):
    """What to favour among the plans inside the budget."""

    AUTO = "auto"
    ACCURACY = "accuracy"
    LATENCY = "latency"
    MEMORY = "memory"


class OnUnsupported(StrEnum):
    """What to do with a layer that cannot take a demanded scheme."""

    KEEP = "keep"
    ERROR = "error"


def plan_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    target: Annotated[str, typer.Option(help="Profile name or alias, or a TOML file.")],
    budget: Annotated[
        str | None, typer.Option(help='Such as "4GB", "8ms", "4GB,8ms" or "size=20MB".')
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="plan.json to write, or a folder for it.")
    ] = Path("plan.json"),
    runtime: Annotated[
        str | None, typer.Option(help="Runtime to plan for; the target's own by default.")
    ] = None,
    objective: Annotated[
        Objective, typer.Option(help="What to favour inside the budget.")
    ] = Objective.AUTO,
    batch: Annotated[int, typer.Option(min=1, help="Batch size of the deployment.")] = 1,
    sequence: Annotated[
        int | None, typer.Option(min=1, help="Sequence length of the deployment.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens whose keys and values a decoder keeps in memory."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of the deployment.")
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB=SCHEME", help="Fix layers to a scheme; may be repeated."),
    ] = None,
    schemes: Annotated[
        str | None, typer.Option(help="Schemes to choose from, separated by commas.")
    ] = None,
    on_unsupported: Annotated[
        OnUnsupported, typer.Option(help="Layers that cannot be quantized: keep in float, or fail.")
    ] = OnUnsupported.KEEP,
    trials: Annotated[
        int | None, typer.Option(min=0, help="Assignments to measure in the search.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same plan.")] = 0,
    calibration: Annotated[
        Path | None, typer.Option(help="Arrays of inputs: .npz or .safetensors.")
    ] = None,
    output_kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]KIND",
            help="What an output is: logits, embedding or regression; may be repeated.",
        ),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(metavar="BOUND", help='Exit with 1 if true, such as "size>12MB".'),
    ] = None,
    cache: Annotated[bool, typer.Option(help="Reuse earlier measurements.")] = True,
    progress: Annotated[bool, typer.Option(help="Show progress on a terminal.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Choose every layer's precision and write the plan."""
    from advisor.cli.request import Request, make_plan

    request = Request(
        model=model,
        target=target,
        budget=budget,
        output=output,
        runtime=runtime,
        objective=objective.value,
        batch=batch,
        sequence=sequence,
        context=context,
        threads=threads,
        pins=tuple(pin or ()),
        schemes=schemes,
        on_unsupported=on_unsupported.value,
        trials=trials,
        seed=seed,
        calibration=calibration,
        output_kinds=tuple(output_kind or ()),
        fail_if=tuple(fail_if or ()),
        cache=cache,
        progress=progress,
    )
    plan, saved, broken = make_plan(request)
    print_report(plan, as_json=as_json)
    typer.echo(f"plan written to {saved}", err=True)
    for sentence in broken:
        typer.echo(f"failed: {sentence}", err=True)
    if broken:
        raise typer.Exit(1)
