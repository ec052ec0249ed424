"""The store's clock, as this process knows it."""

from __future__ import annotations

import time


class StoreClock:
    """The store's time, from this process's monotonic clock and an offset measured by round trips.

    Entries are written with the store's instants, so that clock skew between machines does not stretch freshness.
    """

    __slots__ = ("offset", "uncertainty")

    def __init__(self) -> None:
        self.offset = time.time() - time.monotonic()
        self.uncertainty = float("inf")

    def now(self) -> float:
        """Return the store's time, seconds since the epoch."""
        return time.monotonic() + self.offset

    def monotonic(self) -> float:
        """Return this process's monotonic time, seconds; deadlines are kept in it."""
        return time.monotonic()

    def measure(self, server_now: float, sent: float, received: float) -> None:
        """Take one measurement: the server said `server_now` between two monotonic instants.

        A quicker round trip is a better measurement; an old one is trusted less and less, since clocks drift.
        """
        half = (received - sent) / 2
        if half <= self.uncertainty * 1.5 + 0.0005:
            self.offset = server_now - (sent + half)
            self.uncertainty = half
        else:
            self.uncertainty *= 1.1
