"""The way to the store: clients by topology, one round trip for a list of requests, errors translated once.

Clients never retry: with a retry a script whose reply was late runs again behind the caller's back, and a dead store
costs seconds instead of one timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

import redis
import redis.asyncio
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
    TryAgainError,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError, ConfigError, StoreError, StoreFull, StoreUnavailable, UnsafeStore
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.scripts import Script
from cacheworkers.store.wire import Outcome
from cacheworkers.store.wires import Wires

_UNAVAILABLE = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    ClusterDownError,
    RedisClusterException,
    OSError,
)
#: They evict no tag sets, and leases last of all.
SAFE_POLICIES = ("noeviction", "volatile-lru", "volatile-lfu")
_TRY_AGAIN = 5


class Breaker(Protocol):
    """Says whether a dead store is worth asking again."""

    is_open: bool

    def allows(self) -> bool: ...
    def failed(self) -> bool: ...
    def succeeded(self) -> bool: ...
    def reset(self) -> None: ...


class Request:
    """One command, or one call of a script; `words[1]` or the first key routes it on a Cluster."""

    __slots__ = ("script", "words")

    def __init__(self, words: tuple[Any, ...], script: Script | None = None) -> None:
        self.words = words
        self.script = script

    @classmethod
    def call(cls, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Request:
        """Return a call of a script by its digest."""
        return cls(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    def in_full(self) -> tuple[Any, ...]:
        """Return the same call with the script's source: a server that has restarted does not know its digest."""
        if self.script is None:
            return self.words
        return ("EVAL", self.script.source, *self.words[2:])


