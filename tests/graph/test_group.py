"""Groups and tensor classes: who must decide together, and who must not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advisor.passes.candidates import regions_of
from advisor.passes.capture import capture
from advisor.passes.graph import ActivationParams, Graph
from advisor.passes.group import class_tensors, group_layers
from advisor.targets.capability import Capability, StaticRules, load_capability
from tests.graph.models import Decoder, captured, image, seeded, tokens


def runtime(*, fuse: tuple[str, ...] = (), shared: tuple[str, ...] = ()) -> Capability:
    return Capability(
        name="made-up",
        title="Made up",
        version="1",
        float_dtype="float32",
        scale_dtype="float32",
        schemes={},
        fuse_siblings=fuse,
        static=StaticRules(dtype="uint8", symmetric=False, shared=shared) if shared else None,
    )


def groups(graph: Graph, capability: Capability) -> dict[str, tuple[str, ...]]:
    found = group_layers(graph, capability)
    members = [layer for group in found for layer in group.layers]
    assert sorted(members) == sorted(layer.name for layer in graph.layers)
    assert len(set(members)) == len(members)
    order = {layer.name: index for index, layer in enumerate(graph.layers)}
    assert [order[group.name] for group in found] == sorted(order[group.name] for group in found)
    assert all(group.name == min(group.layers, key=order.__getitem__) for group in found)
    return {group.name: group.layers for group in found}


def test_every_projection_of_a_decoder_is_its_own_group_tied_ones_excepted() -> None:
    graph = capture(seeded(Decoder(layers=4)), (tokens(2),), {})
    found = groups(graph, runtime())
    assert found.pop("embed") == ("embed", "lm_head")
    assert found.pop("slice") == ("slice",)  # the position table, which stays float
    projections = [
        f"layers.{layer}.{name}"
        for layer in range(4)
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    assert found == {name: (name,) for name in projections}
    assert len({layer.weight for layer in graph.layers}) == len(graph.layers) - 1


def test_siblings_join_where_the_runtime_fuses_them() -> None:
    found = groups(captured("decoder")[1], runtime(fuse=("linear",)))
    for layer in range(2):
        q, k, v = (f"layers.{layer}.{name}" for name in "qkv")
        gate, up = f"layers.{layer}.gate", f"layers.{layer}.up"
        assert found[q] == (q, k, v)
        assert found[gate] == (gate, up)
        assert found[f"layers.{layer}.o"] == (f"layers.{layer}.o",)
    assert found["embed"] == ("embed", "lm_head")


def test_an_addition_joins_nothing() -> None:
    graph = captured("residual")[1]
    assert groups(graph, runtime()) == {layer.name: (layer.name,) for layer in graph.layers}
    # Not even where siblings fuse: no two layers of this network read the same tensor.
    assert len(groups(graph, runtime(fuse=("conv2d", "linear")))) == len(graph.layers)


def test_a_shared_encoder_is_one_group_per_weight() -> None:
    assert groups(captured("shared")[1], runtime()) == {
        "encoder.conv": ("encoder.conv", "encoder.conv#2"),
        "encoder": ("encoder", "encoder#2"),
        "head": ("head",),
    }


class Gates(nn.Module):
    """Two weights of an operator that nothing quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.rnn(x)[0]
        return result


def test_layers_kept_in_float_do_not_join_their_siblings() -> None:
    graph = capture(Gates().eval(), (torch.randn(2, 3, 8),), {})
    names = ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
    assert groups(graph, runtime(fuse=("lstm", "linear"))) == {name: (name,) for name in names}


class Plumbing(nn.Module):
    """Pools, a reshape and a concat beside additions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(8 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.max_pool2d(self.a(x), 2), F.max_pool2d(self.b(x), 2)
        total = left + right
        result: Tensor = self.head(torch.cat([total, right], 1).flatten(1))
        return result


def classes(graph: Graph, capability: Capability) -> list[tuple[str, ...]]:
    return [found.tensors for found in class_tensors(graph, capability)]


def test_pools_reshapes_and_concats_join_and_additions_do_not() -> None:
    graph = capture(seeded(Plumbing()), (image(2),), {})
    shared = ("max_pool2d", "cat", "reshape", "view", "flatten")
    assert classes(graph, runtime(shared=shared)) == [
        ("a", "max_pool2d"),
        ("b", "max_pool2d#2", "add", "cat", graph.layers[-1].input),
    ]
    assert classes(graph, runtime(shared=("max_pool2d",))) == [
        ("a", "max_pool2d"),
        ("b", "max_pool2d#2"),
    ]
    assert classes(graph, runtime()) == []


def test_onnxruntime_pools_share_and_its_concats_do_not() -> None:
    graph = capture(seeded(Plumbing()), (image(2),), {})
    found = classes(graph, load_capability("onnxruntime"))
    assert ("a", "max_pool2d") in found
    assert ("b", "max_pool2d#2") in found
    assert ("cat", graph.layers[-1].input) in found


class Squashed(nn.Module):
    """Sigmoids that are reshaped, joined with their like, and joined with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.a(x), self.b(x)
        alike = torch.cat([torch.sigmoid(a), torch.sigmoid(b)], 1)
        mixed = torch.cat([torch.sigmoid(a + b), b], 1)
        return self.c(alike), self.d(mixed)


def test_what_a_fixed_scale_serves_has_it() -> None:
    graph = capture(seeded(Squashed()), (image(2),), {})
    found = {each.tensors: each.fixed for each in class_tensors(graph, load_capability("tflite"))}
    alike = ("sigmoid", "sigmoid#2", "cat")
    assert found[alike] == ActivationParams(scale=1 / 256, zero_point=-128, dtype="int8")
    (mixed,) = [tensors for tensors in found if "cat#2" in tensors]
    assert set(mixed) == {"b", "sigmoid#3", "cat#2"}
    assert found[mixed] is None


def test_a_tensor_that_cannot_have_its_fixed_scale_is_never_integers() -> None:
    graph = capture(seeded(Squashed()), (image(2),), {})
    regions = regions_of(graph, load_capability("tflite"))
    every = regions.quantized({layer.name for layer in graph.layers})
    assert {"sigmoid", "sigmoid#2", "cat"} <= every.keys()
    assert every["cat"]
    assert "sigmoid#3" not in every
    assert not every["cat#2"]  # its reader alone sees it quantized


def test_classes_do_not_merge_groups() -> None:
    graph = capture(seeded(Plumbing()), (image(2),), {})
    assert len(groups(graph, runtime(shared=("max_pool2d", "cat")))) == 3
