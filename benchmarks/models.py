"""The models of the comparison, each with its data at one deployment batch.

Trained: the examples' models, with calibration data, evaluation data that is used for nothing else,
and a quality measured on it. Structure only: standard architectures with random weights, which say
something about speed and bytes and nothing about accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from advisor.passes.divergence import OutputKind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Inputs = dict[str, Tensor]
"""Tensors by the name of the model's parameter."""

Quality = Callable[[Callable[..., Tensor]], dict[str, float]]
"""From a callable that takes the model's inputs and gives its output, to named numbers."""

STRUCTURE_SAMPLES: Final = 4
BERT_TOKENS: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model at one batch size.

    calibration, evaluation: batches of inputs; those of ``evaluation`` have the deployment's batch,
    because a scale taken at run time depends on it. quality: None with random weights.
    """

    name: str
    model: nn.Module
    kind: OutputKind
    batch: int
    example: Inputs
    calibration: list[Inputs]
    evaluation: list[Inputs]
    quality: Quality | None = None

    @property
    def is_trained(self) -> bool:
        """Whether divergence and quality say something about accuracy."""
        return self.quality is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How to make a case. batches: the sizes that are compared by default."""

    make: Callable[[int], Case]
    batches: tuple[int, ...] = (1,)
    tags: frozenset[str] = field(default_factory=frozenset[str])


def digits_cnn(batch: int) -> Case:
    """The demo's residual CNN."""
    from advisor.demo import digits

    return _digits("digits_cnn", digits.load(), batch)


def digits_mobilenet(batch: int) -> Case:
    """Depthwise-separable inverted residuals."""
    from examples import digits_mobilenet as example

    return _digits("digits_mobilenet", example.load(), batch)


def digits_vit(batch: int) -> Case:
    """Vision transformer."""
    from examples import digits_vit as example

    return _digits("digits_vit", example.load(), batch)


def byte_lm(batch: int) -> Case:
    """Byte-level language model, 128 bytes per sequence."""
    from examples import byte_lm as example

    evaluation = torch.cat(example.evaluation_batches())
    return Case(
        name=_named("byte_lm", batch),
        model=example.load(),
        kind="logits",
        batch=batch,
        example={"input_ids": evaluation[:batch]},
        calibration=[{"input_ids": each} for each in example.calibration_batches()],
        evaluation=in_batches({"input_ids": evaluation}, batch),
        quality=lambda run: {
            "bits per byte": example.bits_per_byte(lambda ids: _run_in_batches(run, ids, batch))
        },
    )


def minilm(batch: int) -> Case:
    """Sentence embeddings, 32 tokens per sentence."""
    from examples import minilm as example

    encoded = example.evaluation_batches()
    sentences = {name: torch.cat([each[name] for each in encoded]) for name in encoded[0]}
    evaluation = in_batches(sentences, batch)

    def quality(run: Callable[..., Tensor]) -> dict[str, float]:
        def encode(**inputs: Tensor) -> Tensor:
            return torch.cat([run(**each) for each in in_batches(inputs, batch)])

        found = example.retrieval_agreement(encode)
        return {"same nearest neighbour": found.top1, "ten nearest in common": found.overlap}

    return Case(
        name=_named("minilm", batch),
        model=example.encoder(),
        kind="embedding",
        batch=batch,
        example=evaluation[0],
        calibration=example.calibration_batches(),
        evaluation=evaluation,
        quality=quality,
    )


def resnet18(batch: int) -> Case:
    """ResNet-18 at 224 x 224 pixels, random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        embedding_size=64,
    )
    return _images("resnet18", ResNetForImageClassification, config, batch)


def mobilenet_v2(batch: int) -> Case:
    """MobileNetV2 at 224 x 224 pixels, random weights."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config()
    return _images("mobilenet_v2", MobileNetV2ForImageClassification, config, batch)


