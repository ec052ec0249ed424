"""RateLimiter: limits by "100/s" or the like in this process: revalidations, and loads while the store is away."""

from __future__ import annotations

import re
import threading

#: Turns that were not used lately may be used together, up to this many seconds' worth.
BURST_FOR = 1.0
_PER = {"s": 1.0, "m": 60.0, "h": 3600.0}


def per_second(limit: str) -> float:
    """Return the rate that a text names: `"100/s"`, `"30/m"`, `"500/h"`; without a unit, a second.

    Raises:
        ValueError: it names no rate above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/([smh]))?", limit)
    rate = float(found[1]) / _PER[found[2] or "s"] if found else 0.0
    if not rate:
        raise ValueError(f'a rate limit must be a number > 0 with a unit, as "100/s", "30/m" or "500/h", got {limit!r}')
    return rate


class RateLimiter:
    """The generic cell rate algorithm (ITU-T I.371; a leaky bucket kept as one instant).

    Attributes:
        interval: seconds between two turns.
    """

    __slots__ = ("__weakref__", "_full_at", "_lock", "interval")

    def __init__(self, rate: float) -> None:
        """
        Args:
            rate: how many a second; 0 does not limit.
        """
        self.interval = 1.0 / rate if rate else 0.0
        self._full_at = float("-inf")
        self._lock = threading.Lock()

    def reset(self) -> None:
        """Renew the lock after a fork: a thread of the parent may have held it."""
        self._lock = threading.Lock()

    def allows(self, now: float) -> bool:
        """Return whether one more may be done at this monotonic instant; if so, it counts.

        Whoever is refused comes again: of many that want to, those that come most often get through first.
        """
        # Not locked: of two together one may not be counted, which this use can bear.
        at = max(self._full_at, now - BURST_FOR) + self.interval
        if at > now + self.interval / 2:  # half of one: sums of intervals are not exact
            return False
        self._full_at = at
        return True

    def take_turn(self, now: float, most: float) -> float | None:
        """Take the next turn, without bursts; seconds until then, or None: not within `most` seconds."""
        with self._lock:
            at = max(self._full_at, now)
            if at - now > most:
                return None
            self._full_at = at + self.interval
            return at - now
