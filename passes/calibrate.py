"""Look at the model's activations on real data, one batch in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from advisor.errors import CalibrationError
from advisor.passes.fx import Tracer, placeholders
from advisor.passes.graph import ActivationParams, Graph, Layer, name_of
from advisor.passes.group import TensorClass
from advisor.passes.observers import (
    HistogramObserver,
    RangeObserver,
    TensorStats,
    activation_params,
    choose_range,
)
from advisor.passes.spool import Spool
from advisor.targets.capability import StaticRules


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """Spooled inputs in two halves, and the float model's outputs on the held-out one.

    scoring: for ranges and sensitivities. held_out: only for choosing between plans.
    """

    scoring: Spool
    held_out: Spool
    references: Spool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """tensors: by tensor name. input_means: per layer name, the mean of every input channel."""

    tensors: Mapping[str, TensorStats]
    input_means: Mapping[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelStats:
    """What was seen of every input channel of a layer: extremes, and the mean of the squares."""

    minimum: torch.Tensor
    maximum: torch.Tensor
    square: torch.Tensor

    @property
    def largest(self) -> torch.Tensor:
        """Largest magnitude of every channel."""
        return torch.maximum(self.maximum.abs(), self.minimum.abs())


def spool_calibration(
    graph: Graph, batches: Iterable[Sequence[Any]], folder: Path, *, most: int = 1
) -> CalibrationData:
    """Read flat batches once; even ones score, odd ones are held out.

    most: samples up to which batches of a half that fit together are made one, since many small
    runs cost more than few large ones. A single batch is cut in half along its batch dimension; a
    single sample serves as both, which is noted, because then nothing is really held out.

    Raises:
        CalibrationError: no batch at all, or one without samples.
    """
    scoring, held_out = Spool(folder / "scoring"), Spool(folder / "held_out")
    notes: tuple[str, ...] = ()
    for index, batch in enumerate(batches):
        size = batch_size(graph, batch)
        if not size:
            raise CalibrationError(
                f"calibration batch {index} has 0 samples; leave empty batches out"
            )
        half = held_out if index % 2 else scoring
        half.append(batch, batch=size)
    if not len(scoring):
        raise CalibrationError(
            "calibration is empty: the iterable gave no batch; pass at least one batch of inputs "
            "(a generator can be read only once: pass a fresh one), or calibration=None"
        )
    if not len(held_out):
        whole = scoring.read(0)
        size = batch_size(graph, whole)
        if size >= 2 and graph.batch is None:
            scoring = Spool(folder / "scoring_half")
            scoring.append(cut(graph, whole, 0, size // 2), batch=size // 2)
            held_out.append(cut(graph, whole, size // 2, size), batch=size - size // 2)
        else:
            held_out.append(whole, batch=size)
            notes = ("calibration has one sample or one fixed batch: nothing is really held out",)
    if graph.batch is None:
        scoring = _join(graph, scoring, folder / "scoring_joined", most)
        held_out = _join(graph, held_out, folder / "held_out_joined", most)
    return CalibrationData(
        scoring=scoring,
        held_out=held_out,
        references=run_references(graph, held_out, folder / "references"),
        notes=notes,
    )


def _join(graph: Graph, data: Spool, folder: Path, most: int) -> Spool:
    """The same samples in the same order, in as few items of at most ``most`` as they allow."""
    if len(data) < 2 or any(2 * data.batch(index) > most for index in range(len(data))):
        return data
    joined, held, samples = Spool(folder), data.read(0), data.batch(0)
    for index in range(1, len(data)):
        flat, size = data.read(index), data.batch(index)
        both = _concatenate(graph, held, flat) if samples + size <= most else None
        if both is None:
            joined.append(held, batch=samples)
            held, samples = flat, size
        else:
            held, samples = both, samples + size
    joined.append(held, batch=samples)
    return joined


def _concatenate(graph: Graph, first: Sequence[Any], second: Sequence[Any]) -> list[Any] | None:
    """Two flat batches as one; None where they differ in more than their samples."""
    joined: list[Any] = []
    for node, one, two in zip(placeholders(graph.module), first, second, strict=True):
        if not isinstance(one, torch.Tensor):
            if one != two:
                return None
            joined.append(one)
        elif _batch_dim(graph, node) is None:
            if not torch.equal(one, two):
                return None
            joined.append(one)
        elif one.shape[1:] != two.shape[1:]:
            return None
        else:
            joined.append(torch.cat([one, two]))
    return joined


def batch_size(graph: Graph, flat: Sequence[Any]) -> int:
    """Number of samples in one flat batch."""
    for node, value in zip(placeholders(graph.module), flat, strict=True):
        if isinstance(value, torch.Tensor) and value.ndim and _batch_dim(graph, node) is not None:
            return int(value.shape[0])
    return graph.batch or 1


def cut(graph: Graph, flat: Sequence[Any], start: int, stop: int) -> list[Any]:
    """Samples start..stop of a flat batch; inputs without a batch dimension stay whole."""
    return [
        value[start:stop]
        if isinstance(value, torch.Tensor) and _batch_dim(graph, node) is not None
        else value
        for node, value in zip(placeholders(graph.module), flat, strict=True)
    ]


def observe(
    graph: Graph, data: Spool, tensors: frozenset[str], layers: Sequence[Layer]
) -> Observations:
    """Histograms of ``tensors`` and input means of ``layers`` over the spooled batches.

    Raises:
        CalibrationError: an activation is not finite on the calibration data.
    """
    ranges = {name: RangeObserver() for name in tensors}
    means = {layer.name: _MeanObserver(layer) for layer in layers}
    readers: dict[str, list[_MeanObserver]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(means[layer.name])

    def first(name: str, value: torch.Tensor) -> None:
        if name in ranges:
            ranges[name].update(value)
        for reader in readers.get(name, ()):
            reader.update(value)

    _watch(graph, data, first)
    for name, seen in ranges.items():
        if not (seen.minimum > float("-inf") and seen.maximum < float("inf")):
            raise CalibrationError(
                f"tensor {name} is NaN or infinite on the calibration data "
                f"(range {seen.minimum} to {seen.maximum}); check the inputs' scale and the model"
            )
    histograms = {name: HistogramObserver(seen) for name, seen in ranges.items()}

    def second(name: str, value: torch.Tensor) -> None:
        if name in histograms:
            histograms[name].update(value)

    _watch(graph, data, second)
    return Observations(
        tensors={name: histogram.stats() for name, histogram in histograms.items()},
        input_means={name: mean.result() for name, mean in means.items()},
    )


def observe_channels(graph: Graph, data: Spool, layers: Sequence[Layer]) -> dict[str, ChannelStats]:
    """What every layer reads, by layer name and channel, over the spooled batches."""
    observers = {layer.name: _ChannelObserver(layer) for layer in layers}
    readers: dict[str, list[_ChannelObserver]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(observers[layer.name])

    def see(name: str, value: torch.Tensor) -> None:
        for reader in readers.get(name, ()):
            reader.update(value)

    _watch(graph, data, see)
    return {name: observer.result() for name, observer in observers.items()}


def static_params(
    observations: Observations,
    classes: Sequence[TensorClass],
    observer: str,
    rules: StaticRules,
    dtypes: Mapping[str, str],
) -> dict[str, ActivationParams]:
    """Scale and zero point of every observed tensor; members of a class share theirs.

    Those of a class whose parameters are fixed do not depend on what was observed.

    dtypes: of the tensors' integers by name, where they are not the rules'.
    """
    ranges = {
        name: choose_range(stats, observer, rules) for name, stats in observations.tensors.items()
    }
    for shared in classes:
        members = [ranges[name] for name in shared.tensors if name in ranges]
        if members:
            widest = min(low for low, _ in members), max(high for _, high in members)
            ranges.update({name: widest for name in shared.tensors if name in ranges})
    fixed = {
        name: shared.fixed
        for shared in classes
        if shared.fixed is not None
        for name in shared.tensors
    }
    return {
        name: fixed.get(name)
        or activation_params(low, high, replace(rules, dtype=dtypes.get(name, rules.dtype)))
        for name, (low, high) in ranges.items()
    }


class _MeanObserver:
    """Mean of every input channel of a layer, for bias correction."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.total: torch.Tensor | None = None
        self.count = 0

    def update(self, value: torch.Tensor) -> None:
        rows = _by_channel(self.layer, value).double()
        total = rows.sum(dim=0)
        self.total = total if self.total is None else self.total + total
        self.count += rows.shape[0]

    def result(self) -> torch.Tensor:
        assert self.total is not None  # data is never empty
        return (self.total / self.count).float()


