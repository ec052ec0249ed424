"""A commit with thousands of tags does not wait for them, and its own process reads what it wrote all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cacheworkers.sql.watch import delivery
from cacheworkers.testing.servers import wait_until

from .conftest import Product, Shop


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Keeps the thread that invalidates after a large commit from beginning."""
    import threading

    go = threading.Event()
    retry = delivery.Delivery._retry

    def held_retry(self: delivery.Delivery) -> None:
        go.wait(30)
        retry(self)

    monkeypatch.setattr(delivery.Delivery, "_retry", held_retry)
    monkeypatch.setattr(delivery, "MAX_TAGS_AT_COMMIT", 3)
    yield go
    go.set()


def reprice(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        for number in range(1, 6):
            session.get_one(Product, number).price = 99


async def areprice(shop: Shop) -> None:
    async with shop.async_sessions.begin() as session:
        for number in range(1, 6):
            (await session.get_one(Product, number)).price = 99


@pytest.mark.parametrize("how", ["sync", "async"])
def test_its_process_reads_what_it_wrote_before_it_is_invalidated(shop: Shop, held: Any, how: str) -> None:
    shop.add(*range(1, 8))
    assert shop.price.get(1) == 10 and shop.price.get(7) == 70
    wait_until(lambda: shop.price.read(1).tier == "l1")

    reprice(shop) if how == "sync" else asyncio.run(areprice(shop))

    assert shop.invalidated() == []
    assert shop.price.get(1) == 99
    assert shop.price.get(7) == 70
    assert shop.price.get_json(2) == b"99"
    held.set()
    wait_until(lambda: {f"product:{number}" for number in range(1, 6)} <= set().union(*shop.invalidated()))
    wait_until(lambda: shop.price.read(1).tier == "l1")
    assert shop.price.get(1) == 99


def test_its_rows_are_acknowledged(shop: Shop, held: Any) -> None:
    shop.add(*range(1, 6))
    reprice(shop)
    assert shop.waiting() > 0

    held.set()

    wait_until(lambda: shop.waiting() == 0)


def test_a_small_commit_is_invalidated_before_it_returns(shop: Shop) -> None:
    shop.add(*range(1, 6))

    reprice(shop)

    assert len(shop.invalidated()) == 1


def test_many_tags_are_written_in_several_rows(shop: Shop) -> None:
    """The relay keeps what it has done row by row."""
    with shop.sessions.begin() as session:
        session.add_all(Product(id=number, category_id=1, price=1) for number in range(2500))
        session.flush()
        rows = session.connection().exec_driver_sql("SELECT count(*) FROM cacheworkers_outbox").scalar_one()
        session.rollback()

    assert rows == 3
