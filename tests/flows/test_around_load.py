"""`around_load`: what surrounds each run of a loader, in workers and in readers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from celery import Celery

from cacheworkers import AsyncLoad, Cache, Config, ConfigError, Load, LoadCall, LoadError

MakeCache = Callable[..., Cache]
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


_numbers = itertools.count()


class Around:
    """Notes each load that it surrounds, with what came of it, and sets a tenant inside."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    @contextlib.contextmanager
    def __call__(self, call: LoadCall) -> Iterator[None]:
        token = tenant.set("shop")
        try:
            yield
        except Exception as error:
            self.seen.append((str(call), call.where, type(error).__name__))
            raise
        else:
            self.seen.append((str(call), call.where, "ok"))
        finally:
            tenant.reset(token)


@pytest.fixture
def around() -> Around:
    return Around()


@pytest.fixture
def make(valkey: Any, around: Any) -> Iterator[Callable[..., Cache]]:
    caches: list[Cache] = []

    def made(surroundings: Any = around, **options: Any) -> Cache:
        config = Config(redis_url=valkey.url, namespace=f"around{next(_numbers)}", queue_prefix="q")
        caches.append(Cache(config, around_load=surroundings, **options))
        return caches[-1]

    yield made
    for cache in caches:
        cache.close()


def declare(cache: Cache) -> tuple[Any, Any, Any]:
    @cache.loader(wait_for=0.0)
    def name(load: Load, n: int) -> str:
        assert n >= 0, "negative"
        return tenant.get()

    @cache.batch_loader()
    def names(load: Load, keys: list[int]) -> dict[int, str]:
        return dict.fromkeys(keys, tenant.get())

    @cache.loader()
    async def slow(load: AsyncLoad, n: int) -> str:
        await asyncio.sleep(0)
        return tenant.get()

    return name, names, slow


def test_a_worker_s_loads_are_surrounded(make: MakeCache, around: Around) -> None:
    _, names, slow = declare(make())

    assert names.get_many([1, 2]) == {1: "shop", 2: "shop"}
    assert slow.get(1) == "shop"

    assert around.seen == [("names[1] +1", "worker", "ok"), ("slow[1]", "worker", "ok")]


def test_a_reader_s_loads_are_surrounded(make: MakeCache, around: Around) -> None:
    """Nobody works for this app, and `wait_for` is 0: the reader takes over."""
    name, _, _ = declare(make(celery=Celery("shop", broker="memory://")))

    assert name.get(1) == "shop"
    assert asyncio.run(name.aget(2)) == "shop"

    assert around.seen == [("name[1]", "reader", "ok"), ("name[2]", "reader", "ok")]


def test_it_sees_the_exception_of_a_load(make: MakeCache, around: Around) -> None:
    name, _, _ = declare(make())

    with pytest.raises(LoadError, match="negative"):
        name.get(-1)

    assert [(call, what) for call, _, what in around.seen] == [("name[-1]", "AssertionError")]


def test_what_is_no_function_is_refused_when_the_cache_is_made() -> None:
    with pytest.raises(ConfigError, match=r"around_load must be a function of a LoadCall .*, got None; leave it out"):
        Cache(Config(), around_load=None)  # type: ignore[arg-type]


def test_what_it_raises_fails_the_load(make: MakeCache) -> None:
    @contextlib.contextmanager
    def refuses(call: LoadCall) -> Iterator[None]:
        raise PermissionError(f"not {call}")
        yield

    name, _, _ = declare(make(refuses))

    with pytest.raises(LoadError, match=r"PermissionError: not name\[1\]"):
        name.get(1)


def test_one_that_swallows_exceptions_gives_no_value(make: MakeCache) -> None:
    name, _, _ = declare(make(lambda call: contextlib.suppress(Exception)))

    with pytest.raises(LoadError, match="around_load swallowed"):
        name.get(-1)


def test_an_async_load_may_be_surrounded_asynchronously(make: MakeCache) -> None:
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def tracing(call: LoadCall) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        yield
        seen.append(str(call))

    _, _, slow = declare(make(tracing))

    assert slow.get(1) == "nobody"
    assert seen == ["slow[1]"]
