"""A quantized graph in, a Core ML model out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.export import ExportedProgram

from advisor.errors import UnsupportedError
from advisor.passes.fx import clone, output_nodes
from advisor.passes.graph import Graph, QuantizedGraph
from advisor.passes.shapes import deployment_inputs
from advisor.targets.coreml import lowerings
from advisor.targets.coreml.folding import keep_layers
from advisor.targets.coreml.images import Image
from advisor.targets.coreml.labels import BEST_LABEL
from advisor.targets.coreml.legalise import (
    DECOMPOSITIONS,
    bound_constants,
    divide_reciprocals,
    respell,
    scale_norms,
    spell_keywords,
    spell_out,
)
from advisor.targets.coreml.names import METADATA, inputs_of, names_of, names_to_json
from advisor.targets.coreml.packages import load
from advisor.targets.coreml.scaling import port_type, scale_pixels
from advisor.targets.packages import quiet
from advisor.targets.parts import STEP, Names, export_steps, name_parts, place_of
from advisor.targets.plainports import Ports, flatten_ports, name_ports, port_dtype

LEFT_OUT: Final = (
    # These would change a layer's weights or biases, or take what follows into the layer.
    "common::fuse_conv_scale",
    "common::fuse_conv_bias",
    "common::fuse_conv_batchnorm",
    "common::fuse_elementwise_to_batchnorm",
    "common::fuse_linear_bias",
    "common::fuse_matmul_weight_bias",
    "common::fuse_pad_conv",
    "common::fuse_dilated_conv",
    # These would make one of two layers or weights that are the same, or change a planned scale.
    "common::remove_redundant_ops",
    "common::const_deduplication",
    "common::distributive_quantized_binary_op_scale_normalization",
)
"""Passes of coremltools that a plan must not go through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A model of coremltools, not loaded, and what its parts are called."""

    model: Any
    ports: Ports
    names: Names


def convert(
    graph: QuantizedGraph,
    batch: int,
    deployment: str,
    compute: str,
    *,
    images: Mapping[str, Image],
    labels: Sequence[str],
) -> Converted:
    """The graph as a Core ML model of fixed shapes.

    deployment: a key of ``deployment.SPECIFICATIONS``. compute: dtype of what the schemes leave
    to the runtime. images: inputs that are pictures, by name. labels: of the only output's
    classes; none for a model that gives tensors.

    Raises:
        InputError: the model does not accept this batch.
        UnsupportedError: coremltools has no form of an operator; names it and the module.
    """
    source = graph.float_graph
    flat = deployment_inputs(source, batch, None)
    precision = find_precision(graph, compute)
    module = clone(graph.module)
    flatten_ports(module, flat)
    spell_out(module)
    respell(module)
    spell_keywords(module)
    divide_reciprocals(module)
    if precision.is_half:
        scale_norms(module)
        bound_constants(module)
    given = {
        name: value.to(port_dtype(value.dtype))
        for name, value in zip(source.input_names, flat, strict=True)
        if isinstance(value, torch.Tensor)
    }
    scale_pixels(module, [images.get(name) for name in given])
    program = export_steps(module, source, tuple(given.values()), DECOMPOSITIONS)
    names = name_parts(program, source)
    ports = name_ports(tuple(given), source.output_names)
    inputs = [
        port_type(load("coremltools"), ports.inputs[name], tensor, images.get(name))
        for name, tensor in given.items()
    ]
    model = _run_converter(program, source, ports, inputs, labels, deployment, precision, names)
    model.user_defined_metadata[METADATA] = names_to_json(names)
    return Converted(model=model, ports=ports, names=names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """is_half: whether operators compute in float16 unless they are ``others``, or the other way
    round. others: names of the layers (by node) that have a dtype of their own. weights: names of
    the weights that are kept with it."""

    is_half: bool
    others: frozenset[str]
    weights: frozenset[str]


def find_precision(graph: QuantizedGraph, compute: str) -> Precision:
    """Which operators compute in which dtype.

    A plan with nothing but float32 where there is a choice computes in float32 throughout.
    """
    layers = graph.float_graph.layers
    schemes = {layer.name: graph.assignment[layer.name].scheme for layer in layers}
    free = [schemes[layer.name] for layer in layers if layer.frozen is None]
    is_half = compute == "float16" and any(scheme != "fp32" for scheme in free)
    odd = "fp32" if is_half else "fp16"
    return Precision(
        is_half=is_half,
        others=frozenset(layer.name for layer in layers if schemes[layer.name] == odd),
        weights=frozenset(
            layer.weight for layer in layers if schemes[layer.name] == odd and layer.weight
        ),
    )


def _run_converter(
    program: ExportedProgram,
    source: Graph,
    ports: Ports,
    inputs: Sequence[Any],
    labels: Sequence[str],
    deployment: str,
    precision: Precision,
    names: Names,
) -> Any:
    ct = load("coremltools")
    lowerings.register_lowerings()
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(LEFT_OUT)
    frozen = {layer.weight for layer in source.layers if layer.frozen is not None}
    kept = [names.weights[weight] for weight in frozen if weight in names.weights]
    keep_layers(pipeline, names.layers.values(), kept)
    results: list[torch.Tensor] = [node.meta["val"] for node in output_nodes(program.graph_module)]
    try:
        with quiet():
            return ct.convert(
                program,
                inputs=list(inputs),
                outputs=[
                    ct.TensorType(
                        name=name, dtype=np.float32 if value.is_floating_point() else np.int32
                    )
                    for name, value in zip(ports.outputs.values(), results, strict=True)
                ],
                minimum_deployment_target=getattr(ct.target, deployment),
                classifier_config=ct.ClassifierConfig(
                    class_labels=list(labels),
                    predicted_feature_name=BEST_LABEL,
                    predicted_probabilities_output=next(iter(ports.outputs.values())),
                )
                if labels
                else None,
                compute_precision=_compute_precision(ct, precision, names),
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
    # coremltools raises these for what it cannot write; a fault of this package would show in
    # every model.
    except (
        RuntimeError,
        ValueError,
        NotImplementedError,
        KeyError,
        TypeError,
        AssertionError,
        AttributeError,
        IndexError,
    ) as error:
        raise UnsupportedError(
            f"coremltools cannot convert the model: {_first_line(error)}"
            f"{place_of(source, program, error)}; rewrite that operator with others, or plan for "
            "another runtime (runtime='onnxruntime')"
        ) from error


def _compute_precision(ct: Any, precision: Precision, names: Names) -> Any:
    """coremltools' own rule of which operators become float16."""
    layers = {names.layers[name] for name in precision.others if name in names.layers}
    weights = {names.weights[name] for name in precision.weights if name in names.weights}
    if not precision.is_half and not layers | weights:
        return ct.precision.FLOAT32

    def is_other(op: Any) -> bool:
        if any(name.partition(STEP)[0] in layers for name in names_of(op)):
            return True
        return any(var.name in weights for var in inputs_of(op))

    def becomes_half(op: Any) -> bool:
        return is_other(op) != precision.is_half

    return ct.transform.FP16ComputePrecision(op_selector=becomes_half)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
