"""Loads and periods: how often a call was loaded, by how often it had to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

#: Entries hold their instants in whole milliseconds.
ROUNDING = 0.001


@dataclass(slots=True)
class Periods:
    """The periods of some calls: a load begins one, which ends with its entry's freshness, or at an invalidation.

    A period that the next load cuts short counts as far as it has got.  So loads by periods are 1 where nothing is
    loaded before it has to be, and 2 where all is loaded twice.

    Attributes:
        calls: what is counted.
        life: returns when the entry that is there was created, and until when it is fresh; None for none.
        lead: a load that comes earlier than a number of seconds before the end is `again`.
        loads, lasted: loads, and how much of their periods has passed.  What has not when all ends is left out of both.
        again: loads that came in the middle of a period.
    """

    calls: frozenset[str]
    life: Callable[[str], tuple[float, float] | None]
    lead: float
    loads: float = 0.0
    lasted: float = 0.0
    again: int = 0
    _began: dict[str, float] = field(default_factory=dict)

    def load(self, call: str, now: float) -> None:
        """Note that a load begins."""
        if call in self.calls:
            self._end(call, now)
            self._began[call] = now
            self.loads += 1

    def invalidate(self, call: str) -> None:
        """Note that a period has ended."""
        if self._began.pop(call, None) is not None:
            self.lasted += 1

    def close(self, now: float) -> None:
        """Note that nothing is loaded any more."""
        for call in list(self._began):
            self._end(call, now, is_over=True)

    def _end(self, call: str, now: float, *, is_over: bool = False) -> None:
        began = self._began.pop(call, None)
        if began is None:
            return
        life = self.life(call)
        if life is None or life[0] < began - ROUNDING:  # the load is still under way: no period has begun
            self.again += not is_over
            return
        created, until = life
        passed = min(1.0, (now - created) / (until - created))
        self.lasted += passed
        if is_over:
            self.loads += passed - 1.0
        self.again += until - now > self.lead and not is_over

    @property
    def loads_per_period(self) -> float:
        """Loads by periods; 0 without any."""
        return self.loads / self.lasted if self.lasted else 0.0
