"""Divergence against scipy and torch, and the second moment of its probes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax

from advisor.passes.divergence import OutputKind, divergence, draw_probes, measure_powers

LOGIT_SHAPES = [(6, 10), (4, 7, 5), (3, 5, 4, 2), (2, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed)) * scale


@pytest.mark.parametrize("shape", LOGIT_SHAPES)
def test_logits_are_scipys_relative_entropy(shape: tuple[int, ...]) -> None:
    reference, output = normal(*shape, seed=1, scale=3), normal(*shape, seed=2, scale=3)
    axis = 1 if len(shape) == 4 else -1
    p, q = (softmax(t.numpy().astype(np.float64), axis=axis) for t in (reference, output))
    expected = rel_entr(p, q).sum(axis=axis).reshape(shape[0], -1).mean(axis=1)
    found = divergence([output], [reference], ["logits"], [1.0])
    assert np.allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)
    log_q, log_p = F.log_softmax(output, axis), F.log_softmax(reference, axis)
    torchs = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(axis)
    assert torch.allclose(found, torchs.reshape(shape[0], -1).mean(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["embedding", "regression"])
@pytest.mark.parametrize("shape", [(6, 10), (6,), (3, 4, 5)])
def test_squared_error_over_the_references_power(kind: OutputKind, shape: tuple[int, ...]) -> None:
    reference, output = normal(*shape, seed=3), normal(*shape, seed=4)
    (power,) = measure_powers([[reference]])
    rows = reference.numpy().reshape(shape[0], -1)
    assert power == pytest.approx(np.square(rows).mean(), rel=1e-5)
    found = divergence([output], [reference], [kind], [power])
    expected = np.square(output.numpy().reshape(shape[0], -1) - rows).mean(axis=1) / power
    assert np.allclose(found.numpy(), expected, rtol=1e-5)


def test_powers_stream_over_batches() -> None:
    whole = normal(10, 4)
    (one,) = measure_powers([[whole]])
    (many,) = measure_powers([[whole[:3]], [whole[3:4]], [whole[4:]]])
    assert many == pytest.approx(one, rel=1e-6)
    assert measure_powers([[torch.zeros(3, 2)]]) == [1.0]
    assert measure_powers([[torch.tensor(3.0)]]) == [9.0]


def test_several_outputs_are_averaged_and_ignored_ones_left_out() -> None:
    references = [normal(5, 4, seed=5), normal(5, 8, seed=6), normal(5, 2, seed=7)]
    outputs = [t + 0.1 for t in references[:1]] + [normal(5, 8, seed=8), normal(5, 2, seed=9)]
    kinds: list[OutputKind] = ["regression", "logits", "ignored"]
    powers = measure_powers([references])
    found = divergence(outputs, references, kinds, powers)
    alone = [divergence([outputs[i]], [references[i]], [kinds[i]], [powers[i]]) for i in range(2)]
    assert torch.allclose(found, (alone[0] + alone[1]) / 2)


def test_outputs_with_different_first_dimensions_are_averaged_whole() -> None:
    references = [normal(4, 3, seed=1), normal(7, 4, 5, seed=2)]
    outputs = [normal(4, 3, seed=3), normal(7, 4, 5, seed=4)]
    kinds: list[OutputKind] = ["logits", "regression"]
    powers = measure_powers([references])
    found = divergence(outputs, references, kinds, powers)
    alone = [
        divergence([outputs[i]], [references[i]], [kinds[i]], [powers[i]]).mean() for i in range(2)
    ]
    assert found.shape == (1,)
    assert float(found) == pytest.approx(float(sum(alone) / 2), rel=1e-6)


def test_masked_and_identical_logits_cost_nothing() -> None:
    masked = normal(3, 5)
    masked[:, 2] = float("-inf")
    assert not divergence([masked], [masked], ["logits"], [1.0]).any()
    moved = masked + normal(3, 5, seed=1)
    keep = [0, 1, 3, 4]
    expected = divergence([moved[:, keep]], [masked[:, keep]], ["logits"], [1.0])
    assert torch.allclose(divergence([moved], [masked], ["logits"], [1.0]), expected)


def test_logits_of_one_sample_without_a_batch() -> None:
    reference, output = normal(6, seed=1), normal(6, seed=2)
    with_batch = divergence([output[None]], [reference[None]], ["logits"], [1.0])
    assert torch.equal(divergence([output], [reference], ["logits"], [1.0]), with_batch)
    (probe,) = draw_probes([output], ["logits"], [1.0], generator(3))
    (batched,) = draw_probes([output[None]], ["logits"], [1.0], generator(3))
    assert torch.equal(probe, batched[0])


@pytest.mark.parametrize("sharpness", [0.0, 1.0, 4.0])
def test_probes_have_the_softmaxs_fisher_information(sharpness: float) -> None:
    logits = normal(1, 5, scale=sharpness).repeat(200_000, 1)
    (v,) = draw_probes([logits], ["logits"], [1.0], generator(1))
    p = F.softmax(logits[0], dim=-1)
    fisher = torch.diag(p) - torch.outer(p, p)
    assert torch.allclose(v.T @ v / len(v), fisher, atol=4e-3)
    assert torch.allclose(v.mean(0), torch.zeros(5), atol=5e-3)


def test_probes_of_a_certain_prediction_vanish() -> None:
    logits = torch.tensor([[80.0, 0.0, -10.0], [0.0, 0.0, 200.0]])
    (v,) = draw_probes([logits], ["logits"], [1.0], generator())
    assert torch.isfinite(v).all()
    assert float(v.abs().max()) < 1e-12


CASES: list[tuple[list[OutputKind], list[tuple[int, ...]]]] = [
    (["logits"], [(2, 6)]),
    (["logits"], [(2, 3, 5)]),
    (["logits"], [(2, 4, 3, 2)]),
    (["embedding"], [(2, 8)]),
    (["regression"], [(2,)]),
    (["regression"], [(2, 3, 4)]),
    (["logits", "ignored", "embedding"], [(2, 5), (2, 3), (2, 4)]),
]


@pytest.mark.parametrize(("kinds", "shapes"), CASES)
def test_half_the_squared_score_is_the_divergence_of_a_small_change(
    kinds: list[OutputKind], shapes: list[tuple[int, ...]]
) -> None:
    references = [normal(*shape, seed=i).double() for i, shape in enumerate(shapes)]
    changes = [normal(*shape, seed=9 + i).double() * 1e-3 for i, shape in enumerate(shapes)]
    powers = measure_powers([references])
    moved = [a + b for a, b in zip(references, changes, strict=True)]
    truth = divergence(moved, references, kinds, powers)
    rng = generator(4)
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(4000):
        probes = draw_probes(references, kinds, powers, rng)
        total += _score(probes, changes, kinds).square() / 2
    assert torch.allclose(total / 4000, truth, rtol=0.12)


def _score(
    probes: Sequence[torch.Tensor], changes: Sequence[torch.Tensor], kinds: Sequence[OutputKind]
) -> torch.Tensor:
    counting = [c for c, kind in zip(changes, kinds, strict=True) if kind != "ignored"]
    parts = [(v * c).reshape(2, -1).sum(1) for v, c in zip(probes, counting, strict=True)]
    return torch.stack(parts).sum(0)


def test_probes_repeat_with_the_seed() -> None:
    output = normal(4, 6)
    first, again, other = (
        draw_probes([output], ["logits"], [1.0], generator(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
