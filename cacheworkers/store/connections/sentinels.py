"""Sentinels: which server is the master by the votes of most of them, and for how long a process may go by that.

A master that was suspended and replaced believes to be one when it goes on, until a Sentinel demotes it, seconds later;
so does one that is cut off.  Only Sentinels know, and not all of them yet.  Two rules keep old values out:

- A connection is used for `CONFIRMED_FOR` after most Sentinels were asked for the master; then they are asked again.
- Another master is used when most Sentinels have named it for `NAMED_FOR`, which is longer.

Two majorities have a Sentinel in common, and none goes back to an old master.  So when the first invalidation reaches
the new master, the last confirmation of the old one has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from redis.asyncio import sentinel as async_sentinels
from redis.exceptions import RedisError
from redis.sentinel import MasterNotFoundError, Sentinel

from cacheworkers.store.connections.address import Node

#: For how long a process goes by what most Sentinels named, seconds.
CONFIRMED_FOR = 1.0
#: For how long they have named a new master before it is used; the rest is for clocks, seconds.
NAMED_FOR = 1.2
#: A Sentinel that did not answer is asked again after this many seconds, if the others suffice.
_ABSENT_FOR = 5.0


class Term(NamedTuple):
    """A master since one failover; one that is the master again after another has another epoch."""

    master: Node
    epoch: int


class MasterLease:
    """What most Sentinels named last, for all connections of one process, sync and async.

    Attributes:
        until: monotonic instant up to which it holds.
        term: what they named; None before the first answer.
        on_change: called when another master is named.
    """

    def __init__(self, sentinels: int) -> None:
        """
        Args:
            sentinels: how many there are.
        """
        # Two are no deployment that survives anything: one of them is enough while the other does not answer.
        self.needed = sentinels // 2 + 1 if sentinels > 2 else 1
        self.on_change: Callable[[], None] = lambda: None
        self.reset()

    def reset(self) -> None:
        """Forget the master, as a child does after a fork."""
        self.until = -math.inf
        self.term: Term | None = None

    @property
    def is_over(self) -> bool:
        """Whether the Sentinels have to be asked again."""
        return time.monotonic() > self.until

    def confirm(self, term: Term, asked_at: float) -> None:
        """Note what most Sentinels named that were asked from an instant on."""
        before, self.term = self.term, term
        if before not in (None, term):
            self.on_change()
        self.until = max(self.until, asked_at + CONFIRMED_FOR) if before == term else asked_at + CONFIRMED_FOR


class Votes:
    """The answers of the Sentinels to one question."""

    def __init__(self, lease: MasterLease, service: str, absent_since: dict[Any, float]) -> None:
        """
        Args:
            absent_since: client of a Sentinel -> when it did not answer, by the monotonic clock.
        """
        self._lease = lease
        self._absent_since = absent_since
        self._service = service
        self._asked_at = time.monotonic()
        # By Sentinel: each has one vote, however many ways there are to ask it.
        self._named: dict[Node, Node] = {}
        self._epochs: dict[Node, int] = {}
        self._for_long: dict[Node, bool] = {}
        self._leaving: set[Node] = set()
        self._errors: list[str] = []

    def clients(self, clients: Sequence[Any]) -> Iterator[Any]:
        """Yield whom to ask: those that did not answer come last, and not in vain while others suffice."""
        for client in sorted(clients, key=lambda each: self._absent_since.get(each, 0.0)):
            is_absent = time.monotonic() - self._absent_since.get(client, -math.inf) < _ABSENT_FOR
            if _node_of(client) not in self._named and not (is_absent and len(self._named) >= self._lease.needed):
                yield client

    def add(self, client: Any, state: Any) -> None:
        """Count an answer to `SENTINEL MASTER`."""
        sentinel = _node_of(client)
        master = self._named[sentinel] = (str(state["ip"]), int(state["port"]))
        self._absent_since.pop(client, None)
        # A Sentinel of epoch 0 has seen no other master.
        epoch = self._epochs[sentinel] = int(state["config-epoch"])
        self._for_long[sentinel] = not epoch or int(state["role-reported-time"]) >= NAMED_FOR * 1000
        if "failover_in_progress" in state["flags"]:
            self._leaving.add(master)

    def failed(self, client: Any, error: Exception) -> None:
        """Note that a Sentinel did not answer."""
        self._absent_since[client] = time.monotonic()
        host, port = _node_of(client)
        self._errors.append(f"{host}:{port}: {type(error).__name__}: {error}")

    def elected(self) -> Node:
        """Return the master, and confirm the lease.

        Raises:
            MasterNotFoundError: most Sentinels do not answer, do not agree, or have not agreed for long enough.
        """
        needed, named = self._lease.needed, list(self._named.values())
        master = max(named, key=named.count, default=None)
        for_long = [each for sentinel, each in self._named.items() if self._for_long[sentinel]]
        votes = 0 if master is None else for_long.count(master)
        if master is None or votes < needed or 2 * votes <= len(named) or master in self._leaving:
            if len(named) >= needed:  # they do not name the one that was confirmed
                self._lease.until = -math.inf
            raise MasterNotFoundError(self._why(master))
        epoch = max(self._epochs[sentinel] for sentinel, each in self._named.items() if each == master)
        self._lease.confirm(Term(master, epoch), self._asked_at)
        return master

    def _why(self, master: Node | None) -> str:
        asked = f"the Sentinels of {self._service!r}"
        if len(self._named) < self._lease.needed:
            errors = f" ({'; '.join(self._errors)})" if self._errors else ""
            return f"{len(self._named)} of {asked} answered, {self._lease.needed} are needed{errors}"
        if master in self._leaving:
            return f"{asked} are replacing the master"
        return f"too few of {asked} have named the same master for {NAMED_FOR:g} s: a failover has just been"


class Sentinels(Sentinel):
    """redis-py's Sentinel, which takes the master by vote."""

    lease: MasterLease
    absent_since: dict[Any, float]

    def discover_master(self, service_name: str) -> Node:
        """Return the master's host and port.

        Raises:
            MasterNotFoundError: most Sentinels do not answer, or do not agree.
        """
        votes = Votes(self.lease, service_name, self.absent_since)
        for client in votes.clients(self.sentinels):
            try:
                votes.add(client, client.sentinel_master(service_name))
            except (RedisError, OSError) as error:
                votes.failed(client, error)
        return votes.elected()


class AsyncSentinels(async_sentinels.Sentinel):
    """The same for event loops."""

    lease: MasterLease
    absent_since: dict[Any, float]

    async def discover_master(self, service_name: str) -> Node:
        """Do what `Sentinels.discover_master` does."""
        votes = Votes(self.lease, service_name, self.absent_since)
        for client in votes.clients(self.sentinels):
            try:
                votes.add(client, await client.sentinel_master(service_name))
            except (RedisError, OSError) as error:
                votes.failed(client, error)
        return votes.elected()


def _node_of(client: Any) -> Node:
    options = client.connection_pool.connection_kwargs
    return options["host"], options["port"]
