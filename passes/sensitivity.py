"""The probe method: predicted divergence of every choice from a few backward passes.

With v drawn at the output so that E[v vᵀ] is the Hessian of the divergence, one backward pass
gives g = Jᵀv at every layer. A choice that changes a layer's output by δ moves the divergence by
½ E⟨g, δ⟩² (Gauss-Newton; for softmax outputs the Fisher information, Martens 2020,
arXiv:1412.1193). δ needs no pass through the network: the layer alone is run again on its own
input. Sums over choices inside the square give interactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Any, Final

import torch
from torch.fx import Node

from advisor.formats import TensorFormat, scheme_named
from advisor.passes.apply import (
    dequantize,
    quantize_dequantize,
    quantize_dequantize_samples,
    run_layer,
    run_product,
)
from advisor.passes.batching import split_samples
from advisor.passes.calibrate import cut
from advisor.passes.divergence import OutputKind, draw_probes
from advisor.passes.fx import attribute
from advisor.passes.graph import ActivationParams, Graph, Layer, WeightTable, name_of
from advisor.passes.layers import (
    PRODUCT_OPS,
    input_argument,
    operands,
    weight_arguments,
)
from advisor.passes.regions import Site
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.spool import Spool
from advisor.passes.taps import Taps
from advisor.targets.capability import DynamicRules

LARGEST_ERROR: Final = 0.25
"""Of the predicted divergences of all choices, as a share, as far as it comes from the probes."""

MOST_PROBES: Final = 4
"""Per sample: more of them measure the same few samples better, which made no plan better."""

Column = tuple[str, str, str]
"""("weight", layer, "scheme/algorithm"), ("dynamic", layer, label of the rules), ("edge", tensor,
layer) or ("tensor", tensor, "")."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Scores ⟨g, δ⟩ by column; shape of each: (samples x probes,).

    A column's predicted divergence is half the mean of its squares. ``error`` is that number's
    standard error. samples, probes: what it was estimated from.
    """

    scores: Mapping[Column, torch.Tensor]
    samples: int
    probes: int

    def divergence(self, *columns: Column) -> float:
        """Predicted divergence of making these changes together."""
        total = torch.stack([self.scores[column] for column in columns]).sum(dim=0)
        return float(total.square().mean() / 2)

    def error(self, *terms: Sequence[Column]) -> float:
        """Standard error of the sum of ``divergence(*term)`` over terms; 0 where there are none.

        Infinite with a single sample and probe, which say nothing of their spread.
        """
        if not terms:
            return 0.0
        squares = torch.stack([self._squares(term) for term in terms]).sum(dim=0)
        if squares.numel() < 2:
            return float("inf")
        return float(squares.std() / squares.numel() ** 0.5)

    def _squares(self, columns: Sequence[Column]) -> torch.Tensor:
        """What every sample and probe says of the divergence; shape (samples x probes,)."""
        return torch.stack([self.scores[column] for column in columns]).sum(dim=0).square() / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to score.

    weights: (layer, scheme, algorithm) triples. dynamic: layers and how their input may be
    quantized at run time, in batches of ``batch``. sites: tensors that may be quantized, with
    ``params`` for each.
    """

    weights: Sequence[tuple[Layer, str, str]]
    dynamic: Sequence[tuple[Layer, DynamicRules]] = ()
    batch: int = 1
    sites: Sequence[Site]
    params: Mapping[str, ActivationParams]