class Link:
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
        self._breaker = breaker
        self._clock = clock
        self._on_lost = on_lost
        self._on_back = on_back
        self._where = parse_url(config.redis_url)
        self._wires = Wires(
            lambda: self.client().connection_pool,
            lambda: self.aclient().connection_pool,
            config.store_timeout,
            config.spin_for,
        )
        self._wires_of: dict[str, Wires] = {}
        self._sync: Any = None
        self._async: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        self._is_checked = False

    @property
    def is_cluster(self) -> bool:
        """Whether keys live on several masters."""
        return self._where.kind == "cluster"

    @property
    def where(self) -> str:
        """The store's address, without a password."""
        return self._where.shown

    def reset(self) -> None:
        """Forget all connections, as a child does after a fork: the parent's sockets are not its own."""
        self._sync = None
        self._async = weakref.WeakKeyDictionary()
        self._wires.reset()
        self._wires_of = {}
        self._breaker.reset()

    def close(self) -> None:
        """Close the sync connections."""
        for wires in (self._wires, *self._wires_of.values()):
            wires.close()
        if self._sync is not None:
            self._sync.close()
            self._sync = None

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Return the replies, in order, after one round trip per master.

        Raises:
            StoreUnavailable: no answer within `store_timeout`, no connection, or the breaker is open.
            StoreFull: a request needed memory that the store does not have.
            StoreError: a request was answered with an error.
        """
        is_probe = self._probes()
        try:
            if not self._is_checked:
                client = self.client()
                self._learn(client.execute_command("INFO", "everything"), *self._timed(client))
            replies = self._send([request.words for request in requests])
            again = _not_run(replies)
            for _ in range(_TRY_AGAIN):
                if not again:
                    break
                for at, reply in zip(again, self._send([requests[at].in_full() for at in again]), strict=True):
                    replies[at] = reply
                again = _not_run(replies)
            _check(replies)
        except Exception as error:
            raise self._translated(error) from error
        if is_probe:
            self._answered()
        return replies

    async def aexchange(self, requests: Sequence[Request]) -> list[Any]:
        """Do what `exchange` does, on the running loop."""
        is_probe = self._probes()
        try:
            if not self._is_checked:
                client = self.aclient()
                info = await client.execute_command("INFO", "everything")
                sent = time.monotonic()
                answer = await client.execute_command("TIME")
                self._learn(info, answer, sent, time.monotonic())
            replies = await self._asend([request.words for request in requests])
            again = _not_run(replies)
            for _ in range(_TRY_AGAIN):
                if not again:
                    break
                full = [requests[at].in_full() for at in again]
                for at, reply in zip(again, await self._asend(full), strict=True):
                    replies[at] = reply
                again = _not_run(replies)
            _check(replies)
        except Exception as error:
            raise self._translated(error) from error
        if is_probe:
            self._answered()
        return replies

    def submit(self, words: tuple[Any, ...], done: Callable[[Outcome], None]) -> bool:
        """Send one command at once, and return True; False when it takes more than that, and `aexchange` must do it.

        Args:
            done: called on the running loop with the one reply in a list, or with what `exchange` raises.
        """
        if self.is_cluster or self._breaker.is_open or not self._is_checked:
            return False

        def checked(outcome: Outcome) -> None:
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                _check(outcome)
            except Exception as error:
                outcome = self._translated(error)
            done(outcome)

        return self._wires.submit(words, checked)

    def on_master(self, at: int, words: tuple[Any, ...]) -> tuple[Any, int]:
        """Return one Cluster master's reply to a command without keys, and how many masters there are."""
        is_probe = self._probes()
        try:
            client = self.client()
            masters = sorted(client.get_primaries(), key=lambda node: node.name)
            reply = client.execute_command(*words, target_nodes=masters[min(at, len(masters) - 1)])
        except Exception as error:
            raise self._translated(error) from error
        if is_probe:
            self._answered()
        return reply, len(masters)

    async def aon_master(self, at: int, words: tuple[Any, ...]) -> tuple[Any, int]:
        """Do what `on_master` does, on the running loop."""
        is_probe = self._probes()
        try:
            client = self.aclient()
            await client.initialize()
            masters = sorted(client.get_primaries(), key=lambda node: node.name)
            reply = await client.execute_command(*words, target_nodes=masters[min(at, len(masters) - 1)])
        except Exception as error:
            raise self._translated(error) from error
        if is_probe:
            self._answered()
        return reply, len(masters)

    def on_masters(self, key: str, commands: Callable[[str], Sequence[tuple[Any, ...]]]) -> list[list[Any]]:
        """Return every master's replies to commands that go over one connection of it, for threads only.

        Args:
            key: what a key begins with; on a Cluster, what makes it a key of each master is put behind it.
            commands: makes them, given that key.
        """
        is_probe = self._probes()
        try:
            found = []
            for wires, of_master in self._masters(key):
                replies = wires.exchange(commands(of_master))
                _check(replies)
                found.append(replies)
        except Exception as error:
            if self.is_cluster:
                with contextlib.suppress(Exception):
                    self.client().nodes_manager.initialize()  # a master may be another now
            raise self._translated(error) from error
        if is_probe:
            self._answered()
        return found

    def _masters(self, key: str) -> list[tuple[Wires, str]]:
        """Return wires to every master that has slots, and a key of its own for each."""
        if not self.is_cluster:
            return [(self._wires, key)]
        client = self.client()
        slots = {node.name: slot for slot, (node, *_) in client.nodes_manager.slots_cache.items()}
        found = []
        for node in client.get_primaries():
            if node.name not in slots:
                continue
            if node.name not in self._wires_of:
                pool = functools.partial(getattr, client.get_redis_connection(node), "connection_pool")
                self._wires_of[node.name] = Wires(pool, pool, self._config.store_timeout, self._config.spin_for)
            found.append((self._wires_of[node.name], f"{key}{{{_in_slot(slots[node.name])}}}"))
        return found

    # -- clients

    def client(self) -> Any:
        """Return the sync client, made at first use."""
        if self._sync is None:
            options = self._options(Retry(NoBackoff(), 0))
            where = self._where
            if where.kind == "cluster":
                self._sync = RedisCluster.from_url(where.url, **options)
            elif where.kind == "sentinel":
                sentinel: Any = cast(Any, Sentinel)(where.nodes, sentinel_kwargs=options, **options, db=where.database)
                self._sync = sentinel.master_for(where.service)
            else:
                self._sync = redis.Redis.from_url(where.url, **options)
        return self._sync

    def aclient(self) -> Any:
        """Return the running loop's async client, made at first use."""
        loop = asyncio.get_running_loop()
        client = self._async.get(loop)
        if client is None:
            options = self._options(AsyncRetry(NoBackoff(), 0))
            where = self._where
            if where.kind == "cluster":
                client = AsyncRedisCluster.from_url(where.url, **options)
            elif where.kind == "sentinel":
                asentinel: Any = cast(Any, AsyncSentinel)(
                    where.nodes, sentinel_kwargs=options, **options, db=where.database
                )
                client = asentinel.master_for(where.service)
            else:
                client = redis.asyncio.Redis.from_url(where.url, **options)
            self._async[loop] = client
        return client

    def _options(self, retry: Any) -> dict[str, Any]:
        timeout = self._config.store_timeout
        return {"retry": retry, "socket_timeout": timeout, "socket_connect_timeout": timeout}

    # -- one round trip

    def _send(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not self.is_cluster:
            return self._wires.exchange(commands)
        client = self.client()
        replies: list[Any] = []
        for words in commands:
            try:
                replies.append(client.execute_command(*words))
            except ResponseError as error:
                replies.append(error)
        return replies

    async def _asend(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not self.is_cluster:
            return await self._wires.aexchange(commands)
        client = self.aclient()
        replies: list[Any] = []
        for words in commands:
            try:
                replies.append(await client.execute_command(*words))
            except ResponseError as error:
                replies.append(error)
        return replies

    # -- health

    def _probes(self) -> bool:
        """Return whether this exchange finds out if the store is back; raises while nobody should try."""
        is_probe = self._breaker.is_open
        if is_probe and not self._breaker.allows():
            raise StoreUnavailable(f"the store at {self._where.shown} did not answer lately; its breaker is open")
        return is_probe

    def _answered(self) -> None:
        # Only a probe closes the breaker: other successes may be answers from before the failure.
        if self._breaker.succeeded():
            self._on_back()

    def _translated(self, error: Exception) -> CacheworkersError:
        """Return what to raise for a failed exchange, and keep the breaker informed."""
        where = self._where.shown
        if isinstance(error, CacheworkersError):
            return error
        if isinstance(error, MaxConnectionsError):
            return StoreUnavailable(f"no free connection to the store at {where}")
        if isinstance(error, _UNAVAILABLE):
            text = f"the store at {where} is unavailable: {type(error).__name__}: {error}"
            for wires in (self._wires, *self._wires_of.values()):
                wires.drop()
            if self._breaker.failed():
                self._on_lost(text)
            return StoreUnavailable(text)
        return StoreError(f"the store at {where} answered {type(error).__name__}: {error}")

    def _timed(self, client: Any) -> tuple[Any, float, float]:
        sent = time.monotonic()
        answer = client.execute_command("TIME")
        return answer, sent, time.monotonic()

    def _learn(self, info: Any, server_time: Any, sent: float, received: float) -> None:
        """Take in what the first exchange found out: is it safe to write there, and what time is it there."""
        if self.is_cluster and isinstance(info, dict) and info and isinstance(next(iter(info.values())), dict):
            info = next(iter(info.values()))
        policy = str(info.get("maxmemory_policy", "noeviction")) if isinstance(info, dict) else "noeviction"
        if policy not in SAFE_POLICIES and not self._config.allow_evicting_store:
            raise UnsafeStore(
                f"the store at {self._where.shown} has maxmemory-policy {policy}: it may evict tag sets or leases, and "
                f"with them invalidations; set one of {', '.join(SAFE_POLICIES)}, or allow_evicting_store=True"
            )
        version = str(info.get("redis_version", "7")) if isinstance(info, dict) else "7"
        if int(version.split(".")[0]) < 7:
            raise StoreError(f"the store at {self._where.shown} is version {version}; at least Redis 7.0 or Valkey 7.2")
        if isinstance(server_time, dict):
            server_time = next(iter(server_time.values()))
        seconds, micros = server_time
        self._clock.measure(int(seconds) + int(micros) / 1e6, sent, received)
        self._is_checked = True


class Where:
    """A parsed store URL."""

    __slots__ = ("database", "kind", "nodes", "service", "shown", "url")

    def __init__(self, kind: str, url: str, nodes: list[tuple[str, int]], service: str, database: int) -> None:
        self.kind = kind
        self.url = url
        self.nodes = nodes
        self.service = service
        self.database = database
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.hostname or parts.path}" + (
            f":{parts.port}" if kind != "sentinel" and parts.port else ""
        )


