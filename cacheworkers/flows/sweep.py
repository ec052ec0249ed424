"""Sweep: tag sets lose what has expired, and doomed sets whose invalidator died are drained."""

from __future__ import annotations

from cacheworkers.events import Swept
from cacheworkers.flows.driver import Flow
from cacheworkers.flows.invalidate import drain
from cacheworkers.flows.ports import Ports
from cacheworkers.policy import MAX_LOAD_FOR

#: Members dropped by one script: 1,000 take about a millisecond.
STEP = 500


def sweep(ports: Ports) -> Flow[Swept]:
    """Go through every tag once, and return what was dropped."""
    started = ports.clock.monotonic()
    keys = ports.store.keys
    members = tag_sets = entries = 0
    for pattern, finish in (
        (keys.last_invalidations_pattern, False),
        (keys.tag_sets_pattern, False),
        (keys.doomed_indexes_pattern, True),
    ):
        cursor = 0
        while True:
            cursor, found = yield ports.store.scan(cursor, pattern)
            for key in found:
                named = keys.tag_of(key)
                if named is None:
                    continue
                tag, shard = named
                if finish:
                    for at, doomed in (yield ports.store.doomed_sets(tag)):
                        if at == shard:
                            entries += yield from drain(ports, tag, shard, doomed)
                    continue
                tag_sets += 1
                while True:
                    dropped, _ = yield ports.store.sweep_tag(
                        keys.tag_set(tag, shard),
                        keys.last_invalidation(tag, shard),
                        most=STEP,
                        mark_kept_for=2 * MAX_LOAD_FOR,
                    )
                    members += dropped
                    if dropped < STEP:
                        break
            if cursor == 0:
                break
    swept = Swept(members, tag_sets, entries, ports.clock.monotonic() - started)
    ports.emit(swept)
    return swept
