"""One module per kind of layer: how it is written in ONNX and read back."""

from __future__ import annotations

from typing import Final

from advisor.targets.manifest import LayerRecord
from advisor.targets.onnxruntime.forms import recurrent
from advisor.targets.tensorrt.forms import conv, embedding, linear, product
from advisor.targets.tensorrt.forms.form import Form

RECURRENT: Final = Form(
    write=recurrent.write, read=recurrent.read, operators=frozenset({"LSTM", "GRU"})
)
"""As ONNX Runtime has them: float32 alone is planned."""

FORMS: Final[dict[str, Form]] = {
    "linear": linear.FORM,
    "conv1d": conv.FORM,
    "conv2d": conv.FORM,
    "conv_transpose1d": conv.TRANSPOSED,
    "conv_transpose2d": conv.TRANSPOSED,
    "embedding": embedding.FORM,
    "lstm": RECURRENT,
    "gru": RECURRENT,
    "matmul": product.FORM,
}


def form_of(layer: LayerRecord) -> Form | None:
    """The form that wrote a layer; None for one that was left as torch.onnx writes it."""
    if layer.op == "matmul" and layer.weight:
        return None
    return FORMS.get(layer.op)
