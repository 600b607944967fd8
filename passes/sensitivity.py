"""The probe method: predicted divergence of every choice from a few backward passes.

With v drawn at the output so that E[v vᵀ] is the Hessian of the divergence, one backward pass
gives g = Jᵀv at every layer. A choice that changes a layer's output by δ moves the divergence by
½ E⟨g, δ⟩² (Gauss-Newton; for softmax outputs the Fisher information, Martens 2020,
arXiv:1412.1193). δ needs no pass through the network: the layer alone is run again on its own
input. Sums over choices inside the square give interactions; here every term stands alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from advisor.formats import scheme_named
from advisor.passes.apply import dequantize, quantize_dequantize, run_layer
from advisor.passes.calibrate import batch_size, cut
from advisor.passes.divergence import OutputKind, draw_probes
from advisor.passes.fx import Tracer, attribute
from advisor.passes.graph import ActivationParams, Graph, Layer, name_of
from advisor.passes.layers import LAYER_OPS, input_argument, weight_argument
from advisor.passes.regions import Site
from advisor.passes.rounding import round_weight
from advisor.passes.spool import Spool

Column = tuple[str, str, str]
"""("weight", layer, "scheme/algorithm"), ("edge", tensor, layer) or ("tensor", tensor, "")."""


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

    def error(self, column: Column) -> float:
        """Standard error of ``divergence(column)``."""
        squares = self.scores[column].square() / 2
        if squares.numel() < 2:
            return float("inf")
        return float(squares.std() / squares.numel() ** 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What to score.

    weights: (layer, scheme, algorithm) triples. sites: tensors that may be quantized, with
    ``params`` for each.
    """

    weights: Sequence[tuple[Layer, str, str]]
    sites: Sequence[Site]
    params: Mapping[str, ActivationParams]


def probe(
    graph: Graph,
    data: Spool,
    question: Question,
    *,
    kinds: Sequence[OutputKind],
    powers: Sequence[float],
    probes: int = 4,
    max_samples: int = 128,
    chunk: int = 16,
    seed: int = 0,
) -> Sensitivity:
    """Score every column of ``question`` on the scoring half of the calibration data.

    chunk: samples run at once; memory is one forward and backward of that many, plus ``probes``
    gradients of every layer output.
    """
    generator = torch.Generator().manual_seed(seed)
    by_layer = _by_layer(question)
    collected: dict[Column, list[torch.Tensor]] = {}
    seen = 0
    for flat in data:
        size = batch_size(graph, flat)
        step = size if graph.batch is not None else chunk
        for start in range(0, size, step):
            if seen >= max_samples:
                break
            stop = min(start + step, size, start + max_samples - seen)
            piece = flat if graph.batch is not None else cut(graph, flat, start, stop)
            taps = _Taps(graph, question)
            outputs = taps.run(*piece, enable_io_processing=False)
            counting = [o for o, k in zip(outputs, kinds, strict=True) if k != "ignored"]
            gradients = [
                taps.gradients(counting, draw_probes(outputs, kinds, powers, generator))
                for _ in range(probes)
            ]
            samples = stop - start
            for column, score in _score(graph, question, by_layer, taps, gradients, samples):
                collected.setdefault(column, []).append(score)
            seen += samples
    return Sensitivity(
        scores={column: torch.cat(parts) for column, parts in collected.items()},
        samples=seen,
        probes=probes,
    )


