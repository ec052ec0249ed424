"""Entries that this process has loaded for itself, while the store has another release's entry of the call."""

from __future__ import annotations

import threading
from collections import OrderedDict

from cacheworkers.core.entry import Entry


class OtherReleaseEntries:
    """Bounded; an entry ends with the version it was loaded beside, or when it is no longer fresh."""

    def __init__(self, max_entries: int = 10_000) -> None:
        self._max_entries = max_entries
        self.reset()

    def reset(self) -> None:
        """Forget all, as a child does after a fork: a thread of the parent's may have held the lock."""
        self._entries: OrderedDict[str, tuple[tuple[bytes, float], Entry]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, theirs: Entry, now: float) -> Entry | None:
        """Return what was loaded beside an entry that has just been read; None where that has changed since."""
        version, own = self._entries.get(theirs.call, (None, None))
        return own if own is not None and version == _version(theirs) and now < own.fresh_until else None

    def keep(self, theirs: Entry, own: Entry) -> None:
        """Keep what was loaded beside an entry."""
        with self._lock:
            self._entries[own.call] = (_version(theirs), own)
            self._entries.move_to_end(own.call)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)


def _version(entry: Entry) -> tuple[bytes, float]:
    """Return what changes when an entry is replaced or softened."""
    return entry.write_id, entry.fresh_until
