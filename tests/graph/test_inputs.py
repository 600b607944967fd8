"""Inputs: every way to give them, every way to infer them, every way to get them wrong."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advisor.errors import CalibrationError, InputError
from advisor.inferred import infer_inputs, run_once, synthetic_calibration
from advisor.inputs import Inputs, check_finite, check_inputs, normalise_inputs, split_label


class One(nn.Module):
    """One required tensor and a switch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, return_both: bool = False) -> Any:
        y = self.linear(x)
        return (x, y) if return_both else y


class Two(nn.Module):
    """Two required tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        product: Tensor = self.embed(input_ids) * attention_mask[..., None]
        return product


class Optional(nn.Module):
    """A second tensor that may be left out."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x if mask is None else x * mask


class Batch(nn.Module):
    """One mapping as its only argument."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["a"] + batch["b"]


def test_a_tensor_is_the_only_argument() -> None:
    x = torch.ones(2, 4)
    inputs = normalise_inputs(One(), x)
    assert inputs.args[0] is x
    assert inputs.names == ("x",)
    assert inputs.batch == 2


def test_a_sequence_is_positional_and_a_mapping_by_name() -> None:
    ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5)
    by_position = normalise_inputs(Two(), [ids, mask])
    by_name = normalise_inputs(Two(), UserDict(input_ids=ids, attention_mask=mask))
    assert list(by_position.tensors()) == list(by_name.tensors()) == ["input_ids", "attention_mask"]
    assert by_name.args == ()


def test_a_mapping_of_other_names_is_one_argument() -> None:
    inputs = normalise_inputs(Batch(), {"a": torch.ones(2), "b": torch.ones(2)})
    assert len(inputs.args) == 1
    assert list(inputs.tensors()) == ["batch_a", "batch_b"]
    assert torch.equal(Batch()(*inputs.args), torch.full((2,), 2.0))


def test_numpy_arrays_become_tensors_of_the_models_dtype() -> None:
    inputs = normalise_inputs(One(), np.ones((2, 4)))
    assert inputs.args[0].dtype == torch.float32
    integers = normalise_inputs(Two(), (np.zeros((2, 3), dtype=np.int64), np.ones((2, 3), bool)))
    assert [tensor.dtype for tensor in integers.args] == [torch.int64, torch.bool]


def test_an_array_is_copied() -> None:
    array = np.ones((1, 4), dtype=np.float32)
    inputs = normalise_inputs(One(), array)
    array[:] = 7
    assert float(inputs.args[0].max()) == 1.0


def test_map_tensors_keeps_the_structure() -> None:
    inputs = Inputs(args=((torch.zeros(1), [torch.zeros(2)]),), kwargs={"n": {"k": torch.ones(3)}})
    doubled = inputs.map_tensors({name: t + 2 for name, t in inputs.tensors().items()})
    assert isinstance(doubled.args[0], tuple)
    assert isinstance(doubled.args[0][1], list)
    assert float(doubled.kwargs["n"]["k"][0]) == 3.0
    assert list(inputs.tensors()) == ["input_0_0", "input_0_1_0", "n_k"]


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (One(), "a sentence", "type str"),
        (One(), None, "NoneType"),
        (One(), (), "no tensor"),
        (Two(), torch.zeros(2, 5), "1 positional inputs given, .* takes 2"),
        (Two(), {"input_ids": torch.zeros(2)}, "lack attention_mask"),
        (Two(), {"input_ids": 1, "atention_mask": 1}, "did you mean attention_mask"),
        (One(), np.array(["text"]), "dtype <U4"),
        (One(), (torch.zeros(1), True, torch.zeros(1)), "takes 1 to 2"),
    ],
)
def test_unusable_inputs_are_refused(model: nn.Module, inputs: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalise_inputs(model, inputs)


def test_a_pair_for_a_model_of_one_tensor_is_inputs_and_label() -> None:
    x, label = torch.zeros(2, 4), torch.tensor([1, 0])
    for item in ((x, label), [x, label]):  # a DataLoader's default collate makes lists
        inputs, found = split_label(One(), item)
        assert inputs.args == (x,)
        assert found is label


def test_a_pair_for_a_model_of_two_tensors_is_inputs() -> None:
    pair = (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5))
    inputs, label = split_label(Two(), pair)
    assert len(inputs.args) == 2
    assert label is None


def test_a_nested_first_element_is_the_inputs() -> None:
    pair = (torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5))
    inputs, label = split_label(Two(), (pair, "cat"))
    assert len(inputs.args) == 2
    assert label == "cat"
    named, label = split_label(Two(), ({"input_ids": pair[0], "attention_mask": pair[1]}, None))
    assert set(named.kwargs) == {"input_ids", "attention_mask"}
    assert label is None


def test_a_mapping_carries_its_label_by_name() -> None:
    item = {"input_ids": torch.zeros(1, 2), "attention_mask": torch.ones(1, 2), "labels": 3}
    inputs, label = split_label(Two(), item)
    assert "labels" not in inputs.kwargs
    assert label == 3
    with pytest.raises(InputError, match="more than one label: label, labels"):
        split_label(Two(), {**item, "label": 3})


def test_a_single_element_has_no_label() -> None:
    inputs, label = split_label(One(), [torch.zeros(2, 4)])
    assert len(inputs.args) == 1
    assert label is None


def test_an_ambiguous_pair_is_refused_unless_the_example_decides() -> None:
    item = (torch.zeros(2, 4), torch.ones(2, 4))
    with pytest.raises(InputError, match=r"two inputs or \(inputs, label\).*dict"):
        split_label(Optional(), item)
    one = normalise_inputs(Optional(), item[0])
    two = normalise_inputs(Optional(), item)
    assert split_label(Optional(), item, reference=one)[1] is item[1]
    assert split_label(Optional(), item, reference=two)[1] is None


def test_too_many_elements_are_refused() -> None:
    item = (torch.zeros(1), torch.zeros(1), torch.zeros(1))
    with pytest.raises(InputError, match="3 positional inputs"):
        split_label(Two(), item)


def _example(batch: int = 2, length: int = 5) -> Inputs:
    ids = torch.zeros(batch, length, dtype=torch.long)
    return normalise_inputs(Two(), (ids, torch.ones(batch, length)))


def test_check_accepts_another_batch() -> None:
    check_inputs(_example(), _example(batch=7))
    sequence = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    check_inputs(_example(), _example(batch=1, length=9), dynamic=sequence)


def test_check_names_what_differs() -> None:
    with pytest.raises(InputError, match=r"'input_ids' has shape \(2, 6\), expected \(batch, 5\)"):
        check_inputs(_example(), _example(length=6))
    wrong = _example().map_tensors({"input_ids": torch.zeros(2, 5)})
    with pytest.raises(InputError, match="'input_ids' is float32, expected int64"):
        check_inputs(_example(), wrong)
    uneven = _example().map_tensors({"attention_mask": torch.ones(3, 5)})
    with pytest.raises(InputError, match=r"batch 3.*'input_ids' has 2"):
        check_inputs(_example(), uneven)
    with pytest.raises(InputError, match="missing: attention_mask, input_ids; not expected: x"):
        check_inputs(_example(), normalise_inputs(One(), torch.zeros(2, 5)))
    flat = _example().map_tensors({"attention_mask": torch.ones(2)})
    with pytest.raises(InputError, match=r"shape \(2\), expected \(batch, 5\)"):
        check_inputs(_example(), flat)


def test_check_finite_counts_and_names() -> None:
    x = torch.zeros(2, 4)
    check_finite(normalise_inputs(One(), x), 0)
    x[0, :3] = float("nan")
    x[1, 0] = float("inf")
    with pytest.raises(CalibrationError, match="batch 3: input 'x' has 4 of 8"):
        check_finite(normalise_inputs(One(), x), 3)


class Lightning(One):
    """Says what it takes the way Lightning modules do."""

    example_input_array = torch.zeros(3, 4)


class Timm(nn.Module):
    """Says what it takes the way timm models do."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 20, 24)}
        self.head = nn.Linear(3 * 20 * 24, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1))
        return logits


