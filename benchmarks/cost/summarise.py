"""README.md from the results that there are.

python -m benchmarks.cost.summarise
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final

from advisor.atomic import write_text
from benchmarks.claims import NOISE, overlap, points_of, quickest
from benchmarks.cost import decisions, latency, published, sizes
from benchmarks.page import read_result

HERE: Final = Path(__file__).parent
PAGE: Final = HERE / "README.md"
INTRODUCTION: Final = HERE / "introduction.md"
MEMORY: Final = HERE.parent / "onnxruntime" / "memory.json"
NEAR: Final = 0.1
"""Relative error of a latency that nn-Meter counts as right (Zhang et al. 2021)."""

SECTIONS: Final = ("published", "decisions", "sizes", "memory", "latency")
"""Where each goes, the introduction has a line such as "<!-- published -->"."""


def main() -> int:
    """Write the page."""
    text = INTRODUCTION.read_text(encoding="utf-8")
    for name in SECTIONS:
        text = text.replace(f"<!-- {name} -->", "\n".join(RENDERERS[name]()))
    write_text(PAGE, text)
    return 0


def published_section() -> list[str]:
    """Every point, its ratio, and the medians by profile."""
    found = read_result(published.RESULTS)
    if found is None:
        return ["Not run yet."]
    rows: list[dict[str, Any]] = found["rows"]
    overall = found["overall"]
    lines = [
        f"{overall['points']} points on {len({row['profile'] for row in rows})} profiles: the "
        f"median of predicted over published is {overall['median_ratio']:.2f}; "
        f"{overall['within_1.5x']:.0%} are within a factor of 1.5, {overall['within_2x']:.0%} "
        f"within 2, {overall['within_3x']:.0%} within 3.",
        "",
        "| profile | points | median ratio | lowest | highest |",
        "|---|---|---|---|---|",
    ]
    for profile, ratios in _by(rows, "profile").items():
        lines.append(
            f"| `{profile}` | {len(ratios)} | {median(ratios):.2f} | {min(ratios):.2f} | "
            f"{max(ratios):.2f} |"
        )
    sources = list(dict.fromkeys(str(row["source"]) for row in rows))
    lines += [
        "",
        "| profile | model | size | batch | scheme | published | predicted | ratio | mostly | "
        "from |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts: dict[str, float] = row["parts"]
        mostly = max(parts, key=lambda name: parts[name]).removesuffix("_s")
        threads = f", {row['threads']} threads" if row["threads"] else ""
        lines.append(
            f"| `{row['profile']}` | {row['model']} | {row['size']} | {row['batch']}{threads} | "
            f"`{row['scheme']}` | {row['published_s'] * 1e3:.3g} ms | "
            f"{row['predicted_s'] * 1e3:.3g} ms | {row['ratio']:.2f} | {mostly} | "
            f"{sources.index(row['source']) + 1} |"
        )
    lines += ["", "Sources:", ""]
    lines += [f"{number}. {_linked(source)}" for number, source in enumerate(sources, 1)]
    return lines


def decisions_section() -> list[str]:
    """One model's plans over devices."""
    found = read_result(decisions.RESULTS)
    return ["Not run yet."] if found is None else decisions.to_markdown(found)


def sizes_section() -> list[str]:
    """Predicted and written bytes, by runtime and model."""
    found = read_result(sizes.RESULTS)
    if found is None:
        return ["Not run yet."]
    lines = [
        f"{found['within_half_a_percent']} of {found['files']} files are within 0.5 %; the largest "
        f"error is {found['largest_error']:.2%}.",
        "",
        "| runtime | model | schemes | smallest file | largest error |",
        "|---|---|---|---|---|",
    ]
    kinds = dict.fromkeys((row["runtime"], row["model"]) for row in found["rows"])
    for runtime, model in kinds:
        rows = [r for r in found["rows"] if (r["runtime"], r["model"]) == (runtime, model)]
        worst = max(rows, key=lambda row: abs(row["error"]))
        lines.append(
            f"| {runtime} | {model} | {len(rows)} | "
            f"{min(row['disk_bytes'] for row in rows) / 1e6:.1f} MB | "
            f"{worst['error']:+.2%} (`{worst['scheme']}`) |"
        )
    return lines


def memory_section() -> list[str]:
    """Predicted and measured memory of processes, by the scheme."""
    found = read_result(MEMORY)
    if found is None:
        return ["Not run yet."]
    errors = [abs(row["error"]) for row in found["rows"]]
    worst = max(found["rows"], key=lambda row: abs(row["error"]))
    return [
        f"{sum(error <= 0.1 for error in errors)} of {len(errors)} processes are within 10 %; the "
        f"median error is {median(errors):.1%}, the largest {worst['error']:+.1%} "
        f"({worst['model']}, batch {worst['batch']}, `{worst['schemes']}`).",
    ]


