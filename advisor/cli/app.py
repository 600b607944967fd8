"""The ``advisor`` command. Results go to stdout, everything else to stderr; nothing is asked.

Exit codes: 0 done; 1 a --fail-if bound is broken or an artifact failed its verification; 2 a usage
error; 3 no plan meets the budget; 4 a runtime or package is missing; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from advisor.cli.bench import bench_command
from advisor.cli.output import MODEL_HELP, JsonFlag, open_console, print_listing, print_report
from advisor.cli.plan import plan_command
from advisor.errors import AdvisorError, MissingDependencyError


class _Commands(TyperGroup):
    """Turns every error raised on purpose into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AdvisorError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except ModuleNotFoundError as error:
            # Only a package from outside is the user's to install.
            if (error.name or "").partition(".")[0] in ("", "advisor"):
                raise
            typer.echo(
                f"error: the package {error.name!r} is not installed; `advisor doctor` says how to "
                "install what is missing",
                err=True,
            )
            raise typer.Exit(MissingDependencyError.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from error


# Without rich's markup and tracebacks, --help need not import rich.
app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Choose the precision of every layer of a PyTorch model for given hardware, and prove it.",
)


def main() -> None:
    """Entry point of the ``advisor`` command."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without Unicode shows "?" rather than failing on a unit sign.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from advisor import __version__

        typer.echo(f"quantadvisor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr.")] = False,
) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)


app.command("plan")(plan_command)


@app.command("compile")
def compile_command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan.json, or the folder it is in.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the artifact.")],
    model: Annotated[
        str | None, typer.Option(help=f"{MODEL_HELP} Needed unless the plan names it.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="Another runtime than the plan was made for.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="How to write the files, such as io=int8; `advisor targets --show` lists them.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn a plan into verified runtime files."""
    from advisor.cli.compile import compile_saved, describe, verification_json

    artifact, verification = compile_saved(plan, model, output, runtime, option or ())
    if as_json:
        typer.echo(verification_json(artifact, verification))
    else:
        typer.echo(describe(artifact, verification))
    if not verification.ok:
        raise typer.Exit(1)


app.command("bench")(bench_command)


@app.command("report")
def report_command(
    plan: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan.json, or the folder it is in.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .html, .md or .json.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show a plan, or write its report to a file."""
    from advisor.planfile import read_plan
    from advisor.report import write_report

    loaded = read_plan(plan)
    if output is None or as_json:
        print_report(loaded, as_json=as_json)
    if output is not None:
        typer.echo(f"report written to {write_report(loaded, output)}", err=True)


@app.command("compare")
def compare_command(
    first: Annotated[
        Path, typer.Argument(metavar="PLAN", help="A plan.json, or the folder it is in.")
    ],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="Another one.")],
    as_json: JsonFlag = False,
) -> None:
    """List what differs between two plans."""
    from advisor.planfile import read_plan

    lines = read_plan(first).diff(read_plan(second)).splitlines()
    if as_json:
        import json

        typer.echo(json.dumps({"differences": lines}, indent=2))
    else:
        typer.echo("\n".join(lines) or "the plans are equal")


profiles = typer.Typer(
    add_completion=False, rich_markup_mode=None, help="List the hardware that can be planned for."
)
app.add_typer(profiles, name="profiles")


@profiles.callback(invoke_without_command=True)
def profiles_command(
    context: typer.Context,
    show: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Everything about one profile: name, alias or path."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the hardware that can be planned for."""
    if context.invoked_subcommand is not None:
        return
    from advisor.cli.show import show_profile, show_profiles

    print_listing(show_profiles() if show is None else show_profile(show), as_json=as_json)


@profiles.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of profile files, for editors and validators."""
    import json

    from advisor.profiles.json_schema import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


@profiles.command("measure")
def measure_command(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: stdout.")
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="Whose kernels are timed: onnxruntime or tflite.")
    ] = "onnxruntime",
    progress: Annotated[bool, typer.Option(help="Show progress on a terminal.")] = True,
) -> None:
    """Measure this machine with a runtime's kernels and write its profile."""
    from functools import partial

    from advisor.atomic import check_writable, write_text
    from advisor.cli.progress import show_progress
    from advisor.profiles.host import measure_profile

    if output is not None:
        check_writable(output)
    with show_progress(progress) as report:
        text = measure_profile(None if report is None else partial(report, "measure"), runtime)
    if output is None:
        typer.echo(text)
    else:
        typer.echo(f"profile written to {write_text(output, text)}", err=True)


@profiles.command("correct")
def correct_command(
    benchmark: Annotated[
        Path,
        typer.Argument(metavar="BENCHMARK", help="The benchmark.json that a device wrote."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write; its name is the profile's.")
    ],
    plan: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder that was measured; default: the file's own."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="The profile of the plan, where it is a file."),
    ] = None,
) -> None:
    """Correct a plan's profile by what the plan took on the device itself."""
    from advisor.atomic import check_writable, write_text
    from advisor.measure.ondevice import correct_by_benchmark

    check_writable(output)
    text = correct_by_benchmark(benchmark, output.stem, plan=plan, profile=profile)
    typer.echo(f"profile written to {write_text(output, text)}", err=True)


@app.command("targets")
def targets_command(
    show: Annotated[
        str | None, typer.Option(metavar="NAME", help="Everything about one runtime.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the runtimes and what they support."""
    from advisor.cli.show import show_runtime, show_runtimes

    print_listing(show_runtimes() if show is None else show_runtime(show), as_json=as_json)


@app.command("doctor")
def doctor_command(as_json: JsonFlag = False) -> None:
    """Say what is installed and what is missing."""
    from advisor.cli.show import show_diagnosis
    from advisor.doctor import diagnose

    diagnosis = diagnose()
    print_listing(show_diagnosis(diagnosis), as_json=as_json)
    if not diagnosis.ok:
        raise typer.Exit(MissingDependencyError.exit_code)


@app.command("demo")
def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for what the demo makes.")
    ] = Path("build/demo"),
) -> None:
    """Plan, compile and verify a small trained model."""
    from advisor.demo import run_demo

    run_demo(output, open_console())
