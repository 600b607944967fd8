"""Averages over whole images are spelled as such, and only those."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advisor.passes.capture import capture

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("pool", "is_global"),
    [
        (nn.AvgPool2d(6), True),
        (nn.AvgPool2d((6, 7), ceil_mode=True), True),
        (nn.AvgPool2d(320, ceil_mode=True), True),
        (nn.AvgPool2d(3), False),
        (nn.AvgPool2d(6, padding=1, stride=1), False),
        (nn.AvgPool2d(6, divisor_override=5), False),
    ],
)
def test_an_average_over_everything_says_so(pool: nn.Module, is_global: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), pool).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = capture(model, (x,), {})
    targets = {node.target for node in graph.module.graph.nodes}
    assert (aten.adaptive_avg_pool2d.default in targets) is is_global
    assert torch.allclose(graph.module(x), model(x), atol=1e-6)
