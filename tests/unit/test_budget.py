"""Budgets in words: every unit, every refusal, and the canonical text."""

import pytest

from advisor.budget import Budget, Multiple, format_amount, round_up
from advisor.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", Budget(memory_bytes=4e9)),
        ("4GiB", Budget(memory_bytes=4 * 2**30)),
        ("1.5e3 kb", Budget(memory_bytes=1.5e6)),
        ("700MiB", Budget(memory_bytes=700 * 2**20)),
        ("2TB", Budget(memory_bytes=2e12)),
        ("512B", Budget(memory_bytes=512)),
        ("8ms", Budget(latency_s=0.008)),
        (".5s", Budget(latency_s=0.5)),
        ("0.3us", Budget(latency_s=3e-7)),
        ("3\N{MICRO SIGN}s", Budget(latency_s=3e-6)),
        ("3\N{GREEK SMALL LETTER MU}s", Budget(latency_s=3e-6)),
        ("250 NS", Budget(latency_s=2.5e-7)),
        ("5mJ", Budget(energy_j=0.005)),
        ("7uJ", Budget(energy_j=7e-6)),
        ("2J", Budget(energy_j=2.0)),
        ("1%", Budget(accuracy_drop=0.01)),
        (" 4GB , 8ms ", Budget(memory_bytes=4e9, latency_s=0.008)),
        ("size=20MB,4GB", Budget(memory_bytes=4e9, size_bytes=2e7)),
        ("size<=20MB", Budget(size_bytes=2e7)),
        ("accuracy_drop=0.02", Budget(accuracy_drop=0.02)),
        ("none", Budget()),
        (None, Budget()),
        ({"memory": "4GB", "latency": 0.008}, Budget(memory_bytes=4e9, latency_s=0.008)),
        ({"accuracy_drop": "1%", "energy": "5mJ"}, Budget(accuracy_drop=0.01, energy_j=0.005)),
        ({"size": 20_000_000, "accuracy_drop": 0.01}, Budget(size_bytes=2e7, accuracy_drop=0.01)),
        ({"size": 1.0, "memory": None}, Budget(size_bytes=1.0)),
        (Budget(size_bytes=1.0), Budget(size_bytes=1.0)),
        ("1.05x int8", Budget(latency_multiple=Multiple(factor=1.05, of="int8"))),
        (
            "latency=.5 X FP32,size=1MB",
            Budget(size_bytes=1e6, latency_multiple=Multiple(factor=0.5, of="fp32")),
        ),
        (
            {"latency": "2x w4-g32"},
            Budget(latency_multiple=Multiple(factor=2.0, of="w4-g32")),
        ),
    ],
)
def test_budgets_are_read(text: str, expected: Budget) -> None:
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0GB", "memory budget 0GB is not a positive"),
        ("-4GB", "not a positive"),
        ("nanGB", "not a positive"),
        ("inf ms", "not a positive"),
        ("1e400s", "not a positive"),
        ({"memory": 0}, "not a positive"),
        ({"latency": float("nan")}, "not a positive"),
        ({"energy": float("inf")}, "not a positive"),
        ("1.05x int9", "did you mean 'int8'"),
        ("1.05x", "Units that can be used here"),
        ("0x int8", "not a positive"),
        ("infx int8", "not a positive"),
        ("1.05msx int8", "cannot be read"),
        ({"size": "1.05x int8"}, "cannot be read"),
        ("8ms,1.05x int8", "limits latency twice"),
        ("4GB,5GB", "limits memory twice"),
        ("8ms,latency=9ms", "limits latency twice"),
        ("4XB", "Units that can be used here: B, KB"),
        ("4parsec", "Units that can be used here"),
        ({"latency": "4GB"}, "Units that can be used here: s, ms, us, ns"),
        ({"memory": "8ms"}, "Units that can be used here: B, KB"),
        ({"memry": "4GB"}, "did you mean 'memory'"),
        ("sise=4GB", "did you mean 'size'"),
        ({"Latency": "4ms"}, "did you mean 'latency'"),
        ({3: "4GB"}, "unknown budget 3"),
        ("4Gb", "is in bits.*capital B"),
        ("4b", "is in bits"),
        ("4Mbit", "is in bits"),
        ("4Gib", "is in bits"),
        ("5MJ", "megajoules"),
        ("4", "has no unit"),
        ("4,5GB", "has no unit"),
        ({"memory": "4000000"}, "has no unit"),
        ("", "cannot be read"),
        ("lots", "cannot be read"),
        ("4GB,", "cannot be read"),
        ({"memory": True}, "not bool"),
        ({"accuracy_drop": 5}, "share below 1"),
        ("100%", "share below 1"),
        (4e9, "not float"),
        (["4GB"], "not list"),
    ],
)
def test_what_cannot_be_read_is_refused(value: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget.parse(value)


@pytest.mark.parametrize("value", ["4Q", {"memry": 1}, "4", {"size": -1}, 7.0])
def test_refusals_show_how_it_is_done(value: str) -> None:
    with pytest.raises(BudgetError, match='"4GB,8ms"'):
        Budget.parse(value)


@pytest.mark.parametrize(
    "budget",
    [
        Budget(),
        Budget(memory_bytes=4e9, latency_s=0.1 + 0.2),
        Budget(size_bytes=1 / 3, energy_j=5e-7, accuracy_drop=0.015),
    ],
)
def test_the_canonical_text_reads_back_as_the_same_budget(budget: Budget) -> None:
    assert Budget.parse(budget.describe()) == budget


def test_the_canonical_text_does_not_depend_on_spelling() -> None:
    assert Budget.parse("8ms,12MB").describe() == "memory<=12000000B,latency<=0.008s"
    assert Budget.parse({"latency": 0.008, "memory": "12000kB"}) == Budget.parse("8ms,12MB")
    assert Budget().describe() == "none"


def test_bounds_hold_what_an_assignment_decides() -> None:
    budget = Budget(memory_bytes=1, size_bytes=2, latency_s=3, energy_j=4, accuracy_drop=0.5)
    assert budget.bounds() == {
        "memory_bytes": 1,
        "size_bytes": 2,
        "latency_s": 3,
        "energy_j": 4,
    }


def test_amounts_for_readers() -> None:
    assert format_amount("memory_bytes", 4.1234e9) == "4.123 GB"
    assert format_amount("latency_s", 0.0005) == "500 us"
    assert format_amount("energy_j", 0.005) == "5 mJ"
    assert format_amount("size_bytes", 0) == "0 B"
    assert round_up(2_952_111.0) == 2_953_000.0
    assert round_up(0.00025704) == 0.0002571
    assert round_up(1000.0) == 1000.0
    assert round_up(0.0) == 0.0


def test_a_multiple_is_of_the_faster_int8_plan_or_of_one_scheme() -> None:
    seconds = {"fp32": 4.0, "w8a8": 2.0, "w8a8-dynamic": 1.0}
    budget = Budget.parse("1.5x int8,size=1MB")
    assert budget.bounds() == {"size_bytes": 1e6}
    assert budget.resolved(seconds).bounds() == {"size_bytes": 1e6, "latency_s": 1.5}
    assert Budget.parse("1.5x w8a8").resolved(seconds).latency_s == 3.0
    assert Budget.parse("8ms").resolved({}) == Budget(latency_s=0.008)


def test_a_resolved_multiple_is_still_described_as_one() -> None:
    budget = Budget.parse("1.05x int8").resolved({"w8a8": 2.0})
    assert budget.describe() == "latency<=1.05x int8"
    assert Budget.parse(budget.describe()) == Budget.parse("1.05x int8")


def test_a_multiple_of_a_plan_that_there_is_not() -> None:
    with pytest.raises(BudgetError, match=r"no layer can take int8 here.*fp32, w8"):
        Budget.parse("1.05x int8").resolved({"fp32": 4.0, "w8": 3.0})
