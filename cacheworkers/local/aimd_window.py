"""AimdWindow: limits how many loads of a warm job are under way, by how long loads take.

Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
Congestion Avoidance in Computer Networks", 1989).  As in TCP Vegas (Brakmo et al., SIGCOMM 1994) the sign of congestion
is time, not loss: loads that take much longer than the quickest did, and loads that wait for workers before they begin.
"""

from __future__ import annotations

#: Loads count as slow at this many times the quickest ...
SLOW = 2.0
#: ... plus this many seconds: two milliseconds instead of one mean nothing.
SLACK = 0.005
#: A call that has not begun this many seconds after it was requested waits behind too many others of the same job.
MOST_WAIT = 2.0
#: A tenth of the newest in the average.
_NEWEST = 0.1
#: The quickest forgets itself by so much with each load, so that it follows a database that has changed.
_FORGETS = 0.001


class AimdWindow:
    """A window that grows while loads are quick, and halves when they are slow.

    Attributes:
        window: how many may be under way now.
    """

    def __init__(self, most: int, first: int = 8) -> None:
        """
        Args:
            most: the window never exceeds this.
            first: the window to begin with.
        """
        self._most = most
        self.window = min(first, most)
        self._average: float | None = None
        self._quickest = float("inf")
        self._until_step = self.window

    @property
    def load_time(self) -> float:
        """What a load takes lately, seconds; 0 while none is known."""
        return self._average or 0.0

    def note(self, load_time: float, waited: float = 0.0) -> None:
        """Note how long a load took, and how long it had waited until it began, seconds."""
        before = self._average
        self._average = load_time if before is None else before + (load_time - before) * _NEWEST
        self._quickest = min(self._average, self._quickest * (1 + _FORGETS))
        self._until_step -= 1
        if self._until_step > 0:
            return
        # Of the waits the newest alone: all before it began under what the window was then.
        if self.is_slow or waited > MOST_WAIT:
            self.halve()
        else:
            self._until_step = self.window
            self.window = min(self._most, self.window + max(1, self.window // 4))

    @property
    def is_slow(self) -> bool:
        """Whether loads take much longer now than the quickest did."""
        return self._average is not None and self._average > SLOW * self._quickest + SLACK

    def halve(self) -> None:
        """Halve the window."""
        # One step a window: what is under way now was asked for before this step, and says nothing of it.
        self._until_step = self.window
        self.window = max(1, self.window // 2)
