"""What `cacheworkers warm` says meanwhile."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from cacheworkers import Config, WarmUp
from cacheworkers.ops.warm_progress import MOVE_EVERY, SAY_EVERY, line, progress_of, waits_for

QUEUES = Config(redis_url="redis://127.0.0.1:1/0", namespace="shop").queues


@pytest.mark.parametrize(
    ("a_second", "left"),
    [(20.0, "20.0/s, 42 s left"), (1.0, "1.0/s, 14 min 10 s left"), (0.1, "0.1/s, 2 h 21 min left")],
)
def test_a_line_says_how_far_it_is(a_second: float, left: str) -> None:
    state = WarmUp(1000, fresh=50, loaded=100)

    assert line("product", state, a_second, QUEUES) == f"product: 150 of 1,000 calls (15% fresh), {left}"


def test_a_line_says_what_holds_it_back() -> None:
    state = WarmUp(100, loaded=10, failed=5, stuck_for=12.4)

    assert line("product", state, 0.0, QUEUES) == (
        "product: 15 of 100 calls (10% fresh), 0.0/s, 5 failed; no worker has taken anything from shop.warm for 12 s"
    )


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (WarmUp(1), ""),
        (WarmUp(1, stuck_for=1.0), ""),
        (WarmUp(1, is_waiting=True, stuck_for=60.0), "waiting for readers' misses, which go first, in shop.miss"),
        (WarmUp(1, unserved_misses=100), "no worker takes the 100 messages in shop.miss: they are not waited for"),
    ],
)
def test_what_it_waits_for(state: WarmUp, says: str) -> None:
    assert waits_for(state, QUEUES) == says


class ErrorOutput(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


def shown(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, states: list[WarmUp]) -> tuple[float, str]:
    """Return how often a job's progress is shown, and what there is on the error output at its end."""
    output = ErrorOutput(is_terminal)
    monkeypatch.setattr("sys.stderr", output)
    job: Any = SimpleNamespace(progress=states[0], rate=20.0)
    with progress_of(job, "product", QUEUES) as (every, show):
        for job.progress in states[:-1]:
            show()
        job.progress = states[-1]
    return every, output.getvalue()


STATES = [WarmUp(100), WarmUp(100, loaded=40, failed=5), WarmUp(100, loaded=95, failed=5)]


def test_a_terminal_shows_a_bar_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    every, text = shown(monkeypatch, True, STATES)

    assert every == MOVE_EVERY
    assert "product" in text
    assert "45/100" in text
    assert "20.0/s, 5 failed" in text
    assert "100/100" in text


def test_elsewhere_it_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    every, text = shown(monkeypatch, False, STATES)

    assert every == SAY_EVERY
    assert text.splitlines() == [line("product", state, 20.0, QUEUES) for state in STATES[:-1]]
