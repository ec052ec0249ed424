"""RateLimiter: how many of something this process may do a second, those that come often first."""

from __future__ import annotations

#: What was not used lately may be used at once, up to so many seconds' worth.
BURST_FOR = 1.0


class RateLimiter:
    """The generic cell rate algorithm (ITU-T I.371; a leaky bucket kept as one instant).

    Whoever is refused comes again: of many that want to, those that come most often get through first.
    """

    __slots__ = ("_full_at", "_interval")

    def __init__(self, rate: float) -> None:
        """
        Args:
            rate: how many a second; 0 does not limit.
        """
        self._interval = 1.0 / rate if rate else 0.0
        self._full_at = float("-inf")

    def allows(self, now: float) -> bool:
        """Return whether one more may be done at this monotonic instant; if so, it counts."""
        # Not locked: of two at once one may not be counted, which a limit can bear.
        at = max(self._full_at, now - BURST_FOR) + self._interval
        if at > now + self._interval / 2:  # half of one: sums of intervals are not exact
            return False
        self._full_at = at
        return True
