"""Clear: delete everything of the namespace from the store, and what this process remembers of it."""

from __future__ import annotations

from cacheworkers.core.driver import Flow
from cacheworkers.core.keys import patterns_to_clear
from cacheworkers.flows.ports import Ports


def clear(ports: Ports) -> Flow[int]:
    """Delete all entries, leases, tag sets and access scores; how many keys there were.

    The invalidation sequence stays, and goes up: numbers of invalidations are never used again.
    """
    store = ports.store
    deleted = 0
    # Leases first: a load that is under way then finds its lease broken, and what it writes is refused.  The other way
    # round it would bring an entry back that was loaded before.
    for pattern in patterns_to_clear(store.keys.namespace):
        cursor = 0
        while True:
            cursor, found = yield store.scan(cursor, pattern)
            if found:
                deleted += yield store.unlink(found)
            if not cursor:
                break
    yield store.next_seq()
    ports.l1.clear()
    ports.access_counter.reset()
    ports.recent_requests.reset()
    return deleted
