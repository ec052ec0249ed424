"""Open transactions of one context: what may be invalidated meanwhile, whose writes a read sees, and how they end."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import Cache, CallError, Load

from .conftest import Product, Shop


class Base(DeclarativeBase):
    pass


class Here(Base):
    __tablename__ = "here"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


class There(Base):
    __tablename__ = "there"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]


class Databases:
    """One cache, and two watched databases of which each has a table of its own."""

    def __init__(self, make_cache: Callable[..., Cache], path: Path) -> None:
        self.engines = [create_engine(f"sqlite:///{path / name}.db") for name in ("here", "there")]
        self.cache = cache = make_cache(sessions=sessionmaker(self.engines[0]))
        self.here, self.there = (sessionmaker(engine) for engine in self.engines)
        for kind, engine, sessions in zip((Here, There), self.engines, (self.here, self.there), strict=True):
            Base.metadata.tables[kind.__tablename__].create(engine)
            cache.outbox.create(engine)
            with Session(engine) as session, session.begin():
                session.add_all([kind(id=1, price=1), kind(id=2, price=1)])
            cache.watch(sessions, {kind: [f"{kind.__tablename__}:{{id}}", f"{kind.__tablename__}:all"]})

        @cache.loader(tags=("here:{number}",), fresh_for=300)
        def price(load: Load, number: int) -> int:
            return load.session.get_one(Here, number).price

        @cache.loader(tags=(), fresh_for=300)
        def total(load: Load) -> int:
            load.tag("here:all")
            return sum(each.price for each in load.session.query(Here))

        self.price, self.total = price, total


@pytest.fixture
def databases(make_cache: Callable[..., Cache], tmp_path: Path) -> Iterator[Databases]:
    made = Databases(make_cache, tmp_path)
    yield made
    for engine in made.engines:
        engine.dispose()


# -- invalidating meanwhile


def test_a_dry_run_with_a_session_invalidates_nothing(shop: Shop) -> None:
    shop.add(1)
    shop.price.get(1)

    with shop.sessions.begin() as session:
        assert shop.cache.invalidate("category:1", session=session, dry_run=True).entries == 1
    assert shop.price.read(1).tier != "load"

    async def asynchronously() -> int:
        async with shop.async_sessions.begin() as session:
            done = await shop.cache.ainvalidate("category:1", session=session, dry_run=True)
        await shop.async_engine.dispose()
        return done.entries

    assert asyncio.run(asynchronously()) == 1
    assert shop.invalidated() == [] and shop.waiting() == 0


def test_no_tags_with_a_session_are_refused(shop: Shop) -> None:
    with shop.sessions.begin() as session, pytest.raises(CallError, match="at least one tag"):
        shop.cache.invalidate(session=session)

    async def asynchronously() -> None:
        async with shop.async_sessions.begin() as session:
            with pytest.raises(CallError, match="at least one tag"):
                await shop.cache.ainvalidate(session=session)
        await shop.async_engine.dispose()

    asyncio.run(asynchronously())
    assert shop.waiting() == 0


def test_a_loader_invalidates_no_call_inside_a_dirty_transaction(shop: Shop) -> None:
    """A load before the commit would bring the old value back; of a batch loader as well."""

    @shop.cache.batch_loader(tags=("product:{key}",))
    def prices(load: Any, ids: list[int]) -> dict[int, int]:
        return dict.fromkeys(ids, 1)

    with shop.sessions() as session:
        session.add(Product(id=1, category_id=1, price=1))
        for refused in (shop.price, prices):
            with pytest.raises(CallError, match=rf"{refused.name}.*commit.*session="):
                refused.invalidate(1)
            with pytest.raises(CallError, match=rf"{refused.name}.*commit.*session="):
                asyncio.run(refused.ainvalidate(1))
    shop.price.invalidate(1)


# -- several of them


def test_a_read_sees_the_writes_of_whichever_session_has_made_them(databases: Databases) -> None:
    """Of the older one as well, whose database the other does not even have."""
    assert (databases.price.get(1), databases.total.get()) == (1, 2)

    with databases.here() as here, databases.there() as there:
        here.get_one(Here, 1).price = 2
        here.flush()
        there.get_one(There, 1).price = 5
        there.flush()
        assert databases.price.get(1) == 2
        assert databases.total.get() == 3


def test_changes_that_no_flush_has_written_count_in_the_older_session(databases: Databases) -> None:
    assert databases.price.get(1) == 1

    with databases.here() as here, databases.there() as there:
        here.get_one(Here, 1).price = 2
        there.get_one(There, 1).price = 5
        there.flush()
        assert databases.price.get(1) == 2


def test_what_neither_has_touched_is_served(databases: Databases) -> None:
    databases.price.get(2)

    with databases.here() as here, databases.there() as there:
        here.get_one(Here, 1).price = 2
        here.flush()
        there.get_one(There, 1).price = 5
        there.flush()
        assert databases.price.read(2).tier == "store"


def test_when_the_newer_one_has_ended_the_older_one_counts(databases: Databases) -> None:
    databases.price.get(1)

    with databases.here() as here:
        here.get_one(Here, 1).price = 2
        with databases.there.begin() as there:
            there.get_one(There, 1).price = 5
        assert databases.price.get(1) == 2
    assert databases.price.get(1) == 1


# -- how they end


def bypasses(cache: Cache) -> int:
    return cache._ports.coherence._bypasses


@pytest.mark.parametrize("is_flushed", [False, True])
def test_a_session_that_is_dropped_bypasses_memory_no_longer(databases: Databases, is_flushed: bool) -> None:
    def drop() -> None:
        session = databases.here()
        session.add(Here(id=9, price=1))
        if is_flushed:
            session.flush()
        assert bypasses(databases.cache) == 1

    drop()
    gc.collect()

    assert bypasses(databases.cache) == 0


def test_a_session_that_is_closed_and_dropped_ends_once(databases: Databases) -> None:
    with databases.there() as there:
        there.add(There(id=9, price=1))
        with databases.here() as here:
            here.add(Here(id=9, price=1))
        del here
        gc.collect()

        assert bypasses(databases.cache) == 1
    assert bypasses(databases.cache) == 0


def test_a_child_ends_no_transaction_of_its_parent(databases: Databases, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork memory is bypassed by nobody: a session that came along takes away nothing from others."""
    session = databases.here()
    session.add(Here(id=9, price=1))

    databases.cache._ports.coherence.reset()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    session.close()

    assert bypasses(databases.cache) == 0


def test_tags_of_the_key_alone_are_made_again_where_the_key_changes(databases: Databases) -> None:
    with databases.here.begin() as session:
        session.get_one(Here, 1).price = 2
    with databases.here.begin() as session:
        session.get_one(Here, 1).id = 5
    with databases.here.begin() as session:
        moved = session.get_one(Here, 5)
        moved.id, moved.price = 6, 3

    with databases.engines[0].connect() as connection:
        rows = connection.execute(text("SELECT tags FROM cacheworkers_outbox ORDER BY id")).scalars()
        written = [set(tags.split("\n")) for tags in rows]
    assert written == [{"here:1", "here:all"}, {"here:1", "here:5", "here:all"}, {"here:5", "here:6", "here:all"}]
