"""The demo's network and images: what the package ships is what the training script makes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from advisor.demo import digits, time_interleaved
from advisor.errors import ModelError
from advisor.modelsource import load_model

SCRIPT = Path(__file__).parents[2] / "examples" / "train_digits.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_shipped_weights_reach_the_promised_accuracy() -> None:
    assert digits.data().accuracy(digits.load()) >= 0.985


def test_the_files_are_small() -> None:
    assert digits.WEIGHTS.stat().st_size + digits.IMAGES.stat().st_size < 1_000_000


def test_the_network_takes_any_batch() -> None:
    model = digits.load()
    assert not model.training
    images = digits.data().test
    together = model(images[:5])
    assert together.shape == (5, 10)
    assert torch.allclose(model(images[:1]), together[:1], atol=1e-5)


def test_the_network_has_what_the_demo_shows() -> None:
    model = digits.load()
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert any(conv.groups == conv.in_channels > 1 for conv in convolutions)
    assert any(conv.kernel_size == (1, 1) for conv in convolutions)
    assert any(conv.stride == (2, 2) for conv in convolutions)
    assert 60_000 <= sum(p.numel() for p in model.parameters()) <= 200_000
    assert digits.WEIGHTS.stat().st_size < 1_000_000


def test_the_images_are_disjoint_and_scaled() -> None:
    data = digits.data()
    assert data.calibration.shape == (256, 1, 8, 8)
    assert data.test.shape == (397, 1, 8, 8)
    assert float(data.test.min()) == 0.0
    assert float(data.test.max()) == 1.0
    assert {int(label) for label in data.test_labels} == set(range(10))
    assert [len(batch) for batch in data.calibration_batches(100)] == [100, 100, 56]
    seen = {image.numpy().tobytes() for image in data.calibration}
    assert not any(image.numpy().tobytes() in seen for image in data.test)


def test_the_images_are_those_of_the_script(script: ModuleType) -> None:
    parts, data = script.split(), digits.data()
    assert torch.equal(digits.pixels(parts["test"][0]), data.test)
    assert torch.equal(parts["test"][1].long(), data.test_labels)
    assert torch.equal(digits.pixels(parts["calibration"][0]), data.calibration)
    assert torch.equal(parts["calibration"][1].long(), data.calibration_labels)
    assert sum(len(labels) for _, labels in parts.values()) == 1797


def test_training_learns_and_repeats(script: ModuleType) -> None:
    images, labels = script.split()["train"]
    few, truth = digits.pixels(images[:256]), labels[:256].long()
    first = script.train(few, truth, epochs=10, make=digits.DigitsNet)
    second = script.train(few, truth, epochs=10, make=digits.DigitsNet)
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)
    untrained = digits.data().accuracy(digits.DigitsNet().eval())
    assert digits.data().accuracy(first) > untrained + 0.2


def test_shifting_moves_by_at_most_one_pixel(script: ModuleType) -> None:
    image = torch.zeros(50, 1, 8, 8)
    image[:, 0, 4, 4] = 1.0
    moved = script.shift(image, torch.Generator().manual_seed(0))
    positions = {tuple(int(v) for v in index[1:]) for index in moved[:, 0].nonzero()}
    assert moved.shape == image.shape
    assert positions <= {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}
    assert len(positions) > 4


def test_the_demo_is_a_factory() -> None:
    loaded = load_model("advisor.demo.digits:build")
    assert isinstance(loaded.model, digits.DigitsNet)
    assert loaded.calibration is not None
    assert sum(len(batch) for batch in loaded.calibration if isinstance(batch, torch.Tensor)) == 256


def test_no_scikit_learn_is_needed() -> None:
    import subprocess

    code = (
        "import sys\nfrom advisor.demo import digits\ndigits.load(), digits.data()\n"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_or_wrong_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "WEIGHTS", tmp_path / "digits.safetensors")
    with pytest.raises(ModelError, match=r"run examples/train_digits.py"):
        digits.load()
    (tmp_path / "digits.safetensors").write_bytes(digits.IMAGES.read_bytes())
    with pytest.raises(ModelError, match="does not fit DigitsNet"):
        digits.load()


def test_timing_takes_turns() -> None:
    order: list[str] = []
    seconds = time_interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, per_round=3
    )
    assert "".join(order) == "ab" + "aaabbb" * 2
    assert set(seconds) == {"a", "b"}
    assert min(seconds.values()) > 0


def test_accuracy_takes_arrays_and_metrics_are_per_example() -> None:
    model, data = digits.load(), digits.data()
    as_array = data.accuracy(lambda images: model(images).numpy())
    assert as_array == data.accuracy(model)
    correct = data.calibration_correct(model)
    assert correct.shape == (256,)
    assert set(correct) <= {0.0, 1.0}
