"""Hold every layer of a Core AI package against the simulation, on the simulation's own input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.fx import GraphModule

from advisor.targets.agreement import Agreement, Array, Tap
from advisor.targets.coreai.constants import dtype_of
from advisor.targets.coreai.cut import INPUT, OUTPUT, find_cut, save_cuts
from advisor.targets.coreai.program import Program
from advisor.targets.coreai.runtime import Session
from advisor.targets.lonelayers import collect_pairs, find_taps, judge_pairs
from advisor.targets.manifest import LayerRecord
from advisor.targets.parts import Names


def check_layers(
    package: Program,
    names: Names,
    module: GraphModule,
    layers: Sequence[LayerRecord],
    pieces: Sequence[Sequence[torch.Tensor]],
) -> list[Agreement]:
    """Let Core AI run every layer and every quantizer of the package alone.

    module: the simulation. pieces: flat inputs at the batch the package was made for.
    """
    taps = find_taps(module, layers)
    found = {tap.layer.name: find_cut(package, names, tap) for tap in taps}
    cuts = {name: cut for name, cut in found.items() if cut is not None}
    functions = {name: f"cut_{index}" for index, name in enumerate(cuts)}
    with TemporaryDirectory() as folder:
        asset = save_cuts(
            {functions[name]: cut for name, cut in cuts.items()}, Path(folder) / "cuts.aimodel"
        )
        session = Session(asset)

        def run(tap: Tap, feed: torch.Tensor) -> Array | None:
            cut = cuts.get(tap.layer.name)
            if cut is None:
                return None
            given = feed.numpy().reshape(tuple(cut.start.type.shape))
            given = given.astype(np.dtype(dtype_of(cut.start)))
            return session.run(functions[tap.layer.name], {INPUT: given})[OUTPUT]

        pairs = collect_pairs(module, taps, pieces, run)
    return [
        judge_pairs(tap, pairs[tap.layer.name], is_there=tap.layer.name in cuts) for tap in taps
    ]
