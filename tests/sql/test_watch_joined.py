"""Sessions that join somebody else's transaction: committed means committed by whoever began it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, update
from sqlalchemy.orm import Session, sessionmaker

from cacheworkers import Cache, Load
from cacheworkers.testing.servers import wait_until
from sql.conftest import Product, Shop

MODES = ["conditional_savepoint", "rollback_only", "create_savepoint"]
TAGS = {"product:1", "category:1"}


@pytest.fixture
def sold(shop: Shop) -> Shop:
    shop.add(1)
    assert shop.price.get(1) == 10
    return shop


@pytest.mark.parametrize("mode", MODES)
def test_the_outermost_commit_invalidates(sold: Shop, mode: Any) -> None:
    """Not the session's own: a reader in between loads, and stores, what is committed as yet."""
    with sold.engine.connect() as connection, connection.begin() as outer:
        with sold.sessions(bind=connection, join_transaction_mode=mode) as session:
            session.get_one(Product, 1).price = 11
            session.commit()
        assert sold.price.get(1) == 10
        assert sold.invalidated() == [] and sold.waiting() == 0
        outer.commit()

    assert sold.invalidated() == [TAGS]
    assert sold.price.get(1) == 11


@pytest.mark.parametrize("mode", MODES)
def test_an_outer_rollback_invalidates_nothing(sold: Shop, mode: Any) -> None:
    with sold.engine.connect() as connection:
        outer = connection.begin()
        with sold.sessions(bind=connection, join_transaction_mode=mode) as session:
            session.get_one(Product, 1).price = 11
            session.commit()
        outer.rollback()
        with connection.begin():
            connection.execute(update(Product.__table__).values(price=12))  # type: ignore[arg-type]

    assert sold.invalidated() == []


def test_a_rollback_to_the_owner_s_savepoint_takes_only_its_own(sold: Shop) -> None:
    sold.add(2, category_id=2)
    with sold.engine.connect() as connection, connection.begin():
        with sold.sessions(bind=connection) as session:
            session.get_one(Product, 1).price = 11
            session.commit()
        savepoint = connection.begin_nested()
        with sold.sessions(bind=connection) as session:
            session.get_one(Product, 2).price = 22
            session.commit()
        savepoint.rollback()

    assert sold.invalidated() == [TAGS]


def test_a_session_that_joins_another_session(sold: Shop) -> None:
    """Either may be committed first; the owner's commit invalidates both."""
    sold.add(2, category_id=2)
    with sold.sessions.begin() as owner:
        owner.get_one(Product, 2).price = 22
        owner.flush()
        with sold.sessions(bind=owner.connection()) as joined:
            joined.get_one(Product, 1).price = 11
            joined.commit()
        assert sold.invalidated() == []

    assert sorted(sold.invalidated(), key=sorted) == sorted([TAGS, {"product:2", "category:2"}], key=sorted)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_session_that_only_flushes_ends_with_the_transaction_that_it_has_joined(sold: Shop, is_kept: bool) -> None:
    """It may be kept, or dropped without being closed, as a library of versions does in its hooks of a flush."""
    kept: list[Session] = []

    def note(session: Session, context: Any) -> None:
        noted = Session(bind=session.connection())
        noted.get_one(Product, 1).price = 11
        noted.flush()
        kept.append(noted)
        if not is_kept:
            kept.clear()

    with sold.sessions() as owner:
        event.listen(owner, "after_flush", note)
        owner.add(Product(id=2, category_id=2, price=20))
        owner.commit()
        assert sold.price.get(1) == 11

    assert sorted(sold.invalidated(), key=sorted) == sorted([TAGS, {"product:2", "category:2"}], key=sorted)
    wait_until(lambda: sold.waiting() == 0)


def test_a_session_that_only_flushes_goes_on_in_the_owner_s_next_transaction(sold: Shop) -> None:
    with sold.engine.connect() as connection, sold.sessions(bind=connection) as session:
        for price in (11, 12):
            session.get_one(Product, 1).price = price
            session.flush()
            assert sold.price.get(1) == price
            connection.commit()

        session.get_one(Product, 1).price = 13
        session.flush()
        connection.rollback()
        assert sold.price.get(1) == 12

    assert sold.invalidated() == [TAGS, TAGS]


def test_the_session_s_own_savepoints_count_as_ever(sold: Shop) -> None:
    with sold.engine.connect() as connection, connection.begin():
        with sold.sessions(bind=connection) as session:
            with session.begin_nested():
                session.get_one(Product, 1).price = 11
            with session.begin_nested() as savepoint:
                session.add(Product(id=9, category_id=9, price=9))
                session.flush()
                savepoint.rollback()
            session.commit()

    assert sold.invalidated() == [TAGS]


def test_tags_given_by_hand_wait_too(sold: Shop) -> None:
    with sold.engine.connect() as connection, connection.begin():
        with sold.sessions(bind=connection) as session:
            sold.cache.invalidate("deals", session=session)
            session.commit()
        assert sold.invalidated() == []

    assert sold.invalidated() == [{"deals"}]


def test_an_async_session_is_no_different(sold: Shop) -> None:
    async def main() -> None:
        async with sold.async_engine.connect() as connection:
            async with connection.begin():
                async with sold.async_sessions(bind=connection) as session:
                    (await session.get_one(Product, 1)).price = 11
                    await session.commit()
                assert sold.invalidated() == []
        assert sold.invalidated() == [TAGS]
        await sold.async_engine.dispose()

    asyncio.run(main())


def test_sessions_and_loaders_on_one_connection(unwatched: Shop, make_cache: Callable[..., Cache]) -> None:
    """As in tests that roll everything back: loads see what is not committed, and how they end invalidates nothing."""
    unwatched.add(1)
    loads = []
    with unwatched.engine.connect() as connection:
        outer = connection.begin()
        sessions = sessionmaker(connection, join_transaction_mode="create_savepoint")
        cache = make_cache(sessions=sessions, namespace="rolled-back")
        cache.watch(sessions, {Product: ["product:{id}"]})

        # So long that no reader takes a load over: it and the worker would then use the connection together.
        @cache.loader(tags=("product:{product_id}",), fresh_for=300, wait_for=60, load_for=60)
        def price(load: Load, product_id: int) -> int | None:
            product = load.session.get(Product, product_id)
            loads.append(product)
            return None if product is None else product.price

        before = connection.exec_driver_sql("SHOW statement_timeout").scalar()
        for expected in (11, 12):
            with sessions.begin() as session:
                session.get_one(Product, 1).price = expected
            assert [price.get(1), price.get(1)] == [expected, expected]
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == before
        outer.rollback()

    assert len(loads) == 2
