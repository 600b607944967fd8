"""Small trained models and everything planning needs of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from advisor.passes.calibrate import CalibrationData, Observations, observe, spool_calibration
from advisor.passes.candidates import find_candidates, regions_of
from advisor.passes.capture import capture
from advisor.passes.divergence import OutputKind, measure_powers
from advisor.passes.graph import Graph
from advisor.passes.group import class_tensors, group_layers
from advisor.passes.rounding.store import RoundedWeights
from advisor.passes.shapes import deployment_inputs, infer_shapes
from advisor.profiles.loader import load_profile
from advisor.setting import Setting, graph_for
from advisor.simulate import Simulator
from advisor.targets.capability import Capability, load_capability

torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for one another


class Cnn(nn.Module):
    """Convolutions with batch norm, a depthwise one, a residual addition, pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 1)
        self.narrow = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.mix(F.relu(self.norm2(self.depthwise(x))))
        x = F.max_pool2d(F.relu(self.narrow(x)), 2)
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


class Transformer(nn.Module):
    """One pre-norm block over token ids; ``sequence_first`` computes in (sequence, batch)."""

    def __init__(self, *, sequence_first: bool = False, flat: bool = False) -> None:
        super().__init__()
        self.sequence_first, self.flat = sequence_first, flat
        self.tokens = nn.Embedding(24, 32)
        self.positions = nn.Embedding(12, 32)
        self.norm = nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.norm2 = nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = self.tokens(ids) + self.positions(torch.arange(length, device=ids.device))
        h = self.norm(x)
        q, k, v = (self._heads(layer, h) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 32)
        x = x + self._run(self.o, mixed)
        x = x + self._run(self.down, F.gelu(self._run(self.up, self.norm2(x))))
        logits: torch.Tensor = self.head(x.mean(1))
        return logits

    def _heads(self, layer: nn.Linear, h: torch.Tensor) -> torch.Tensor:
        return self._run(layer, h).reshape(*h.shape[:2], 2, 16).transpose(1, 2)

    def _run(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """The layer, in the layout that the model was asked to compute in."""
        batch, length, width = x.shape
        x = x.transpose(0, 1) if self.sequence_first else x
        x = x.reshape(batch * length, width) if self.flat else x
        y: torch.Tensor = layer(x)
        if self.flat:
            sizes = (length, batch) if self.sequence_first else (batch, length)
            y = y.reshape(*sizes, y.shape[-1])
        return y.transpose(0, 1) if self.sequence_first else y


def images(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy 8x8 patterns of five classes."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, 5, (count,), generator=generator)
    return patterns[labels] + torch.randn(count, 1, 8, 8, generator=generator) * 2.0, labels


def sentences(count: int, seed: int = 0, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids whose label is the commonest of six residues, so that attention helps."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 24, (count, length), generator=generator)
    return ids, F.one_hot(ids % 6, 6).sum(1).argmax(1)


def train(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, steps: int) -> nn.Module:
    """A few steps of Adam; the model comes back in evaluation mode."""
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        picked = torch.randint(0, len(inputs), (64,), generator=generator)
        loss = F.cross_entropy(model(inputs[picked]), labels[picked])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return model.eval()


@cache
def trained_cnn() -> nn.Module:
    """The CNN after 60 steps."""
    torch.manual_seed(3)
    return train(Cnn(), *images(1024, seed=5), steps=60)


def trained_transformer(*, sequence_first: bool = False, flat: bool = False) -> nn.Module:
    """The transformer after 60 steps; the same weights for every layout."""
    model = Transformer(sequence_first=sequence_first, flat=flat)
    model.load_state_dict(_trained_weights())
    return model.eval()


@cache
def _trained_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return train(Transformer(), *sentences(1024, seed=5), steps=60).state_dict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """A captured model with its planning problem and calibration, before sensitivities."""

    setting: Setting
    data: CalibrationData
    observations: Observations
    simulator: Simulator
    kinds: tuple[OutputKind, ...]

    @property
    def graph(self) -> Graph:
        """The captured model."""
        return self.setting.graph


def batches(inputs: torch.Tensor, size: int) -> Iterator[list[torch.Tensor]]:
    """Flat calibration batches."""
    return ([part] for part in torch.split(inputs, size))


def make_setting(
    model: nn.Module,
    example: torch.Tensor,
    *,
    runtime: str = "onnxruntime",
    profile: str = "intel-vnni",
    batch: int = 1,
    schemes: Sequence[str] | None = None,
    capability: Capability | None = None,
) -> Setting:
    """What planning fixes before calibration. capability: instead of the runtime's own."""
    capability, hardware = capability or load_capability(runtime), load_profile(profile)
    graph = graph_for(capture(model, (example,), {}), capability)
    groups = group_layers(graph, capability)
    return Setting(
        graph=graph,
        groups=groups,
        space=find_candidates(
            graph, groups, capability, platform=hardware.platform, schemes=schemes
        ),
        regions=regions_of(graph, capability),
        capability=capability,
        profile=hardware,
        shapes=infer_shapes(graph.module, deployment_inputs(graph, batch, None)),
        batch=batch,
    )


def make_workbench(
    setting: Setting,
    inputs: torch.Tensor,
    folder: Path,
    *,
    kinds: Sequence[OutputKind] = ("logits",),
    size: int = 64,
) -> Workbench:
    """Calibrate on ``inputs`` in batches of ``size``."""
    graph = setting.graph
    data = spool_calibration(graph, batches(inputs, size), folder)
    tensors = frozenset(site.tensor for site in setting.regions.sites)
    layers = [la for la in graph.layers if la.frozen is None and la.op != "embedding"]
    observations = observe(graph, data.scoring, tensors, layers)
    simulator = Simulator(
        setting=setting,
        data=data,
        observations=observations,
        classes=class_tensors(graph, setting.capability),
        kinds=kinds,
        powers=measure_powers(list(data.references)),
        rounded=RoundedWeights(graph),
    )
    return Workbench(
        setting=setting,
        data=data,
        observations=observations,
        simulator=simulator,
        kinds=tuple(kinds),
    )
