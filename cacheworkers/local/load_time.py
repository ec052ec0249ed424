"""LoadTime: a moving average of how long loads of one loader take, and how many fit into a message's time."""

from __future__ import annotations


class LoadTime:
    """Expected time of a load: an exponential moving average, a tenth of it the newest.

    Attributes:
        load_time: seconds; None until an entry has been seen.
        begins_until: a monotonic instant until which loads begin, however quick they are.
    """

    __slots__ = ("begins_until", "load_time")

    def __init__(self) -> None:
        self.load_time: float | None = None
        self.begins_until = 0.0

    def note(self, load_time: float) -> None:
        """Note how long the load of an entry took, seconds."""
        before = self.load_time
        # Not locked: of two notes together one is lost, and the next entry brings another.
        self.load_time = load_time if before is None else before + (load_time - before) * 0.1

    def fits(self, seconds: float, beside: float) -> int:
        """Return how many loads fit into a time, seconds, each with what it takes beside; 0 while that is unknown."""
        if self.load_time is None:
            return 0
        return int(seconds / (self.load_time + beside))
