"""One module per kind of layer: how it is written in ONNX, read back, and executed.

A form is pure data about one operator; ``FORMS`` finds it by ``Layer.op``. Adding a kind of layer
means one module here and one entry below.
"""

from __future__ import annotations

from typing import Final

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
