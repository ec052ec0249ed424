"""ReadForecasts: whether calls that were expected to be read were read; readers come in bursts, or they do not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

#: Reads come in bursts: what is expected to be read this often may as well not be read at all.  So it is taken to be
#: until more is known, and never more.
BURST = 12.0
#: What is known at first counts like forecasts with these odds together.
_FIRST_ODDS = 0.05
#: What earlier forecasts came to counts this much less with each period.
_KEPT = 0.75


class Known(NamedTuple):
    """What forecasts have come to.

    Attributes:
        vain: how many of them were of calls that were not read.
        odds: the sum of what the chance of each was, for a burst of one.
    """

    vain: float = BURST**2 * _FIRST_ODDS
    odds: float = _FIRST_ODDS

    def chance(self, expected: float) -> float:
        """Return the chance that a call of which these reads are expected in a period is not read in it."""
        burst = min(BURST, math.sqrt(self.vain / self.odds))
        return min(1.0, burst**2 * _odds(expected))

    def cost(self, expected: float) -> float:
        """Return how many loads it costs to keep a call warm for a period.

        One that is not read costs all of one; one that is read costs what it would have been loaded later.
        """
        chance = self.chance(expected)
        return chance + (1.0 - chance) / (1.0 + expected)


class ReadForecasts:
    """Forecasts for some calls of one loader, to be compared with what came of them a period later."""

    def __init__(self) -> None:
        #: Call -> its `read_at` when the forecast was made, and the reads that were expected.
        self._made: dict[str, tuple[float, float]] = {}
        self._made_at = -math.inf

    @property
    def calls(self) -> list[str]:
        """The calls of the last forecasts."""
        return list(self._made)

    def are_due(self, now: float, period: float) -> bool:
        """Return whether a period has passed since the last forecasts."""
        return now - self._made_at >= period

    def make(self, now: float, expected: Iterable[tuple[str, float, float]]) -> None:
        """Make forecasts of some `(call, read_at, expected reads)`."""
        self._made = {call: (read_at, reads) for call, read_at, reads in expected}
        self._made_at = now

    def judged(self, known: Known, read_at: Mapping[str, float | None]) -> Known:
        """Return what is known now, given each call's `read_at`: one that was not read has the same, or none."""
        vain, odds = known
        for call, (before, expected) in self._made.items():
            odds += _odds(expected)
            vain += read_at.get(call) in (None, before)
        return Known(vain * _KEPT, odds * _KEPT)


def _odds(expected: float) -> float:
    return float((1.0 + expected) ** -2)
