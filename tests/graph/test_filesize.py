"""Bytes of a file: constants, and what the runtime's rules say that the graph takes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from advisor.filesize import predict_file_bytes
from advisor.passes.graph import name_of
from advisor.setting import Setting
from advisor.targets.rules import Companions, FileRules, IntegerTensor, MemoryRules
from tests.graph.small import make_setting


class Two(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.conv(x).flatten(1))
        return y


def setting_with(rules: FileRules | None) -> Setting:
    setting = make_setting(Two().eval(), torch.randn(2, 1, 4, 4), batch=1)
    return replace(setting, capability=replace(setting.capability, file=rules, memory=None))


def choice_of(setting: Setting, scheme: str) -> tuple[int, ...]:
    return tuple(
        [option.scheme for option in setting.space.candidates[group.name]].index(scheme)
        for group in setting.groups
    )


def test_layers_and_operators_add_up() -> None:
    rules = FileRules(
        operator_bytes=100,
        layers=(
            Companions(ops=("conv2d",), schemes=("w8a8", "w8"), layer_bytes=1000, channel_bytes=10),
        ),
    )
    setting = setting_with(rules)
    nodes = setting.graph.module.graph.nodes
    operators = sum(node.op == "call_function" for node in nodes)
    assert operators == 4  # of the batch, the convolution, the reshape, the linear layer
    assert predict_file_bytes(setting, choice_of(setting, "fp32"), 5000) == 5400
    integers = choice_of(setting, "w8a8")
    assert predict_file_bytes(setting, integers, 5000) == 5400 + 1000 + 4 * 10
    assert predict_file_bytes(setting_with(None), integers, 5000) is None


def test_a_name_counts_as_often_as_it_is_written() -> None:
    rules = FileRules(
        operator_bytes=0,
        operator_names=1,
        layer_names=100,
        layers=(Companions(ops=("linear",), schemes=("w8",), layer_names=10_000),),
    )
    setting = setting_with(rules)
    layers = len("conv") + len("head")
    calls = [node for node in setting.graph.module.graph.nodes if node.op == "call_function"]
    others = sum(len(name_of(node)) for node in calls) - layers
    plain = predict_file_bytes(setting, choice_of(setting, "fp32"), 0)
    assert plain == 100 * layers + others
    found = predict_file_bytes(setting, choice_of(setting, "w8"), 0)
    assert found == 100 * layers + others + 10_000 * len("head")


def test_integers_count_by_how_they_come_to_be() -> None:
    """The input is quantized for the convolution, whose result is integers for the head."""
    rules = FileRules(
        operator_bytes=0,
        tensors=(
            IntegerTensor(produced=True, bytes=1),
            IntegerTensor(produced=False, readers=("linear",), bytes=1000),
            IntegerTensor(produced=False, readers=("conv2d",), bytes=10, names=100),
        ),
    )
    setting = setting_with(rules)
    integers = choice_of(setting, "w8a8")
    static = {layer.name for layer in setting.graph.layers}
    quantized = setting.regions.quantized(static)
    produced = sum(quantized.values())
    assert list(quantized.values()).count(False) == 1
    assert produced >= 1
    (own,) = [name for name, whole in quantized.items() if not whole]
    assert predict_file_bytes(setting, integers, 0) == produced + 10 + 100 * len(own)
    assert predict_file_bytes(setting, choice_of(setting, "fp32"), 0) == 0


@pytest.mark.parametrize(("size", "padding"), [(999, 0), (1001, 512 - 36 * 4 + 512 - 48 * 4)])
def test_large_constants_start_on_pages_of_a_file_of_their_own(size: int, padding: int) -> None:
    """Weights of 36 and 48 floats; both runs of scales are empty."""
    rules = FileRules(operator_bytes=0, page_bytes=512, page_from=100)
    setting = setting_with(rules)
    memory = MemoryRules(runtime_bytes=0, operator_bytes=0, activations=1, inside_bytes=1000)
    setting = replace(setting, capability=replace(setting.capability, memory=memory))
    assert predict_file_bytes(setting, choice_of(setting, "fp32"), size) == size + padding


@pytest.mark.parametrize(("op", "scheme"), [("linear", "w8a8"), ("conv2d", "fp32")])
def test_a_layer_without_a_rule_adds_nothing(op: str, scheme: str) -> None:
    rules = FileRules(
        operator_bytes=1,
        layers=(Companions(ops=("conv2d",), schemes=("w8",), layer_bytes=1, channel_bytes=1),),
    )
    found = rules.companions(op, scheme)
    assert (found.layer_bytes, found.layer_names, found.channel_bytes) == (0, 0, 0)
    assert rules.integers(produced=True, readers=()).bytes == 0
