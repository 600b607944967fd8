"""The published architectures, built from their configurations with random weights.

Costs depend on shapes alone. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.models import Hidden, Logits

CLASSES: Final = 1000
LABELS: Final[dict[str, Any]] = {"num_labels": CLASSES}
BLOCKS: Final = 32
"""Of LLaMA 7B."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model with inputs for one sample. size: pixels a side, or tokens."""

    model: nn.Module
    inputs: dict[str, Tensor]


def build(name: str, size: int, blocks: int | None = None) -> Subject:
    """The architecture of that name for pictures of ``size`` pixels or ``size`` tokens.

    blocks: how many a decoder has; all of them where it is not said.

    Raises:
        KeyError: no such architecture.
    """
    torch.manual_seed(0)
    if name in ENCODERS:
        ids = torch.arange(size)[None] % 1000 + 1000
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Subject(model=Hidden(ENCODERS[name]()).eval(), inputs=inputs)
    if name in DECODERS:
        ids = torch.arange(size)[None] % 1000 + 1000
        model = DECODERS[name](blocks or BLOCKS)
        return Subject(model=_Decoder(model).eval(), inputs={"input_ids": ids})
    pixels = torch.randn(1, 3, size, size)
    if name in PLAIN:
        return Subject(model=PLAIN[name](size).eval(), inputs={"pixel_values": pixels})
    model = Logits(PICTURES[name](size)).eval()
    _enliven(model, pixels)
    return Subject(model=model, inputs={"pixel_values": pixels})


def _enliven(model: nn.Module, pixels: Tensor) -> None:
    """Weights and statistics with which activations keep their size from layer to layer.

    With those of the configurations they fade below what float32 has at full speed: processors
    take many times as long for such numbers, which no trained network has.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        norm.train()
        nn.init.ones_(norm.weight)
        norm.momentum = 1.0  # the statistics are those of the pixels
    with torch.no_grad():
        model(pixel_values=pixels)
    for norm in norms:
        norm.eval()


class _Decoder(nn.Module):
    """A decoder from tokens to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids).logits
        return logits


class _Pixels(nn.Module):
    """A network of torch layers under the name that pictures have elsewhere."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.layers(pixel_values)
        return logits


def _bert(**sizes: Any) -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**sizes), add_pooling_layer=False)


def _distilbert() -> nn.Module:
    from transformers import DistilBertConfig, DistilBertModel

    return DistilBertModel(DistilBertConfig())


def _resnet(depths: tuple[int, ...], kind: str) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    config = ResNetConfig(layer_type=kind, depths=list(depths), hidden_sizes=widths, **LABELS)
    return ResNetForImageClassification(config)


def _mobilenet_v1(size: int) -> nn.Module:
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    config = MobileNetV1Config(image_size=size, **LABELS, tf_padding=False)
    return MobileNetV1ForImageClassification(config)


def _mobilenet_v2(size: int) -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(image_size=size, **LABELS, tf_padding=False)
    return MobileNetV2ForImageClassification(config)


def _efficientnet_b0(size: int) -> nn.Module:
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    config = EfficientNetConfig(
        image_size=size,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        **LABELS,
    )
    return EfficientNetForImageClassification(config)


def _vgg16(size: int) -> nn.Module:
    """Configuration D of Simonyan and Zisserman, arXiv 1409.1556."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    side = size // 32
    layers += [nn.Flatten(), nn.Linear(512 * side * side, 4096), nn.ReLU()]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES)]
    return _Pixels(nn.Sequential(*layers))


def _llama_7b(blocks: int) -> nn.Module:
    """The shape of LLaMA 7B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks, use_cache=False))


ENCODERS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "bert-base": _bert,
    "bert-large": lambda: _bert(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    ),
    "minilm-l6": lambda: _bert(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),
    "minilm-l12": lambda: _bert(hidden_size=384, intermediate_size=1536),
    "distilbert": _distilbert,
}

DECODERS: Final[Mapping[str, Callable[[int], nn.Module]]] = {"llama-7b": _llama_7b}

PICTURES: Final[Mapping[str, Callable[[int], nn.Module]]] = {
    "resnet-18": lambda _: _resnet((2, 2, 2, 2), "basic"),
    "resnet-50": lambda _: _resnet((3, 4, 6, 3), "bottleneck"),
    "mobilenet-v1": _mobilenet_v1,
    "mobilenet-v2": _mobilenet_v2,
    "efficientnet-b0": _efficientnet_b0,
}

PLAIN: Final[Mapping[str, Callable[[int], nn.Module]]] = {"vgg-16": _vgg16}
