"""A quantized graph in, the bytes of a TFLite model out."""

from __future__ import annotations

from advisor.passes.graph import QuantizedGraph
from advisor.targets.manifest import PortRecord
from advisor.targets.tflite.border import write_border
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.integers import write_integers
from advisor.targets.tflite.layers import write_layers
from advisor.targets.tflite.options import DEFAULTS, TfliteOptions
from advisor.targets.tflite.skeleton import skeleton_of
from advisor.targets.tflite.versions import set_versions


def write_model(graph: QuantizedGraph, batch: int, sequence: int | None) -> bytes:
    """The model at fixed shapes, with the plan's integers and names, and the model's own ends.

    Raises:
        InputError, UnsupportedError: as ``write_with_ports``.
    """
    return write_with_ports(graph, batch, sequence, DEFAULTS)[0]


def write_with_ports(
    graph: QuantizedGraph, batch: int, sequence: int | None, options: TfliteOptions
) -> tuple[bytes, list[PortRecord]]:
    """The model as ``options`` want it, and what it takes and gives.

    The first call for a float graph converts it; later plans for the same graph only fill it in.

    Raises:
        InputError: the model does not accept this batch or sequence.
        UnsupportedError: an operator or a layer has a form that TFLite does not have.
    """
    skeleton = skeleton_of(graph.float_graph, batch, sequence)
    model = FlatModel(skeleton.content)
    operators = list(model.operators)  # as the skeleton counts them, whatever comes between
    write_layers(model, graph, skeleton, operators)
    write_integers(model, graph, skeleton, operators)
    ports = write_border(model, options)
    set_versions(model)
    return model.to_bytes(), ports
