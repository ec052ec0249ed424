"""Topology: the interface of every topology, and the one with a single master (standalone or Sentinel)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

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


class Topology(Protocol):
    """The masters of a store, and how requests reach them.

    Attributes:
        names: of the masters that it knows.
        unavailable: names of those that no exchange asks: they did not answer while others did.
    """

    names: frozenset[str]
    unavailable: frozenset[str]

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them, after one round trip per master.

        Raises:
            MasterUnavailable: a request concerns an unavailable master.
            RedisError, OSError: a connection failed, or there is no master for a request.
        """

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do the same on the running loop."""

    def masters(self) -> Flow[list[Master]]:
        """Return all masters, always in the same order."""

    def confirm(self, key: str) -> Flow[None]:
        """Ask the masters that failed again, over connections that are new or have answered since.

        Args:
            key: the beginning of a key to read; the same for the other methods.

        Raises:
            RedisError, OSError: one does not answer, or with an error.
        """

    def probe(self, key: str) -> Flow[bool]:
        """Ask the masters that did not fail; return whether others are unavailable.

        Raises:
            RedisError, OSError: one does not answer, or with an error.
        """

    def probe_unavailable(self, key: str) -> Flow[bool]:
        """Ask the unavailable masters; return whether all answer again."""

    def master_of(self, key: str) -> str:
        """Return the name of the master that has a key, as far as it is known."""

    def refresh_later(self) -> None:
        """Find out again which masters there are, before the next exchange."""

    def drop(self) -> None:
        """Refresh later, and use no connection again: one of them failed."""

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""

    def close(self) -> None:
        """Close idle connections."""


class SingleMaster:
    """A standalone server, or the master that Sentinels name."""

    unavailable: frozenset[str] = frozenset()

    def __init__(self, pool: Pool) -> None:
        self.names = frozenset({""})
        self.pool = pool

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them."""
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
        """Return the one."""
        yield from ()
        return [Master("", self.pool)]

    def confirm(self, key: str) -> Flow[None]:
        """Do what `probe` does."""
        yield from self.probe(key)

    def probe(self, key: str) -> Flow[bool]:
        """Ask the only master whether it can be read and is no replica; no other is unavailable."""
        commands = [("GET", key), ("SET", key, "1", "PX", _PROBE_KEPT_FOR_MS)]
        [[read, written]] = yield FanOut(RoutedRequests(self.pool, commands))
        check_probe(read)
        # Where only writes are refused (MISCONF, NOREPLICAS, no right to scripts), reads can still be served.
        if isinstance(written, UNAVAILABLE):
            raise written
        self.pool.failed_at = 0.0
        return False

    def probe_unavailable(self, key: str) -> Flow[bool]:
        """Return True: the only master has answered."""
        yield from ()
        return True

    def master_of(self, key: str) -> str:
        """Return the name of the only one."""
        return ""

    def refresh_later(self) -> None:
        """Do nothing: each new connection asks the Sentinels."""

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
