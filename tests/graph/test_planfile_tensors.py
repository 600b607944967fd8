from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType] - no stubs

from advisor.binding import bind, content_digest, fingerprint, plan_tensors
from advisor.errors import OutputError, PlanError
from advisor.passes.capture import capture
from advisor.plan import Plan
from advisor.planfile import load_plan, plan_to_json, read_tensors, save_plan
from tests.unit.plans import make_plan


def make_model(seed: int = 0) -> torch.nn.Module:
    linear = torch.nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.arange(12.0).reshape(3, 4) + seed)
        linear.bias.zero_()
    return torch.nn.Sequential(linear, torch.nn.ReLU()).eval()


@pytest.fixture(name="plan")
def make_bound_plan() -> Plan:
    graph = capture(make_model(), (torch.zeros(1, 4),), {})
    tensors, tree = plan_tensors(graph, {}, {}, {})
    tensors |= {
        "0/values": torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4),
        "0/scale": torch.tensor([0.1, 0.2, 0.3]),
        "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16).T,
    }
    plan = make_plan(
        fingerprint=fingerprint(graph), input_tree=tree, tensors_sha256=content_digest(tensors)
    )
    return bind(plan, graph, tensors)


def test_tensors_come_back_exactly(plan: Plan, tmp_path: Path) -> None:
    path = save_plan(plan, tmp_path / "m.json")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["m.json", "m.safetensors"]
    loaded = load_plan(path)
    assert plan_to_json(loaded) == plan_to_json(plan)
    tensors = read_tensors(loaded, tmp_path / "m.safetensors")
    assert torch.equal(tensors["0/values"], torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4))
    assert tensors["half"].dtype == torch.bfloat16
    expected = torch.tensor([[1.5], [-2.0]], dtype=torch.bfloat16)
    assert torch.equal(tensors["half"], expected)


def test_files_can_be_read_by_others_as_the_umask_says(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path)
    reference = tmp_path / "reference"
    reference.touch()
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / name).stat().st_mode == reference.stat().st_mode


def test_load_with_its_model(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path, make_model()).fingerprint == plan.fingerprint
    with pytest.raises(PlanError, match="another model"):
        load_plan(tmp_path, make_model(seed=1))


def test_altered_tensors_are_refused(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path)
    path = tmp_path / "plan.safetensors"
    tensors = read_tensors(plan, path)
    tensors["0/scale"][0] = 0.11
    save_file(tensors, path)
    with pytest.raises(PlanError, match="not the file that the plan was saved with"):
        load_plan(tmp_path, make_model())


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{}"])
def test_corrupt_tensors_are_refused(plan: Plan, tmp_path: Path, content: bytes) -> None:
    save_plan(plan, tmp_path)
    (tmp_path / "plan.safetensors").write_bytes(content)
    load_plan(tmp_path)
    with pytest.raises(PlanError, match=r"cannot read the plan's tensors .* copy the file again"):
        load_plan(tmp_path, make_model())


def test_missing_tensors_are_refused(plan: Plan, tmp_path: Path) -> None:
    save_plan(plan, tmp_path)
    (tmp_path / "plan.safetensors").unlink()
    with pytest.raises(PlanError, match="missing"):
        load_plan(tmp_path)


def test_tensors_of_another_plan_are_not_saved(plan: Plan, tmp_path: Path) -> None:
    graph = capture(make_model(), (torch.zeros(1, 4),), {})
    wrong = bind(make_plan(tensors_sha256="a" * 64), graph, {"0/scale": torch.ones(3)})
    with pytest.raises(PlanError, match="make the plan again"):
        save_plan(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    # The tensors' place is taken by a folder, so the second of the two renames fails.
    (tmp_path / "plan.safetensors" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        save_plan(plan, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["plan.safetensors"]
