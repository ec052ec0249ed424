"""redis-py's clients and pools: they say how to connect, and do what is no exchange.

Clients never retry: with a retry a script whose reply was late runs again behind the caller's back, and a dead store
costs seconds instead of one timeout.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import redis
import redis.asyncio
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster, cleanup_kwargs
from redis.connection import parse_url as parse_sync_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from cacheworkers.store.connections.address import Address
from cacheworkers.store.connections.async_connection import abort


class Clients:
    """One sync client, and one async client for each event loop; each is made at first use."""

    def __init__(self, address: Address, timeout: float) -> None:
        """
        Args:
            timeout: of a connection, and of each answer, seconds.
        """
        self._address = address
        self._timeout = timeout
        self.reset()

    def reset(self) -> None:
        """Forget all clients, as a child does after a fork."""
        self._sync: Any = None
        # Not weakly by their loops, for connections to Sentinels hold theirs.
        self._async: dict[asyncio.AbstractEventLoop, Any] = {}

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
            address, options = self._address, self._options(Retry(NoBackoff(), 0))
            if address.kind == "cluster":
                self._sync = RedisCluster.from_url(address.url, **options)
            elif address.kind == "sentinel":
                sentinel: Any = cast(Any, Sentinel)(
                    address.nodes, sentinel_kwargs=options, **options, db=address.database
                )
                self._sync = sentinel.master_for(address.service)
            else:
                self._sync = redis.Redis.from_url(address.url, **options)
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
            address, options = self._address, self._options(AsyncRetry(NoBackoff(), 0))
            if address.kind == "sentinel":
                sentinel: Any = cast(Any, AsyncSentinel)(
                    address.nodes, sentinel_kwargs=options, **options, db=address.database
                )
                client = sentinel.master_for(address.service)
            else:
                client = redis.asyncio.Redis.from_url(address.url, **options)
            self._async[loop] = client
        return client.connection_pool

    def pool_at(self, host: str, port: int) -> Any:
        """Return a pool for one node of a Cluster, with the URL's TLS and credentials, as redis-py makes them."""
        options = self._options(Retry(NoBackoff(), 0))
        return redis.ConnectionPool(**_of_node(parse_sync_url, self._address.url, host, port), **options)

    def async_pool_at(self, host: str, port: int) -> Any:
        """Return the same for event loops."""
        options = self._options(AsyncRetry(NoBackoff(), 0))
        return redis.asyncio.ConnectionPool(**_of_node(parse_async_url, self._address.url, host, port), **options)

    def _close_async(self, loop: asyncio.AbstractEventLoop) -> None:
        client = self._async.pop(loop, None)
        sentinel = None if client is None else getattr(client.connection_pool, "sentinel_manager", None)
        if sentinel is None:  # it has connected nothing: wires only ask it how to
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

    def _options(self, retry: Any) -> dict[str, Any]:
        return {"retry": retry, "socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}


def _of_node(parse: Any, url: str, host: str, port: int) -> dict[str, Any]:
    """Return what a URL says of connections, but for another node; what only a Cluster's client knows is left out."""
    kept: dict[str, Any] = cast(Any, cleanup_kwargs)(**parse(url))
    return {**kept, "host": host, "port": port}
