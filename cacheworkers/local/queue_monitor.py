"""QueueMonitor: from samples of a queue, its length and for how long no worker has taken a message; for warm jobs."""

from __future__ import annotations

#: If the oldest message is younger than before by this many seconds, it is another one; ages are a little late.
ANOTHER = 1.0


class QueueMonitor:
    """What successive samples of one queue have shown.

    Attributes:
        length: messages that waited at the last sample.
        taken_at: when it was last seen that one had been taken; the beginning, if none was.
    """

    def __init__(self, now: float) -> None:
        self.length = 0
        self.taken_at = self._filled_at = now
        self._oldest_at: float | None = None

    def note(self, length: int, oldest_age: float | None, now: float) -> None:
        """Note a sample: how many wait, and the age of the oldest, seconds, if it is known."""
        oldest_at = None if oldest_age is None else now - oldest_age
        if not self.length:
            self._filled_at = now
        elif length < self.length or self._is_another(oldest_at):
            self.taken_at = now
            self._oldest_at = None
        self.length = length
        if not length:
            self._oldest_at = None
        elif oldest_at is not None:
            self._oldest_at = oldest_at if self._oldest_at is None else min(self._oldest_at, oldest_at)

    def stuck_for(self, now: float) -> float:
        """Return for how many seconds messages have waited and none was taken; 0 if none waits."""
        return now - max(self.taken_at, self._filled_at) if self.length else 0.0

    def _is_another(self, oldest_at: float | None) -> bool:
        return oldest_at is not None and self._oldest_at is not None and oldest_at > self._oldest_at + ANOTHER
