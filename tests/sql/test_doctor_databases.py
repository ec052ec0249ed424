"""Doctor on databases that do not suit loaders: a replica, and limits shorter than a load may take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from cacheworkers import Cache, Load
from cacheworkers.ops.doctor import diagnose

MakeCache = Callable[..., Cache]


def checked(cache: Cache, check: str) -> list[tuple[str, str]]:
    return [(each.level, each.what) for each in diagnose(cache, is_running=False) if each.check == check]


def declared(make_cache: MakeCache, url: str, **policy: Any) -> Cache:
    cache = make_cache(sessions=sessionmaker(create_engine(url)))

    @cache.loader(fresh_for=60, tags=("price:{n}",), **policy)
    def price(load: Load, n: int) -> int:
        return n

    return cache


def test_loads_from_a_replica_are_found(make_cache: MakeCache, standby: str) -> None:
    [(level, what)] = checked(declared(make_cache, standby), "replica-loads")

    assert level == "warning"
    assert what.endswith("is a replica, and price would keep what it lacks")


def test_loads_that_hold_off_may_read_a_replica(make_cache: MakeCache, standby: str) -> None:
    [(level, _)] = checked(declared(make_cache, standby, hold_off_for=5.0), "replica-loads")

    assert level == "ok"


def test_the_primary_is_no_replica(make_cache: MakeCache, database_url: str) -> None:
    [(level, _)] = checked(declared(make_cache, database_url), "replica-loads")

    assert level == "ok"


@pytest.mark.parametrize("setting", ["idle_in_transaction_session_timeout", "transaction_timeout"])
@pytest.mark.parametrize(("limit", "level"), [("5s", "warning"), ("30s", "ok")])
def test_a_transaction_that_ends_before_its_load_is_found(
    make_cache: MakeCache, database_url: str, setting: str, limit: str, level: str
) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        name = engine.url.database
        connection.execute(text(f"ALTER DATABASE \"{name}\" SET {setting} = '{limit}'"))
    engine.dispose()

    [(found, what)] = checked(declared(make_cache, database_url, load_for=10), "transaction-limits")

    assert found == level
    assert f"ends a transaction after {limit[:-1]} s" in what
