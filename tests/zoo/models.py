"""Architectures that people have, built from their own configurations with small random weights.

Nothing is downloaded and no model is changed: every class is the one that transformers or torch
ships. Random weights count for structure only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advisor.inputs import normalise_inputs
from tests.zoo.own import OWN, Maker

WIDTH = 32
VOCABULARY = 64
TOKENS = 12
IMAGE = 32

DEPTHS = frozenset({"num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"})
"""What configurations call the number of blocks that are all alike."""

STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model's class by its public name, how to build it, and inputs for a batch.

    make_shallow: builds it with one block in place of several alike; None: it has none such.
    """

    name: str
    source: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    make_shallow: Callable[[], nn.Module] | None = None

    def build(self, *, shallow: bool = False) -> nn.Module:
        """The model in evaluation mode; the same weights every time.

        shallow: every kind of block, but where several are alike only one of them.
        """
        make = self.make_shallow if shallow and self.make_shallow is not None else self.make
        state = torch.get_rng_state()
        torch.manual_seed(0)
        try:
            return _normalised(_rescaled(make().eval()), self.inputs(4))
        finally:
            torch.set_rng_state(state)


def _rescaled(model: nn.Module) -> nn.Module:
    """Weights that keep a signal's power; with those of a config it fades in deep networks."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                part.weight.normal_(std=(part.weight[0].numel()) ** -0.5)
    return model


def _normalised(model: nn.Module, inputs: Any) -> nn.Module:
    """Batch norms that know the statistics of some inputs; gated networks fade without."""
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        return model
    for norm in norms:
        norm.momentum = 0.9  # the rest keeps channels that never vary from being blown up
    with torch.no_grad():
        given = normalise_inputs(model, inputs)
        model.train()(*given.args, **given.kwargs)
    return model.eval()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def ids(batch: int) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, VOCABULARY, (batch, TOKENS), generator=_generator())}


def masked_ids(batch: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, TOKENS, dtype=torch.long)
    mask[:, -2:] = 0
    return {**ids(batch), "attention_mask": mask}


def pixels(batch: int, size: int = IMAGE) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(batch, 3, size, size, generator=_generator())}


def large_pixels(batch: int) -> dict[str, Tensor]:
    return pixels(batch, 64)


def huge_pixels(batch: int) -> dict[str, Tensor]:
    return pixels(batch, 128)


def _transformers(
    name: str,
    model: str,
    config: str,
    inputs: Callable[[int], Any],
    *,
    part: str | None = None,
    shallow: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Architecture:
    """shallow: the settings with which it has one of every kind of block; None: one layer."""

    def make(settings: Mapping[str, Any]) -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return made if part is None else made.get_submodule(part)

    fewer = dict.fromkeys(DEPTHS & settings.keys(), 1) if shallow is None else shallow
    return Architecture(
        name=name,
        source=f"transformers.{model}" + (f" ({part})" if part else ""),
        make=partial(make, settings),
        inputs=inputs,
        make_shallow=partial(make, {**settings, **fewer}),
    )


ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
DECODER: dict[str, Any] = {**ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED: dict[str, Any] = {**DECODER, "num_attention_heads": 4, "num_key_value_heads": 2}
PATCHES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": IMAGE,
    "patch_size": 8,
}


def _encoders() -> list[Architecture]:
    make = _transformers
    return [
        make("bert", "BertForSequenceClassification", "BertConfig", masked_ids, **ENCODER),
        make(
            "distilbert",
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            masked_ids,
            vocab_size=VOCABULARY,
            dim=WIDTH,
            n_layers=2,
            n_heads=2,
            hidden_dim=64,
            max_position_embeddings=40,
        ),
        make("roberta", "RobertaForMaskedLM", "RobertaConfig", masked_ids, **ENCODER),
        make(
            "albert",
            "AlbertForSequenceClassification",
            "AlbertConfig",
            masked_ids,
            shallow={},  # its layers share their weights
            embedding_size=16,
            **ENCODER,
        ),
        make("electra", "ElectraForPreTraining", "ElectraConfig", masked_ids, **ENCODER),
        make(
            "deberta-v2",
            "DebertaV2Model",
            "DebertaV2Config",
            masked_ids,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_buckets=16,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            **ENCODER,
        ),
        make("mpnet", "MPNetModel", "MPNetConfig", masked_ids, **ENCODER),
        make(
            "modernbert",
            "ModernBertForMaskedLM",
            "ModernBertConfig",
            masked_ids,
            shallow={},  # the second layer looks at neighbours only
            **{**ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
            cls_token_id=1,
            sep_token_id=2,
        ),
        make(
            "t5-encoder",
            "T5EncoderModel",
            "T5Config",
            masked_ids,
            shallow={},  # the second layer reads the position bias of the first
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=16,
            d_ff=64,
            num_layers=2,
            num_heads=2,
        ),
        make(
            "bart-encoder",
            "BartModel",
            "BartConfig",
            masked_ids,
            part="encoder",
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=40,
        ),
        make(
            "clip-text",
            "CLIPTextModelWithProjection",
            "CLIPTextConfig",
            masked_ids,
            projection_dim=16,
            **DECODER,
        ),
    ]


def _decoders() -> list[Architecture]:
    make = _transformers
    return [
        make(
            "gpt2",
            "GPT2LMHeadModel",
            "GPT2Config",
            ids,
            vocab_size=VOCABULARY,
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
            n_positions=40,
        ),
        make("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", ids, **ENCODER),
        make(
            "opt",
            "OPTForCausalLM",
            "OPTConfig",
            masked_ids,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            max_position_embeddings=40,
            word_embed_proj_dim=16,
        ),
        make("llama", "LlamaForCausalLM", "LlamaConfig", masked_ids, **GROUPED),
        make("mistral", "MistralForCausalLM", "MistralConfig", ids, sliding_window=8, **GROUPED),
        make("qwen2", "Qwen2ForCausalLM", "Qwen2Config", masked_ids, **GROUPED),
        make("qwen3", "Qwen3ForCausalLM", "Qwen3Config", masked_ids, head_dim=16, **GROUPED),
        make("gemma", "GemmaForCausalLM", "GemmaConfig", masked_ids, head_dim=16, **GROUPED),
        make("phi", "PhiForCausalLM", "PhiConfig", masked_ids, **DECODER),
        make(
            "falcon",
            "FalconForCausalLM",
            "FalconConfig",
            masked_ids,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        make("stablelm", "StableLmForCausalLM", "StableLmConfig", masked_ids, **GROUPED),
        make(
            "mixtral",
            "MixtralForCausalLM",
            "MixtralConfig",
            masked_ids,
            num_local_experts=4,
            num_experts_per_tok=2,
            **GROUPED,
        ),
        make(
            "mamba",
            "MambaForCausalLM",
            "MambaConfig",
            ids,
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            state_size=8,
        ),
    ]


def _vision_transformers() -> list[Architecture]:
    make = _transformers
    return [
        make("vit", "ViTForImageClassification", "ViTConfig", pixels, **PATCHES),
        make("deit", "DeiTForImageClassification", "DeiTConfig", pixels, **PATCHES),
        make(
            "beit",
            "BeitForImageClassification",
            "BeitConfig",
            pixels,
            use_relative_position_bias=True,
            **PATCHES,
        ),
        make(
            "swin",
            "SwinForImageClassification",
            "SwinConfig",
            pixels,
            image_size=IMAGE,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
        ),
        make("dinov2", "Dinov2ForImageClassification", "Dinov2Config", pixels, **PATCHES),
        make("clip-vision", "CLIPVisionModel", "CLIPVisionConfig", pixels, **PATCHES),
        make("siglip-vision", "SiglipVisionModel", "SiglipVisionConfig", pixels, **PATCHES),
        make(
            "yolos",
            "YolosForObjectDetection",
            "YolosConfig",
            pixels,
            num_detection_tokens=5,
            **{**PATCHES, "image_size": [IMAGE, IMAGE]},
        ),
        make(
            "segformer",
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            large_pixels,
            shallow={
                "num_encoder_blocks": 2,
                "depths": [1, 1],
                "sr_ratios": [8, 1],
                "hidden_sizes": [8, 16],
                "patch_sizes": [7, 3],
                "strides": [4, 2],
                "num_attention_heads": [1, 2],
                "mlp_ratios": [4, 4],
            },
            depths=[1, 1, 1, 1],
            hidden_sizes=[8, 16, 16, 32],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
        ),
        make(
            "mobilevit",
            "MobileViTForImageClassification",
            "MobileViTConfig",
            huge_pixels,
            image_size=128,  # fewer would leave its last attention a single position
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 48],
            num_attention_heads=2,
        ),
        make(
            "detr",
            "DetrForObjectDetection",
            "DetrConfig",
            large_pixels,
            shallow={"backbone_config": {**_resnet_config(), **STAGES, "out_features": ["stage2"]}},
            use_timm_backbone=False,
            backbone_config=_resnet_config(),
            d_model=WIDTH,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_queries=5,
        ),
    ]


def _resnet_config() -> dict[str, Any]:
    return {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "layer_type": "basic",
        "out_features": ["stage4"],
    }


def _convolutional() -> list[Architecture]:
    make = _transformers
    return [
        make(
            "resnet",
            "ResNetForImageClassification",
            "ResNetConfig",
            pixels,
            embedding_size=8,
            hidden_sizes=[8, 16, 16, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
        ),
        make(
            "resnet-bottleneck",
            "ResNetForImageClassification",
            "ResNetConfig",
            pixels,
            embedding_size=8,
            hidden_sizes=[16, 32],
            depths=[1, 2],
        ),
        make(
            "mobilenet-v1",
            "MobileNetV1ForImageClassification",
            "MobileNetV1Config",
            pixels,
            depth_multiplier=0.25,
        ),
        make(
            "mobilenet-v2",
            "MobileNetV2ForImageClassification",
            "MobileNetV2Config",
            pixels,
            depth_multiplier=0.35,
        ),
        make(
            "efficientnet",
            "EfficientNetForImageClassification",
            "EfficientNetConfig",
            pixels,
            shallow={
                "kernel_sizes": [3, 3, 5],
                "in_channels": [32, 16, 24],
                "out_channels": [16, 24, 40],
                "strides": [1, 2, 2],
                "num_block_repeats": [1, 1, 4],
                "expand_ratios": [1, 6, 6],
            },
            width_coefficient=0.25,
            depth_coefficient=0.3,
            hidden_dim=320,
            initializer_range=0.2,  # with its own, activations fade below what float16 has
        ),
        make(
            "convnext",
            "ConvNextForImageClassification",
            "ConvNextConfig",
            pixels,
            shallow={**STAGES, "num_stages": 2},
            hidden_sizes=[8, 16, 16, 32],
            depths=[1, 1, 2, 1],
        ),
        make(
            "convnext-v2",
            "ConvNextV2ForImageClassification",
            "ConvNextV2Config",
            pixels,
            shallow={**STAGES, "num_stages": 2},
            hidden_sizes=[8, 16, 16, 32],
            depths=[1, 1, 2, 1],
        ),
        make(
            "regnet",
            "RegNetForImageClassification",
            "RegNetConfig",
            pixels,
            shallow=STAGES,
            embedding_size=8,
            hidden_sizes=[8, 16, 16, 32],
            depths=[1, 1, 2, 1],
            groups_width=8,
        ),
    ]


def _whisper_inputs(batch: int) -> dict[str, Tensor]:
    return {"input_features": torch.randn(batch, 16, 40, generator=_generator())}


def _wave(batch: int) -> dict[str, Tensor]:
    return {"input_values": torch.randn(batch, 800, generator=_generator())}


def _audio() -> list[Architecture]:
    make = _transformers
    wave: dict[str, Any] = {
        **ENCODER,
        "conv_dim": (16, 16, 16),
        "conv_kernel": (10, 3, 3),
        "conv_stride": (5, 2, 2),
        "num_feat_extract_layers": 3,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    return [
        make(
            "whisper-encoder",
            "WhisperModel",
            "WhisperConfig",
            _whisper_inputs,
            part="encoder",
            vocab_size=VOCABULARY,
            num_mel_bins=16,
            d_model=WIDTH,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=20,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        make("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", _wave, **wave),
        make(
            "hubert",
            "HubertModel",
            "HubertConfig",
            _wave,
            feat_extract_norm="layer",
            conv_bias=True,
            **wave,
        ),
    ]


def _own(name: str, make: Maker, inputs: Callable[[int], Any]) -> Architecture:
    return Architecture(name=name, source="plain torch", make=make, inputs=inputs)


ARCHITECTURES: tuple[Architecture, ...] = (
    *_encoders(),
    *_decoders(),
    *_vision_transformers(),
    *_convolutional(),
    *_audio(),
    *(_own(name, make, inputs) for name, (make, inputs) in OWN.items()),
)


def architecture(name: str) -> Architecture:
    """The entry of this name."""
    return next(entry for entry in ARCHITECTURES if entry.name == name)
