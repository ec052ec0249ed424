"""Garbage collection: remove expired members from tag sets, and finish invalidations whose process died."""

from __future__ import annotations

import math

from cacheworkers.core.driver import Flow
from cacheworkers.events import ForeignKey, GarbageCollected
from cacheworkers.flows.invalidate import drain
from cacheworkers.flows.ports import Ports
from cacheworkers.policy import MAX_LOAD_FOR
from cacheworkers.store.commands.replies import DetachedSet, ForeignType, Trimmed

#: Members dropped by one script: 1,000 take about a millisecond.
STEP = 500


class _Collection:
    """What one garbage collection has removed so far, and until when it goes on."""

    def __init__(self, ports: Ports, within: float) -> None:
        self.ports = ports
        self._started = ports.clock.monotonic()
        self._within = within
        self.members = self.tag_sets = self.entries = self.foreign = 0

    @property
    def took(self) -> float:
        return self.ports.clock.monotonic() - self._started

    def is_over(self) -> bool:
        """Return whether its time is up."""
        return self.took >= self._within

    def pass_over(self, key: str) -> None:
        """Report a key whose type is not the library's."""
        self.foreign += 1
        self.ports.emit(ForeignKey(key))


def collect_garbage(ports: Ports, within: float = math.inf) -> Flow[GarbageCollected]:
    """Go through every tag once, and return what was dropped.

    Keys of a foreign type are reported and skipped.

    Args:
        within: seconds after which it stops; the next garbage collection, in whatever process, continues there.
    """
    job = _Collection(ports, within)
    keys = ports.store.keys
    # Marks first: what an invalidation that died has left is drained last, when its tag's set is small.
    patterns = (keys.last_invalidations_pattern, keys.tag_sets_pattern, keys.detached_indexes_pattern)
    phase, cursor = yield ports.store.gc_position()
    while phase < len(patterns):
        page = cursor
        cursor, found = yield ports.store.scan(page, patterns[phase])
        clean = _finish if patterns[phase] == keys.detached_indexes_pattern else _trim
        is_done = True
        for key in found:
            named = keys.tag_of(key)
            # A key gets one step at least, even when time is up, so that every garbage collection makes progress.
            if named is not None and not (yield from clean(job, key, *named)):
                is_done = False
                break
        if not is_done:
            cursor = page  # what is left of it is found there again
        elif cursor == 0:
            phase += 1
        if not is_done or (phase < len(patterns) and job.is_over()):
            break
    is_whole = phase == len(patterns)
    yield ports.store.keep_gc_position(None if is_whole else (phase, cursor))
    done = GarbageCollected(job.members, job.tag_sets, job.entries, job.took, is_whole, job.foreign)
    ports.emit(done)
    return done


def _trim(job: _Collection, key: str, tag: str, shard: int) -> Flow[bool]:
    """Drop a tag's expired members, and its mark when no load can need it; False if time is up before that is done."""
    store = job.ports.store
    job.tag_sets += 1
    while True:
        trimmed: Trimmed = yield store.trim_tag(
            store.keys.tag_set(tag, shard),
            store.keys.last_invalidation(tag, shard),
            most=STEP,
            mark_kept_for=2 * MAX_LOAD_FOR,
        )
        job.members += trimmed.members
        if trimmed.members < STEP:
            if key in trimmed.foreign:
                job.pass_over(key)
            return True
        if job.is_over():
            return False


def _finish(job: _Collection, key: str, tag: str, shard: int) -> Flow[bool]:
    """Drain the detached sets that an invalidation has left of a tag; False if time is up before that is done."""
    store = job.ports.store
    foreign = set()
    try:
        for name in (yield store.detached_of(tag, shard)):
            try:
                job.entries += yield from drain(job.ports, [DetachedSet(tag, shard, name)], is_over=job.is_over)
            except ForeignType:
                foreign.add(name)
                job.pass_over(name)
        if not job.is_over():
            return True
        return foreign.issuperset((yield store.detached_of(tag, shard)))
    except ForeignType:
        job.pass_over(key)
        return True
