"""Who caches the product: each class does what its library's documentation shows for a value that must not go stale.

Fresh for 300 s, one load for many readers where the library can, and dropped after a write's commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from benchmarks.apps import FRESH_FOR


@dataclass(frozen=True)
class Database:
    """What every peer loads from.

    Attributes:
        load: product id -> its JSON, on the running loop.
    """

    url: str
    redis_url: str
    statement: Any
    sessions: Any
    load: Callable[[int], Awaitable[bytes]]


def payload_of(row: Any) -> bytes:
    """Return a row as the API's JSON."""
    if row is None:
        return b"null"
    cents = {"amount": int(row.amount * 100), "sale_amount": row.sale_amount and int(row.sale_amount * 100)}
    fields = {"id": row.id, "name": row.name, "category_id": row.category_id, "quantity": row.quantity}
    return msgspec.json.encode({**fields, **cents})


class NoCache:
    """Every request is a query."""

    label = "no cache"

    def __init__(self, database: Database) -> None:
        self._load = database.load

    async def get(self, product_id: int) -> bytes:
        """Load it."""
        return await self._load(product_id)

    async def changed(self, product_id: int) -> None:
        """Nothing is kept."""


class ByHand:
    """Cache-aside as most applications write it: GET, else load and SET; DEL after the commit."""

    label = "hand-written cache-aside"

    def __init__(self, database: Database) -> None:
        import redis.asyncio

        self._redis = redis.asyncio.Redis.from_url(database.redis_url)
        self._load = database.load

    async def get(self, product_id: int) -> bytes:
        """Ask Redis, else load."""
        found: Any = await self._redis.get(f"product:{product_id}")
        if found is None:
            found = await self._load(product_id)
            await self._redis.set(f"product:{product_id}", found, ex=FRESH_FOR)
        return bytes(found)

    async def changed(self, product_id: int) -> None:
        """Drop it."""
        await self._redis.delete(f"product:{product_id}")


class RedisClientSide:
    """redis-py's own client-side caching, in FastAPI's threads: it has no asyncio kind."""

    label = "redis-py client-side cache (threads)"

    def __init__(self, database: Database) -> None:
        import redis
        from redis.cache import CacheConfig
        from redis.connection import CacheProxyConnection

        # It refuses a server of another name than Redis; Valkey tracks keys as Redis 7.4 does.
        CacheProxyConnection.DEFAULT_SERVER_NAME = "valkey"
        self._redis = redis.Redis.from_url(database.redis_url, protocol=3, cache_config=CacheConfig(max_size=10_000))
        self._redis.ping()
        self._sync = _SyncLoad(database)

    def get_in_thread(self, product_id: int) -> bytes:
        """Ask Redis through its cache, else load."""
        found: Any = self._redis.get(f"product:{product_id}")
        if found is None:
            found = self._sync.load(product_id)
            self._redis.set(f"product:{product_id}", found, ex=FRESH_FOR)
        return bytes(found)

    async def changed(self, product_id: int) -> None:
        """Drop it."""
        self._redis.delete(f"product:{product_id}")


class Cashews:
    """cashews: client-side caching, and a lock against stampedes."""

    label = "cashews (client side, lock)"

    def __init__(self, database: Database) -> None:
        from cashews import Cache

        self._cache = cache = Cache()
        cache.setup(database.redis_url, client_side=True)

        @cache(ttl=FRESH_FOR, key="product:{product_id}", lock=True)
        async def product(product_id: int) -> bytes:
            return await database.load(product_id)

        self._product = product

    async def get(self, product_id: int) -> bytes:
        """Call the decorated function."""
        found: bytes = await self._product(product_id)
        return found

    async def changed(self, product_id: int) -> None:
        """Drop it."""
        await self._cache.delete(f"product:{product_id}")


class Aiocache:
    """aiocache: `cached_stampede`, its decorator with a lock in Redis."""

    label = "aiocache (cached_stampede)"

    def __init__(self, database: Database) -> None:
        from urllib.parse import urlsplit

        from aiocache import RedisCache, cached_stampede
        from aiocache.serializers import NullSerializer

        where = urlsplit(database.redis_url)
        options = {"endpoint": where.hostname, "port": where.port, "serializer": NullSerializer(encoding=None)}
        self._cache = RedisCache(**options)

        @cached_stampede(
            lease=2,
            ttl=FRESH_FOR,
            cache=RedisCache,
            key_builder=lambda _, product_id: f"product:{product_id}",
            **options,
        )
        async def product(product_id: int) -> bytes:
            return await database.load(product_id)

        self._product = product

    async def get(self, product_id: int) -> bytes:
        """Call the decorated function."""
        return bytes(await self._product(product_id))

    async def changed(self, product_id: int) -> None:
        """Drop it."""
        await self._cache.delete(f"product:{product_id}")


class Dogpile:
    """dogpile.cache in FastAPI's threads, with its lock in Redis: it has no asyncio kind."""

    label = "dogpile.cache (threads)"

    def __init__(self, database: Database) -> None:
        from dogpile.cache import make_region

        self._region = make_region().configure(
            "dogpile.cache.redis",
            expiration_time=FRESH_FOR,
            arguments={"url": database.redis_url, "distributed_lock": True, "thread_local_lock": False},
        )
        self._sync = _SyncLoad(database)

    def get_in_thread(self, product_id: int) -> bytes:
        """Get or create."""
        found: bytes = self._region.get_or_create(f"product:{product_id}", lambda: self._sync.load(product_id))
        return found

    async def changed(self, product_id: int) -> None:
        """Drop it."""
        self._region.delete(f"product:{product_id}")


class Cacheworkers:
    """This library: loads in Celery workers, memory in each process, invalidation with the commit."""

    label = "cacheworkers"

    def __init__(self, database: Database) -> None:
        from benchmarks.apps.worker import cache, product

        self._cache, self._product = cache, product
        from app.models import Price

        cache.watch(database.sessions, {Price: ("product:{product_id}",)})

    async def get(self, product_id: int) -> bytes:
        """Return the payload as it lies in the cache."""
        return await self._product.aget_json(product_id)

    async def changed(self, product_id: int) -> None:
        """The commit has invalidated it."""


class _SyncLoad:
    def __init__(self, database: Database) -> None:
        from sqlalchemy import create_engine
        from sqlalchemy.orm import sessionmaker

        self._sessions = sessionmaker(create_engine(database.url, pool_size=20, max_overflow=20))
        self._statement = database.statement

    def load(self, product_id: int) -> bytes:
        from app.models import Product

        with self._sessions() as session:
            return payload_of(session.execute(self._statement.where(Product.id == product_id)).one_or_none())


PEERS: dict[str, Callable[[Database], Any]] = {
    "cacheworkers": Cacheworkers,
    "cashews": Cashews,
    "aiocache": Aiocache,
    "dogpile": Dogpile,
    "redis-py": RedisClientSide,
    "by-hand": ByHand,
    "none": NoCache,
}
LABELS: dict[str, str] = {name: getattr(peer, "label", name) for name, peer in PEERS.items()}
