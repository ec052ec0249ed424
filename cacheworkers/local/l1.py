"""L1: this process's memory of entries, dropped by pushes, guarded against fills that a push has overtaken.

Hits take no lock: a dictionary look-up, a comparison of instants, and a count that is eviction's visit mark, metrics'
hit counter and heat at once.  Eviction is SIEVE (Zhang et al., NSDI 2024): a hand moves from old to new and evicts the
first entry that was not read since it last came by.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

from cacheworkers.core.entry import Entry

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
NEVER = float("-inf")
_BUCKETS = 4096
#: Bytes of Python objects that one slot costs besides payload and call.
_OVERHEAD = 700


class Slot:
    """One entry in L1.

    Attributes:
        until: monotonic instant until which it may be served without a second thought; `NEVER` once dropped.
        value: the decoded value, if callers may share it and one of them has asked; else MISSING.
        payload: the value's JSON.
        entry: the entry.
        reads: how often it was served from here.
        index, arguments: the loader's fast path to it, to be cut when it goes.
    """

    __slots__ = (
        "arguments",
        "call",
        "entry",
        "index",
        "newer",
        "older",
        "payload",
        "reads",
        "size",
        "until",
        "value",
        "visited",
    )

    def __init__(self, call: str, entry: Entry, value: Any, until: float) -> None:
        self.call = call
        self.entry = entry
        self.payload = entry.payload
        self.value = value
        self.until = until
        self.reads = 0
        self.visited = 0
        self.size = len(entry.payload) + len(call) + _OVERHEAD
        self.index: dict[Any, Slot] | None = None
        self.arguments: Hashable = None
        self.older: Slot | None = None
        self.newer: Slot | None = None


class L1:
    """Bounded entries of this process.

    Attributes:
        slots: call text -> slot.
        bytes: estimated size of all slots.
        evictions: how many slots went for want of room.
        on_gone: called with each slot that goes, so that its reads are counted.
    """

    def __init__(self, entries: int, bytes_: int) -> None:
        self._most_entries = entries
        self._most_bytes = bytes_
        self.on_gone: Callable[[Slot], None] = lambda slot: None
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a child does after a fork."""
        self._lock = threading.Lock()
        old = getattr(self, "slots", {})
        self.slots: dict[str, Slot] = {}
        for slot in old.values():
            _cut(slot)
        self._guards = [0] * _BUCKETS
        self._epoch = 0
        self._oldest: Slot | None = None
        self._newest: Slot | None = None
        self._hand: Slot | None = None
        self.bytes = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self.slots)

    def get(self, call: str) -> Slot | None:
        """Return a call's slot; whether it may answer is the caller's business."""
        return self.slots.get(call)

    def guard(self, call: str) -> int:
        """Return the mark to be read before the GET, and compared at the fill."""
        return self._guards[hash(call) % _BUCKETS] + self._epoch

    def fill(
        self,
        call: str,
        *,
        entry: Entry,
        value: Any,
        until: float,
        guard: int,
        index: dict[Any, Slot] | None = None,
        arguments: Hashable = None,
    ) -> Slot | None:
        """Keep an entry that was read under `guard`; None if a push has overtaken it, or it is too large.

        Without the guard: GET returns v1; the push for v2 arrives and is processed; v1 is inserted, and stays.
        """
        slot = Slot(call, entry, value, until)
        if slot.size > self._most_bytes // 8 or not self._most_entries:
            return None
        with self._lock:
            if self._guards[hash(call) % _BUCKETS] + self._epoch != guard:
                return None
            old = self.slots.get(call)
            if old is not None:
                slot.reads = slot.visited = old.reads
                old.reads = 0
                self._remove(old)
            while len(self.slots) >= self._most_entries or self.bytes + slot.size > self._most_bytes:
                self._evict()
            self.slots[call] = slot
            self.bytes += slot.size
            slot.older = self._newest
            if self._newest is not None:
                self._newest.newer = slot
            self._newest = slot
            if self._oldest is None:
                self._oldest = slot
            if index is not None:
                slot.index, slot.arguments = index, arguments
                index[arguments] = slot
        return slot

    def drop(self, call: str) -> None:
        """Drop a call: its entry has changed; fills that read before this are refused."""
        with self._lock:
            self._guards[hash(call) % _BUCKETS] += 1
            slot = self.slots.get(call)
            if slot is not None:
                self._remove(slot)

    def clear(self) -> None:
        """Drop everything: anything may have changed unheard."""
        with self._lock:
            self._epoch += 1
            for slot in list(self.slots.values()):
                self._remove(slot)

    def bump_all(self) -> None:
        """Refuse every fill that has begun, and keep what is here."""
        with self._lock:
            self._epoch += 1

    # -- under the lock

    def _remove(self, slot: Slot) -> None:
        del self.slots[slot.call]
        self.bytes -= slot.size
        if self._hand is slot:
            self._hand = slot.newer
        if slot.older is not None:
            slot.older.newer = slot.newer
        else:
            self._oldest = slot.newer
        if slot.newer is not None:
            slot.newer.older = slot.older
        else:
            self._newest = slot.older
        slot.older = slot.newer = None
        _cut(slot)
        self.on_gone(slot)

    def _evict(self) -> None:
        hand = self._hand or self._oldest
        while hand is not None and hand.reads != hand.visited:
            hand.visited = hand.reads
            hand = hand.newer or self._oldest
        if hand is not None:
            self._hand = hand.newer
            self._remove(hand)
            self.evictions += 1


def _cut(slot: Slot) -> None:
    """Make sure nobody who holds the slot takes it for alive."""
    slot.until = NEVER
    if slot.index is not None and slot.index.get(slot.arguments) is slot:
        del slot.index[slot.arguments]
