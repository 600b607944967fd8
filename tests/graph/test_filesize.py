"""Bytes of a file: constants, and what the runtime's rules say that the graph takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advisor.filesize import predict_file_bytes
from advisor.targets.rules import Companions, FileRules
from tests.graph.small import make_setting


class Two(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.conv(x).flatten(1))
        return y


def test_layers_and_operators_add_up() -> None:
    setting = make_setting(Two().eval(), torch.randn(2, 1, 4, 4), batch=1)
    rules = FileRules(
        operator_bytes=100,
        layers=(
            Companions(ops=("conv2d",), schemes=("w8a8", "w8"), layer_bytes=1000, channel_bytes=10),
        ),
    )
    setting = replace(setting, capability=replace(setting.capability, file=rules))
    names = [
        [option.scheme for option in setting.space.candidates[group.name]]
        for group in setting.groups
    ]
    plain = tuple(each.index("fp32") for each in names)
    integers = tuple(each.index("w8a8") for each in names)
    nodes = setting.graph.module.graph.nodes
    operators = sum(node.op == "call_function" for node in nodes)
    assert operators == 4  # of the batch, the convolution, the reshape, the linear layer
    assert predict_file_bytes(setting, plain, 5000) == 5400
    assert predict_file_bytes(setting, integers, 5000) == 5400 + 1000 + 4 * 10
    without = replace(setting, capability=replace(setting.capability, file=None))
    assert predict_file_bytes(without, plain, 5000) is None


@pytest.mark.parametrize(("op", "scheme"), [("linear", "w8a8"), ("conv2d", "fp32")])
def test_a_layer_without_a_rule_adds_nothing(op: str, scheme: str) -> None:
    rules = FileRules(
        operator_bytes=1,
        layers=(Companions(ops=("conv2d",), schemes=("w8",), layer_bytes=1, channel_bytes=1),),
    )
    assert rules.companions(op, scheme) is None
