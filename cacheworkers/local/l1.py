"""L1: this process's memory of entries, dropped when they change, guarded against fills that a change has overtaken.

Hits take no lock: a dictionary look-up, a comparison of instants, and a count that is eviction's visit mark, metrics'
hit counter and access counter in one.  Eviction is S3-FIFO (Yang et al., SOSP 2023): a tenth of the room is a queue for
what is new; what was read twice there goes on to the main queue, where each further read, up to three, earns another
round; what left the first queue unread is remembered by its hash, and goes straight to the main queue when it comes
back.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from cacheworkers.core.entry import Entry

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "MISSING"})()
NEVER = float("-inf")
_BUCKETS = 4096
#: Bytes of Python objects that one slot costs besides payload, call and tags.
_OVERHEAD = 1000
#: Bytes that a tag costs besides itself: its place in the tuple, and what the allocator rounds up.
_PER_TAG = 16
#: Bytes of Python objects for each byte of JSON that they were decoded from: numbers, texts and structs of a few bytes
#: each take 4 to 6.
_DECODED = 6
#: One entry in this many is new.
_NEW_SHARE = 10
_MAX_VISITS = 3
#: Dropped entries that are remembered, to tell whether they had changed.
_MAX_DROPPED = 1000
#: Most entries that are kept under one hold of the lock: a push waits for it.
_TOGETHER = 100


class Slot:
    """One entry in L1.

    Attributes:
        until: monotonic instant until which it may be served without a second thought; `NEVER` once dropped.
        value: the decoded value, if callers may share it and one of them has asked; else MISSING.
        payload: the value's JSON.
        entry: the entry.
        reads: how often it was served from here; `reads_reported` of these have been reported.
        index, arguments: the loader's fast path to it, to be cut when it goes.
    """

    __slots__ = (
        "_is_new",
        "_reads_seen",
        "arguments",
        "call",
        "entry",
        "index",
        "payload",
        "reads",
        "reads_reported",
        "size",
        "until",
        "value",
    )

    def __init__(self, call: str, entry: Entry, value: Any, until: float, arguments: Hashable = None) -> None:
        self.call = call
        self.entry = entry
        self.payload = entry.payload
        self.value = value
        self.until = until
        self.reads = 0
        self.reads_reported = 0
        self.size = len(entry.payload) + len(call) + _OVERHEAD + _size_of(value, entry.payload)
        if entry.tags:
            self.size += sum(map(sys.getsizeof, entry.tags)) + _PER_TAG * len(entry.tags)
        self.index: dict[Any, Slot] | None = None
        self.arguments = arguments
        self._reads_seen = 0
        self._is_new = True

    @property
    def _visits(self) -> int:
        """Reads that eviction has not yet rewarded, at most three."""
        return min(self.reads - self._reads_seen, _MAX_VISITS)


class L1:
    """Bounded entries of this process.

    Attributes:
        slots: call text -> slot.
        bytes: estimated size of all slots.
        evictions: how many slots were evicted to make room.
        unchanged_drops: how many slots were dropped, and then filled with the same entry: the server reported a change
            that was none, since its tracking table is full.
        on_gone: called with each slot that went, outside the lock, so that its reads are counted.
    """

    def __init__(self, entries: int, bytes_: int) -> None:
        self._max_entries = entries
        self._max_bytes = bytes_
        self.on_gone: Callable[[Slot], None] = lambda slot: None
        self.slots: dict[str, Slot] = {}
        self._guards = [0] * _BUCKETS
        self._epoch = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything, as a child does after a fork; fills that had begun before it are refused."""
        self._lock = threading.Lock()
        self._epoch += 1
        for slot in list(self.slots.values()):
            _cut(slot)
        self.slots = {}
        self._new: OrderedDict[str, Slot] = OrderedDict()
        self._main: OrderedDict[str, Slot] = OrderedDict()
        self._remembered: OrderedDict[int, None] = OrderedDict()
        #: Hash of a call that was dropped -> version and end of the entry that was.
        self._dropped: OrderedDict[int, tuple[bytes, float]] = OrderedDict()
        self.bytes = 0
        self.evictions = 0
        self.unchanged_drops = 0

    def __len__(self) -> int:
        return len(self.slots)

    def get(self, call: str) -> Slot | None:
        """Return a call's slot; whether it may answer is the caller's business."""
        return self.slots.get(call)

    def guard(self, call: str) -> int:
        """Return the mark to be read before the GET, and compared at the fill."""
        # Two reads, no lock: the sum only grows, so one that equals the sum at the fill was not overtaken.
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
        slot = Slot(call, entry, value, until, arguments)
        gone: list[Slot] = []
        with self._lock:
            is_kept = self._insert(slot, guard, index, gone)
        self._report(gone)
        return slot if is_kept else None

    def fill_each(self, slots: Sequence[Slot], guards: Sequence[int], index: dict[Any, Slot] | None) -> int:
        """Keep many entries, each read under its guard, as `fill` keeps one; how many were kept."""
        gone: list[Slot] = []
        kept = 0
        for at in range(0, len(slots), _TOGETHER):
            with self._lock:
                for slot, guard in zip(slots[at : at + _TOGETHER], guards[at : at + _TOGETHER], strict=True):
                    kept += self._insert(slot, guard, index, gone)
        self._report(gone)
        return kept

    def keep_value(self, slot: Slot, value: Any) -> None:
        """Let callers share the value that a slot's payload was decoded to, and count it; not where it has no room."""
        more = _size_of(value, slot.payload)
        if slot.size + more > self._max_bytes // 8:
            return
        gone: list[Slot] = []
        with self._lock:
            # Two threads may have decoded it, and it may have gone meanwhile: it is counted once, and while it is here.
            while slot.value is MISSING and self.slots.get(slot.call) is slot:
                if self.bytes + more <= self._max_bytes:
                    slot.value, slot.size = value, slot.size + more
                    self.bytes += more
                else:
                    gone.append(self._evict())
        self._report(gone)

    def drop(self, call: str) -> None:
        """Drop a call: its entry has changed; fills that read before this are refused."""
        with self._lock:
            self._guards[hash(call) % _BUCKETS] += 1
            slot = self.slots.get(call)
            if slot is None:
                return
            self._remove(slot)
            self._dropped[hash(call)] = slot.entry.write_id, slot.entry.fresh_until
            if len(self._dropped) > _MAX_DROPPED:
                self._dropped.popitem(last=False)
            if not slot._is_new or slot._visits > 1:
                self._remember(slot)  # its next version is no newcomer
        self._report([slot])

    def clear(self) -> None:
        """Drop everything: anything may have changed without a report."""
        with self._lock:
            self._epoch += 1
            gone = list(self.slots.values())
            for slot in gone:
                self._remove(slot)
        self._report(gone)

    def bump_all(self) -> None:
        """Refuse every fill that has begun, and keep what is here."""
        with self._lock:
            self._epoch += 1

    # -- under the lock

    def _insert(self, slot: Slot, guard: int, index: dict[Any, Slot] | None, gone: list[Slot]) -> bool:
        """Keep a slot if nothing has overtaken its guard, and add to `gone` what went for it; whether it is kept."""
        call, slots = slot.call, self.slots
        key = hash(call)
        if (
            self._guards[key % _BUCKETS] + self._epoch != guard
            or slot.size > self._max_bytes // 8
            or not self._max_entries
        ):
            return False
        if self._dropped and self._dropped.pop(key, None) == (slot.entry.write_id, slot.entry.fresh_until):
            self.unchanged_drops += 1
        old = slots.get(call)
        if old is not None:
            slot._is_new = old._is_new
            slot._reads_seen = -old._visits  # its successor keeps what it has earned
            self._remove(old)
            gone.append(old)
        elif self._remembered.pop(key, MISSING) is None:
            slot._is_new = False
        while len(slots) >= self._max_entries or self.bytes + slot.size > self._max_bytes:
            gone.append(self._evict())
        slots[call] = slot
        self._queue_of(slot)[call] = slot
        self.bytes += slot.size
        if index is not None:
            slot.index = index
            index[slot.arguments] = slot
        return True

    def _queue_of(self, slot: Slot) -> OrderedDict[str, Slot]:
        return self._new if slot._is_new else self._main

    def _remove(self, slot: Slot) -> None:
        # A signal's handler may have raised between the two that `_insert` fills: it is in one of them then.
        _cut(slot)
        self._queue_of(slot).pop(slot.call, None)
        self.slots.pop(slot.call, None)
        self.bytes -= slot.size

    def _evict(self) -> Slot:
        """Remove what has been read least, of what has been here long enough to tell."""
        while True:
            if self._new and (len(self._new) * _NEW_SHARE >= len(self.slots) or not self._main):
                slot = next(iter(self._new.values()))
                if slot._visits < 2:
                    self._remember(slot)
                    break
                del self._new[slot.call]
                self._main[slot.call] = slot
                slot._is_new, slot._reads_seen = False, slot.reads
            else:
                slot = next(iter(self._main.values()))
                visits = slot._visits
                if visits < 1:
                    break
                self._main.move_to_end(slot.call)
                slot._reads_seen = slot.reads - visits + 1
        self._remove(slot)
        self.evictions += 1
        return slot

    def _remember(self, slot: Slot) -> None:
        self._remembered[hash(slot.call)] = None
        if len(self._remembered) > self._max_entries:
            self._remembered.popitem(last=False)

    # -- not under the lock

    def _report(self, gone: list[Slot]) -> None:
        # Here, and not under the lock: it is others' code, and the last reference to values with finalizers.
        for slot in gone:
            self.on_gone(slot)


def _size_of(value: Any, payload: bytes) -> int:
    """Return about how many bytes a decoded value takes; going through all its parts would cost more than decoding."""
    if value is MISSING:
        return 0
    return sys.getsizeof(value) if isinstance(value, str | int | float) else _DECODED * len(payload)


def _cut(slot: Slot) -> None:
    """Mark a slot as dropped, for readers that still hold it."""
    slot.until = NEVER
    index = slot.index
    if index is not None and index.get(slot.arguments) is slot:
        del index[slot.arguments]
