"""What a whole plan's memory and energy are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryParts:
    """Bytes at the moment when a plan takes the most; but for ``runtime_bytes`` they add up to its
    memory.

    weights_bytes: weights and other constants as the runtime keeps them. opening_bytes: what
    opening the model takes beyond them, where that is the moment. activations_bytes: tensors that
    are alive. scratch_bytes: what the operator running then needs besides. cache_bytes: keys and
    values that a decoder keeps. runtime_bytes: the runtime's own code and data, which come on top;
    None where nothing is known of them.
    """

    weights_bytes: float = 0.0
    opening_bytes: float = 0.0
    activations_bytes: float = 0.0
    scratch_bytes: float = 0.0
    cache_bytes: float = 0.0
    runtime_bytes: float | None = None

    @property
    def total_bytes(self) -> float:
        """The plan's memory, without the runtime's own."""
        weights = self.weights_bytes + self.opening_bytes
        return weights + self.activations_bytes + self.scratch_bytes + self.cache_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyParts:
    """Joules of one forward's layers, which add up to the plan's energy.

    compute_j: arithmetic. memory_j: traffic of weights and activations.
    """

    compute_j: float = 0.0
    memory_j: float = 0.0

    @property
    def joules(self) -> float:
        """The sum."""
        return self.compute_j + self.memory_j

    def __add__(self, other: EnergyParts) -> EnergyParts:
        """Part by part."""
        return EnergyParts(
            compute_j=self.compute_j + other.compute_j, memory_j=self.memory_j + other.memory_j
        )
