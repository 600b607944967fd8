"""Where finished trials are kept, by all that they depend on."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

from advisor import passes, simulate
from advisor.binding import fingerprint
from advisor.decide import package_versions
from advisor.evidence import Evidence


def journal_path(cache: Path, evidence: Evidence, objective: str) -> Path | None:
    """The study's file, named by all that its trials depend on and the study does not know.

    None with the user's own loss: two functions of one name cannot be told apart.
    """
    simulator = evidence.simulator
    if simulator.loss is not None:
        return None
    capability = evidence.prepared.setting.capability
    key = {
        "objective": objective,
        "model": fingerprint(evidence.prepared.setting.graph),
        "data": [simulator.data.scoring.digest, simulator.data.held_out.digest],
        "kinds": list(simulator.kinds),
        "runtime": [capability.name, repr(capability.static), repr(capability.dynamic)],
        "batch": evidence.prepared.setting.batch,
        "versions": package_versions(),
        "code": code_digest(),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache / f"{digest[:32]}.journal"


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of the code that makes a measurement: a version alone misses an edited checkout."""
    digest = hashlib.sha256()
    folder = Path(passes.__file__).parent
    for path in (Path(simulate.__file__), *sorted(folder.rglob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
