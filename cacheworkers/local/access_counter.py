"""AccessCounter: counts this process's reads of each call until they are reported to the store.

L1 hits are counted where they happen, in their slots; reads of the store are counted here.  Memory is bounded: when
too many calls are counted, their median is taken off every count, and those that reach zero go (Anderson et al., "A
high-performance algorithm for identifying frequent items in data streams", IMC 2017): what is read often stays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from cacheworkers.core.signature import loader_name_of
from cacheworkers.local.l1 import Slot
from cacheworkers.policy import Policy

#: The maximum number of calls that are counted.
MAX_CALLS = 20_000
#: Reads that are noted before they are counted: to find a call's count takes longer than all else about one.
TOGETHER = 1000


#: A loader's access scores look back over about this many of its periods: fewer mistake a burst for a habit, more
#: notice late what has become hot (benchmarks/simulation.py).
PERIODS = 2.0
MAX_HALF_LIFE = 86400.0


class Remembered(NamedTuple):
    """How long the store remembers the accesses of a loader, seconds: until a read counts half, and in addition."""

    half_life: float
    warm_for: float


class AccessCounter:
    """Counts of this process.

    Attributes:
        reads: texts of calls, one for each read that is noted and not counted yet; whoever adds the last of `TOGETHER`
            calls `count_noted`.
        loaders: how long the accesses of each declared loader are remembered.
    """

    def __init__(self, most: int = MAX_CALLS) -> None:
        self._most = most
        self.loaders: dict[str, Remembered] = {}
        self.reset()

    def remember(self, loader: str, policy: Policy, least: float) -> None:
        """Choose how long accesses of a loader are remembered: a read counts half after `least` seconds or more."""
        half_life = max(least, min(PERIODS * policy.fresh_for, MAX_HALF_LIFE))
        self.loaders[loader] = Remembered(half_life, policy.warm_for or 0.0)

    def reset(self) -> None:
        """Forget everything, as a child does after a fork: the parent reports its own reads."""
        # Re-entrant: a finalizer inside it may read, process an invalidation message, and so note what goes.
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self.reads: list[str] = []
        self._hits: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts) + len(self.reads)

    def count(self, call: str, reads: int = 1) -> None:
        """Note reads of a call."""
        # Not locked: of two counts together one may be lost, which access scores can bear.
        counts = self._counts
        counts[call] = counts.get(call, 0) + reads
        if len(counts) > self._most:
            self._thin()

    def count_noted(self) -> None:
        """Count the reads that are noted; one that another thread notes meanwhile may be lost."""
        reads, self.reads = self.reads, []
        self.count_each(reads)

    def count_each(self, calls: Iterable[str]) -> None:
        """Note one read of each call."""
        counts = self._counts
        counts.update(calls)
        if len(counts) > self._most:
            self._thin()

    def note_gone(self, slot: Slot) -> None:
        """Note the reads of a slot that L1 drops."""
        reads = slot.reads - slot.reads_reported
        if reads > 0:
            self.count(slot.call, reads)
            self._note_hits(slot.call, reads)

    def taken(self, slots: Iterable[Slot], most: int) -> dict[str, int]:
        """Return the counts of the `most` most read calls, those of L1's slots included, and start again at zero."""
        self.count_noted()
        counts, self._counts = self._counts, Counter()
        for slot in slots:
            reads = slot.reads - slot.reads_reported
            if reads > 0:
                slot.reads_reported += reads
                counts[slot.call] = counts.get(slot.call, 0) + reads
                self._note_hits(slot.call, reads)
        if len(counts) <= most:
            return counts
        return dict(sorted(counts.items(), key=itemgetter(1), reverse=True)[:most])

    def put_back(self, counts: Iterable[tuple[str, int]]) -> None:
        """Count reads again that were taken, and could not be reported."""
        for call, reads in counts:
            self.count(call, reads)

    def hits(self) -> dict[str, int]:
        """Return loader -> reads that L1 answered, as far as `taken` and `note_gone` have seen; reset them."""
        hits, self._hits = self._hits, {}
        return hits

    def _thin(self) -> None:
        """Take the median off every count."""
        with self._lock:
            counts = self._counts
            if len(counts) > self._most:
                median = sorted(counts.values())[len(counts) // 2]
                self._counts = Counter({key: n - median for key, n in list(counts.items()) if n > median})

    def _note_hits(self, call: str, reads: int) -> None:
        loader = loader_name_of(call)
        self._hits[loader] = self._hits.get(loader, 0) + reads
