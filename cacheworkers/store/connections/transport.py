"""Transport: one round trip to the store for a list of requests, whatever the topology."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import AskError, TryAgainError

from cacheworkers.config import Config
from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.errors import UnsafeStore
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.connections.address import Node, parse_url
from cacheworkers.store.connections.clients import Clients
from cacheworkers.store.connections.cluster import Cluster, Topology
from cacheworkers.store.connections.connection import Outcome
from cacheworkers.store.connections.credentials import provider_of
from cacheworkers.store.connections.fan_out import FanOut, RoutedRequests
from cacheworkers.store.connections.health import Health
from cacheworkers.store.connections.pool import Pool
from cacheworkers.store.connections.request import UNAVAILABLE, Request, check
from cacheworkers.store.connections.sentinels import Term
from cacheworkers.store.connections.server_check import Admission, check_store
from cacheworkers.store.connections.topology import Master, MasterUnavailable, SingleMaster

log = logging.getLogger("cacheworkers")
#: Who the masters are: names, or what Sentinels say.
Masters = frozenset[str] | Term
_Probed = TypeVar("_Probed")
_Words = tuple[Any, ...]
#: Makes commands for one master, of a key that is its own.
_Commands = Callable[[str], Sequence[_Words]]
#: How many slots of a master are tried for such a key, when one after the other is moving to another master.
_SLOTS_TRIED = 3


class Transport:
    """Connections of this process to the store, sync and async, standalone, Sentinel or Cluster."""

    def __init__(
        self,
        config: Config,
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
        self._clients = clients = Clients(address, config.store_timeout, provider_of(config, address))
        self._masters: Topology
        self._alone: Pool | None = None
        if self.is_cluster:
            self._masters = Cluster(address.nodes, self._pool_to, config.store_timeout, config.store_timeout)
        else:
            self._alone = Pool(clients.pool, clients.async_pool, config.store_timeout, clients.lease)
            self._masters = SingleMaster(self._alone)
        key = f"{config.namespace}:w"
        self._health = Health(
            address.shown,
            config.breaker_for,
            memory_for=config.l1_on_loss_for,
            confirm=lambda: self._probed(self._masters.confirm(key)),
            probe=lambda: self._probed(self._masters.probe(key)),
            probe_unavailable=lambda: self._probed(self._masters.probe_unavailable(key)),
            on_failure=self._masters.drop,
            on_lost=on_lost,
            on_back=on_back,
            has_parts=self.is_cluster,
        )
        self._is_checked = self._is_unsafe = False
        #: Asked with the first exchange.
        self.admission: Admission | None = None
        #: Names of the masters that have answered since the listener was lost; None while there is a listener.
        self._answered: set[str] | None = None
        #: Called before each exchange: a fork without Python's hooks must not use the parent's connections.
        self.check_process: Callable[[], None] = lambda: None

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
        """Whether the store answered last time."""
        return self._health.is_well

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork: the parent's sockets are not its own."""
        self._answered = None
        self._clients.reset()
        self._masters.reset()
        self._health.reset()

    def close(self) -> None:
        """Close all connections; wait for a probe under way, one timeout at most."""
        self._health.close(self._config.store_timeout)
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
        self.check_process()
        answered = self._answered
        with self._health.asking():
            if not self._is_checked:
                run(self._checked())
            replies = self._masters.exchange(requests)
            if answered is not None:
                self._note(answered, requests, replies)
            check(replies)
            return replies

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do what `exchange` does, on the running loop."""
        self.check_process()
        answered = self._answered
        with self._health.asking():
            if not self._is_checked:
                await arun(self._checked())
            replies = await self._masters.aexchange(requests)
            if answered is not None:
                self._note(answered, requests, replies)
            check(replies)
            return replies

    def get(self, key: str, now: float) -> bytes | None:
        """Return what a key holds, None for nothing or for another type: what `exchange` does, in the fewest steps.

        The caller has checked that this process is no fork, and has looked at the monotonic clock.
        """
        pool, answered = self._alone, self._answered
        if pool is None or not self._is_checked or self._health.breaker.is_open:
            reply = self.exchange([Request(("GET", key))])[0]
        else:
            try:
                reply = pool.get(key, now)
                if answered is not None and not isinstance(reply, UNAVAILABLE):
                    answered.add("")
                if type(reply) is bytes:
                    return reply
                check([reply])
            except Exception as error:
                translated = self._health.translated(error)
                if translated is error:
                    raise
                raise translated from error
        return reply if type(reply) is bytes else None

    def submit(self, words: tuple[Any, ...], done: Callable[[Outcome], None]) -> bool:
        """Send one command immediately, and return True; False if it takes more than that: use `aexchange`.

        Args:
            done: called on the running loop with the one reply in a list, or with what `exchange` raises.
        """
        self.check_process()
        if self._alone is None or not self._is_checked or not self._health.is_well:
            return False
        answered = self._answered

        def checked(outcome: Outcome) -> None:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                if answered is not None and not isinstance(outcome[0], UNAVAILABLE):
                    answered.add("")
                check(outcome)
            except Exception as error:
                outcome = self._health.translated(error)
            done(outcome)

        return self._alone.submit(words, checked)

    def on_master(self, at: int, words: _Words) -> tuple[Any, int]:
        """Return one master's reply to a command without keys, and the number of masters."""
        self.check_process()
        with self._health.asking():
            return run(self._on_master(at, words))

    def on_masters(self, key: str, commands: _Commands) -> list[list[Any]]:
        """Return every master's replies to commands that go over one connection of it.

        Args:
            key: the beginning of a key; on a Cluster, a hash tag that makes it a key of each master is appended.
            commands: makes them, given that key; they may run twice, while slots move.
        """
        self.check_process()
        with self._health.asking():
            return run(self._on_masters(key, commands))

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
        self._masters.refresh_later()

    def pools(self) -> dict[str, Any]:
        """Return redis-py's pools, which say how to connect, of all masters that there are now, by their names.

        Raises:
            RedisError, OSError: no node of the Cluster answers.
        """
        self._masters.refresh_later()
        return {master.name: master.pool.redis_pool() for master in run(self._masters.masters())}

    def confirm_master(self, address: str) -> Masters:
        """Ask the Sentinels, if there are any, so that exchanges need not; return who the masters are.

        Raises:
            OSError: the master is no longer at this address.
            RedisError: it is not known where.
        """
        lease = self._clients.lease
        if lease is None:
            return self._masters.names
        self._clients.pool().get_master_address()
        term = lease.term
        if term is None or address != f"{term.master[0]}:{term.master[1]}":
            raise OSError(f"{address} is no longer a master, by the Sentinels")
        return term

    def expect_silence(self) -> None:
        """Note which masters answer from now on: the listener has lost them, perhaps because they are gone."""
        self._answered = set()

    def end_silence(self) -> None:
        """Stop noting answers: all masters are listened to."""
        self._answered = None

    def is_silent(self, key: str, masters: Masters) -> bool:
        """Return whether no invalidation of a key can have been missed that this process could have known of.

        False once its master has answered since the listener was lost, and where others may have another master: what
        others have invalidated there was reported to nobody here.

        Args:
            masters: those that were listened to, as `confirm_master` returned them.
        """
        lease = self._clients.lease
        if lease is not None and (lease.is_over or lease.term != masters):
            return False
        name = self._masters.master_of(key)
        if lease is None and name not in masters:
            return False
        answered = self._answered
        return answered is None or name not in answered

    # -- inside

    def _probed(self, asking: Flow[_Probed]) -> _Probed:
        """Return what a probe finds; those that it asked have answered."""
        answered = self._answered
        found = run(asking)
        if answered is not None:
            answered.update(self._masters.names - self._masters.unavailable)
        return found

    def _note(self, answered: set[str], requests: Sequence[Request], replies: Sequence[Any]) -> None:
        for request, reply in zip(requests, replies, strict=True):
            if not isinstance(reply, UNAVAILABLE):
                answered.add(self._masters.master_of(request.key))

    def _pool_to(self, node: Node) -> Pool:
        clients = self._clients
        return Pool(lambda: clients.pool_at(*node), lambda: clients.async_pool_at(*node), self._config.store_timeout)

    def _on_master(self, at: int, words: _Words) -> Flow[tuple[Any, int]]:
        masters = yield from self._masters.masters()
        master = masters[min(at, len(masters) - 1)]
        self._check_unavailable([master])
        [replies] = yield FanOut(RoutedRequests(master.pool, [words]))
        check(replies)
        return replies[0], len(masters)

    def _on_masters(self, key: str, commands: _Commands) -> Flow[list[list[Any]]]:
        for nth in range(_SLOTS_TRIED):
            masters = yield from self._masters.masters()
            self._check_unavailable(masters)
            parts = [RoutedRequests(master.pool, commands(master.key(key, nth))) for master in masters]
            found: list[list[Any]] = yield FanOut(*parts)
            if not any(isinstance(reply, AskError | TryAgainError) for replies in found for reply in replies):
                break
            self._masters.refresh_later()
        for replies in found:
            check(replies)
        return found

    def _check_unavailable(self, masters: Sequence[Master]) -> None:
        for master in masters:
            if master.name in self._masters.unavailable:
                raise MasterUnavailable(f"{master.name} did not answer lately")

    def _checked(self) -> Flow[None]:
        allows = self._config.allow_evicting_store
        try:
            yield from check_store(
                self._masters, self._clock, self.where, allows_evicting=allows, admission=self.admission
            )
        except UnsafeStore as error:
            # Set before it is logged: threads that look meanwhile say nothing.
            is_known, self._is_unsafe = self._is_unsafe, True
            if not is_known:
                log.error("%s; this process does not use it", error)
            raise
        self._is_checked = True
