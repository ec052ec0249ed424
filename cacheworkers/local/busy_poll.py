"""BusyPoll: whether to poll for a reply before sleeping for it.

To sleep and to be woken costs more than the whole answer of a store nearby.  Polling for about as long as that costs
is at most twice as dear as knowing beforehand which is better (Karlin, Li, Manasse, Owicki: "Empirical studies of
competitive spinning for a shared-memory multiprocessor", SOSP 1991).  Where it is mostly
in vain, because the store is far, or where cores are shared, it is tried ever more seldom.
"""

from __future__ import annotations

import os

#: A poll that took so much longer than it may was interrupted: there are more threads at work than cores, seconds.
INTERRUPTED = 500e-6
#: The longest rest, in exchanges.
LONGEST_REST = 4096
#: What an interruption adds to the next rest, in exchanges.
_REST_WHEN_CROWDED = 1024
#: So many polls in time, and past rests are forgotten.
_FORGIVEN_AFTER = 512
#: A poll in vain costs no reader anything, only the processor: one in three may be, and so many more at once.
_VAIN_COSTS = 2
_MOST_CREDIT = 8


class BusyPoll:
    """Polling by the wires of one process to one store.

    Threads share it without a lock: what they note of one another's polls may be lost, and none of it is needed.

    Attributes:
        seconds: how long to poll.
    """

    __slots__ = ("_credit", "_in_time", "_is_off", "_left", "_rest", "seconds")

    def __init__(self, seconds: float, cores: int | None = None) -> None:
        """
        Args:
            seconds: how long to poll; 0 for never.
            cores: how many this process may use; on one, polling only keeps the store from answering.
        """
        self.seconds = seconds
        self._is_off = seconds <= 0.0 or (_cores() if cores is None else cores) < 2
        self._rest = 0  # the last rest, in exchanges
        self._left = 0  # of it
        self._credit = 0
        self._in_time = 0  # polls since that rest

    def is_due(self) -> bool:
        """Return whether to poll for the next reply."""
        if self._left:
            self._left -= 1
            return False
        return not self._is_off

    def note(self, late: float) -> None:
        """Note how a poll ended: the reply's seconds after `seconds` had passed, negative when it came in time."""
        if late < 0.0:
            self._credit = min(self._credit + 1, _MOST_CREDIT)
            self._in_time += 1
            if self._in_time == _FORGIVEN_AFTER:
                self._rest = 0
        elif late > INTERRUPTED:
            self._rest_for(2 * self._rest + _REST_WHEN_CROWDED)
        else:
            self._credit -= _VAIN_COSTS
            if self._credit < 0:
                self._rest_for(2 * self._rest + 1)

    def _rest_for(self, exchanges: int) -> None:
        self._rest = self._left = min(exchanges, LONGEST_REST)
        self._credit = self._in_time = 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
