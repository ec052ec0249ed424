"""Rows of async sessions whose loop has ended are marked delivered all the same: the drain has nothing to repeat."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from cacheworkers.sql.outbox import acknowledger
from cacheworkers.testing.servers import wait_until

from .conftest import Product, Shop


async def reprice(shop: Shop, price: int) -> None:
    async with shop.async_sessions.begin() as session:
        (await session.get_one(Product, 1)).price = price
    await shop.async_engine.dispose()


def run_and_cancel(work: Any) -> None:
    asyncio.run(work)


def run_and_close(work: Any) -> None:
    """As test runners and frameworks do that make their loops by hand: nobody is cancelled."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(work)
    finally:
        loop.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a task that was pending, and its sleep
@pytest.mark.parametrize("run", [run_and_cancel, run_and_close])
def test_one_loop_after_the_other(shop: Shop, run: Any) -> None:
    shop.add(1)
    for price in range(3):
        run(reprice(shop, price))

    shop.cache._watching.close()

    wait_until(lambda: shop.waiting() == 0)


def test_a_loop_that_goes_on_marks_its_own(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.add(1)

    async def work() -> None:
        await reprice(shop, 1)
        deadline = asyncio.get_running_loop().time() + 20
        while shop.waiting() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    monkeypatch.setattr(acknowledger, "ProcessThread", None)

    asyncio.run(work())

    assert shop.waiting() == 0


def test_a_coroutine_that_closes_the_cache_leaves_nothing_behind(shop: Shop) -> None:
    """A script's last line, or what an application does at its shutdown: the loop has no time left."""
    shop.add(1)

    async def work() -> int:
        await reprice(shop, 1)
        shop.cache._watching.close()
        return shop.waiting()

    assert asyncio.run(work()) == 0


def test_rows_that_cannot_be_marked_are_one_line_without_the_statement(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OperationalError("UPDATE cacheworkers_outbox", {}, Exception("terminating connection\nSSL is closed"))

    shop.add(1)
    monkeypatch.setattr(acknowledger, "on_connection", fail)
    asyncio.run(reprice(shop, 1))

    shop.cache._watching.close()

    [said] = [each.getMessage() for each in caplog.records if "not marked delivered" in each.getMessage()]
    assert (
        said
        == "1 outbox rows are not marked delivered, which is harmless: a drain repeats them: terminating connection"
    )


SCRIPT = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from cacheworkers import Cache, Config

class Base(DeclarativeBase): ...

class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]

store, namespace, database = sys.argv[1:]
sessions = sessionmaker(create_engine(database))
cache = Cache(Config(redis_url=store, namespace=namespace), sessions=sessions)
cache.watch(sessions, {Product: lambda row: (f"product:{row.id}",)})
with sessions.begin() as session:
    session.get_one(Product, 1).price = 7
"""


def test_a_script_that_ends_without_a_word_leaves_nothing_behind(shop: Shop, database_url: str) -> None:
    shop.add(1)
    config = shop.cache.config

    subprocess.run([sys.executable, "-c", SCRIPT, config.redis_url, config.namespace, database_url], check=True)

    assert shop.price.get(1) == 7
    assert shop.waiting() == 0
