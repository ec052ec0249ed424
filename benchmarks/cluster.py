"""What a hit costs on a Cluster of three masters, beside redis-py: `python -m benchmarks.cluster`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from redis.asyncio.cluster import RedisCluster as AsyncRedisCluster
from redis.cluster import RedisCluster
from rich.console import Console

from benchmarks.read_path import Bench, Product, product_of, table
from cacheworkers import Cache, Config, Load
from cacheworkers.testing.cluster import ValkeyCluster

KEYS = [f"bare{number}" for number in range(100)]
_decode = msgspec.json.Decoder(Product).decode


def sync(bench: Bench, url: str, product: Any) -> None:
    """Measure a thread."""
    client: Any = RedisCluster.from_url(url)
    for key in KEYS:
        client.set(key, msgspec.json.encode(product_of(42)))

    def piped() -> list[Product]:
        with client.pipeline() as pipeline:
            for key in KEYS:
                pipeline.get(key)
            return [_decode(raw) for raw in pipeline.execute()]

    bench.add("redis-py get + decode", lambda: _decode(client.get(KEYS[0])), 1000)
    bench.add("cacheworkers get", lambda: product.get(42), 1000)
    bench.run("sync, one key")
    bench.add("redis-py mget_nonatomic + decode", lambda: [*map(_decode, client.mget_nonatomic(KEYS))], 30)
    bench.add("redis-py pipeline of get + decode", piped, 30)
    bench.add("cacheworkers get_many", lambda: product.get_many(range(100)), 100)
    bench.run("sync, get_many(100)")
    client.close()


async def on_a_loop(bench: Bench, url: str, product: Any) -> None:
    """Measure an event loop."""
    client: Any = AsyncRedisCluster.from_url(url)

    async def plain(key: str) -> Product:
        return _decode(await client.get(key))

    async def piped() -> list[Product]:
        pipeline = client.pipeline()
        for key in KEYS:
            pipeline.get(key)
        return [_decode(raw) for raw in await pipeline.execute()]

    bench.add("redis.asyncio get + decode", lambda: plain(KEYS[0]), 1000)
    bench.add("cacheworkers aget", lambda: product.aget(42), 1000)
    await bench.arun("async, one key")
    bench.add("redis.asyncio get + decode, 100 tasks", lambda: asyncio.gather(*map(plain, KEYS)), 30)
    bench.add("redis.asyncio pipeline of get + decode", piped, 30)
    bench.add("cacheworkers aget, 100 tasks", lambda: asyncio.gather(*map(product.aget, range(100))), 100)
    bench.add("cacheworkers aget_many", lambda: product.aget_many(range(100)), 100)
    await bench.arun("async, 100 keys")
    await client.aclose()


def main() -> None:
    """Measure, and print one table."""
    bench = Bench()
    with ValkeyCluster() as cluster:
        cache = Cache(Config(redis_url=cluster.url, store_timeout=5.0))

        @cache.loader(fresh_for=3600, early=0, l1_for=0.0)
        def product(load: Load, number: int) -> Product:
            return product_of(number)

        product.get_many(range(100))
        url = cluster.url.replace("cluster://", "redis://")
        sync(bench, url, product)
        asyncio.run(on_a_loop(bench, url, product))
        cache.close()
    made = table(bench)
    made.title = "What a hit costs on a Cluster: microseconds, and the ratio to the first of each group"
    Console(width=100).print(made)


if __name__ == "__main__":
    main()
