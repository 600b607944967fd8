"""What quantizing activations at run time costs a layer, by hand."""

from __future__ import annotations

import pytest

from advisor.formats import scheme_named
from advisor.passes.graph import Layer
from advisor.profiles.cost import LayerCost, Traffic, layer_cost
from advisor.profiles.loader import load_profile
from advisor.profiles.roofline import boundary_seconds, layer_seconds
from advisor.targets.capability import load_capability

VNNI = load_profile("intel-vnni")
ROWS, INPUTS, OUTPUTS = 6, 256, 512


def cost(scheme: str, runtime: str = "onnxruntime") -> LayerCost:
    layer = Layer(
        name="layer",
        op="linear",
        weight="layer.weight",
        weight_shape=(OUTPUTS, INPUTS),
        bias=None,
        input="x",
        output="layer",
        macs=ROWS * INPUTS * OUTPUTS,
    )
    return layer_cost(
        layer,
        scheme_named(scheme),
        Traffic(input_elements=ROWS * INPUTS, output_elements=ROWS * OUTPUTS),
        capability=load_capability(runtime),
        profile=VNNI,
        threads=1,
    )


@pytest.mark.parametrize(
    ("scheme", "stored"),
    [
        ("w8a8-dynamic", OUTPUTS * INPUTS + OUTPUTS * 4),
        ("w4a8-dynamic-g64", OUTPUTS * INPUTS // 2 + OUTPUTS * INPUTS // 64 * 4),
    ],
)
def test_a_pass_over_the_input_and_then_a_product_of_integers(scheme: str, stored: int) -> None:
    found = cost(scheme)
    quantizing = boundary_seconds(
        VNNI, elements=ROWS * INPUTS, from_element_bytes=4, to_element_bytes=1, threads=1
    )
    product = layer_seconds(
        VNNI,
        op_family="linear",
        macs=ROWS * INPUTS * OUTPUTS,
        weight_bytes=stored,
        activation_bytes=ROWS * INPUTS + ROWS * OUTPUTS * 4,
        compute_dtype="int8",
        threads=1,
    )
    assert found.latency_s == pytest.approx(quantizing + product)
    assert found.size_bytes == found.resident_bytes == stored


def test_the_integers_and_their_scales_are_held_while_the_layer_runs() -> None:
    integers = ROWS * INPUTS
    assert cost("w8a8-dynamic").scratch_bytes == integers + 4
    assert cost("w8a8-dynamic-g32").scratch_bytes == integers + ROWS * INPUTS // 32 * 4
    assert cost("w8a8-dynamic", "tflite").scratch_bytes == integers + ROWS * 4
    assert cost("w8a8").scratch_bytes == cost("w8").scratch_bytes == 0
