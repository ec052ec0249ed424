"""Server facts: what the store's servers report, and whether they do what the library asks of them.

It has connections of its own: a diagnosis changes nothing of what this process's reads know about the store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hiredis
import msgspec
from redis.exceptions import ClusterDownError, ConnectionError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cacheworkers.config import Config
from cacheworkers.core.keys import Keyspace
from cacheworkers.errors import StoreUnavailable
from cacheworkers.local.clock import StoreClock
from cacheworkers.store.commands.process_notes import BEAT_KEPT_FOR
from cacheworkers.store.connections.address import parse_url
from cacheworkers.store.connections.connection import pack
from cacheworkers.store.connections.transport import Transport
from cacheworkers.store.diagnostics.acl import denied
from cacheworkers.store.diagnostics.sentinel_facts import SentinelFacts, sentinel_facts
from cacheworkers.store.tracking.tracking_connection import TrackingConnection

#: How long a push may take, seconds; its life bounds what a probe leaves behind.
PUSH_WITHIN = 1.0
#: How long one look at what has arrived takes at least, seconds.
LAST_LOOK_FOR = 0.1
#: Calls of no loader begin with it: no name has a colon.
PROBE_PREFIX = "doctor:"
_AWAY = (ConnectionError, RedisTimeoutError, ClusterDownError, OSError)

#: Which settings are asked for.
CONFIGURED = (
    "save",
    "maxclients",
    "timeout",
    "client-output-buffer-limit",
    "maxmemory-clients",
    "tracking-table-max-keys",
)


class MasterFacts(msgspec.Struct, frozen=True):
    """One master: its name, what asks it, the pool that connects to it, and whether a key is its own."""

    where: str
    ask: Callable[..., Any]
    pool: Any
    owns: Callable[[str], bool]


class ServerFacts(msgspec.Struct, frozen=True):
    """What one master says of itself.

    Attributes:
        product: its name and version.
        version: of Redis, that it is compatible with.
        evictable: share of its keys that have an expiry, which `volatile-*` policies may evict.
        save_every: longest interval between snapshots, seconds; None without snapshots, or where unknown.
        is_config_hidden: `CONFIG GET` is refused.
        clock_ahead: how much later its clock is than this machine's at least, seconds.
        max_clients: how many connections it takes; 0 if unknown.
        clients: how many it has.
        output_limit: most bytes that it keeps for a connection that does not read; 0 for no limit, None if unknown.
        tracked: share of its tracking table that is in use; 0 where its limit is unknown.
    """

    where: str
    product: str
    version: str
    role: str
    run_id: str
    policy: str
    maxmemory: int
    used_memory: int
    evictable: float
    is_appending: bool
    save_every: float | None
    is_config_hidden: bool
    clock_ahead: float
    max_clients: int = 0
    clients: int = 0
    output_limit: int | None = None
    tracked: float = 0.0


class StoreDiagnostics:
    """Asks the servers of a store; a context manager that closes its connections."""

    def __init__(self, config: Config) -> None:
        self._config = dataclasses.replace(config, store_timeout=max(1.0, config.store_timeout), breaker_for=0.0)
        self._keys = Keyspace(config.namespace, config.tag_shards)
        self._link = Transport(self._config, StoreClock(), on_lost=lambda error: None, on_back=lambda: None)

    def __enter__(self) -> StoreDiagnostics:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def servers(self, now: Callable[[], float] = time.time) -> list[ServerFacts]:
        """Return what each master says of itself.

        Args:
            now: this machine's clock, seconds since the epoch.

        Raises:
            StoreUnavailable: it does not answer.
        """
        with self._translated():
            return [_facts(master, now) for master in self._masters()]

    def sentinels(self) -> SentinelFacts | None:
        """Return which Sentinels there are and which the URL names; None without Sentinels.

        Raises:
            StoreUnavailable: none of them answers.
        """
        address = parse_url(self._config.redis_url)
        if address.kind != "sentinel":
            return None
        with self._translated():
            return sentinel_facts(self._link.client(), address.service, frozenset(address.nodes))

    def unreceived_pushes(self) -> str:
        """Return why pushes do not come, on RESP3 with tracking as the listener uses it; empty when they do.

        Raises:
            StoreUnavailable: the store does not answer at all.
        """
        with self._translated():
            masters = self._masters()
            try:
                for master in masters:
                    master.ask("TIME")
            except NoPermissionError:  # said by the check of rights
                pass
            except ResponseError as error:  # no connection gets past its HELLO
                return f"{self._link.where}: {error}"
        for master in masters:
            try:
                found = self._listened(master)
            except (RedisError, hiredis.HiredisError, OSError) as error:
                found = f"{type(error).__name__}: {error}"
            if found:
                return f"{master.where}: {found}"
        return ""

    def denied(self) -> list[str]:
        """Return the commands and the kinds of keys that the store's user may not use.

        Each is tried, on keys that nobody else uses and that are gone within a second.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._translated():
            return denied(self._link.client(), self._keys, f"{PROBE_PREFIX}{secrets.token_hex(6)}")

    def upkeep_age(self, tasks: Sequence[str]) -> dict[str, float | None]:
        """Return how long ago each upkeep task last ended well, seconds; None where no sign is left.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._translated():
            client = self._link.client()
            left = {task: int(client.execute_command("PTTL", self._keys.beat(task))) for task in tasks}
            return {task: BEAT_KEPT_FOR - ms / 1000 if ms >= 0 else None for task, ms in left.items()}

    # -- inside

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _AWAY as error:
            text = f"the store at {self._link.where} is unavailable: {type(error).__name__}: {error}"
            raise StoreUnavailable(text) from error

    def _masters(self) -> list[MasterFacts]:
        client = self._link.client()
        if not self._link.is_cluster:
            return [MasterFacts(self._link.where, client.execute_command, client.connection_pool, lambda key: True)]
        return [self._node(client, node) for node in sorted(client.get_primaries(), key=lambda node: str(node.name))]

    def _node(self, client: Any, node: Any) -> MasterFacts:
        def ask(*words: Any) -> Any:
            reply = client.execute_command(*words, target_nodes=node)
            return reply[node.name] if isinstance(reply, dict) and node.name in reply else reply

        def owns(key: str) -> bool:
            return bool(client.get_node_from_key(key).name == node.name)

        return MasterFacts(str(node.name), ask, client.get_redis_connection(node).connection_pool, owns)

    def _listened(self, master: MasterFacts) -> str:
        """Listen to one master, write there over another connection, and wait for the push."""
        names = (f"{PROBE_PREFIX}{secrets.token_hex(6)}" for _ in itertools.count())
        key = next(key for key in map(self._keys.entry, names) if master.owns(key))
        is_written = False
        connection = TrackingConnection("", master.pool, self._config.store_timeout, lambda: None)
        try:
            connection.track(pack([("EXISTS", key)]), lambda reply: None)
            connection.flush()
            is_read = False
            while not is_read:
                for reply in connection.messages():
                    is_read = is_read or isinstance(reply, int)
                    if _names(reply, key):  # a full tracking table has forgotten it already, and says so
                        return ""
            with contextlib.suppress(ResponseError):
                self._link.client().execute_command("SET", key, "", "PX", int(PUSH_WITHIN * 1000))
                is_written = True
            if not is_written:  # it may not, or memory is full: that is another finding
                return ""
            end = time.monotonic() + PUSH_WITHIN
            while True:
                # What has arrived is looked at however late it is: this process may have been paused, the push was not.
                connection.socket.settimeout(max(end - time.monotonic(), LAST_LOOK_FOR))
                if any(_names(reply, key) for reply in connection.messages()):
                    return ""
        except TimeoutError:
            pass
        finally:
            connection.close()
        return f"tracking is accepted, but a write by another connection was not pushed within {PUSH_WITHIN:g} s"


def _names(reply: Any, key: str) -> bool:
    return isinstance(reply, hiredis.PushNotification) and reply[1] is not None and key.encode() in reply[1]


def _facts(master: MasterFacts, now: Callable[[], float]) -> ServerFacts:
    info: dict[str, Any] = {}
    for section in ("server", "memory", "persistence", "replication", "keyspace", "stats", "clients"):
        info |= master.ask("INFO", section)
    sent = now()
    seconds, micros = master.ask("TIME")
    received = now()
    reported = int(seconds) + int(micros) / 1e6
    # A clock that says an instant between the two may be right: an answer that took long is no skew.
    clock_ahead = max(0.0, reported - received) + min(0.0, reported - sent)
    databases = [each for name, each in info.items() if name.startswith("db") and isinstance(each, dict)]
    keys = sum(int(each["keys"]) for each in databases)
    config: dict[str, str] = {}
    try:
        for name in CONFIGURED:
            config |= {name: str(value) for name, value in master.ask("CONFIG GET", name).items()}
        is_config_hidden = False
    except ResponseError:  # hosted servers and careful ACLs keep their configuration to themselves
        is_config_hidden = True
    save = config.get("save", "")
    return ServerFacts(
        where=master.where,
        product=f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}",
        version=str(info["redis_version"]),
        role=str(info["role"]),
        run_id=str(info["run_id"]),
        policy=str(info.get("maxmemory_policy", "noeviction")),
        maxmemory=int(info.get("maxmemory", 0)),
        used_memory=int(info["used_memory"]),
        evictable=sum(int(each["expires"]) for each in databases) / keys if keys else 1.0,
        is_appending=bool(int(info.get("aof_enabled", 0))),
        save_every=max(map(float, save.split()[::2]), default=None),
        is_config_hidden=is_config_hidden,
        clock_ahead=clock_ahead,
        max_clients=int(config.get("maxclients", info.get("maxclients", 0))),
        clients=int(info.get("connected_clients", 0)),
        output_limit=_output_limit(
            config.get("client-output-buffer-limit"), config.get("maxmemory-clients", ""), int(info.get("maxmemory", 0))
        ),
        tracked=_share(int(info.get("tracking_total_keys", 0)), int(config.get("tracking-table-max-keys", 0))),
    )


def _share(used: int, limit: int) -> float:
    return used / limit if limit else 0.0


def _output_limit(setting: str | None, of_all: str, maxmemory: int) -> int | None:
    """Return the hard limit of normal clients, `normal 0 0 0 slave 268435456 ...`, or of all clients together.

    Args:
        of_all: `maxmemory-clients`: bytes, or a share of `maxmemory` as `5%`.
    """
    words = (setting or "").split()
    if "normal" not in words:
        return None
    share = maxmemory * int(of_all[:-1]) // 100 if of_all.endswith("%") else int(of_all or 0)
    return int(words[words.index("normal") + 1]) or share
