"""A committed change is always invalidated, a rolled back one never, and a transaction reads its own writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, update
from sqlalchemy.ext.asyncio import async_scoped_session
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cacheworkers import CallError, ConfigError, UnwatchedWrite
from cacheworkers.testing.servers import wait_until

from .conftest import Label, Product, Shop, Unrelated


def test_an_insert_an_update_and_a_delete_invalidate_their_tags(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))
    with shop.sessions.begin() as session:
        session.get_one(Product, 1).price = 11
    with shop.sessions.begin() as session:
        session.delete(session.get_one(Product, 1))

    assert shop.invalidated() == [{"product:1", "category:7"}] * 3


def test_old_and_new_values_are_both_invalidated(shop: Shop) -> None:
    """A product that changes its category leaves one page and enters another."""
    shop.add(1, category_id=7)

    with shop.sessions.begin() as session:
        session.get_one(Product, 1).category_id = 8

    assert shop.invalidated() == [{"product:1", "category:7", "category:8"}]


def test_an_old_value_that_was_never_loaded_is_found_out(shop: Shop) -> None:
    shop.add(1, category_id=7)

    with shop.sessions.begin() as session:
        product = session.get_one(Product, 1)
        session.expire(product)
        product.category_id = 8

    assert shop.invalidated() == [{"product:1", "category:7", "category:8"}]


def test_what_the_server_computes_is_found_out(unwatched: Shop) -> None:
    unwatched.mapping[Product] = lambda row: (f"slug:{row.slug}",)
    shop = unwatched.watch()

    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=1, price=1))

    assert {"slug:p1"} in shop.invalidated()


def test_a_rollback_invalidates_nothing(shop: Shop) -> None:
    with shop.sessions() as session:
        session.add(Product(id=1, category_id=7, price=10))
        session.flush()
        session.rollback()
        session.commit()

    assert shop.invalidated() == []
    assert shop.waiting() == 0


def test_savepoints_count_only_if_they_stay(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        with session.begin_nested():
            session.add(Product(id=1, category_id=1, price=10))
        lost = session.begin_nested()
        session.add(Product(id=2, category_id=2, price=10))
        session.flush()
        with session.begin_nested():
            session.add(Product(id=3, category_id=3, price=10))
        lost.rollback()
        session.add(Product(id=4, category_id=4, price=10))

    [tags] = shop.invalidated()
    assert tags == {"product:1", "category:1", "product:4", "category:4"}


def test_several_flushes_are_one_invalidation(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        for number in range(1, 4):
            session.add(Product(id=number, category_id=1, price=10))
            session.flush()

    assert shop.invalidated() == [{"product:1", "product:2", "product:3", "category:1"}]


def test_links_of_a_watched_association_table(shop: Shop) -> None:
    shop.add(1)
    with shop.sessions.begin() as session:
        product = session.get_one(Product, 1)
        product.labels.append(Label(id=5, name="new"))
    with shop.sessions.begin() as session:
        product = session.get_one(Product, 1)
        product.labels.clear()

    assert [tags & {"label:5"} for tags in shop.invalidated()] == [{"label:5"}] * 2


def test_what_is_not_watched_costs_nothing(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        session.add(Unrelated(id=1, text="a"))

    assert shop.invalidated() == [] and shop.waiting() == 0


def test_other_sessions_are_left_alone(shop: Shop) -> None:
    shop.add(1)
    with Session(shop.engine) as session, session.begin():
        session.get_one(Product, 1).price = 12

    assert shop.invalidated() == []


def test_rows_are_marked_delivered_soon_after(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        session.add(Product(id=1, category_id=7, price=10))

    wait_until(lambda: shop.waiting() == 0)


@pytest.mark.parametrize("statement", [update(Product).values(price=1), delete(Product), insert(Product)])
def test_bulk_statements_are_refused(shop: Shop, statement: Any) -> None:
    with shop.sessions() as session, pytest.raises(UnwatchedWrite, match="product"):
        session.execute(statement)


def test_bulk_statements_run_when_asked_to(shop: Shop) -> None:
    shop.add(1)
    with shop.sessions.begin() as session:
        session.execute(update(Product).values(price=5), execution_options={"cacheworkers_unwatched": True})


# -- reads inside the transaction


def test_a_transaction_reads_its_own_writes_and_others_do_not(shop: Shop) -> None:
    shop.add(1)
    assert shop.price.get(1) == 10

    with shop.sessions.begin() as session:
        session.get_one(Product, 1).price = 99
        assert shop.price.get(1) == 99
        peeked = shop.price.peek(1)
        assert peeked is not None and peeked.value == 10  # nothing uncommitted is stored

    assert shop.price.get(1) == 99


def test_after_a_rollback_the_cached_value_is_read_again(shop: Shop) -> None:
    shop.add(1)
    assert shop.price.get(1) == 10

    with shop.sessions() as session:
        session.get_one(Product, 1).price = 99
        assert shop.price.get(1) == 99
        session.rollback()
        assert shop.price.read(1).value == 10


def test_untouched_entries_are_still_served(shop: Shop) -> None:
    shop.add(1)
    shop.add(2, category_id=2)
    shop.price.get(2)

    with shop.sessions.begin() as session:
        session.get_one(Product, 1).price = 99
        session.flush()
        assert shop.price.read(2).tier == "store"


def test_an_entry_whose_tag_known_only_from_the_data_is_touched_is_loaded(shop: Shop) -> None:
    """Another product of its category has changed: only the entry itself knows that it has that tag."""
    shop.add(1, 2)
    shop.price.get(1)

    with shop.sessions.begin() as session:
        session.get_one(Product, 2).price = 99
        session.flush()
        assert shop.price.read(1).tier == "load"


def test_several_keys_together_see_the_writes_too(shop: Shop) -> None:
    @shop.cache.batch_loader(tags=("product:{key}",))
    def prices(load: Any, ids: list[int]) -> dict[int, int]:
        return {number: load.session.get(Product, number).price for number in ids}

    shop.add(1, 2)
    assert prices.get_many([1, 2]) == {1: 10, 2: 20}

    with shop.sessions.begin() as session:
        session.get_one(Product, 1).price = 99
        assert prices.get_many([1, 2]) == {1: 99, 2: 20}


def test_an_async_transaction_reads_its_own_writes(shop: Shop) -> None:
    """With sync and async loaders alike; another task reads what is committed."""
    shop.add(1, 2)

    async def main() -> None:
        assert (await shop.price.aget(1), await shop.count.aget(1)) == (10, 2)
        async with shop.async_sessions.begin() as session:
            session.add(Product(id=3, category_id=1, price=30))
            (await session.get_one(Product, 1)).price = 99
            assert (await shop.price.aget(1), await shop.count.aget(1)) == (99, 3)
        assert (await shop.price.aget(1), await shop.count.aget(1)) == (99, 3)
        await shop.async_engine.dispose()

    asyncio.run(main())
    assert shop.invalidated() == [{"product:1", "product:3", "category:1"}]


def test_an_async_transaction_follows_none_of_the_tasks_that_read_what_it_has_changed(shop: Shop) -> None:
    shop.add(1)

    async def main() -> None:
        async with shop.async_sessions.begin() as session:
            product = await session.get_one(Product, 1)
            others = [asyncio.create_task(shop.price.aget(1)) for _ in range(3)]
            await asyncio.sleep(0)
            product.price = 99
            assert await shop.price.aget(1) == 99
            assert await asyncio.gather(*others) == [10] * 3
        await shop.async_engine.dispose()

    asyncio.run(main())


def test_invalidating_by_hand_inside_a_dirty_transaction_is_refused(shop: Shop) -> None:
    with shop.sessions() as session:
        session.add(Product(id=1, category_id=1, price=1))
        with pytest.raises(CallError, match="session="):
            shop.cache.invalidate("deals")


def test_tags_given_with_the_session_are_invalidated_with_its_commit(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        shop.cache.invalidate("deals", session=session)
        assert shop.invalidated() == []

    assert shop.invalidated() == [{"deals"}]

    async def asynchronously() -> None:
        async with shop.async_sessions.begin() as session:
            await shop.cache.ainvalidate("offers", session=session)
        await shop.async_engine.dispose()

    asyncio.run(asynchronously())
    assert shop.invalidated() == [{"deals"}, {"offers"}]
    with shop.sessions() as session:
        shop.cache.invalidate("never", session=session)
        session.rollback()
    assert shop.invalidated() == [{"deals"}, {"offers"}]
    with Session(shop.engine) as session, pytest.raises(ConfigError, match="covers"):
        shop.cache.invalidate("x", session=session)


def test_tags_may_be_given_with_the_registry_of_sessions(shop: Shop) -> None:
    """As Flask-SQLAlchemy's `db.session` is: the session is that of this thread, or of this task."""
    scoped = scoped_session(shop.sessions)
    shop.cache.invalidate("deals", session=scoped)
    assert shop.invalidated() == []
    scoped.commit()
    scoped.remove()
    assert shop.invalidated() == [{"deals"}]

    async def asynchronously() -> None:
        scoped = async_scoped_session(shop.async_sessions, asyncio.current_task)
        await shop.cache.ainvalidate("offers", session=scoped)
        await scoped.commit()
        await scoped.remove()
        await shop.async_engine.dispose()

    asyncio.run(asynchronously())
    assert shop.invalidated() == [{"deals"}, {"offers"}]


