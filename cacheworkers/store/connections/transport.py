"""The way to the store: one round trip for a list of requests, whatever the topology."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import AskError, TryAgainError

from cacheworkers.config import Config
from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.clients import Clients
from cacheworkers.store.connections.cluster import Cluster, Node
from cacheworkers.store.connections.connection import Outcome
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests
from cacheworkers.store.connections.health import Breaker, Health
from cacheworkers.store.connections.pool import Pool
from cacheworkers.store.connections.request import Request, check
from cacheworkers.store.connections.server_info import check_server, info_of
from cacheworkers.store.connections.topology import Master, MasterUnavailable, SingleMaster, Topology

_Words = tuple[Any, ...]
#: Makes commands for one master, of a key that is its own.
_Commands = Callable[[str], Sequence[_Words]]
#: How many slots of a master are tried for such a key, when one after the other is on its way to another.
_SLOTS_TRIED = 3


class Transport:
    """Connections of this process to the store, sync and async, standalone, Sentinel or Cluster."""

    def __init__(
        self,
        config: Config,
        breaker: Breaker,
        clock: StoreClock,
        *,
        on_lost: Callable[[str], None],
        on_back: Callable[[], None],
    ) -> None:
        """
        Args:
            on_lost: called with an error when the breaker opens.
            on_back: called when it closes again.
        """
        self._config = config
        self._clock = clock
        self._address = address = parse_url(config.redis_url)
        self._clients = clients = Clients(address, config.store_timeout)
        self._masters: Topology
        self._alone: Pool | None = None
        if self.is_cluster:
            self._masters = Cluster(address.nodes[0], self._wires_to, config.store_timeout, config.store_timeout)
        else:
            self._alone = Pool(clients.pool, clients.async_pool, config.store_timeout, config.spin_for)
            self._masters = SingleMaster(self._alone)
        key = f"{config.namespace}:w"
        self._health = Health(
            breaker,
            address.shown,
            probe=lambda: run(self._masters.probe(key)),
            find_back=lambda: run(self._masters.find_back(key)),
            has_parts=self.is_cluster,
            on_failure=self._masters.drop,
            on_lost=on_lost,
            on_back=on_back,
        )
        self._is_checked = False

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on several masters."""
        return self._address.kind == "cluster"

    @property
    def where(self) -> str:
        """The store's address, without a password."""
        return self._address.shown

    @property
    def is_well(self) -> bool:
        """Whether the store answered when it was last asked, or looked for."""
        return self._health.is_well

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork: the parent's sockets are not its own."""
        self._clients.reset()
        self._masters.reset()
        self._health.reset()

    def close(self) -> None:
        """Close the sync connections; a look whether the store is back is waited for, for one timeout at most."""
        self._health.prober.close(self._config.store_timeout)
        self._masters.close()
        self._clients.close()

    def client(self) -> Any:
        """Return redis-py's sync client, for what is no exchange."""
        return self._clients.client()

    # -- exchanges

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, after one round trip per master.

        Raises:
            StoreUnavailable: no answer within `store_timeout`, no connection, or the breaker is open.
            StoreFull: a request needed memory that the store does not have.
            StoreError: a request was answered with an error.
        """
        with self._health.asking():
            if not self._is_checked:
                run(self._look())
            replies = self._masters.exchange(requests)
            check(replies)
            return replies

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do what `exchange` does, on the running loop."""
        with self._health.asking():
            if not self._is_checked:
                await arun(self._look())
            replies = await self._masters.aexchange(requests)
            check(replies)
            return replies

    def submit(self, words: tuple[Any, ...], done: Callable[[Outcome], None]) -> bool:
        """Send one command at once, and return True; False when it takes more than that, and `aexchange` must do it.

        Args:
            done: called on the running loop with the one reply in a list, or with what `exchange` raises.
        """
        if self._alone is None or not self._is_checked or not self._health.is_well:
            return False

        def checked(outcome: Outcome) -> None:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                check(outcome)
            except Exception as error:
                outcome = self._health.translated(error)
            done(outcome)

        return self._alone.submit(words, checked)

    def on_master(self, at: int, words: _Words) -> tuple[Any, int]:
        """Return one master's reply to a command without keys, and how many masters there are."""
        with self._health.asking():
            return run(self._on_master(at, words))

    async def aon_master(self, at: int, words: _Words) -> tuple[Any, int]:
        """Do what `on_master` does, on the running loop."""
        with self._health.asking():
            return await arun(self._on_master(at, words))

    def on_masters(self, key: str, commands: _Commands) -> list[list[Any]]:
        """Return every master's replies to commands that go over one connection of it.

        Args:
            key: what a key begins with; on a Cluster, what makes it a key of each master is put behind it.
            commands: makes them, given that key; they may run twice, while slots are on their way.
        """
        with self._health.asking():
            return run(self._on_masters(key, commands))

    async def aon_masters(self, key: str, commands: _Commands) -> list[list[Any]]:
        """Do what `on_masters` does, on the running loop; nothing that holds up the connection."""
        with self._health.asking():
            return await arun(self._on_masters(key, commands))

    # -- masters

    @property
    def masters(self) -> frozenset[str]:
        """Names of the masters that this process knows of; the only one's is empty."""
        return self._masters.names

    def master_of(self, key: str) -> str:
        """Return the name of the master that has a key, as far as it is known."""
        return self._masters.master_of(key)

    def refresh_topology(self) -> None:
        """Ask who the masters are before the next exchange: one of them has sent a request away."""
        self._masters.doubt()

    def pools(self) -> dict[str, Any]:
        """Return redis-py's pools, which say how to connect, of all masters that there are now, by their names.

        Raises:
            RedisError, OSError: no node of the Cluster answers.
        """
        self._masters.doubt()
        return {master.name: master.wires.pool() for master in run(self._masters.every())}

    # -- inside

    def _wires_to(self, node: Node) -> Pool:
        clients, config = self._clients, self._config
        return Pool(
            lambda: clients.pool_at(*node),
            lambda: clients.async_pool_at(*node),
            config.store_timeout,
            config.spin_for,
        )

    def _on_master(self, at: int, words: _Words) -> Flow[tuple[Any, int]]:
        masters = yield from self._masters.every()
        master = masters[min(at, len(masters) - 1)]
        self._check_away([master])
        [replies] = yield FanOut(RoutedRequests(master.wires, [words]))
        check(replies)
        return replies[0], len(masters)

    def _on_masters(self, key: str, commands: _Commands) -> Flow[list[list[Any]]]:
        for nth in range(_SLOTS_TRIED):
            masters = yield from self._masters.every()
            self._check_away(masters)
            trips = [RoutedRequests(master.wires, commands(master.key(key, nth))) for master in masters]
            found: list[list[Any]] = yield FanOut(*trips)
            if not any(isinstance(reply, AskError | TryAgainError) for replies in found for reply in replies):
                break
            self._masters.doubt()
        for replies in found:
            check(replies)
        return found

    def _check_away(self, masters: Sequence[Master]) -> None:
        for master in masters:
            if master.name in self._masters.away:
                raise MasterUnavailable(f"{master.name} did not answer lately")

    def _look(self) -> Flow[None]:
        """Find out, at the first exchange, whether it is safe to write there, and what time it is there."""
        masters: list[Master] = yield from self._masters.every()
        wires = min(masters, key=lambda master: master.wires.failed_at).wires
        [[info]] = yield FanOut(RoutedRequests(wires, [("INFO", "everything")]))
        check([info])
        check_server(info_of(info), self.where, allows_evicting=self._config.allow_evicting_store)
        sent = time.monotonic()
        [[answer]] = yield FanOut(RoutedRequests(wires, [("TIME",)]))
        received = time.monotonic()
        check([answer])
        self._clock.measure(int(answer[0]) + int(answer[1]) / 1e6, sent, received)
        self._is_checked = True
