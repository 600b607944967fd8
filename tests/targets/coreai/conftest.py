"""Quantized graphs for Core AI."""

import pytest

from tests.targets.making import Quantizer, maker


@pytest.fixture(scope="session")
def make_quantized() -> Quantizer:
    """(model, args, scheme or {layer: scheme}, batch=, kwargs=) -> QuantizedGraph."""
    return maker("coreai")