def probe(
    graph: Graph,
    data: Spool,
    question: Question,
    *,
    rounded: RoundedWeights,
    kinds: Sequence[OutputKind],
    powers: Sequence[float],
    probes: int | None = None,
    max_samples: int = 128,
    chunk: int = 16,
    seed: int = 0,
) -> Sensitivity:
    """Score every column of ``question`` on the scoring half of the calibration data.

    probes: backward passes per sample; None: as many as ``enough_probes`` says.
    chunk: samples run at once; memory is one forward and backward of that many, plus ``probes``
    gradients of every layer output. Where rules couple samples, whole batches of the deployment
    are run at once.
    """
    if any(rules.couples_samples for _, rules in question.dynamic):
        chunk = max(chunk // question.batch, 1) * question.batch
    generator = torch.Generator().manual_seed(seed)
    by_layer = _by_layer(question)
    names = {layer.name for layer, _, _ in question.weights}
    names |= {layer.name for layer, _ in question.dynamic}
    names |= {reader for site in question.sites for reader in site.readers}
    tensors = frozenset(site.tensor for site in question.sites)
    probes = probes or enough_probes(_count_columns(question), min(data.samples, max_samples))
    collected: dict[Column, list[torch.Tensor]] = {}
    seen = 0
    # The caller may have switched gradients off; then every score would silently be zero.
    with torch.inference_mode(mode=False), torch.enable_grad():
        for piece, samples in _pieces(graph, data, max_samples, chunk):
            taps = Taps(graph, frozenset(names), tensors, samples)
            outputs = taps.run(*piece, enable_io_processing=False)
            counting = [o for o, k in zip(outputs, kinds, strict=True) if k != "ignored"]
            gradients = [
                taps.gradients(counting, draw_probes(outputs, kinds, powers, generator, samples))
                for _ in range(probes)
            ]
            with torch.no_grad():
                for column, name, delta in _changes(graph, question, by_layer, rounded, taps):
                    collected.setdefault(column, []).append(_dot(gradients, taps, name, delta))
            seen += samples
    return Sensitivity(
        scores={column: torch.cat(parts) for column, parts in collected.items()},
        samples=seen,
        probes=probes,
    )


def enough_probes(columns: int, samples: int) -> int:
    """Probes per sample so that no predicted divergence is off by much because of the probes.

    A score is a sum of many random signs, so nearly normal, and the mean of n squares of one is off
    by a share of √(2/n) (variance of a chi-squared variable). Of ``columns`` such errors the
    largest is about √(2 ln columns) times that; n = samples x probes keeps it within
    ``LARGEST_ERROR``.
    """
    wanted = 4 * log(max(columns, 2)) / LARGEST_ERROR**2
    return min(max(ceil(wanted / max(samples, 1)), 1), MOST_PROBES)


def _count_columns(question: Question) -> int:
    edges = sum(1 + len(site.readers) for site in question.sites)
    return len(question.weights) + len(question.dynamic) + edges


def _pieces(
    graph: Graph, data: Spool, max_samples: int, chunk: int
) -> Iterator[tuple[Sequence[Any], int]]:
    """At most ``max_samples`` samples, a chunk at a time; a fixed batch stays whole."""
    left = max_samples
    for index in range(len(data)):
        if left <= 0:
            return
        flat, size = data.read(index), data.batch(index)
        if graph.batch is not None:
            left -= size
            yield flat, size
            continue
        for start in range(0, min(size, left), chunk):
            stop = min(start + chunk, size, start + left)
            left -= stop - start
            yield cut(graph, flat, start, stop), stop - start


def _by_layer(question: Question) -> dict[str, list[tuple[Layer, str, str]]]:
    grouped: dict[str, list[tuple[Layer, str, str]]] = {}
    for entry in question.weights:
        grouped.setdefault(entry[0].name, []).append(entry)
    return grouped


def _changes(
    graph: Graph,
    question: Question,
    by_layer: Mapping[str, Sequence[tuple[Layer, str, str]]],
    rounded: RoundedWeights,
    taps: Taps,
) -> Iterator[tuple[Column, str, torch.Tensor]]:
    """Every column with the tensor that it changes and by how much; one change in memory."""
    for name, entries in by_layer.items():
        weight: torch.Tensor = attribute(graph.module, entries[0][0].weight)
        for layer, scheme, algorithm in entries:
            fmt = layer.weight_format(scheme_named(scheme))
            table = rounded.get(layer.weight, fmt, algorithm)
            if layer.op == "embedding":
                delta = _embedding_change(table, fmt, weight, taps.inputs[layer.output])
            else:
                change = dequantize(table, fmt, layer.weight_shape) - weight
                delta = taps.reweigh(layer, change)
            yield ("weight", name, f"{scheme}/{algorithm}"), layer.output, delta
    yield from _dynamic_changes(graph, question, taps)
    for site in question.sites:
        params = question.params[site.tensor]
        value = _site_value(taps, site)
        if value is None:
            continue
        change = quantize_dequantize(value, params.scale, params.zero_point, params.dtype) - value
        if site.tensor in taps.values:
            yield ("tensor", site.tensor, ""), site.tensor, change
        for reader in site.readers:
            delta = _edge_change(graph, taps, site.tensor, reader, change)
            yield ("edge", site.tensor, reader), reader, delta


def _edge_change(
    graph: Graph, taps: Taps, tensor: str, reader: str, change: torch.Tensor
) -> torch.Tensor:
    """Change of a layer's output when it reads ``tensor`` changed by ``change``."""
    node = taps.nodes[reader]
    if node.target not in PRODUCT_OPS:
        weight = attribute(graph.module, str(weight_arguments(node)[0].target))
        return run_layer(node, change, weight)
    first, second = taps.inputs[reader], taps.others[reader]
    is_first, is_second = (name_of(operand) == tensor for operand in operands(node))
    parts: list[torch.Tensor] = []
    if is_first:
        parts.append(run_product(node, change, second))
        first = first + change  # a product of a tensor with itself sees both changes
    if is_second:
        parts.append(run_product(node, first, change))
    return torch.stack(parts).sum(dim=0)


def _dynamic_changes(
    graph: Graph, question: Question, taps: Taps
) -> Iterator[tuple[Column, str, torch.Tensor]]:
    """What quantizing its input at run time does to each layer, its weight left as it is."""
    # A graph of one fixed batch was calibrated in batches of that size.
    batch = question.batch if graph.batch is None else taps.samples
    changes: dict[DynamicRules, torch.Tensor] = {}  # of one tensor: all of them fill the memory
    latest: Node | None = None
    for layer, rules in question.dynamic:
        node, x = taps.nodes[layer.output], taps.inputs[layer.output]
        source = input_argument(node)
        if source is not latest:
            changes, latest = {}, source
        if rules not in changes:
            rounded = quantize_dequantize_samples(
                x, rules, place=taps.where.of(source), samples=taps.samples, batch=batch
            )
            changes[rules] = rounded - x
        delta = taps.reread(graph, layer, changes[rules], batch)
        yield ("dynamic", layer.name, rules.label), layer.output, delta


def _embedding_change(
    table: WeightTable, fmt: TensorFormat, weight: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Change of the rows that are looked up; the rest of the table is not touched."""
    rows = ids.flatten()
    if table.table is not None:
        change = dequantize(table, fmt, tuple(weight.shape)) - weight
        return change[rows].reshape(*ids.shape, weight.shape[1])
    scale = table.scale[rows] if table.scale is not None and table.scale.ndim else table.scale
    part = WeightTable(values=table.values[rows], scale=scale)
    restored = dequantize(part, fmt, (len(rows), weight.shape[1]))
    return (restored - weight[rows]).reshape(*ids.shape, weight.shape[1])


def _site_value(taps: Taps, site: Site) -> torch.Tensor | None:
    if site.tensor in taps.values:
        return taps.values[site.tensor].detach()
    return taps.inputs[site.readers[0]] if site.readers else None


def _dot(
    gradients: Sequence[Mapping[str, torch.Tensor]],
    taps: Taps,
    name: str,
    delta: torch.Tensor,
) -> torch.Tensor:
    """⟨g, δ⟩ of every sample and probe; shape (probes x samples,).

    A tensor that samples share or that mixes them (a table of positions, an unusual layout) has
    one score for the whole chunk. Spread evenly its squares have the same mean, because samples
    have independent signs.
    """
    samples, place = taps.samples, taps.places[name]
    known = [gradient[name] for gradient in gradients if name in gradient]
    if not known:
        return torch.zeros(len(gradients) * samples)
    if place is None:
        rows = [((g * delta).sum() / samples**0.5).repeat(samples) for g in known]
    else:
        change = split_samples(delta, place, samples).unsqueeze(2)
        rows = [
            torch.bmm(split_samples(g, place, samples).unsqueeze(1), change).flatten()
            for g in known
        ]
    return torch.cat(rows)
