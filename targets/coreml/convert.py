"""A quantized graph in, a Core ML model out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from advisor.errors import UnsupportedError
from advisor.passes.blame import locate
from advisor.passes.fx import clone, output_nodes
from advisor.passes.graph import ROLE_KEY, Graph, QuantizedGraph, name_of
from advisor.passes.layers import LAYER_OPS
from advisor.passes.ops import QUANTIZE_STATIC
from advisor.passes.shapes import deployment_inputs
from advisor.targets.coreml import lowerings
from advisor.targets.coreml.folding import keep_layers
from advisor.targets.coreml.images import Image
from advisor.targets.coreml.labels import BEST_LABEL
from advisor.targets.coreml.legalise import (
    bound_constants,
    divide_reciprocals,
    flatten_ports,
    own_linears,
    port_dtype,
    respell,
    scale_norms,
    spell_keywords,
    spell_out,
)
from advisor.targets.coreml.names import METADATA, STEP, Names, inputs_of, names_of
from advisor.targets.coreml.operators import LINEAR
from advisor.targets.coreml.packages import load
from advisor.targets.coreml.scaling import port_type, scale_pixels
from advisor.targets.packages import quiet
from advisor.targets.reexport import reexport
from advisor.targets.unrolled import UNROLLED

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


RECURRENT: Final = ("lstm", "gru")
"""Kinds of layers whose operator becomes its steps."""

LAYERS: Final = frozenset({LINEAR, *LAYER_OPS})
"""Operators of layers, in this target's spelling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Names of the inputs and outputs in the package, by the model's own names."""

    inputs: dict[str, str]
    outputs: dict[str, str]


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
    program = _export(module, source, tuple(given.values()))
    names = _name_parts(program, source)
    ports = name_ports(tuple(given), source.output_names)
    inputs = [
        port_type(load("coremltools"), ports.inputs[name], tensor, images.get(name))
        for name, tensor in given.items()
    ]
    model = _run_converter(program, source, ports, inputs, labels, deployment, precision, names)
    model.user_defined_metadata[METADATA] = names.to_json()
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


def name_ports(inputs: Sequence[str], outputs: Sequence[str]) -> Ports:
    """Names that Core ML accepts: letters, digits and underscores, each once."""
    used: set[str] = set()

    def free(name: str) -> str:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain[:1].isalpha() else f"_{plain}"
        made, number = plain, 1
        while made in used:
            number += 1
            made = f"{plain}_{number}"
        used.add(made)
        return made

    return Ports(
        inputs={name: free(name) for name in inputs},
        outputs={name: free(name) for name in outputs},
    )


def _export(module: GraphModule, source: Graph, tensors: tuple[Any, ...]) -> ExportedProgram:
    """The module as an exported program of fixed shapes, without recurrent operators."""
    fixed = replace(source, module=module, args=tensors, kwargs={}, dynamic={})
    with quiet():
        exported: Any = reexport(module, fixed)  # its methods' types are incomplete
        program: ExportedProgram = exported.run_decompositions(dict(UNROLLED))
    own_linears(program.graph)
    return program


def _name_parts(program: ExportedProgram, source: Graph) -> Names:
    """Give layers and quantizers names that MIL keeps, and say what everything is called."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = Names(weights={target: name for name, target in stored.items()})
    recurrent = {layer.weight: layer for layer in source.layers if layer.op in RECURRENT}
    own = {layer.output: layer for layer in source.layers if layer.op not in RECURRENT}
    places = {layer.name: index for index, layer in enumerate(source.layers)}
    for node in program.graph.nodes:
        custom: dict[str, Any] = node.meta.get("custom") or {}
        if node.target is QUANTIZE_STATIC:
            tensor = name_of(node)
            mil = f"advisor_quantize_{len(names.tensors)}_{len(names.tensors.get(tensor, ()))}"
            names.tensors.setdefault(tensor, []).append(mil)
        elif node.target in LAYERS:
            layer = recurrent.get(_weight_of(node, stored))
            if layer is None and custom.get(ROLE_KEY) == "op":
                layer = own.get(name_of(node))
            if layer is None:
                continue
            mil = f"advisor_layer_{places[layer.name]}"
            if layer.name in names.layers:  # a step of an LSTM after its first
                mil += f"{STEP}{node.name}"
            names.layers.setdefault(layer.name, mil)
        else:
            continue
        old, node.name = node.name, mil
        signature.replace_all_uses(old, mil)
    return names


def _weight_of(node: Node, stored: Mapping[str, str]) -> str:
    """Name of the weight that a Linear reads, as it is or turned to float32."""
    source = node.args[1] if node.target is LINEAR else None
    if isinstance(source, Node) and source.target is torch.ops.aten._to_copy.default:
        source = source.args[0]
    if not isinstance(source, Node):
        return ""
    return stored.get(source.name, "").removesuffix("_values")


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
            f"{_place(source, program, error)}; rewrite that operator with others, or plan for "
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


def _place(source: Graph, program: ExportedProgram, error: BaseException) -> str:
    """Which part of the user's model an error of coremltools is about, as far as it says."""
    failed = ""
    frame = error.__traceback__
    while frame is not None:
        node = frame.tb_frame.f_locals.get("node")
        if isinstance(node, Node) or type(node).__name__ == "InternalTorchIRNode":
            failed = str(getattr(node, "name", ""))
        frame = frame.tb_next
    for node in program.graph.nodes:
        if node.name == failed:
            known = {name_of(each): each for each in source.module.graph.nodes}
            found = known.get(name_of(node))
            place = f" in {locate(found)}" if found is not None else ""
            return f" (operator {node.target}){place}"
    return ""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
