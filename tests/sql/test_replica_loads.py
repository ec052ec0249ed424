"""Loaders that read a replica without `hold_off_for`: what may be old does not stay fresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Freshness, Load
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


def loader_of(make_cache: MakeCache, url: str, *, is_async: bool = False, **policy: Any) -> Any:
    """Return a cache and its loader, which asks a database."""
    options: dict[str, Any] = {
        "fresh_for": 60,
        "stale_for": 60,
        "jitter": 0,
        "early": 0,
        "tags": ("price:{n}",),
    } | policy
    if is_async:
        cache = make_cache(async_sessions=async_sessionmaker(create_async_engine(url)))

        @cache.loader(**options)
        async def slow(load: Load, n: int) -> int:
            return (await load.session.execute(text("SELECT 7"))).scalar_one()  # type: ignore[no-any-return]

        return cache, slow
    cache = make_cache(sessions=sessionmaker(create_engine(url)))

    @cache.loader(**options)
    def price(load: Load, n: int) -> int:
        return int(load.session.execute(text("SELECT 7")).scalar_one())

    return cache, price


def freshness_after_an_invalidation(cache: Cache, price: Any) -> Freshness:
    """Invalidate, load again, and return how the store has the value."""
    assert price.get(1) == 7
    cache.invalidate("price:1")
    assert price.get(1) == 7
    return price.peek(1).freshness  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_a_replica_gave_soon_after_an_invalidation_is_stale(
    make_cache: MakeCache, standby: str, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    """It may lag: the row may be that of before.  Said once."""
    cache, price = loader_of(make_cache, standby, is_async=is_async)

    assert freshness_after_an_invalidation(cache, price) is Freshness.STALE

    price.get(2)
    assert caplog.text.count("loads read a replica") == 1
    assert "hold_off_for" in caplog.text


def test_without_an_invalidation_it_is_fresh(make_cache: MakeCache, standby: str) -> None:
    _, price = loader_of(make_cache, standby)

    price.get(1)

    assert price.peek(1).freshness is Freshness.FRESH


def test_a_loader_s_own_hold_off_holds(make_cache: MakeCache, standby: str) -> None:
    cache, price = loader_of(make_cache, standby, hold_off_for=0.000_001)

    # Marks count milliseconds: a load that begins within that of its invalidation is held off by any hold_off_for.
    wait_until(lambda: freshness_after_an_invalidation(cache, price) is Freshness.FRESH)


def test_what_the_primary_gave_is_fresh(
    make_cache: MakeCache, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert freshness_after_an_invalidation(*loader_of(make_cache, database_url)) is Freshness.FRESH
    assert "replica" not in caplog.text
