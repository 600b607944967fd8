"""Speeds of one machine's kernels, as a runtime's measurement of them gives a profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speeds with all cores, or with one thread where it says so.

    float32_ops_per_s: the highest of all products and convolutions. int8_ops_per_s: of a product.
    bandwidth, of one core too: bytes per second of adding large arrays. launch_s: per node in a
    chain of tiny ones. dispatch_s: of a forward pass with one tiny node. linear, conv, depthwise:
    operations per second of middle-sized layers in float32. gather: bytes per second of an
    embedding. elementwise: operations per second of an operator without a weight. says: what each
    was measured by, by field.
    """

    float32_ops_per_s: float
    int8_ops_per_s: float
    bandwidth_bytes_per_s: float
    core_bandwidth_bytes_per_s: float
    launch_s: float
    dispatch_s: float
    linear_ops_per_s: float
    conv_ops_per_s: float
    depthwise_ops_per_s: float
    gather_bytes_per_s: float
    elementwise_ops_per_s: float
    says: Mapping[str, str] = field(default_factory=dict[str, str])
