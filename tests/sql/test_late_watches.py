"""Watches, engines and sessions that come while others work: nothing that others walk through is changed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, event
from sqlalchemy.orm import Session, sessionmaker

from cacheworkers import Cache
from cacheworkers.testing.servers import wait_until

from .conftest import Product, Shop


@pytest.mark.parametrize("moment", ["before_update", "before_flush", "set"])
def test_a_watch_that_comes_in_the_middle_of_a_flush(shop: Shop, make_cache: Callable[..., Cache], moment: str) -> None:
    """As one of another thread may: the flush goes on through the listeners that it has begun with."""
    shop.add(1)
    target: Any = {"before_update": Product, "before_flush": shop.sessions, "set": Product.price}[moment]
    others: list[Any] = []

    def watch(*_: Any) -> None:
        others.append(sessionmaker(shop.engine))
        make_cache().watch(others[-1], {Product: ["product:{id}"]})

    event.listen(target, moment, watch)
    try:
        with shop.sessions.begin() as session:
            session.get_one(Product, 1).price = 5
    finally:
        event.remove(target, moment, watch)

    assert len(others) == 1 and shop.invalidated() == [{"product:1", "category:1"}]
    with others[0].begin() as session:
        session.get_one(Product, 1).price = 6
    assert shop.invalidated()[1:] == [{"product:1"}]


def test_watches_come_while_threads_write(shop: Shop, make_cache: Callable[..., Cache]) -> None:
    shop.add(*range(1, 5))
    wrong: list[Any] = []
    is_over = threading.Event()

    def write(number: int) -> None:
        try:
            for price in range(1, 20):
                with shop.sessions.begin() as session:
                    session.get_one(Product, number).price = price
                if (found := shop.price.get(number)) != price:
                    wrong.append((number, price, found))
        except Exception as error:
            wrong.append(error)

    def watch() -> None:
        while not is_over.is_set():
            make_cache().watch(sessionmaker(shop.engine.execution_options(tenant=1)), {Product: ["product:{id}"]})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 5)]
    watching = threading.Thread(target=watch)
    for thread in (*threads, watching):
        thread.start()
    for thread in threads:
        thread.join()
    is_over.set()
    watching.join()

    assert wrong == []


def test_an_engine_of_one_request_is_not_kept(shop: Shop, database_url: str) -> None:
    class Mine(Session):
        pass

    shop.add(1)
    shop.cache.watch(Mine, {Product: ["product:{id}"]})
    engines = []
    for price in range(3):
        engine = create_engine(database_url, poolclass=NullPool)
        engines.append(weakref.ref(engine))
        with Mine(engine) as session, session.begin():
            session.get_one(Product, 1).price = price
        del engine, session

    def are_gone() -> bool:
        gc.collect()
        return all(each() is None for each in engines)

    wait_until(are_gone)