# -- what is wrong is said at set-up


def test_a_missing_outbox_table_is_found_at_set_up_if_asked_for(unwatched: Shop) -> None:
    unwatched.cache.outbox.metadata.drop_all(unwatched.engine)

    with pytest.raises(ConfigError, match="cacheworkers_outbox"):
        unwatched.cache.watch(unwatched.sessions, unwatched.mapping, check=True)


def test_unmapped_classes_are_refused(unwatched: Shop) -> None:
    with pytest.raises(ConfigError, match="neither"):
        unwatched.cache.watch(unwatched.sessions, {int: lambda row: ()})


def test_what_is_no_session_factory_is_refused(unwatched: Shop) -> None:
    with pytest.raises(ConfigError, match="sessionmaker"):
        unwatched.cache.watch("sessions", unwatched.mapping)


def test_the_same_sessions_are_watched_once(shop: Shop) -> None:
    for sessions in (shop.sessions, shop.async_sessions):
        with pytest.raises(ConfigError, match="already"):
            shop.cache.watch(sessions, shop.mapping)


def test_an_unknown_column_is_named(unwatched: Shop) -> None:
    unwatched.mapping[Product] = lambda row: (f"product:{row.colour}",)

    with pytest.raises(ConfigError, match=r"Product\.colour.*price"):
        unwatched.watch()


def test_it_works_on_sqlite(unwatched: Shop, tmp_path: Any) -> None:
    from .conftest import Base

    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    Base.metadata.tables["product"].create(engine)
    unwatched.cache.outbox.create(engine)
    sessions = sessionmaker(engine)
    unwatched.cache.watch(sessions, {Product: lambda row: (f"product:{row.id}",)})

    with sessions.begin() as session:
        session.add(Product(id=1, category_id=1, price=1, slug="a"))

    assert unwatched.invalidated() == [{"product:1"}]
