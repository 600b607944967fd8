"""One module per kind of layer: how it is written in ONNX, read back, and executed.

A form is pure data about one operator; ``FORMS`` has it by ``Layer.op``. Adding a kind of layer
means one module here and one entry below.
"""

from __future__ import annotations

from typing import Final

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms import (
    conv,
    conv_transpose,
    embedding,
    linear,
    product,
    recurrent,
)
from advisor.targets.onnxruntime.forms.form import Form

FORMS: Final[dict[str, Form]] = {
    "linear": linear.FORM,
    "conv1d": conv.FORM,
    "conv2d": conv.FORM,
    "conv_transpose1d": conv_transpose.FORM,
    "conv_transpose2d": conv_transpose.FORM,
    "embedding": embedding.FORM,
    "lstm": recurrent.FORM,
    "gru": recurrent.FORM,
    "matmul": product.FORM,
}


def form_of(layer: LayerRecord) -> Form | None:
    """The form that wrote a layer; None for one that was left as torch.onnx writes it.

    A product has no weight: one with a constant (kept in float) is no form's business.
    """
    if layer.op == "matmul" and layer.weight:
        return None
    return FORMS.get(layer.op)