def bert_base(batch: int) -> Case:
    """A BERT of the base shape on 128 tokens, random weights, its hidden states as the output."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = Hidden(BertModel(BertConfig(), add_pooling_layer=False)).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (max(STRUCTURE_SAMPLES, batch), BERT_TOKENS)
    ids = torch.randint(1000, 30000, shape, generator=generator)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Case(
        name=_named("bert_base", batch),
        model=model,
        kind="embedding",
        batch=batch,
        example={name: value[:batch] for name, value in data.items()},
        calibration=in_batches({k: v[:STRUCTURE_SAMPLES] for k, v in data.items()}, 1),
        evaluation=in_batches(data, batch),
    )


CASES: Final[Mapping[str, Entry]] = {
    "digits_cnn": Entry(make=digits_cnn),
    "digits_mobilenet": Entry(make=digits_mobilenet),
    "digits_vit": Entry(make=digits_vit),
    "byte_lm": Entry(make=byte_lm),
    "minilm": Entry(make=minilm),
    "resnet18": Entry(make=resnet18, batches=(1, 16)),
    "mobilenet_v2": Entry(make=mobilenet_v2, batches=(1, 16)),
    "bert_base": Entry(make=bert_base, batches=(1, 16)),
}


def case_names() -> list[str]:
    """Every case of the comparison, such as "resnet18" and "resnet18-b16"."""
    return [_named(name, batch) for name, entry in CASES.items() for batch in entry.batches]


def make_case(name: str) -> Case:
    """The case of that name; a suffix such as "-b16" sets the batch.

    Raises:
        KeyError: no such model.
    """
    model, _, batch = name.partition("-b")
    if model not in CASES:
        raise KeyError(f"no model {model}; known: {', '.join(CASES)}")
    return CASES[model].make(int(batch or 1))


def in_batches(inputs: Mapping[str, Tensor], batch: int) -> list[Inputs]:
    """Cut inputs into full batches; a rest is left out, because files have one batch size."""
    count = min(len(value) for value in inputs.values())
    return [
        {name: value[start : start + batch] for name, value in inputs.items()}
        for start in range(0, count - batch + 1, batch)
    ]


class Logits(nn.Module):
    """A transformers classifier from pixels to logits, without the dataclass around them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Classify pixels."""
        logits: Tensor = self.model(pixel_values=pixel_values).logits
        return logits


class Hidden(nn.Module):
    """A transformers encoder from tokens to its last hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode tokens."""
        states: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
        return states


def _digits(name: str, model: nn.Module, batch: int) -> Case:
    from advisor.demo import digits

    images = digits.data()
    return Case(
        name=_named(name, batch),
        model=model,
        kind="logits",
        batch=batch,
        example={"x": images.test[:batch]},
        calibration=[{"x": each} for each in images.calibration_batches()],
        evaluation=in_batches({"x": images.test}, batch),
        quality=lambda run: {
            "test accuracy": images.accuracy(lambda x: _run_in_batches(run, x, batch))
        },
    )


def _images(name: str, classifier: type[nn.Module], config: PretrainedConfig, batch: int) -> Case:
    torch.manual_seed(0)
    config.num_labels = 1000
    model = Logits(classifier(config))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(max(STRUCTURE_SAMPLES, batch), 3, 224, 224, generator=generator)
    _settle_norms(model, pixels[:STRUCTURE_SAMPLES])
    return Case(
        name=_named(name, batch),
        model=model.eval(),
        kind="logits",
        batch=batch,
        example={"pixel_values": pixels[:batch]},
        calibration=in_batches({"pixel_values": pixels[:STRUCTURE_SAMPLES]}, 1),
        evaluation=in_batches({"pixel_values": pixels}, batch),
    )


def _settle_norms(model: nn.Module, pixels: Tensor) -> None:
    """Give batch norms the statistics of the data: with their initial ones, activations of random
    weights fade until they are denormal, which is slow in float and zero in integers."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a plain average
    model.train()
    with torch.no_grad():
        model(pixels)


def _named(name: str, batch: int) -> str:
    return name if batch == 1 else f"{name}-b{batch}"


def _run_in_batches(run: Callable[..., Tensor], inputs: Tensor, batch: int) -> Tensor:
    return torch.cat([torch.as_tensor(run(each)) for each in torch.split(inputs, batch)])
