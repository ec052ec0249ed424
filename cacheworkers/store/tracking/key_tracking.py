"""KeyTracking: has the server report changes of keys that this process keeps or waits for, by reading each of them."""

from __future__ import annotations

import functools
from typing import Any

from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.core.keys import Keyspace
from cacheworkers.local.flight import Flight
from cacheworkers.local.l1 import L1
from cacheworkers.local.waiters import Waiters
from cacheworkers.store.connections.connection import pack
from cacheworkers.store.connections.transport import Masters, Transport
from cacheworkers.store.tracking.invalidation_messages import InvalidationMessages
from cacheworkers.store.tracking.tracking_connection import TrackingConnection


class KeyTracking:
    """Which keys are tracked, over the connections that a listener opens.

    Attributes:
        messages: what is done about a report.
    """

    #: By the masters' names.
    _connections: dict[str, TrackingConnection]
    #: Who the masters are, since which failover; of the last connections that were whole.
    _listened_to: Masters

    def __init__(self, link: Transport, keys: Keyspace, l1: L1, waiters: Waiters) -> None:
        self._link = link
        self._keys = keys
        self.messages = InvalidationMessages(
            keys, l1, waiters, lambda flight: self.watch_lease(flight), link.refresh_topology
        )

    def memory_may_answer(self, call: str) -> bool:
        """Return whether memory may answer for a call while its master does not; for how long is not said here."""
        return self._link.is_silent(self._keys.entry(call), self._listened_to)

    def track(self, call: str, entry: Entry) -> bool:
        """Have changes of an entry reported that is about to be kept; False where it must not be kept.

        If it is another by the time its tracking begins, it is dropped, and fills that have begun are refused.  Called
        before the fill: so whatever is in memory has been asked about before any ping that is sent from then on.
        """
        key = self._keys.entry(call)
        connection = self._connections.get(self._link.master_of(key))
        if connection is None:
            return False
        packed = pack([("GETRANGE", key, envelope.LIFE_AT, envelope.LIFE_ENDS_AT - 1)])
        connection.track(packed, functools.partial(self.messages.compare, call, entry))
        return True

    def watch(self, flight: Flight) -> bool:
        """Have the end of the load reported that a flight waits for; False where it has to look by itself.

        First its entry and its failure are tracked, then the lease is compared: what ended the load before that took
        the lease away, what ends it later is reported.
        """
        call = flight.call
        entry, failures, lease = self._keys.entry(call), self._keys.failures(call), self._keys.lease(call)
        connection = self._connections.get(self._link.master_of(entry))
        if connection is None:
            return False
        connection.track(
            pack([("EXISTS", entry, failures), ("HGET", lease, "token")]),
            _ignore,  # the next reply says what to do
            functools.partial(self.messages.compare_lease, call, flight.token),
        )
        return True

    def watch_lease(self, flight: Flight) -> None:
        """Have the lease of a flight reported again: it was begun, and its entry and failure are tracked as before."""
        lease = self._keys.lease(flight.call)
        connection = self._connections.get(self._link.master_of(lease))
        if connection is not None:
            compare = functools.partial(self.messages.compare_lease, flight.call, flight.token)
            connection.track(pack([("HGET", lease, "token")]), compare)


def _ignore(reply: Any) -> None:
    pass
