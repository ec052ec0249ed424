"""Sweep: tag sets lose what has expired, and doomed sets whose invalidator died are drained."""

from __future__ import annotations

import math

from cacheworkers.core.driver import Flow
from cacheworkers.events import Swept
from cacheworkers.flows.invalidate import drain
from cacheworkers.flows.ports import Ports
from cacheworkers.policy import MAX_LOAD_FOR

#: Members dropped by one script: 1,000 take about a millisecond.
STEP = 500


def sweep(ports: Ports, within: float = math.inf) -> Flow[Swept]:
    """Go through every tag once, and return what was dropped.

    Args:
        within: seconds after which it stops; the next sweep, whoever's, goes on there.
    """
    started = ports.clock.monotonic()
    keys = ports.store.keys
    # Marks first: what an invalidation that died has left is drained last, when its tag's set is small.
    patterns = (keys.last_invalidations_pattern, keys.tag_sets_pattern, keys.doomed_indexes_pattern)
    phase, cursor = yield ports.store.sweep_position()
    members = tag_sets = entries = 0
    while phase < len(patterns):
        cursor, found = yield ports.store.scan(cursor, patterns[phase])
        for key in found:
            named = keys.tag_of(key)
            if named is None:
                continue
            if patterns[phase] == keys.doomed_indexes_pattern:
                entries += yield from _finish(ports, *named)
            else:
                tag_sets += 1
                members += yield from _trim(ports, *named)
        if cursor == 0:
            phase += 1
        if phase < len(patterns) and ports.clock.monotonic() - started >= within:
            break
    is_whole = phase == len(patterns)
    yield ports.store.keep_sweep_position(None if is_whole else (phase, cursor))
    swept = Swept(members, tag_sets, entries, ports.clock.monotonic() - started, is_whole)
    ports.emit(swept)
    return swept


def _trim(ports: Ports, tag: str, shard: int) -> Flow[int]:
    """Drop a tag's expired members, and its mark when no load can need it; how many members."""
    keys = ports.store.keys
    members: int = 0
    while True:
        dropped, _ = yield ports.store.sweep_tag(
            keys.tag_set(tag, shard), keys.last_invalidation(tag, shard), most=STEP, mark_kept_for=2 * MAX_LOAD_FOR
        )
        members += dropped
        if dropped < STEP:
            return members


def _finish(ports: Ports, tag: str, shard: int) -> Flow[int]:
    """Drain the doomed sets that an invalidation has left of a tag; how many entries that dropped."""
    entries = 0
    for at, doomed in (yield ports.store.doomed_sets(tag)):
        if at == shard:
            entries += yield from drain(ports, tag, shard, doomed)
    return entries
