"""What `cacheworkers warm` shows meanwhile: lines where there is no terminal, a bar with a rate where there is one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cacheworkers import Config, WarmUp
from cacheworkers.ops.progress_display import RATE_OF, SAY_EVERY, Rate, line, progress_display, waits_for

QUEUES = Config(redis_url="redis://127.0.0.1:1/0", namespace="shop").queues


class AwaitPush:
    """A clock that stands still, and what is printed."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []

    def clock(self) -> float:
        return self.now


def test_without_a_terminal_a_line_every_few_seconds_says_how_far_it_is() -> None:
    reported = AwaitPush()
    with progress_display(
        "product", 1000, QUEUES, Console(file=io.StringIO()), clock=reported.clock, say=reported.lines.append
    ) as progress:
        for loaded in range(0, 200, 10):  # ten in half a second
            reported.now += 0.5
            progress(WarmUp(1000, fresh=50, loaded=loaded + 10))

    assert len(reported.lines) == 10.0 / SAY_EVERY
    assert reported.lines[0] == "product: 150 of 1,000 calls (15% fresh), 20.0/s, 42 s left"


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


def test_the_rate_is_of_late() -> None:
    """What was quick at first, and is slow now, is slow."""
    rate = Rate(0.0)
    for second in range(1, 11):
        quick = rate.note(second * 100, float(second))
    for second in range(11, 11 + int(RATE_OF) + 2):
        slow = rate.note(1000, float(second))

    assert (quick, slow) == (100.0, 0.0)


def test_the_bar_says_calls_a_second() -> None:
    reported, screen = AwaitPush(), io.StringIO()
    console = Console(file=screen, force_terminal=True, width=200)
    with progress_display("product", 1000, QUEUES, console, clock=reported.clock) as progress:
        reported.now += 2.0
        progress(WarmUp(1000, fresh=50, loaded=84, window=16))

    assert "42/s, 50 fresh, 16 concurrent" in screen.getvalue()