class _Taps(Tracer):
    """One forward pass that keeps inputs and outputs of layers and the sites' tensors."""

    def __init__(self, graph: Graph, question: Question) -> None:
        super().__init__(graph.module)
        self.layers = {layer.name for layer, _, _ in question.weights}
        self.layers |= {reader for site in question.sites for reader in site.readers}
        self.sites = {site.tensor for site in question.sites}
        self.inputs: dict[str, torch.Tensor] = {}
        self.values: dict[str, torch.Tensor] = {}
        self.nodes: dict[str, Node] = {}

    def observe(self, node: Node, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        name = name_of(node)
        is_layer = node.target in LAYER_OPS and name in self.layers
        if is_layer:
            self.nodes[name] = node
            self.inputs[name] = self.env[input_argument(node)].detach()
        if (is_layer or name in self.sites) and value.is_floating_point():
            if not value.requires_grad:
                value = value.detach().requires_grad_()
            self.values[name] = value
        return value

    def gradients(
        self, outputs: Sequence[torch.Tensor], probes: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Jᵀv at every tapped value."""
        live = [(o, v) for o, v in zip(outputs, probes, strict=True) if o.requires_grad]
        if not live:
            return {}
        values = list(self.values.values())
        found = torch.autograd.grad(
            [o for o, _ in live],
            values,
            [v for _, v in live],
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name: gradient
            for name, gradient in zip(self.values, found, strict=True)
            if gradient is not None
        }


def _by_layer(question: Question) -> dict[str, list[tuple[Layer, str, str]]]:
    grouped: dict[str, list[tuple[Layer, str, str]]] = {}
    for entry in question.weights:
        grouped.setdefault(entry[0].name, []).append(entry)
    return grouped


def _score(
    graph: Graph,
    question: Question,
    by_layer: Mapping[str, Sequence[tuple[Layer, str, str]]],
    taps: _Taps,
    gradients: Sequence[Mapping[str, torch.Tensor]],
    samples: int,
) -> list[tuple[Column, torch.Tensor]]:
    scored: list[tuple[Column, torch.Tensor]] = []
    with torch.no_grad():
        for name, entries in by_layer.items():
            weight: torch.Tensor = attribute(graph.module, entries[0][0].weight)
            x = taps.inputs[name]
            for layer, scheme, algorithm in entries:
                fmt = scheme_named(scheme).weight
                table = round_weight(weight, fmt, algorithm)
                change = dequantize(table, fmt, layer.weight_shape) - weight
                delta = run_layer(taps.nodes[name], x, change)
                column = ("weight", name, f"{scheme}/{algorithm}")
                scored.append((column, _dot(gradients, name, delta, samples)))
        for site in question.sites:
            params = question.params[site.tensor]
            value = _site_value(taps, site)
            if value is None:
                continue
            change = (
                quantize_dequantize(value, params.scale, params.zero_point, params.dtype) - value
            )
            if site.tensor in taps.values:
                column = ("tensor", site.tensor, "")
                scored.append((column, _dot(gradients, site.tensor, change, samples)))
            for reader in site.readers:
                node = taps.nodes[reader]
                weight = attribute(graph.module, str(weight_argument(node).target))
                delta = run_layer(node, change, weight)
                column = ("edge", site.tensor, reader)
                scored.append((column, _dot(gradients, reader, delta, samples)))
    return scored


def _site_value(taps: _Taps, site: Site) -> torch.Tensor | None:
    if site.tensor in taps.values:
        return taps.values[site.tensor].detach()
    return taps.inputs[site.readers[0]] if site.readers else None


def _dot(
    gradients: Sequence[Mapping[str, torch.Tensor]],
    name: str,
    delta: torch.Tensor,
    samples: int,
) -> torch.Tensor:
    """⟨g, δ⟩ of every sample and probe; shape (probes x samples,).

    A tensor whose leading dimension is no multiple of the batch (an unusual layout) counts as
    one sample: then the score is of the whole chunk, spread evenly.
    """
    rows: list[torch.Tensor] = []
    for gradient in gradients:
        if name not in gradient:
            rows.append(torch.zeros(samples))
            continue
        product = gradient[name] * delta
        if product.ndim and product.shape[0] % samples == 0:
            rows.append(product.reshape(samples, -1).sum(dim=1))
        else:
            rows.append((product.sum() / samples**0.5).repeat(samples))
    return torch.cat(rows)