class _ChannelObserver:
    """Extremes and mean square of every input channel of a layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.extremes: tuple[torch.Tensor, torch.Tensor] | None = None
        self.total = torch.zeros(())
        self.count = 0

    def update(self, value: torch.Tensor) -> None:
        rows = _by_channel(self.layer, value)
        low, high = rows.amin(dim=0), rows.amax(dim=0)
        if self.extremes is not None:
            low = torch.minimum(low, self.extremes[0])
            high = torch.maximum(high, self.extremes[1])
        self.extremes = low, high
        self.total = self.total + rows.double().square().sum(dim=0)
        self.count += rows.shape[0]

    def result(self) -> ChannelStats:
        assert self.extremes is not None  # data is never empty
        low, high = self.extremes
        return ChannelStats(minimum=low, maximum=high, square=self.total / self.count)


def _by_channel(layer: Layer, value: torch.Tensor) -> torch.Tensor:
    """What a layer reads, as (positions, channels)."""
    # Counted from the end, so that inputs without a batch dimension work too.
    channel = {"conv1d": -2, "conv2d": -3}.get(layer.op, -1)
    return value.movedim(channel, -1).reshape(-1, value.shape[channel])


class _Watcher(Tracer):
    def __init__(self, graph: Graph, see: Callable[[str, torch.Tensor], None]) -> None:
        super().__init__(graph.module)
        self.see = see

    def observe(self, node: Node, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            self.see(name_of(node), value)
        return value


def _watch(graph: Graph, data: Spool, see: Callable[[str, torch.Tensor], None]) -> None:
    watcher = _Watcher(graph, see)
    with torch.no_grad():
        for flat in data:
            watcher.run(*flat, enable_io_processing=False)


def run_references(graph: Graph, data: Spool, folder: Path) -> Spool:
    """The model's outputs for every item of ``data``, spooled in ``folder``."""
    outputs = Spool(folder)
    tracer = Tracer(graph.module)
    with torch.no_grad():
        for index, flat in enumerate(data):
            values = tracer.run(*flat, enable_io_processing=False)
            outputs.append(tuple(values), batch=data.batch(index))
    return outputs


def _batch_dim(graph: Graph, node: Node) -> int | None:
    dims = graph.dynamic.get(node.name, {})
    return 0 if dims.get(0) == "batch" else None
