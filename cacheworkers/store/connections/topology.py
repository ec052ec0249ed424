"""Topology: who is asked where there is only one, and what every topology answers."""

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
from cacheworkers.store.connections.request import Request, check, unknown_scripts


class MasterUnavailable(ConnectionError):
    """One master of several did not answer lately: what lies on the others is as good as ever."""


class Master(NamedTuple):
    """One master, and the slots that it has on a Cluster."""

    name: str
    wires: Pool
    slots: Sequence[range] = ()

    def key(self, key: str, nth: int = 0) -> str:
        """Return a key that begins with this one and lies on this master, in the nth of its slots."""
        if not self.slots:
            return key
        slots = list(itertools.islice(itertools.chain.from_iterable(self.slots), nth + 1))
        return f"{key}{{{_in_slot(slots[-1])}}}"


class Topology(Protocol):
    """The masters of a store, and the way of requests to them.

    Attributes:
        names: of those that it knows of.
        away: names of those that no exchange asks, for they did not answer while others did.
    """

    names: frozenset[str]
    away: frozenset[str]

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them, after one round trip per master.

        Raises:
            MasterUnavailable: it concerns one that is away.
            RedisError, OSError: a connection failed, or there is no master for a request.
        """

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do the same on the running loop."""

    def every(self) -> Flow[list[Master]]:
        """Return all masters, always in the same order."""

    def probe(self, key: str) -> Flow[bool]:
        """Ask those that did not fail whether they are there; return whether the others are away.

        Args:
            key: what a key that is read begins with.

        Raises:
            RedisError, OSError: one did not answer, or with an error.
        """

    def find_back(self, key: str) -> Flow[bool]:
        """Ask those that are away; return whether all are back."""

    def master_of(self, key: str) -> str:
        """Return the name of the master that has a key, as far as it is known."""

    def doubt(self) -> None:
        """Find out anew who the masters are, before the next exchange."""

    def drop(self) -> None:
        """Doubt, and use no connection again: one of them failed."""

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""

    def close(self) -> None:
        """Close idle connections."""


class SingleMaster:
    """A standalone server, or the master that Sentinels name."""

    away: frozenset[str] = frozenset()

    def __init__(self, wires: Pool) -> None:
        self.names = frozenset({""})
        self.wires = wires

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, errors among them."""
        replies = self.wires.exchange([request.words for request in requests])
        if again := unknown_scripts(replies):
            full = self.wires.exchange([requests[at].in_full() for at in again])
            for at, reply in zip(again, full, strict=True):
                replies[at] = reply
        return replies

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do the same on the running loop."""
        replies = await self.wires.aexchange([request.words for request in requests])
        if again := unknown_scripts(replies):
            full = await self.wires.aexchange([requests[at].in_full() for at in again])
            for at, reply in zip(again, full, strict=True):
                replies[at] = reply
        return replies

    def every(self) -> Flow[list[Master]]:
        """Return the one."""
        yield from ()
        return [Master("", self.wires)]

    def probe(self, key: str) -> Flow[bool]:
        """Ask the one; no other is away."""
        [[reply]] = yield FanOut(RoutedRequests(self.wires, [("GET", key)]))
        check([reply])
        return False

    def find_back(self, key: str) -> Flow[bool]:
        """Return True: whoever answered is all there is."""
        yield from ()
        return True

    def master_of(self, key: str) -> str:
        """Return the name of the only one."""
        return ""

    def doubt(self) -> None:
        """Do nothing: whoever connects asks the Sentinels."""

    def drop(self) -> None:
        """Use no connection again: the master may be another now."""
        self.wires.drop()

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork."""
        self.wires.reset()

    def close(self) -> None:
        """Close idle connections."""
        self.wires.close()


@functools.cache
def _in_slot(slot: int) -> str:
    """Return a short text whose Cluster slot this is: one of 16,384 or so is."""
    return next(text for text in map(str, itertools.count()) if key_slot(text.encode()) == slot)