def latency_section() -> list[str]:
    """Random plans timed on a quiet machine, where that was done."""
    found = read_result(latency.RESULTS)
    if found is None:
        return ["Not run yet on a machine that does nothing else."]
    settings, machine = found["settings"], found["machine"]
    lines = [
        f"{found['overall']['plans']} plans on {machine['cores']} cores of {machine['cpu']} "
        f"({' '.join(machine['features'])}). The noise is what timing the same file a second time "
        "in the same run is off by (median over the settings): no prediction can be better.",
        "",
        "| runtime, threads | plans | noise | prediction | median error | nine of ten below | "
        "within 10 % | rank correlation in a setting |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for end in ("", *(f"/{name}/{n}" for name in latency.RUNTIMES for n in (1, 2))):
        some = {key: each for key, each in settings.items() if key.endswith(end)}
        if some:
            lines += _latency_rows(end.strip("/").replace("/", ", ") or "all", some)
    lines += [
        "",
        "| model x batch / runtime / threads | noise | timed: median | worst | rank | "
        "modelled: median | rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in settings.items():
        worst = max(abs(row["timed_s"] / row["measured_s"] - 1) for row in each["plans"])
        lines.append(
            f"| {name} | {each['noise']:.1%} | {each['timed']['median_error']:.1%} | {worst:.1%} | "
            f"{each['timed']['spearman']:.2f} | {each['modelled']['median_error']:.1%} | "
            f"{each['modelled']['spearman']:.2f} |"
        )
    total = found["overall"]
    lines += [
        "",
        "Rank correlation over all plans of a model, on both runtimes with one thread and two. The "
        "ceiling is that of a perfect prediction under the noise of the timings that it is held "
        "against.",
        "",
        "| model x batch | measured costs | profile alone | ceiling |",
        "|---|---|---|---|",
    ]
    kinds = ("timed", "modelled", "ceiling")
    for name in total["timed"]["by_model"]:
        ranks = " | ".join(f"{total[kind]['by_model'][name]:.3f}" for kind in kinds)
        lines.append(f"| {name} | {ranks} |")
    ranks = " | ".join(f"{total[kind]['spearman']:.3f}" for kind in kinds)
    lines.append(f"| within a setting, mean | {ranks} |")
    return [*lines, "", *_chosen()]


def _latency_rows(name: str, settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    total = latency.overall(settings)
    plans = [plan for each in settings.values() for plan in each["plans"]]
    lines: list[str] = []
    for kind, said in (
        ("timed", 'costs measured for the model, as `target="host"` does'),
        ("modelled", "this machine's profile alone"),
    ):
        near = [abs(plan[f"{kind}_s"] / plan["measured_s"] - 1) <= NEAR for plan in plans]
        errors = total[kind]
        lines.append(
            f"| {name} | {total['plans']} | {total['noise']:.1%} | {said} | "
            f"{errors['median_error']:.1%} | {errors['p90_error']:.1%} | {fmean(near):.0%} | "
            f"{errors['spearman']:.2f} |"
        )
    return lines


def _chosen() -> list[str]:
    """Whether plans for latency were the fastest of all of our files, timed once more."""
    rows: list[str] = []
    near = unclear = 0
    for runtime in ("onnxruntime", "tflite"):
        for path in sorted((HERE.parent / runtime / "results").rglob("*.json")):
            result = read_result(path)
            if "timings" not in result:  # what several runs of one script are gathered in
                continue
            kind = result["machine"]["features"][-1]
            for threads in map(int, result["timings"]):
                own = [p for p in points_of(result, threads) if p.origin in ("plan", "uniform")]
                chosen = quickest([p for p in own if p.name.startswith("latency (")])
                fastest = quickest(own)
                if chosen is None or fastest is None:
                    continue
                over = chosen.ratio / fastest.ratio - 1
                is_near = chosen.ratio <= fastest.ratio * NOISE
                is_unclear = overlap(chosen, fastest)
                near += is_near
                unclear += is_unclear and not is_near
                rows.append(
                    f"| {runtime} | {kind} | {result['case']} | {threads} | {over:+.1%} | "
                    f"{'yes' if is_unclear else 'no'} | {fastest.name} |"
                )
    return [
        "The plan that is chosen for latency, timed again beside every other file of ours (uniform "
        "plans, plans for other objectives): its latency over that of the fastest. "
        f"{near} of {len(rows)} are within 3 %; of the others {unclear} have an interval that "
        "overlaps the fastest one's, so that the clock does not tell them apart. With AVX2 alone "
        "most files of a model take nearly the same time ([avx2.md](../onnxruntime/avx2.md)).",
        "",
        "| runtime | processor with | model | threads | over the fastest | intervals overlap | "
        "which is |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _by(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row["ratio"])
    return found


def _linked(source: str) -> str:
    """The source's title as a link to its address."""
    matched = re.fullmatch(r"(.*), (https?://\S+)", source)
    return source if matched is None else f"[{matched[1]}]({matched[2]})"


RENDERERS: Final = {
    "published": published_section,
    "decisions": decisions_section,
    "sizes": sizes_section,
    "memory": memory_section,
    "latency": latency_section,
}


if __name__ == "__main__":
    sys.exit(main())
