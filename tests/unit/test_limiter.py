"""RateLimiter: at most its rate, in any stretch of time, and a second's worth more in a burst."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheworkers.local.rate_limiter import BURST_FOR, RateLimiter


@given(st.integers(1, 50), st.lists(st.floats(0, 0.5), min_size=1, max_size=300))
def test_no_stretch_of_time_has_more_than_the_rate_and_one_burst(rate: int, gaps: list[float]) -> None:
    limiter, now, done = RateLimiter(rate), 1000.0, []
    for gap in gaps:
        now += gap
        if limiter.allows(now):
            done.append(now)

    for first, began in enumerate(done):
        for last in range(first, len(done)):
            assert last - first + 1 <= rate * (done[last] - began + BURST_FOR) + 1.5 + 1e-6


@pytest.mark.parametrize("rate", [1, 10, 500])
def test_who_always_asks_gets_the_rate(rate: int) -> None:
    limiter = RateLimiter(rate)

    done = sum(limiter.allows(step / (10 * rate)) for step in range(10 * rate * 20))

    assert done == pytest.approx(20 * rate + BURST_FOR * rate, abs=2)


def test_no_rate_is_no_limit() -> None:
    assert all(RateLimiter(0).allows(1.0) for _ in range(10_000))


@given(st.integers(1, 1000), st.floats(0, 1e7))
def test_a_burst_is_whole_whatever_the_clock_says(rate: int, now: float) -> None:
    """Sums of intervals are not exact, and less so the longer the machine is up."""
    limiter = RateLimiter(rate)

    assert sum(limiter.allows(now) for _ in range(2 * rate)) == rate * BURST_FOR
