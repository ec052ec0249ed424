"""An explanation for people has a line for each tier, with instants and how far away they are."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cacheworkers.flows.explain import Explanation, TagState
from cacheworkers.ops.explanation_text import duration_text, lines

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def reported(**fields: Any) -> dict[str, str]:
    return dict(
        lines(Explanation(**{"call": "product[42]", "verdict": "", "freshness": "missing", "at": NOW, **fields}))
    )


STALE = {
    "freshness": "stale",
    "jitter": 0.05,
    "age": 312.0,
    "fresh_for": -12.0,
    "stale_for": 48.0,
    "kept_for": 348.0,
    "load_time": 0.004,
    "seq": 7,
    "size": 1234,
    "revalidates_in": 0.0,
}


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.0, "0 ms"),
        (0.0004, "0 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (312, "5 min 12 s"),
        (3600, "1 h"),
        (3605, "1 h"),
        (7380, "2 h 3 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_spans_have_two_units_at_most(seconds: float, says: str) -> None:
    assert duration_text(seconds) == says


def test_a_stale_entry_with_its_instants() -> None:
    found = reported(**STALE, tags=(TagState("product:42", 9, 20.0), TagState("deals", 0, None)))

    assert found["store"] == "stale, 1,234 bytes of JSON"
    assert found["loaded"].startswith("2027-01-15 07:54:48, 5 min 12 s ago; that took 4 ms")
    assert found["fresh"] == "until 2027-01-15 07:59:48, 12 s ago; `jitter` has taken up to 5% of fresh_for"
    assert found["kept"] == "until 2027-01-15 08:05:48, in 5 min 48 s"
    assert found["revalidated"] == "by the next reader, or by warming"
    assert found["lease"] == "nobody's" and found["failure"] == "none"


def test_each_tag_says_whether_it_was_invalidated_since() -> None:
    tags = (TagState("a", 9, 20.0), TagState("b", 5, 400.0), TagState("c", 0, None))
    found = [says for name, says in lines(Explanation("", "", **STALE, at=NOW, tags=tags)) if name == "tag"]

    assert found == [
        "a, last invalidated 2027-01-15 07:59:40, 20 s ago, after this was loaded",
        "b, last invalidated 2027-01-15 07:53:20, 6 min 40 s ago",
        "c, not invalidated lately",
    ]


def test_who_is_at_it() -> None:
    asked, begun = {"token": "ab"}, {"token": "ab", "fence": "cd", "left_ms": "30000"}
    until = "if its process has died, until 2027-01-15 08:00:30, in 30 s"

    assert reported(**STALE, lease=asked)["lease"] == "held by ab, whose load has not begun"
    assert (
        reported(**STALE, lease=begun, attempts=2)["lease"] == f"held by ab, whose load has begun; attempt 2; {until}"
    )
    assert reported(**STALE, lease=begun)["revalidated"] == "now, by the lease's holder"
    assert reported(attempts=3)["lease"] == "nobody's; loads that have begun and not ended: 3"


def test_what_failed_and_until_when() -> None:
    failure = {"kind": "RuntimeError", "text": "gone", "count": "3", "until_ms": str((NOW + 4) * 1000)}

    assert reported(failure=failure)["failure"] == (
        "3 in a row, the last RuntimeError: gone; nobody loads it for another 4.0 s"
    )
    assert reported(failure={**failure, "until_ms": "1"})["failure"].endswith("its backoff is over")
    assert "[SQL" not in reported(failure={**failure, "text": "no such table\n[SQL: SELECT]"})["failure"]
    assert reported(failure={**failure, "text": ""})["failure"].startswith("3 in a row, the last RuntimeError; nobody")


def test_what_memory_would_answer_and_what_is_never_stale() -> None:
    assert reported()["memory"] == "this process does not have it; each process has its own memory"
    assert reported(in_l1=True, l1_reads=1)["memory"] == "this process has it, and has served it 1 time"
    assert reported(**{**STALE, "size": 1})["store"] == "stale, 1 byte of JSON"
    assert reported(in_l1=True, l1_reads=1234)["memory"] == "this process has it, and has served it 1,234 times"
    assert reported()["store"] == "nothing"
    for_ever = reported(**{**STALE, "fresh_for": float("inf"), "revalidates_in": float("inf")})
    assert (for_ever["fresh"], for_ever["revalidated"]) == ("for ever", "never, unless it is invalidated")


def test_when_a_fresh_entry_is_revalidated() -> None:
    assert reported(**{**STALE, "fresh_for": 60.0, "revalidates_in": 57.0})["revalidated"] == (
        "by a reader, or by warming, from 2027-01-15 08:00:57, in 57 s"
    )


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (0.0, "none lately; processes report theirs every few seconds"),
        (0.4, "none lately; processes report theirs every few seconds"),
        (1830.5, "about 1,830 lately, by all processes"),
    ],
)
def test_reads_are_counted_in_whole_ones(score: float, says: str) -> None:
    assert reported(access_score=score)["reads"] == says
