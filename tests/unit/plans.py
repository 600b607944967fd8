"""A realistic plan made by hand, for tests that need one without planning."""

from __future__ import annotations

import dataclasses
from typing import Any

from advisor.plan import (
    Alternative,
    Calibration,
    LayerDecision,
    Metrics,
    Option,
    Plan,
    Provenance,
    Quantity,
    TensorDecision,
)
from advisor.profiles.costparts import EnergyParts, MemoryParts
from advisor.profiles.timeparts import TimeParts


def modelled(value: float, how: str = "roofline") -> Quantity:
    """A modelled number."""
    return Quantity(value=value, origin="modelled", how=how)


def measured(value: float, how: str = "simulation, 128 held-out samples") -> Quantity:
    """A measured number."""
    return Quantity(value=value, origin="measured", how=how)


def make_layers(conv_name: str = "features.0") -> tuple[LayerDecision, ...]:
    """Conv 3x3 1->16 in w8a8, Linear 784->256 in w4-g32, Linear 256->10 kept in fp32."""
    conv = LayerDecision(
        name=conv_name,
        op="conv2d",
        group="features.0",
        weight="features.0.weight",
        weight_shape=(16, 1, 3, 3),
        params=144,
        scheme="w8a8",
        algorithm="mse",
        size_bytes=208,
        latency_s=1.25e-05,
        bound="memory",
        divergence=0.0004,
        reason="fastest within the budget",
        options=(
            Option(scheme="fp32", algorithm="rtn", size_bytes=576, latency_s=4e-05),
            Option(
                scheme="w8a8",
                algorithm="mse",
                size_bytes=208,
                latency_s=1.25e-05,
                divergence=0.0004,
            ),
            Option(
                scheme="w8",
                algorithm="rtn",
                size_bytes=208,
                latency_s=4.5e-05,
                divergence=0.0002,
            ),
            Option(scheme="w4-g32", algorithm="rtn", reason="block 32 does not divide 9 inputs"),
        ),
    )
    hidden = LayerDecision(
        name="classifier.1",
        op="linear",
        group="classifier.1",
        weight="classifier.1.weight",
        weight_shape=(256, 800),
        params=204800,
        scheme="w4-g32",
        algorithm="mse",
        size_bytes=128000,
        latency_s=3.1e-05,
        bound="memory",
        divergence=0.0012,
        reason="smallest that stays inside the size budget",
        options=(
            Option(scheme="fp32", algorithm="rtn", size_bytes=819200, latency_s=8e-05),
            Option(
                scheme="w8",
                algorithm="rtn",
                size_bytes=205824,
                latency_s=4e-05,
                divergence=0.0003,
            ),
            Option(
                scheme="w4-g32",
                algorithm="mse",
                size_bytes=128000,
                latency_s=3.1e-05,
                divergence=0.0012,
            ),
            Option(
                scheme="w2-g32",
                algorithm="mse",
                size_bytes=76800,
                latency_s=2.8e-05,
                divergence=0.21,
            ),
        ),
    )
    head = LayerDecision(
        name="classifier.3",
        op="linear",
        group="classifier.3",
        weight="classifier.3.weight",
        weight_shape=(10, 256),
        params=2560,
        scheme="fp32",
        algorithm="rtn",
        size_bytes=10240,
        latency_s=6e-06,
        bound="memory",
        divergence=0.0,
        reason="pinned by classifier.3=fp32",
        options=(
            Option(scheme="fp32", algorithm="rtn", size_bytes=10240, latency_s=6e-06),
            Option(
                scheme="w8",
                algorithm="rtn",
                size_bytes=2600,
                latency_s=5e-06,
                divergence=0.0007,
            ),
        ),
    )
    return conv, hidden, head


def make_plan(**changes: Any) -> Plan:
    """The plan; ``changes`` replace fields of it."""
    names = ("features.0", "classifier.1", "classifier.3")
    plan = Plan(
        target="intel-vnni",
        runtime="onnxruntime",
        objective="auto",
        budget="size<=150000B,latency<=0.008s",
        outcome="Fastest plan inside the budget whose divergence stays within 0.01.",
        batch=1,
        sequence=None,
        context=None,
        threads=2,
        fingerprint="f" * 64,
        layers=make_layers(),
        tensors=(
            TensorDecision(
                name="x", scale=0.0123, zero_point=-3, dtype="int8", quantized=True, divergence=1e-5
            ),
            TensorDecision(
                name="relu_1", scale=0.5, zero_point=-128, dtype="int8", quantized=False
            ),
        ),
        predicted=Metrics(
            size_bytes=modelled(138448),
            memory_bytes=modelled(163536),
            latency_s=modelled(4.95e-05),
            divergence=modelled(0.0016, "probe"),
        ),
        measured=Metrics(divergence=measured(0.00187), metric=measured(0.9861)),
        memory_parts=MemoryParts(
            weights_bytes=140_000.0,
            activations_bytes=19_536.0,
            scratch_bytes=4_000.0,
            runtime_bytes=2e7,
        ),
        energy_parts=EnergyParts(compute_j=3e-4, memory_j=1e-4),
        breakdown=TimeParts(
            compute_s=1.25e-05, memory_s=3.2e-05, overhead_s=4e-06, boundary_s=1e-06
        ),
        arithmetic={
            "fp32": "computes in float32 on the cpu",
            "w8a8": "computes in int8 on the cpu, at 4 times the rate of float32",
        },
        model_gap=0.0031,
        measured_regret=0.12,
        baselines=(
            Alternative(
                name="fp32",
                metrics=Metrics(
                    size_bytes=modelled(830016),
                    latency_s=modelled(0.000126),
                    divergence=measured(0.0),
                    metric=measured(0.9889),
                ),
                schemes=dict.fromkeys(names, "fp32"),
                fits=False,
                note="830 kB is over the size budget of 150 kB",
            ),
            Alternative(
                name="w8",
                metrics=Metrics(size_bytes=modelled(208632), divergence=measured(0.0009)),
                schemes=dict.fromkeys(names, "w8"),
                fits=False,
            ),
        ),
        pareto=(
            Alternative(
                name="front 1",
                metrics=Metrics(size_bytes=modelled(87248), divergence=modelled(0.2116)),
                schemes={
                    "features.0": "w8a8/mse",
                    "classifier.1": "w2-g32/mse",
                    "classifier.3": "fp32",
                },
            ),
        ),
        trials=(
            Alternative(
                name="trial 0",
                metrics=Metrics(divergence=measured(0.00167)),
                schemes={"features.0": "w8", "classifier.1": "w8", "classifier.3": "fp32"},
            ),
        ),
        notes=("The output was taken for logits.",),
        provenance=Provenance(
            seed=0,
            trials=16,
            versions={"quantadvisor": "0.1.0", "torch": "2.13.0"},
            calibration=Calibration(
                synthetic=True,
                batches=8,
                scoring_samples=128,
                held_out_samples=128,
                digest="c" * 64,
            ),
            profile_digest="p" * 64,
            outputs={"output": "logits"},
        ),
        bias_correction=True,
        pins={"classifier.3": "fp32"},
        model="examples.digits:build",
    )
    return dataclasses.replace(plan, **changes)
