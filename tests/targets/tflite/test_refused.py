"""What a flatbuffer cannot hold is refused with the layer's name and a way out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from advisor.errors import UnsupportedError
from advisor.formats import Scheme, scheme_named
from advisor.passes.graph import QuantizedGraph, WeightTable
from advisor.passes.layers import find_calls
from advisor.targets.tflite.flatbuffer import FlatModel
from advisor.targets.tflite.layers import write_layers
from advisor.targets.tflite.skeleton import Place, Skeleton
from advisor.targets.tflite.weights import add_weight
from tests.targets.tflite.flat import one_operator
from tests.targets.tflite.models import seeded

Quantizer = Callable[..., QuantizedGraph]


def linear(make_quantized: Quantizer, scheme: str) -> QuantizedGraph:
    return make_quantized(seeded(nn.Linear(8, 4)), (torch.randn(2, 8),), scheme)


def write(graph: QuantizedGraph, code: str) -> FlatModel:
    """The graph's one layer as the converter would have written it with an operator ``code``."""
    (layer,) = graph.float_graph.layers
    model = one_operator(code, [(2, 8), np.ones((4, 8), np.float32)], (2, 4), "FLOAT32")
    skeleton = Skeleton(
        content=b"",
        values={},
        places={layer.name: Place(operator=0, slot=1, order=(0, 1))},
        missing=(),
    )
    assert layer.name in find_calls(graph.module, graph.float_graph.layers)
    write_layers(model, graph, skeleton, list(model.operators))
    return model


def test_an_operator_that_reads_no_integers(make_quantized: Quantizer) -> None:
    graph = linear(make_quantized, "w8a8-dynamic")
    with pytest.raises(UnsupportedError, match=r"BATCH_MATMUL, which reads no integers.*\(w8\)"):
        write(graph, "BATCH_MATMUL")


def test_weight_only_layers_are_dequantized_for_such_an_operator(
    make_quantized: Quantizer,
) -> None:
    model = write(linear(make_quantized, "w8"), "BATCH_MATMUL")
    assert [model.code(operator) for operator in model.operators] == ["DEQUANTIZE", "BATCH_MATMUL"]


def test_a_bias_that_the_converter_adds_apart(make_quantized: Quantizer) -> None:
    graph = linear(make_quantized, "w8a8")
    (layer,) = graph.float_graph.layers
    with pytest.raises(UnsupportedError) as caught:
        write(graph, "FULLY_CONNECTED")  # without a third input
    said = str(caught.value)
    assert said.startswith(f"{layer.name}: litert-torch adds its bias in an operator of its own")
    assert "w8a8; pin it to fp32" in said


def blocks(scale: float) -> WeightTable:
    return WeightTable(values=torch.ones(4, 64, dtype=torch.int8), scale=torch.full((4, 2), scale))


def stored(table: WeightTable, scheme: Scheme) -> FlatModel:
    model = one_operator("ADD", [(1,), (1,)], (1,))
    add_weight(model, "fc.weight", table, scheme, (0, 1), 0)
    return model


@pytest.mark.parametrize("scale", [1e6, 70_000.0, 0.1])
def test_scales_of_blocks_that_float16_does_not_hold(scale: float) -> None:
    with pytest.raises(UnsupportedError, match=r"fc\.weight: a block's scale .* one scale per ch"):
        stored(blocks(scale), scheme_named("w4a8-dynamic-g32"))


def test_scales_of_blocks_that_float16_holds() -> None:
    model = stored(blocks(0.125), scheme_named("w4a8-dynamic-g32"))
    assert "fc.weight/scales" in [model.name(i) for i in range(len(model.graph.tensors))]


def test_formats_that_the_file_does_not_have() -> None:
    table = WeightTable(values=torch.ones(4, 64), scale=torch.ones(4, 1))
    with pytest.raises(UnsupportedError, match=r"stores no nf4 weights; .* int8, int4, float16"):
        stored(table, scheme_named("nf4-g64"))
    shifted = WeightTable(
        values=torch.ones(4, 64, dtype=torch.int8),
        scale=torch.ones(4),
        zero_point=torch.ones(4, dtype=torch.int8),
    )
    with pytest.raises(UnsupportedError, match="stores no int8 weights with zero points"):
        stored(shifted, scheme_named("w8"))
