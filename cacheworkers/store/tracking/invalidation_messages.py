"""Invalidation messages: what a push, or a reply on the tracking connection, changes in this process's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis

from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.core.keys import Keyspace
from cacheworkers.local.flight import Flight
from cacheworkers.local.l1 import L1
from cacheworkers.local.waiters import Waiters


class InvalidationMessages:
    """Processes the messages of all masters, on the listener's thread."""

    def __init__(
        self,
        keys: Keyspace,
        l1: L1,
        waiters: Waiters,
        watch_lease: Callable[[Flight], None],
        refresh_topology: Callable[[], None],
    ) -> None:
        """
        Args:
            watch_lease: has the next change of a flight's lease reported.
            refresh_topology: has the slots asked for again.
        """
        self._l1 = l1
        self._waiters = waiters
        self._watch_lease = watch_lease
        self._refresh_topology = refresh_topology
        self._entries = keys.entries_prefix.encode()
        self._failures = keys.failures_prefix.encode()
        self._leases = keys.leases_prefix.encode()

    def process(self, push: Any) -> None:
        """Drop what a push reports as changed, and wake who waits for it."""
        if push[0] != b"invalidate":
            return
        if push[1] is None:  # FLUSHDB, FLUSHALL: of any database
            self.drop_all()
            return
        entries, failures, leases = self._entries, self._failures, self._leases
        for key in push[1]:
            if key.startswith(entries):
                self.drop(_call_of(key, entries))
            elif key.startswith(failures):
                self._waiters.wake(_call_of(key, failures))
            elif key.startswith(leases):  # begun, given back or taken over: who waits for it asks again which it is
                flight = self._waiters.flights.get(_call_of(key, leases))
                if flight is not None and flight.token:
                    self._watch_lease(flight)

    def drop(self, call: str) -> None:
        """Drop one entry, and wake who waits for it."""
        self._l1.drop(call)
        self._waiters.wake(call)

    def drop_all(self) -> None:
        """Drop whatever is kept, and wake whoever waits: anything may have changed unreported."""
        self._l1.clear()
        self._waiters.wake_all()

    def compare(self, call: str, entry: Entry, reply: Any) -> None:
        """Drop what was kept if it is not what the store has, or if another master has to be asked about it."""
        if not isinstance(reply, bytes) or not envelope.is_life_of(reply, entry):
            self._l1.drop(call)
        if isinstance(reply, hiredis.ReplyError):
            self._check(reply)

    def compare_lease(self, call: str, token: str, reply: Any) -> None:
        """Wake who waits if that lease has ended meanwhile, or if another master has to be asked about it."""
        is_error = isinstance(reply, hiredis.ReplyError)
        self._waiters.watched(call, is_held=reply == token.encode(), is_error=is_error)
        if is_error:
            self._check(reply)

    def _check(self, error: Any) -> None:
        if str(error).startswith("NOPERM"):
            raise OSError(f"the tracking connection answered {error}")
        if str(error).startswith("MOVED"):
            self._refresh_topology()


def _call_of(key: bytes, prefix: bytes) -> str:
    """Return the call of a key: what is between the braces of `ns:e:{product[42]}`."""
    return key[len(prefix) + 1 : -1].decode(errors="replace")
