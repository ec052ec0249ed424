"""Clients: redis-py's clients and pools, which say how to connect to each kind of store.

Clients never retry: with a retry a script whose reply was late runs again behind the caller's back, and a dead store
costs seconds instead of one timeout.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import redis
import redis.asyncio
from redis.asyncio import connection as async_connections
from redis.asyncio import sentinel as async_sentinels
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from cacheworkers.store.connections.address import Node, StoreAddress
from cacheworkers.store.connections.async_connection import abort
from cacheworkers.store.connections.credentials import Provider
from cacheworkers.store.connections.sentinels import AsyncSentinels, MasterLease, Sentinels
from cacheworkers.store.connections.server_name import with_server_name


class Clients:
    """One sync client, and one async client for each event loop; each is made at first use."""

    def __init__(self, address: StoreAddress, timeout: float, provider: Provider | None = None) -> None:
        """
        Args:
            timeout: of a connection, and of each answer, seconds.
            provider: of user and password, if not the address.
        """
        self._address = address
        self._timeout = timeout
        self._provider = provider
        #: What the Sentinels say, if there are any.
        self.lease = MasterLease(len(address.nodes)) if address.kind == "sentinel" else None
        self.reset()

    def reset(self) -> None:
        """Forget all clients, as a child does after a fork."""
        self._sync: Any = None
        # Not weakly by their loops, for connections to Sentinels hold theirs.
        self._async: dict[asyncio.AbstractEventLoop, Any] = {}
        if self.lease is not None:
            self.lease.reset()

    def close(self) -> None:
        """Close all clients; those of loops that run do it themselves, soon."""
        client, self._sync = self._sync, None
        if client is not None:
            client.close()
        for loop in list(self._async):
            self._close_async(loop)

    def client(self) -> Any:
        """Return the sync client."""
        if self._sync is None:
            self._sync = self._cluster() if self._address.kind == "cluster" else self._client(is_async=False)
        return self._sync

    def pool(self) -> Any:
        """Return the pool of a standalone server, or of the master that Sentinels name."""
        return self.client().connection_pool

    def async_pool(self) -> Any:
        """Return the same for the running loop."""
        loop = asyncio.get_running_loop()
        client = self._async.get(loop)
        if client is None:
            for other in list(self._async):
                if other.is_closed():
                    self._close_async(other)
            client = self._async[loop] = self._client(is_async=True)
        return client.connection_pool

    def pool_at(self, host: str, port: int) -> Any:
        """Return a pool for one node of a Cluster."""
        return self._pool_at((host, port), self._options(is_async=False), is_async=False)

    def async_pool_at(self, host: str, port: int) -> Any:
        """Return the same for event loops."""
        return self._pool_at((host, port), self._options(is_async=True), is_async=True)

    # -- inside

    def _client(self, *, is_async: bool) -> Any:
        address, options = self._address, self._options(is_async=is_async)
        client_class: Any = redis.asyncio.Redis if is_async else redis.Redis
        if address.kind == "sentinel":
            return self._sentinel(options, is_async=is_async).master_for(
                address.service,
                redis_class=client_class,
                connection_class=self._connection_class(is_async=is_async, is_managed=True),
                db=address.database,
            )
        options["db"] = address.database
        if address.path:
            module: Any = async_connections if is_async else redis.connection
            pool_class: Any = redis.asyncio.ConnectionPool if is_async else redis.ConnectionPool
            options |= {"connection_class": module.UnixDomainSocketConnection, "path": address.path}
            return client_class.from_pool(pool_class(**options))
        return client_class.from_pool(self._pool_at(address.nodes[0], options, is_async=is_async))

    def _sentinel(self, options: dict[str, Any], *, is_async: bool) -> Any:
        """Return redis-py's Sentinel, which asks the Sentinels for the master."""
        address = self._address
        sentinel_class: Any = AsyncSentinels if is_async else Sentinels
        client_class: Any = redis.asyncio.Redis if is_async else redis.Redis
        bare = {name: value for name, value in options.items() if name not in _CREDENTIALS}
        if address.sentinel_password is not None:
            ways = [{"username": address.sentinel_username, "password": address.sentinel_password}]
        else:
            # Most Sentinels have no password, and refuse one; those that have one mostly share the servers'.
            own = {name: value for name, value in options.items() if name in _CREDENTIALS}
            ways = [{}, own] if own else [{}]
        sentinel = sentinel_class([], sentinel_kwargs={}, **options)
        sentinel.lease, sentinel.absent_since = self.lease, {}
        sentinel.sentinels = [
            client_class.from_pool(self._pool_at(node, {**bare, **way}, is_async=is_async))
            for way in ways
            for node in address.nodes
        ]
        return sentinel

    def _cluster(self) -> Any:
        host, port = self._address.nodes[0]
        return RedisCluster.from_url(
            f"redis://[{host}]:{port}" if ":" in host else f"redis://{host}:{port}",
            startup_nodes=[cast(Any, ClusterNode)(*node) for node in self._address.nodes],
            connection_class=self._connection_class(is_async=False),
            **self._options(is_async=False),
        )

    def _pool_at(self, node: Node, options: dict[str, Any], *, is_async: bool) -> Any:
        pool_class: Any = redis.asyncio.ConnectionPool if is_async else redis.ConnectionPool
        connection_class = self._connection_class(is_async=is_async)
        return pool_class(**{**options, "connection_class": connection_class, "host": node[0], "port": node[1]})

    def _connection_class(self, *, is_async: bool, is_managed: bool = False) -> Any:
        """Return redis-py's class of connections.

        Args:
            is_managed: they ask Sentinels where to connect to.
        """
        has_tls = self._address.has_tls
        if is_managed:
            module: Any = async_sentinels if is_async else redis.sentinel
            found = module.SentinelManagedSSLConnection if has_tls else module.SentinelManagedConnection
        else:
            module = async_connections if is_async else redis.connection
            found = module.SSLConnection if has_tls else module.Connection
        server_name = self._address.options.get("ssl_server_hostname")
        return with_server_name(found, server_name, is_async=is_async) if server_name else found

    def _options(self, *, is_async: bool) -> dict[str, Any]:
        """Return the options of connections: timeouts, credentials and TLS."""
        address = self._address
        retry: Any = AsyncRetry(NoBackoff(), 0) if is_async else Retry(NoBackoff(), 0)
        options: dict[str, Any] = {
            "retry": retry,
            "socket_timeout": self._timeout,
            "socket_connect_timeout": self._timeout,
            **{name: value for name, value in address.options.items() if name != "ssl_server_hostname"},
        }
        if self._provider is not None:
            options["credential_provider"] = self._provider
        elif address.username or address.password:
            options |= {"username": address.username or None, "password": address.password}
        return options

    def _close_async(self, loop: asyncio.AbstractEventLoop) -> None:
        client = self._async.pop(loop, None)
        sentinel = None if client is None else getattr(client.connection_pool, "sentinel_manager", None)
        if sentinel is None:  # it has connected nothing: a `Pool` only asks it how to
            return

        def close() -> None:
            for each in sentinel.sentinels:
                pool = each.connection_pool
                for connection in (*pool._available_connections, *pool._in_use_connections):
                    abort(connection, loop)

        try:
            loop.call_soon_threadsafe(close)
        except RuntimeError:  # it is closed
            close()


_CREDENTIALS = ("username", "password", "credential_provider")
