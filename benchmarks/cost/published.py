"""Modelled latencies against published measurements.

    python -m benchmarks.cost.published [--models NAME ...]

Every point of ``points.toml`` is costed as a plan would be: the architecture is captured with
random weights, set up for the point's profile, batch and threads, and the uniform plan of its
scheme is evaluated. Nothing is fitted to the points. Writes ``published.json``; ``summarise``
makes the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from advisor.assemble import build_problem
from advisor.atomic import write_text
from advisor.breakdown import break_down
from advisor.passes.candidates import find_candidates, keep_to
from advisor.passes.capture import capture
from advisor.passes.graph import Graph
from advisor.passes.group import group_layers
from advisor.prepare import check_deployment
from advisor.profiles.timeparts import TimeParts
from advisor.search.problem import evaluate
from advisor.setting import Deployment, Setting, graph_for, make_setting
from advisor.uniform import uniform_choices
from benchmarks.cost.models import BLOCKS, DECODERS, build

HERE: Final = Path(__file__).parent
POINTS: Final = HERE / "points.toml"
RESULTS: Final = HERE / "published.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One published measurement of one forward.

    size: pixels a side, or tokens. value, unit: as printed; ``seconds`` works out one forward.
    threads: None where the source uses all. source: title and address. says: what it prints.
    """

    profile: str
    model: str
    size: int
    batch: int
    scheme: str
    value: float
    unit: str
    source: str
    says: str
    threads: int | None = None

    @property
    def seconds(self) -> float:
        """Seconds of one forward: from milliseconds, or from forwards per second side by side."""
        if self.unit == "ms":
            return self.value / 1e3
        _, _, together = self.unit.partition("per-s/")
        return float(together or 1) / self.value


def read_points(path: Path = POINTS) -> list[Point]:
    """The points, with their sources in full.

    Raises:
        KeyError: a source is not defined.
    """
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    sources = document["sources"]
    return [Point(**{**each, "source": sources[each["source"]]}) for each in document["point"]]


def settle(graph: Graph, deployment: Deployment) -> Setting:
    """The planning problem of a captured graph for a deployment, as ``advise`` sets it up."""
    capability, profile = deployment.capability, deployment.profile
    graph = graph_for(graph, capability)
    groups = group_layers(graph, capability)
    space = find_candidates(graph, groups, capability, platform=profile.platform)
    space = keep_to(space, groups, profile.schemes, profile.name)
    return make_setting(graph, groups, space, deployment)


def predict(graph: Graph, point: Point) -> dict[str, Any]:
    """The point's row: predicted seconds, their parts, and how many layers cannot take the scheme.

    Raises:
        KeyError: no layer can take the scheme on that profile.
    """
    parts, runtime, unable = spent(graph, point)
    return _row(point, parts, runtime, unable)


def predict_decoder(one: Graph, two: Graph, point: Point) -> dict[str, Any]:
    """The row of a decoder, from one with a single block and one with two: blocks are alike, so
    the difference is what each of them takes."""
    first, runtime, unable = spent(one, point)
    second, _, _ = spent(two, point)
    parts = first + (second + first * -1.0) * (BLOCKS - 1)
    return _row(point, parts, runtime, unable)


def spent(graph: Graph, point: Point) -> tuple[TimeParts, str, int]:
    """What a forward's modelled time is spent on, by which runtime, and how many layers are not in
    the scheme."""
    setting = settle(
        graph,
        check_deployment(
            target=point.profile,
            runtime=None,
            batch=point.batch,
            sequence=None,
            threads=point.threads,
        ),
    )
    problem = build_problem(setting)
    choice, unable = uniform_choices(setting)[point.scheme]
    parts = break_down(setting, problem, choice, evaluate(problem, choice))
    return parts, setting.capability.name, unable


def _row(point: Point, parts: TimeParts, runtime: str, unable: int) -> dict[str, Any]:
    return {
        **asdict(point),
        "runtime": runtime,
        "published_s": point.seconds,
        "predicted_s": parts.seconds,
        "ratio": parts.seconds / point.seconds,
        "parts": asdict(parts),
        "unable": unable,
    }


def predict_all(points: Sequence[Point]) -> Iterator[dict[str, Any]]:
    """Rows in the order of the points' models, each captured once."""
    for model, size in dict.fromkeys((point.model, point.size) for point in points):
        few = (1, 2) if model in DECODERS else (None,)
        graphs = [_captured(model, size, blocks) for blocks in few]
        for point in points:
            if (point.model, point.size) == (model, size):
                one, *more = graphs
                yield predict_decoder(one, more[0], point) if more else predict(one, point)


def _captured(model: str, size: int, blocks: int | None) -> Graph:
    subject = build(model, size, blocks)
    return capture(subject.model, (), subject.inputs)


def overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median ratio, and how many rows are within a factor."""
    ratios = [row["ratio"] for row in rows]
    within = {
        f"within_{factor}x": sum(1 / factor <= ratio <= factor for ratio in ratios) / len(ratios)
        for factor in (1.5, 2, 3)
    }
    return {"points": len(ratios), "median_ratio": median(ratios), **within}


def main() -> int:
    """Predict every point, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", help="only these; the others keep their rows")
    arguments = parser.parse_args()
    points = read_points()
    chosen = [each for each in points if not arguments.models or each.model in arguments.models]
    kept: dict[str, dict[str, Any]] = {}
    if RESULTS.exists() and arguments.models:
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
        kept = {_key(row): row for row in rows}
    for row in predict_all(chosen):
        kept[_key(row)] = row
        print(
            f"{row['profile']:16} {row['model']:15} {row['size']:4} b{row['batch']:<3} "
            f"{row['scheme']:13} published {row['published_s'] * 1e3:9.3f} ms, predicted "
            f"{row['predicted_s'] * 1e3:9.3f} ms, ratio {row['ratio']:.2f}",
            flush=True,
        )
    rows = [kept[key] for key in (_key(asdict(point)) for point in points) if key in kept]
    result = {"overall": overall(rows), "rows": rows}
    write_text(RESULTS, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["overall"], indent=1))
    return 0


def _key(row: Mapping[str, Any]) -> str:
    names = ("profile", "model", "size", "batch", "scheme", "source")
    return "/".join(str(row[name]) for name in names)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