class Extra(nn.Module):
    """Requires a second input of unknowable shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        total: Tensor = self.linear(x) + state
        return total


@pytest.mark.parametrize(
    ("model", "shapes", "source"),
    [
        (Lightning(), {"x": (3, 4)}, "example_input_array"),
        (Timm(), {"x": (2, 3, 20, 24)}, "pretrained_cfg"),
        (Two(), {"input_ids": (2, 16), "attention_mask": (2, 16)}, "embed (Embedding, 11 entries)"),
        (One(), {"x": (2, 4)}, "linear (Linear, 4 features)"),
        (nn.Conv1d(3, 2, 3), {"input": (2, 3, 224)}, "of the model (Conv1d, 3 channels)"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)), {"input": (2, 1, 8, 8)},
         "0 (Conv2d, 1 channel)"),
        (nn.Conv3d(1, 2, 3), {"input": (2, 1, 64, 64, 64)}, "Conv3d"),
        (nn.LSTM(6, 3, batch_first=True), {"input": (2, 16, 6)}, "LSTM, 6 features"),
        (nn.GRU(6, 3), {"input": (16, 2, 6)}, "GRU"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_inputs_are_inferred(
    model: nn.Module, shapes: dict[str, tuple[int, ...]], source: str
) -> None:
    inputs = infer_inputs(model)
    assert {name: tuple(t.shape) for name, t in inputs.tensors().items()} == shapes
    assert source in inputs.note
    again = infer_inputs(model)
    assert all(torch.equal(t, again.tensors()[name]) for name, t in inputs.tensors().items())
    run_once(model, inputs)


def test_the_sequence_length_and_vocabulary_are_respected() -> None:
    inputs = infer_inputs(Two(), batch=3, sequence=40)
    ids = inputs.tensors()["input_ids"]
    assert ids.shape == (3, 40)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < 11


def test_inference_takes_the_models_dtype_and_keeps_its_modes() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double().train()
    model[1].eval()
    assert infer_inputs(model).args[0].dtype == torch.float64
    assert model.training
    assert model[0].training
    assert not model[1].training


def test_a_program_gives_its_own_example() -> None:
    program = torch.export.export(One().eval(), (torch.full((2, 4), 5.0),))
    inputs = infer_inputs(program)
    assert float(inputs.tensors()["x"][0, 0]) == 5.0
    assert normalise_inputs(program, {"x": torch.zeros(2, 4)}).kwargs["x"].shape == (2, 4)
    with pytest.raises(InputError, match="2 positional"):
        normalise_inputs(program, (torch.zeros(2, 4), torch.zeros(2, 4)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Identity(), "no layer that tells"),
        (Extra(), "shape of the required input 'state'.*pass inputs="),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2)), "mat1 and mat2"),
    ],
)
def test_what_cannot_be_inferred_is_said(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        infer_inputs(model)


def _tiny_bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=30,
    )  # fmt: skip
    model: nn.Module = transformers.BertModel(config)
    return model


def test_hugging_face_text_gets_ids_and_a_mask() -> None:
    inputs = infer_inputs(_tiny_bert(), sequence=6)
    tensors = inputs.tensors()
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        "input_ids": (2, 6),
        "attention_mask": (2, 6),
    }
    assert int(tensors["input_ids"].max()) < 30
    assert bool((tensors["attention_mask"] == 1).all())


def test_hugging_face_vision_gets_images() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16,
    )  # fmt: skip
    inputs = infer_inputs(transformers.ViTModel(config))
    assert tuple(inputs.tensors()["pixel_values"].shape) == (2, 3, 32, 32)


def test_synthetic_batches_have_the_examples_statistics() -> None:
    generator = torch.Generator().manual_seed(1)
    example = normalise_inputs(One(), torch.randn(64, 4, generator=generator) * 3 + 10)
    batches = synthetic_calibration(example, 1000, 0)
    assert len(batches) == 16
    values = torch.cat([batch.args[0] for batch in batches])
    assert float(values.mean()) == pytest.approx(float(example.args[0].mean()), abs=0.3)
    assert float(values.std()) == pytest.approx(float(example.args[0].std()), rel=0.05)
    again = synthetic_calibration(example, 1000, 0)
    assert torch.equal(values, torch.cat([batch.args[0] for batch in again]))
    other = synthetic_calibration(example, 1000, 1)
    assert not torch.equal(values, torch.cat([batch.args[0] for batch in other]))


def test_synthetic_batches_of_a_constant_are_standard_normal() -> None:
    example = normalise_inputs(One(), torch.zeros(500, 4))
    values = synthetic_calibration(example, 500, 0)[0].args[0]
    assert float(values.std()) == pytest.approx(1.0, rel=0.05)


def test_synthetic_ids_cover_the_vocabulary_and_masks_stay() -> None:
    example = _example(batch=4)
    batches = synthetic_calibration(example, 200, 0, model=Two())
    ids = torch.cat([batch.tensors()["input_ids"] for batch in batches])
    assert {int(value) for value in ids.flatten()} == set(range(11))
    assert all(bool((batch.tensors()["attention_mask"] == 1).all()) for batch in batches)
    without = synthetic_calibration(example, 8, 0)[0].tensors()["input_ids"]
    assert int(without.max()) == 0  # the example's own largest id is all that is known


def test_segments_do_not_take_the_vocabulary() -> None:
    bert = _tiny_bert()
    ids = torch.zeros(2, 6, dtype=torch.long)
    example = normalise_inputs(bert, {"input_ids": ids, "token_type_ids": ids})
    for batch in synthetic_calibration(example, 20, 0, model=bert):
        assert int(batch.tensors()["token_type_ids"].max()) == 0
        run_once(bert, batch)
