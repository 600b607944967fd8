"""What other tools assign: run in their own environment, read back, and written as names.

    PEERS/bin/python -m benchmarks.planning.peers METHOD MODEL bytes.json out.json

``bytes.json`` holds what every format of every weight costs with our quantizer, and the budgets; it
is written by ``benchmarks.planning.plans``. Each tool scores once per seed with its own method and
defaults, then its own solver is asked for many sizes; of its answers the largest that fits the
bytes counts, so that no tool suffers from counting bits without scales.
"""

from __future__ import annotations

import copy
import importlib.machinery
import json
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.models import Inputs
from benchmarks.planning.questions import BATCH, SEEDS, Question, ask

BITS: Final = {"fp16": 16, "w8": 8, "w4-g32": 4, "w2-g32": 2}
GRID: Final = 48
"""Sizes that a tool's solver is asked for."""

BISECTIONS: Final = 8
"""Of the size that a slower solver is asked for, at every budget."""

LOSS_SCALE: Final = 1e6
"""ModelOpt's solver ignores differences of small scores, and a trained model's are small."""

Assignment = dict[str, int]
"""Bits by name of the weight."""

Method = Callable[[Question, int, Mapping[str, Any]], list[Assignment]]


def main() -> None:
    """Run one method on one model for every seed."""
    method, model, described, out = sys.argv[1:]
    facts = json.loads(Path(described).read_text(encoding="utf-8"))
    question = ask(model)
    path = Path(out)
    result: dict[str, Any] = {"method": method, "model": model, "seeds": {}}
    if path.exists():
        result = json.loads(path.read_text(encoding="utf-8"))
    for seed in SEEDS:
        if str(seed) in result["seeds"]:
            continue
        started = time.process_time()
        torch.manual_seed(seed)
        try:
            answers = METHODS[method](question, seed, facts)
        except Exception as error:  # noqa: BLE001  # whatever a tool does must not end the comparison
            message = " ".join(f"{type(error).__name__}: {error}".split())
            result["seeds"][str(seed)] = {"failure": message[:600]}
            _write(path, result)
            break
        result["seeds"][str(seed)] = {
            "cpu_s": time.process_time() - started,
            "answers": [fitting(answers, facts, budget) for budget in facts["budgets"]],
        }
        _write(path, result)


