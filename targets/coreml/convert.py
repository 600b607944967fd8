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
from advisor.passes.fx import clone
from advisor.passes.graph import ROLE_KEY, Graph, QuantizedGraph, name_of
from advisor.passes.layers import LAYER_OPS
from advisor.passes.ops import QUANTIZE_STATIC
from advisor.passes.shapes import deployment_inputs
from advisor.targets.coreml import lowerings
from advisor.targets.coreml.legalise import (
    bound_constants,
    divide_reciprocals,
    flatten_ports,
    own_linears,
    port_dtype,
    scale_norms,
    spell_out,
)
from advisor.targets.coreml.names import METADATA, Names
from advisor.targets.coreml.operators import LINEAR
from advisor.targets.coreml.packages import load, quiet
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
    # These would make one of two layers that compute the same, or change a planned scale.
    "common::remove_redundant_ops",
    "common::distributive_quantized_binary_op_scale_normalization",
)
"""Passes of coremltools that a plan must not go through."""


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


def convert(graph: QuantizedGraph, batch: int, deployment: str, compute: str) -> Converted:
    """The graph as a Core ML model of fixed shapes.

    deployment: a key of ``deployment.SPECIFICATIONS``. compute: dtype of what the schemes leave
    to the runtime.

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
    divide_reciprocals(module)
    own_linears(module)
    if precision.is_half:
        scale_norms(module)
        bound_constants(module)
    given = {
        name: value.to(port_dtype(value.dtype))
        for name, value in zip(source.input_names, flat, strict=True)
        if isinstance(value, torch.Tensor)
    }
    program = _export(module, source, tuple(given.values()))
    names = _name_parts(program, source)
    ports = name_ports(tuple(given), source.output_names)
    model = _run_converter(program, source, ports, given, deployment, precision, names)
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
        others=frozenset(layer.output for layer in layers if schemes[layer.name] == odd),
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
        program: ExportedProgram = reexport(module, fixed).run_decompositions(dict(UNROLLED))
    return program


def _name_parts(program: ExportedProgram, source: Graph) -> Names:
    """Give layers and quantizers names that MIL keeps, and say what everything is called."""
    places = {layer.output: index for index, layer in enumerate(source.layers)}
    signature = program.graph_signature
    names = Names(
        weights={
            target: name
            for name, target in (
                *signature.inputs_to_parameters.items(),
                *signature.inputs_to_buffers.items(),
            )
        }
    )
    for node in program.graph.nodes:
        part = name_of(node)
        custom: dict[str, Any] = node.meta.get("custom") or {}
        if node.target is QUANTIZE_STATIC:
            mil = f"advisor_quantize_{len(names.tensors)}_{len(names.tensors.get(part, ()))}"
            names.tensors.setdefault(part, []).append(mil)
        elif node.target in LAYERS and custom.get(ROLE_KEY) == "op" and part in places:
            mil = f"advisor_layer_{places[part]}"
            if part in names.layers:
                continue  # an operator that became several, such as the steps of an LSTM
            names.layers[part] = mil
        else:
            continue
        old, node.name = node.name, mil
        signature.replace_all_uses(old, mil)
    return names


def _run_converter(
    program: ExportedProgram,
    source: Graph,
    ports: Ports,
    given: Mapping[str, torch.Tensor],
    deployment: str,
    precision: Precision,
    names: Names,
) -> Any:
    ct = load("coremltools")
    lowerings.register_lowerings()
    pipeline = ct.PassPipeline.DEFAULT
    pipeline.remove_passes(LEFT_OUT)
    results = [node.meta["val"] for node in program.graph.output_node().args[0]]
    try:
        with quiet():
            return ct.convert(
                program,
                inputs=[
                    ct.TensorType(
                        name=ports.inputs[name], shape=tuple(t.shape), dtype=t.numpy().dtype.type
                    )
                    for name, t in given.items()
                ],
                outputs=[
                    ct.TensorType(
                        name=name, dtype=np.float32 if value.is_floating_point() else np.int32
                    )
                    for name, value in zip(ports.outputs.values(), results, strict=True)
                ],
                minimum_deployment_target=getattr(ct.target, deployment),
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
    layers = {names.layers[node] for node in precision.others if node in names.layers}
    weights = {names.weights[name] for name in precision.weights if name in names.weights}
    if not precision.is_half and not layers | weights:
        return ct.precision.FLOAT32

    def is_other(op: Any) -> bool:
        if op.name in layers or any(var.name in layers for var in op.outputs):
            return True
        given = [var for var in op.inputs.values() if var is not None]
        flat = [
            each for var in given for each in (var if isinstance(var, (list, tuple)) else [var])
        ]
        return any(var.name in weights for var in flat)

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
