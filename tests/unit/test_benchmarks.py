"""Benchmarks: what their numbers are made of."""

from __future__ import annotations

import pytest

from benchmarks import heat_cost, report, sweep
from cacheworkers.loader import Loader


def test_percentiles_are_values_that_were_seen() -> None:
    assert report.percentile(range(1, 101), 0.99) == 100
    assert report.percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert report.percentile([], 0.99) == 0.0


def test_a_table_is_markdown_with_its_numbers_on_the_right() -> None:
    assert report.markdown(("what", "ns"), [("a hit", "95")]) == "| what | ns |\n|---|---:|\n| a hit | 95 |\n"


@pytest.mark.parametrize("members", [1000, 123_457, 1_000_000])
def test_the_swept_tags_have_the_members_that_were_asked_for(members: int) -> None:
    tags = dict(sweep.tags_of(members))

    assert sum(tags.values()) == members
    assert tags["all"] == members // 2


def test_the_hit_without_counting_differs_by_that_line_alone() -> None:
    """The benchmark takes the library's own hit path apart, and fails when it no longer fits."""

    class Slot:
        reads = 0

    def hit(slot: Slot) -> int:
        slot.reads += 1
        return 7

    def counts_nothing(slot: Slot) -> int:
        return 7

    slot = Slot()

    assert heat_cost.without_counting(hit)(slot) == 7
    assert slot.reads == 0
    assert heat_cost.without_counting(Loader.get).__name__ == "get"
    with pytest.raises(ValueError, match="must have one line"):
        heat_cost.without_counting(counts_nothing)