def parse_url(url: str) -> Where:
    """Return where a store URL points.

    Raises:
        ConfigError: its scheme or shape is none of those `Config.redis_url` names.
    """
    scheme, _, rest = url.partition("://")
    if scheme in ("redis", "rediss", "unix"):
        return Where("standalone", url, [], "", 0)
    if scheme in ("cluster", "clusters"):
        return Where("cluster", ("rediss://" if scheme == "clusters" else "redis://") + rest, [], "", 0)
    if scheme == "sentinel":
        hosts, _, path = rest.partition("/")
        service, _, query = path.partition("?")
        hosts = hosts.rpartition("@")[2]
        try:
            nodes = [
                (host or "127.0.0.1", int(port or 26379))
                for host, _, port in (h.partition(":") for h in hosts.split(","))
            ]
            database = int(parse_qs(query).get("db", ["0"])[0])
        except ValueError:
            raise ConfigError(f"redis_url must be sentinel://host:port,host:port/service, got {url!r}") from None
        if not service:
            raise ConfigError(f"redis_url must name a service, sentinel://host:port/service, got {url!r}")
        return Where("sentinel", f"sentinel://{hosts.split(',')[0].split(':')[0]}", nodes, service, database)
    raise ConfigError(f"redis_url must start with redis, rediss, unix, sentinel or cluster, got {scheme!r}")


@functools.cache
def _in_slot(slot: int) -> str:
    """Return a short text whose Cluster slot this is: one of 16,384 or so is."""
    return next(text for text in map(str, itertools.count()) if key_slot(text.encode()) == slot)


def _not_run(replies: Sequence[Any]) -> list[int]:
    """Return which requests to send again, in full: NOSCRIPT after a restart, TRYAGAIN while a slot migrates."""
    return [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError | TryAgainError)]


def _check(replies: Sequence[Any]) -> None:
    """Raise the first error among replies, but for wrong types: something foreign is there, which a caller handles."""
    for reply in replies:
        if not isinstance(reply, Exception):
            continue
        if isinstance(reply, OutOfMemoryError) or (isinstance(reply, ResponseError) and "OOM " in str(reply)):
            raise StoreFull(f"the store is out of memory: {reply}") from reply
        if not (isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")):
            raise reply
