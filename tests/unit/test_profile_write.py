"""Profiles written as TOML, and profiles corrected by one measurement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advisor.profiles.correct import Observation, correct_profile
from advisor.profiles.loader import list_profiles, load_profile
from advisor.profiles.parse import parse_profile
from advisor.profiles.roofline import boundary_seconds, dispatch_seconds, layer_seconds
from advisor.profiles.schema import FAMILIES, Energy, Figure, Profile
from advisor.profiles.write import profile_toml


@pytest.mark.parametrize("profile", list_profiles(), ids=lambda profile: profile.name)
def test_what_is_written_reads_back_the_same(profile: Profile) -> None:
    text = profile_toml(profile, ["a comment"])
    assert text.startswith("# a comment\nschema = 1\n")
    assert parse_profile(text, f"{profile.name}.toml") == profile


def test_odd_texts_and_energy_survive() -> None:
    figure = Figure(value=1e-11, origin="published", source='a "b" \\ c — d', says="e\tf\ng")
    energy = Energy(joules_per_byte=figure, joules_per_op={"int8": figure})
    profile = replace(load_profile("arm-neon"), energy=energy, title="tab\there")
    assert parse_profile(profile_toml(profile), "x.toml") == profile


@pytest.mark.parametrize("name", ["m2", "m2:gpu", "m4", "arm-neon", "h100"])
@pytest.mark.parametrize("factor", [3.0, 1.0, 0.2])
def test_every_time_is_scaled_alike(name: str, factor: float) -> None:
    profile = load_profile(name)
    seen = Observation(modelled_s=2e-3, measured_s=2e-3 * factor, source="a run")
    corrected = correct_profile(profile, seen, "mine")
    # From the file, as a user loads it; this also checks that its figures are plausible.
    corrected = parse_profile(profile_toml(corrected), "mine.toml")

    def times(one: Profile) -> list[float]:
        found = [
            layer_seconds(
                one,
                op_family=family,
                macs=macs,
                weight_bytes=weights,
                activation_bytes=moved,
                compute_dtype=dtype,
                threads=2,
            )
            for family in FAMILIES
            for macs in ((0.0,) if family == "embedding" else (0.0, 1e5, 1e10))
            for weights, moved in ((0.0, 1e3), (1e8, 1e5))
            for dtype in ("float32", "int8")
        ]
        passes = boundary_seconds(
            one, elements=1e6, from_element_bytes=2, to_element_bytes=1, threads=None
        )
        return [*found, passes, dispatch_seconds(one)]

    assert times(corrected) == pytest.approx([t * factor for t in times(profile)], rel=1e-9)


def test_a_correction_says_where_it_is_from_and_what_it_replaces() -> None:
    seen = Observation(modelled_s=1e-3, measured_s=2e-3, source="benchmark of an M2")
    corrected = correct_profile(load_profile("m2"), seen, "mine")
    figure = corrected.efficiency["linear"]
    assert (figure.origin, figure.source) == ("measured", "benchmark of an M2")
    assert figure.value == pytest.approx(0.15)
    assert figure.says.startswith("0.3 (derived) times 0.5: a forward took 2 ms")
    # A slower device says nothing about what the vendor publishes.
    assert corrected.compute == load_profile("m2").compute
    assert corrected.memory.bandwidth_bytes_per_s == load_profile("m2").memory.bandwidth_bytes_per_s
    assert corrected.by_unit == {}
