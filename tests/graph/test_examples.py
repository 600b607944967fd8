"""The example models: that the stored weights are as good as examples/README.md says."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from advisor.demo import digits
from advisor.errors import ModelError
from examples import byte_lm, digits_mobilenet, digits_vit
from examples.stored import WEIGHTS, load_weights, save_weights
from examples.transformer import Block


@pytest.mark.parametrize(
    ("example", "least"), [(digits_mobilenet, 0.98), (digits_vit, 0.96)], ids=["mobilenet", "vit"]
)
def test_digits_models_classify_unseen_images(example: Any, least: float) -> None:
    model, inputs, batches = example.build()
    assert digits.data().accuracy(model) >= least
    assert not model.training
    assert inputs.shape == (1, 1, 8, 8)
    assert sum(len(batch) for batch in batches) == 256


def test_byte_lm_predicts_files_it_never_saw() -> None:
    assert byte_lm.unigram_entropy() > 4
    assert byte_lm.bits_per_byte(byte_lm.load()) < 2.7


def test_bits_per_byte_of_a_uniform_guess_is_eight() -> None:
    uniform = byte_lm.bits_per_byte(lambda ids: torch.zeros(*ids.shape, byte_lm.VOCABULARY))
    assert uniform == pytest.approx(8.0)


def test_byte_lm_sees_no_later_byte() -> None:
    model, example, _ = byte_lm.build()
    changed = example.clone()
    changed[:, 100:] = 0
    with torch.no_grad():
        before, after = model(example), model(changed)
    torch.testing.assert_close(before[:, :100], after[:, :100])
    assert not torch.equal(before[:, 100:], after[:, 100:])


def test_parts_of_the_text_are_disjoint_files() -> None:
    parts = [byte_lm.text("train"), byte_lm.text("calibration"), byte_lm.text("evaluation")]
    sizes = [len(part) for part in parts]
    assert 0.7 < sizes[0] / sum(sizes) < 0.9
    files = Path(sysconfig.get_path("stdlib")).glob("*.py")
    modules = [file.read_bytes() for file in files if file.stat().st_size > 1000]
    assert all(sum(module in part for part in parts) == 1 for module in modules)


def test_block_is_torchs_own_pre_norm_layer() -> None:
    torch.manual_seed(0)
    block = Block(16, 4, causal=True).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    names = {
        "self_attn.in_proj_weight": block.qkv.weight,
        "self_attn.in_proj_bias": block.qkv.bias,
        "self_attn.out_proj.weight": block.out.weight,
        "self_attn.out_proj.bias": block.out.bias,
        "linear1.weight": block.up.weight,
        "linear1.bias": block.up.bias,
        "linear2.weight": block.down.weight,
        "linear2.bias": block.down.bias,
        "norm1.weight": block.norm1.weight,
        "norm1.bias": block.norm1.bias,
        "norm2.weight": block.norm2.weight,
        "norm2.bias": block.norm2.bias,
    }
    theirs.load_state_dict(names)
    x = torch.randn(2, 7, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    with torch.no_grad():
        expected = theirs(x, src_mask=mask, is_causal=True)
        torch.testing.assert_close(block(x), expected)


def test_stored_weights_are_small_and_come_back(tmp_path: Path) -> None:
    assert all(file.stat().st_size < 1_500_000 for file in WEIGHTS.glob("*.safetensors"))
    model = digits_mobilenet.DigitsMobileNet()
    save_weights(model, tmp_path / "model.safetensors")
    again = load_weights(digits_mobilenet.DigitsMobileNet(), tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        expected = value.half().to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(again.state_dict()[name], expected)
        assert again.state_dict()[name].dtype == value.dtype


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match="cannot be read"):
        load_weights(nn.Linear(2, 2), path)
    save_weights(nn.Linear(2, 3), path)
    with pytest.raises(ModelError, match=r"weight is \(3, 2\), and \(2, 2\) is needed"):
        load_weights(nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match="does not fit: bias"):
        load_weights(nn.Linear(2, 3, bias=False), path)
