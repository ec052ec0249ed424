"""An invalidation that overtakes a load: who serves the old value afterwards?  `python -m benchmarks.race`.

The same scene for each: a reader misses and its load reads the old price; while the load is under way the price is
changed and the entry invalidated, each library's own documented way; then the load ends and its library does with the
value what it does.  Whoever reads now must get the new price.

Peers are optional: `pip install 'cashews[redis]' dogpile.cache 'aiocache[redis]' cachetools`.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
from collections.abc import Awaitable, Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from cacheworkers import Cache, Config, Load
from cacheworkers.testing import Valkey


class Play(NamedTuple):
    """How the scene ended for one way to invalidate; `error` where it did not.

    Attributes:
        version: empty for what is not installed.
        is_new: the read at the end returned the new price.
    """

    package: str
    version: str
    how: str
    is_new: bool
    error: str

    @property
    def reported(self) -> str:
        """What a read returned, in words."""
        if not self.version:
            return "not installed"
        return self.error or ("the new price" if self.is_new else "**the old price**")


class Shop:
    """One price, and a load of it that waits, once, between reading and returning."""

    def __init__(self) -> None:
        self.price = 1
        self.has_read = threading.Event()
        self.may_return = threading.Event()

    def load(self) -> int:
        """Read the price, wait, return it."""
        price = self.price
        if not self.has_read.is_set():
            self.has_read.set()
            self.may_return.wait(10)
        return price

    async def aload(self) -> int:
        """Read the price, wait without blocking the loop, return it."""
        price = self.price
        if not self.has_read.is_set():
            self.has_read.set()
            await asyncio.to_thread(self.may_return.wait, 10)
        return price


def scene(shop: Shop, get: Callable[[], int], invalidate: Callable[[], object]) -> int:
    """Play the scene with threads, and return what is read at its end."""
    reader = threading.Thread(target=get)
    reader.start()
    shop.has_read.wait(10)
    shop.price = 2
    invalidate()
    shop.may_return.set()
    reader.join()
    return get()


async def ascene(shop: Shop, get: Callable[[], Awaitable[int]], invalidate: Callable[[], Awaitable[object]]) -> int:
    """Play the scene with tasks."""
    reader = asyncio.ensure_future(get())
    await asyncio.to_thread(shop.has_read.wait, 10)
    shop.price = 2
    await invalidate()
    shop.may_return.set()
    await reader
    return await get()


def ours(url: str) -> int:
    """This library: a load that an invalidation overtook is done again."""
    shop = Shop()
    cache = Cache(Config(redis_url=url, store_timeout=5.0))

    @cache.loader(tags=("price",), fresh_for=60)
    def price(load: Load) -> int:
        return shop.load()

    try:
        return scene(shop, price.get, lambda: cache.invalidate("price"))
    finally:
        cache.close()


def dogpile(url: str) -> int:
    """dogpile.cache: `region.delete` while the creator runs."""
    from dogpile.cache import make_region

    shop = Shop()
    region = make_region().configure("dogpile.cache.redis", arguments={"url": url, "distributed_lock": True})
    return scene(shop, lambda: region.get_or_create("price", shop.load, 60), lambda: region.delete("price"))


def dogpile_region(url: str) -> int:
    """dogpile.cache: `region.invalidate()`, which compares creation times."""
    from dogpile.cache import make_region

    shop = Shop()
    region = make_region().configure("dogpile.cache.redis", arguments={"url": url, "distributed_lock": True})
    return scene(shop, lambda: region.get_or_create("price2", shop.load, 60), region.invalidate)


def cashews(url: str) -> int:
    """cashews: `delete_tags` while the function runs."""
    from cashews import Cache as Cashews

    async def play() -> int:
        shop = Shop()
        cache = Cashews()
        cache.setup(url, client_side=False)

        @cache(ttl="1m", key="price", tags=["prices"])
        async def price() -> int:
            return await shop.aload()

        try:
            return await ascene(shop, price, lambda: cache.delete_tags("prices"))
        finally:
            await cache.close()

    return asyncio.run(play())


def aiocache(url: str) -> int:
    """aiocache: `cache.delete` while the function runs."""
    from aiocache import RedisCache, cached

    async def play() -> int:
        shop = Shop()
        parts = urlsplit(url)
        where = {"endpoint": parts.hostname, "port": parts.port, "namespace": "race"}

        @cached(cache=RedisCache, key="price", ttl=60, **where)
        async def price() -> int:
            return int(await shop.aload())

        cache = RedisCache(**where)
        return int(await ascene(shop, price, lambda: cache.delete("price")))

    return asyncio.run(play())


def cachetools(url: str) -> int:
    """cachetools: `cache.pop` while the function runs; in this process's memory."""
    from cachetools import TTLCache, cached

    shop = Shop()
    memory: TTLCache[object, int] = TTLCache(10, 60)
    price = cached(memory, key=lambda: "price", lock=threading.Lock())(shop.load)
    return scene(shop, price, lambda: memory.pop("price", None))


PLAYERS = {
    "cacheworkers": [("invalidate(tag)", ours)],
    "dogpile.cache": [("region.delete(key)", dogpile), ("region.invalidate()", dogpile_region)],
    "cashews": [("delete_tags(tag)", cashews)],
    "aiocache": [("cache.delete(key)", aiocache)],
    "cachetools": [("cache.pop(key)", cachetools)],
}


def played() -> list[Play]:
    """Play the scene with everybody who is installed."""
    found = []
    with Valkey() as valkey:
        for package, plays in PLAYERS.items():
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                found.append(Play(package, "", "", False, ""))
                continue
            for how, play in plays:
                try:
                    found.append(Play(package, version, how, play(valkey.url) == 2, ""))
                except Exception as error:
                    found.append(Play(package, version, how, False, f"{type(error).__name__}: {str(error)[:60]}"))
    return found


def main() -> None:
    """Play the scene with everybody who is installed, and print who served the old value."""
    print("| library | its invalidation | after it, a read returned |\n|---|---|---|")
    for play in played():
        print(f"| {f'{play.package} {play.version}'.strip()} | {play.how} | {play.reported} |")


if __name__ == "__main__":
    main()
