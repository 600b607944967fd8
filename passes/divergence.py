"""How far outputs are from the float model's, and random probes of that distance's curvature."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

import torch
import torch.nn.functional as F

OutputKind = Literal["logits", "embedding", "regression", "ignored"]
KINDS: Final[tuple[OutputKind, ...]] = ("logits", "embedding", "regression", "ignored")


def divergence(
    outputs: Sequence[torch.Tensor],
    references: Sequence[torch.Tensor],
    kinds: Sequence[OutputKind],
    powers: Sequence[float],
) -> torch.Tensor:
    """Distance of every sample, shape (batch,); the mean over outputs that count.

    logits: Kullback-Leibler divergence in nats from the reference's softmax, the mean over a
    sample's predictions. embedding, regression: mean squared error over the reference's own power
    (``powers``, its mean square). When the outputs disagree in their first dimension
    they have no samples in common, and the shape is (1,).
    """
    terms = [
        _kl(output, reference)
        if kind == "logits"
        else (output - reference).square().reshape(_samples(output), -1).mean(1) / power
        for output, reference, kind, power in zip(outputs, references, kinds, powers, strict=True)
        if kind != "ignored"
    ]
    if len({len(term) for term in terms}) > 1:
        terms = [term.mean(dim=0, keepdim=True) for term in terms]
    return torch.stack(terms).mean(dim=0)


def draw_probes(
    outputs: Sequence[torch.Tensor],
    kinds: Sequence[OutputKind],
    powers: Sequence[float],
    generator: torch.Generator,
    samples: int | None = None,
) -> list[torch.Tensor]:
    """One random v per counting output with E[v vᵀ] = the Hessian of ``divergence`` at zero error.

    So ½ E⟨v, error⟩² is the divergence to second order. Logits: v = √p∘ε − p⟨√p, ε⟩ with random
    signs ε, whose second moment is diag(p) − p pᵀ, the softmax's Fisher information. Squared
    error: ε times √(2/power/elements). Predictions of a sample have independent signs.

    samples: how many the batch has, where that is not the outputs' first dimension.
    """
    counting = sum(kind != "ignored" for kind in kinds)
    probes: list[torch.Tensor] = []
    for output, kind, power in zip(outputs, kinds, powers, strict=True):
        if kind == "ignored":
            continue
        signs = torch.randint(0, 2, output.shape, generator=generator).to(output.dtype) * 2 - 1
        if kind == "logits":
            rows = class_rows(output)
            first = _samples(rows[..., 0])
            predictions = rows[..., 0].numel() // first
            p = F.softmax(rows.detach(), dim=-1)
            root = p.sqrt()
            aligned = class_rows(signs)
            v = root * aligned - p * (root * aligned).sum(-1, keepdim=True)
            probe = rows_to_output(v, output) / predictions**0.5
        else:
            first = _samples(output)
            probe = signs * (2 / power * first / output.numel()) ** 0.5
        probes.append(probe * ((samples or first) / first / counting) ** 0.5)
    return probes


def measure_powers(references: Iterable[Sequence[object]]) -> list[float]:
    """Mean square of every output's elements, over batches of outputs; never zero.

    Reads one batch at a time. Outputs that are no floating-point tensors have power 1.
    """
    totals: list[float] = []
    counts: list[int] = []
    for outputs in references:
        totals = totals or [0.0] * len(outputs)
        counts = counts or [0] * len(outputs)
        for index, output in enumerate(outputs):
            if isinstance(output, torch.Tensor) and output.is_floating_point():
                totals[index] += float(output.float().square().sum())
                counts[index] += output.numel()
    return [total / max(n, 1) or 1.0 for total, n in zip(totals, counts, strict=True)]


def class_rows(logits: torch.Tensor) -> torch.Tensor:
    """Classes last: images of logits (batch, classes, height, width) are turned."""
    return logits.movedim(1, -1) if logits.ndim == 4 else logits


def rows_to_output(rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Undo ``class_rows``."""
    return rows.movedim(-1, 1) if output.ndim == 4 else rows


def _kl(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    log_q = F.log_softmax(class_rows(output), dim=-1)
    log_p = F.log_softmax(class_rows(reference), dim=-1)
    # A class of probability zero (a masked logit) adds nothing; the formula alone gives 0 * nan.
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    # Rounding makes the sum of a vanishing divergence slightly negative.
    per_prediction = terms.sum(-1).clamp_min(0.0)
    return per_prediction.reshape(_samples(per_prediction), -1).mean(dim=1)


def _samples(values: torch.Tensor) -> int:
    """The first dimension; 1 for a single number."""
    return values.shape[0] if values.ndim else 1


Loss = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]
