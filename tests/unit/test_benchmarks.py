"""Benchmarks: what their numbers are made of."""

from __future__ import annotations

import pytest

from benchmarks import report, sweep


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
