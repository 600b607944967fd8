"""A conformance suite for targets: subclass it in your tests, and pytest does the rest.

    from advisor.testing import TargetContract

    class TestMyTarget(TargetContract):
        runtime = "myruntime"          # registered in the entry-point group advisor.targets
        profile = "intel-vnni"         # any profile the runtime runs on

The suite plans a small convolutional and a small sequence model with every scheme that the
target's capability data offers, on every kind of operator that takes it, compiles, reads every
layer back, executes and compares. Schemes of static integers are planned for all layers at once,
so that integers pass from one to the next; the others side by side in one plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from advisor.api import advise
from advisor.errors import InputError, UnsupportedError
from advisor.plan import Plan
from advisor.targets.registry import capability_named, target_named


class ConvNet(nn.Module):
    """Images (B, 3, 8, 8) to logits (B, 5): convolution, residual add, depthwise, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.body = nn.Conv2d(32, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = functional.relu(self.stem(x))
        x = functional.relu(self.depthwise(functional.relu(self.body(x) + x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class SequenceNet(nn.Module):
    """Token ids (B, T) to a dict of scores (B, T, 7): embedding, norm, two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 7)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Score every position."""
        return {"scores": self.down(functional.gelu(self.up(self.norm(self.embedding(tokens)))))}


def make_models() -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """Name, model and calibration batches of every model of the suite; the same each time."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(4)]
    tokens = [torch.randint(0, 50, (8, 12), generator=generator) for _ in range(4)]
    torch.default_generator.manual_seed(0)
    yield "conv", ConvNet().eval(), images
    yield "sequence", SequenceNet().eval(), tokens


class TargetContract:
    """What every target must do. Set ``runtime`` and ``profile``."""

    runtime: ClassVar[str]
    profile: ClassVar[str] = "intel-vnni"

    def plan(self, model: nn.Module, batches: list[Tensor], scheme: str) -> Plan:
        """A plan with every layer that can take ``scheme`` pinned to it."""
        able = self._able(model, batches, [scheme])
        pins = {layer: scheme for layer, (_, schemes) in able.items() if scheme in schemes}
        return self._advise(model, batches, [scheme], pins)

    def plans(
        self, model: nn.Module, batches: list[Tensor], covered: set[tuple[str, str]]
    ) -> Iterator[Plan]:
        """Plans that together have every scheme on every kind of operator that takes it.

        covered: (operator, scheme) that earlier plans have; these plans' are added.
        """
        from advisor.formats import scheme_named

        able = self._able(model, batches, self.schemes())
        for scheme in (each for each in self.schemes() if scheme_named(each).is_static):
            uniform = {layer: scheme for layer, (_, schemes) in able.items() if scheme in schemes}
            covered.update((able[layer][0], scheme) for layer in uniform)
            if uniform:
                yield self._advise(model, batches, [scheme], uniform)
        while True:
            pins: dict[str, str] = {}
            for layer, (op, schemes) in able.items():
                wanted = next((each for each in schemes if (op, each) not in covered), None)
                if wanted is not None:
                    pins[layer] = wanted
                    covered.add((op, wanted))
            if not pins:
                return
            yield self._advise(model, batches, sorted(set(pins.values())), pins)

    def _able(
        self, model: nn.Module, batches: list[Tensor], schemes: Sequence[str]
    ) -> dict[str, tuple[str, list[str]]]:
        """By layer its operator and the schemes that it can take."""
        free = self._advise(model, batches, schemes, {})
        return {
            layer.name: (
                layer.op,
                list(dict.fromkeys(o.scheme for o in layer.options if not o.reason)),
            )
            for layer in free.layers
        }

    def _advise(
        self,
        model: nn.Module,
        batches: list[Tensor],
        schemes: Sequence[str],
        pin: Mapping[str, str],
    ) -> Plan:
        made = advise(
            model,
            target=self.profile,
            runtime=self.runtime,
            calibration=batches,
            schemes=list(schemes),
            pin=pin,
            trials=1,
            cache=False,
        )
        kept = {layer.name: layer.scheme for layer in made.layers}
        assert {name: kept[name] for name in pin} == dict(pin)
        return made

    def schemes(self) -> list[str]:
        """Schemes of the runtime that can be planned today."""
        from advisor.formats import scheme_named
        from advisor.passes.candidates import SIMULATED_ACTIVATIONS
        from advisor.passes.rounding import IMPLEMENTED_DTYPES

        return [
            name
            for name in capability_named(self.runtime).schemes
            if scheme_named(name).weight.dtype in IMPLEMENTED_DTYPES
            and (scheme_named(name).activation is None or name in SIMULATED_ACTIVATIONS)
        ]

    def test_capability_is_the_registered_one(self) -> None:
        assert target_named(self.runtime).capability.name == self.runtime
        assert capability_named(self.runtime).emitter

    @pytest.mark.slow
    def test_every_scheme_is_emitted_read_back_and_executed(self, tmp_path: Path) -> None:
        covered: set[tuple[str, str]] = set()
        models = list(make_models())
        for name, model, batches in reversed(models):  # the last has several linear layers
            for index, plan in enumerate(self.plans(model, batches, covered)):
                artifact = plan.compile(tmp_path / f"{name}-{index}")  # verifies, or raises
                if index == 0:
                    verification = artifact.verify()
                    assert verification.ok, (name, plan.layers, verification.mismatches)
                    assert verification.layers_matched == len(plan.layers)
        assert covered

    def test_outputs_have_the_models_structure(self, tmp_path: Path) -> None:
        for name, model, batches in make_models():
            artifact = self._advise(model, batches, ["fp32"], {}).compile(tmp_path / name)
            expected, found = model(batches[0]), artifact.run(batches[0])
            assert type(found) is type(expected)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_wrong_inputs_are_refused(self, tmp_path: Path) -> None:
        _, model, batches = next(make_models())
        artifact = self._advise(model, batches, ["fp32"], {}).compile(tmp_path / "conv")
        with pytest.raises(InputError):
            artifact.run(torch.zeros(2, 4, 8, 8))

    def test_unknown_scheme_is_refused(self) -> None:
        _, model, batches = next(make_models())
        missing = next(s for s in ("ternary", "nf4-g16") if s not in self.schemes())
        with pytest.raises(UnsupportedError):
            self.plan(model, batches, missing)
