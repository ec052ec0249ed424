"""Topology: which masters a store has.  Here the one with a single master (standalone or Sentinel); see `Cluster`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.crc import key_slot
from redis.exceptions import ConnectionError

from cacheworkers.core.driver import Flow
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests
from cacheworkers.store.connections.pool import Pool
from cacheworkers.store.connections.request import UNAVAILABLE, Request, check_probe, unknown_scripts

#: How long the key of a probe lives, milliseconds.
_PROBE_KEPT_FOR_MS = 1000


class MasterUnavailable(ConnectionError):
    """One master of several did not answer lately; keys on the others can be used."""


class Master(NamedTuple):
    """One master, and its slots on a Cluster."""

    name: str
    pool: Pool
    slots: Sequence[range] = ()

    def key(self, key: str, nth: int = 0) -> str:
        """Return a key that begins with this one and lies on this master, in the nth of its slots."""
        if not self.slots:
            return key
        slots = list(itertools.islice(itertools.chain.from_iterable(self.slots), nth + 1))
        return f"{key}{{{_in_slot(slots[-1])}}}"


class SingleMaster:
    """A standalone server, or the master that Sentinels name.  `Cluster` has the same methods.

    Attributes:
        names: of the masters that it knows; the only one's is empty.
        unavailable: names of those that no exchange asks: they did not answer while others did.
    """

    unavailable: frozenset[str] = frozenset()

    def __init__(self, pool: Pool) -> None:
        self.names = frozenset({""})
        self.pool = pool

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them, after one round trip per master.

        Raises:
            MasterUnavailable: a request concerns an unavailable master of a Cluster.
            RedisError, OSError: a connection failed, or there is no master for a request.
        """
        replies = self.pool.exchange([request.words for request in requests])
        if again := unknown_scripts(replies):
            full = self.pool.exchange([requests[at].in_full() for at in again])
            for at, reply in zip(again, full, strict=True):
                replies[at] = reply
        return replies

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do the same on the running loop."""
        replies = await self.pool.aexchange([request.words for request in requests])
        if again := unknown_scripts(replies):
            full = await self.pool.aexchange([requests[at].in_full() for at in again])
            for at, reply in zip(again, full, strict=True):
                replies[at] = reply
        return replies

    def masters(self) -> Flow[list[Master]]:
        """Return all masters, always in the same order: the one."""
        yield from ()
        return [Master("", self.pool)]

    def confirm(self, key: str) -> Flow[None]:
        """Ask the masters that failed again, over connections that are new or have answered since: what `probe` does.

        Args:
            key: the beginning of a key to read; the same for the other methods.

        Raises:
            RedisError, OSError: one does not answer, or with an error.
        """
        yield from self.probe(key)

    def probe(self, key: str) -> Flow[bool]:
        """Ask the only master whether it can be read and is no replica; False: no other is unavailable."""
        commands = [("GET", key), ("SET", key, "1", "PX", _PROBE_KEPT_FOR_MS)]
        [[read, written]] = yield FanOut(RoutedRequests(self.pool, commands))
        check_probe(read)
        # Where only writes are refused (MISCONF, NOREPLICAS, no right to scripts), reads can still be served.
        if isinstance(written, UNAVAILABLE):
            raise written
        self.pool.failed_at = 0.0
        return False

    def probe_unavailable(self, key: str) -> Flow[bool]:
        """Ask the unavailable masters, and return whether all answer again: True, the only one has answered."""
        yield from ()
        return True

    def master_of(self, key: str) -> str:
        """Return the name of the master that has a key, as far as it is known."""
        return ""

    def refresh_later(self) -> None:
        """Find out again which masters there are, before the next exchange: here each new connection asks Sentinels."""

    def drop(self) -> None:
        """Use no connection again: the master may be another now."""
        self.pool.drop()

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        self.pool.reset()

    def close(self) -> None:
        """Close idle connections."""
        self.pool.close()


@functools.cache
def _in_slot(slot: int) -> str:
    """Return a short text whose Cluster slot this is: one of 16,384 or so is."""
    return next(text for text in map(str, itertools.count()) if key_slot(text.encode()) == slot)