def _write(path: Path, result: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def fitting(
    answers: list[Assignment], facts: Mapping[str, Any], budget: float
) -> dict[str, str] | None:
    """The largest answer inside the budget, as formats by weight."""
    named = {bits: name for name, bits in BITS.items()}
    best: tuple[float, dict[str, str]] | None = None
    for answer in answers:
        chosen = {
            weight: named[answer[weight]] if weight in answer else "fp16"
            for weight in facts["bytes"]
        }
        size = sum(facts["bytes"][weight][name] for weight, name in chosen.items())
        if size + facts["fixed_bytes"] <= budget and (best is None or size > best[0]):
            best = size, chosen
    return None if best is None else best[1]


def _forward(model: nn.Module, batch: Inputs) -> Tensor:
    output: Tensor = model(**batch)
    return output


def _sizes() -> list[float]:
    """Bits per weight to ask for, from 2 to 16."""
    return [2 + 14 * (step / (GRID - 1)) ** 2 for step in range(GRID)]


def _modelopt(question: Question, seed: int, facts: Mapping[str, Any], method: str) -> Any:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.quantization.algorithms import _resolve_best_recipe

    weights: dict[int, dict[str, Any]] = {8: {"num_bits": 8, "axis": 0}}
    weights |= {b: {"num_bits": b, "block_sizes": {-1: 32, "type": "static"}} for b in (4, 2)}
    formats = [
        {
            "quant_cfg": [
                {"quantizer_name": "*", "enable": False},
                {"quantizer_name": "*weight_quantizer", "cfg": weights[bits], "enable": True},
            ],
            "algorithm": "max",
            "effective_bits": bits + extra,
        }
        for bits, extra in ((8, 0), (4, 1), (2, 1))  # a float32 scale per 32 weights is one bit
    ]
    batches = question.planning(seed)
    model = copy.deepcopy(question.model)
    names = {weight.removesuffix(".weight") for weight in facts["bytes"]}
    others = [
        name
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and name not in names
    ]
    _, state = mtq.auto_quantize(
        model,
        constraints={"effective_bits": 6.0},
        quantization_formats=formats,
        data_loader=batches,
        forward_step=_forward,
        loss_func=None if method == "kl_div" else _loss(question),
        disabled_layers=others or None,
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method=method,
        verbose=False,
    )
    found: list[Assignment] = []
    for size in _sizes():
        recipe = _resolve_best_recipe(state, {"effective_bits": size})
        answer: Assignment = {}
        for name, chosen in recipe.items():
            for module in state["candidate_stats"][name]["module_names"]:
                answer[f"{module}.weight"] = _bits_of(chosen)
        found.append(answer)
    return found


def _bits_of(recipe: Any) -> int:
    for entry in recipe.config.quant_cfg:
        given = entry.get("cfg") if hasattr(entry, "get") else entry.cfg
        if given is not None:
            bits = given["num_bits"] if isinstance(given, Mapping) else given.num_bits
            return int(bits)
    return 16


def _loss(question: Question) -> Callable[[Tensor, Inputs], Tensor]:
    """A task loss as the tool asks for, from labels where there are any."""
    if question.name == "byte_lm":

        def next_byte(output: Tensor, batch: Inputs) -> Tensor:
            logits, target = output[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()
            return functional.cross_entropy(logits, target) * LOSS_SCALE

        return next_byte
    if question.kind == "logits":
        from advisor.demo import digits

        images = digits.data()
        known = images.calibration.flatten(1)

        def classify(output: Tensor, batch: Inputs) -> Tensor:
            at = torch.cdist(batch["x"].flatten(1), known).argmin(dim=1)
            return functional.cross_entropy(output, images.calibration_labels[at]) * LOSS_SCALE

        return classify
    raise ValueError("sentence embeddings have no task loss; the method needs one")


def _nncf(question: Question, seed: int, facts: Mapping[str, Any]) -> Any:
    import nncf

    batches = question.planning(seed)
    ordered = [tuple(batch.values()) for batch in batches]
    found: list[Assignment] = []
    for step in range(7):
        model = copy.deepcopy(question.model)
        compressed = nncf.compress_weights(
            model if len(ordered[0]) == 1 else _Positional(model, list(batches[0])),
            mode=nncf.CompressWeightsMode.INT4_SYM,
            ratio=step / 6,
            group_size=32,
            all_layers=True,
            backup_mode=nncf.BackupMode.INT8_SYM,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
            dataset=nncf.Dataset(ordered if len(ordered[0]) > 1 else [b[0] for b in ordered]),
            subset_size=len(ordered),
        )
        found.append(_read_nncf(compressed))
    return found


class _Positional(nn.Module):
    """A model that takes its named inputs in order."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: Tensor) -> Tensor:
        """Run the model."""
        result: Tensor = self.model(**dict(zip(self.names, values, strict=True)))
        return result


def _read_nncf(model: nn.Module) -> Assignment:
    answer: Assignment = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if "Decompressor" in kind:
            # "__nncf_hooks.post_hooks.<weight with : for .>__0.0"
            weight = name.split("post_hooks.")[-1].split("__")[0].replace(":", ".")
            answer[weight.removeprefix("model.")] = 4 if "INT4" in kind else 8
    return answer


class _Searched(Exception):
    """Ends the tool's run once it has searched; its quantized model is not needed."""


def _mct(question: Question, seed: int, facts: Mapping[str, Any]) -> Any:
    _stub_torchvision()
    import model_compression_toolkit as mct
    from model_compression_toolkit.core import (
        CoreConfig,
        MixedPrecisionQuantizationConfig,
        QuantizationConfig,
        ResourceUtilization,
    )
    from model_compression_toolkit.core.common.mixed_precision import (
        mixed_precision_search_facade as facade,
    )

    Manager = facade.MixedPrecisionSearchManager

    batches = question.planning(seed)
    sizes = {weight: int(count) for weight, count in facts["counts"].items()}
    found: list[Assignment] = []
    original, build = Manager.search, Manager._build_sensitivity_mapping

    def search(self: Any) -> Any:
        metrics = build(self)
        self._build_sensitivity_mapping = lambda: metrics
        least = float(next(iter(self.min_ru.values()))[0])

        def solve(target: float) -> Any:
            self.target_resource_utilization = ResourceUtilization(weights_memory=target)
            return self._prepare_and_run_solver()

        for budget in facts["budgets"]:
            low, high = least, float(sum(sizes.values()))
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                found.append(_read_mct(solve(middle), sizes))
                fits = fitting(found[-1:], facts, budget) is not None
                low, high = (middle, high) if fits else (low, middle)
            if self.mp_config.refine_mp_solution:
                refined = facade.greedy_solution_refinement_procedure(
                    solve(low), self, ResourceUtilization(weights_memory=low)
                )
                found.append(_read_mct(refined, sizes))
        raise _Searched

    def representative() -> Iterator[list[Any]]:
        for batch in batches:
            yield [value.numpy() for value in batch.values()]

    Manager.search = search
    try:
        mct.ptq.pytorch_post_training_quantization(
            copy.deepcopy(question.model),
            representative,
            target_resource_utilization=ResourceUtilization(weights_memory=1e12),
            core_config=CoreConfig(
                quantization_config=QuantizationConfig(),
                mixed_precision_config=MixedPrecisionQuantizationConfig(
                    num_of_images=len(batches) * BATCH
                ),
            ),
        )
    except _Searched:
        pass
    finally:
        Manager.search = original
    return found


def _read_mct(config: Mapping[Any, int], sizes: Mapping[str, int]) -> Assignment:
    names = {weight.removesuffix(".weight").replace(".", "_"): weight for weight in sizes}
    answer: Assignment = {}
    for node, index in config.items():
        kernel = node.candidates_quantization_cfg[index].weights_quantization_cfg
        bits = kernel.get_attr_config("weight").weights_n_bits
        owner = max((n for n in names if node.name.startswith(n)), key=len, default=None)
        if owner is None:
            raise ValueError(f"no weight is called like the tool's node {node.name}")
        answer[names[owner]] = int(bits)
    return answer


def _stub_torchvision() -> None:
    """The tool imports torchvision for its data generation, which is not used here."""
    if "torchvision" in sys.modules:
        return
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.transforms"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    for name in ("Normalize", "RandomCrop", "RandomHorizontalFlip", "CenterCrop"):
        setattr(sys.modules["torchvision.transforms"], name, type(name, (), {}))
    vars(sys.modules["torchvision.transforms.transforms"])["_setup_size"] = None


METHODS: Final[dict[str, Method]] = {
    "modelopt-gradient": lambda q, s, f: _modelopt(q, s, f, "gradient"),
    "modelopt-kl": lambda q, s, f: _modelopt(q, s, f, "kl_div"),
    "nncf": _nncf,
    "mct": _mct,
}


if __name__ == "__main__":
    main()
