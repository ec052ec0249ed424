"""Every way in which a session changes rows: its tags are invalidated, old and new, or it is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    WriteOnlyMapped,
    make_transient_to_detached,
    mapped_column,
    relationship,
    sessionmaker,
)
from sqlalchemy.orm.exc import StaleDataError

from cacheworkers import Cache, UnwatchedWrite

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


badge_link = Table(
    "way_item_badge",
    Base.metadata,
    Column("item_id", ForeignKey("way_item.id", ondelete="CASCADE"), primary_key=True),
    Column("badge_id", ForeignKey("way_badge.id", ondelete="CASCADE"), primary_key=True),
)


class Badge(Base):
    __tablename__ = "way_badge"
    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[list[Item]] = relationship(secondary=badge_link, back_populates="badges", passive_deletes=True)


class Shelf(Base):
    """Its items have no way back to it, stay when it goes, and forget it."""

    __tablename__ = "way_shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[list[Item]] = relationship(order_by="Item.id")


class Box(Base):
    """Its items go with it."""

    __tablename__ = "way_box"
    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[list[Item]] = relationship(cascade="all, delete-orphan")


class House(Base):
    """The database itself deletes its rooms, and the items in them."""

    __tablename__ = "way_house"
    id: Mapped[int] = mapped_column(primary_key=True)
    rooms: Mapped[list[Room]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class Room(Base):
    __tablename__ = "way_room"
    id: Mapped[int] = mapped_column(primary_key=True)
    house_id: Mapped[int] = mapped_column(ForeignKey("way_house.id", ondelete="CASCADE"))


class Maker(Base):
    """Known by its name; the database itself renames it everywhere, or forgets it."""

    __tablename__ = "way_maker"
    name: Mapped[str] = mapped_column(primary_key=True)


class Item(Base):
    __tablename__ = "way_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int] = mapped_column(default=0)
    group: Mapped[int | None] = mapped_column("grp", deferred=True)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("way_shelf.id"))
    box_id: Mapped[int | None] = mapped_column(ForeignKey("way_box.id"))
    room_id: Mapped[int | None] = mapped_column(ForeignKey("way_room.id", ondelete="CASCADE"))
    maker: Mapped[str | None] = mapped_column(ForeignKey("way_maker.name", ondelete="SET NULL", onupdate="CASCADE"))
    favourite_of: Mapped[int | None] = mapped_column(ForeignKey("way_fan.id", use_alter=True, name="fav"))
    badges: Mapped[list[Badge]] = relationship(secondary=badge_link, back_populates="items")


class Fan(Base):
    """Its favourites are linked by a second UPDATE."""

    __tablename__ = "way_fan"
    id: Mapped[int] = mapped_column(primary_key=True)
    favourites: Mapped[list[Item]] = relationship(post_update=True)
    lots: WriteOnlyMapped[Item] = relationship(viewonly=True)


class Ring(Base):
    __tablename__ = "way_ring"
    id: Mapped[int] = mapped_column(primary_key=True)
    next_id: Mapped[int | None] = mapped_column(ForeignKey("way_ring.id", ondelete="CASCADE"))


class Animal(Base):
    __tablename__ = "way_animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]
    __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}


class Dog(Animal):
    __tablename__ = "way_dog"
    id: Mapped[int] = mapped_column(ForeignKey("way_animal.id"), primary_key=True)
    tricks: Mapped[int]
    __mapper_args__: ClassVar = {"polymorphic_identity": "dog"}


class Cat(Animal):
    lives: Mapped[int | None]
    __mapper_args__: ClassVar = {"polymorphic_identity": "cat"}


def item_tags(row: Any) -> tuple[str, ...]:
    return (
        f"item:{row.id}",
        f"group:{row.group}",
        f"shelf:{row.shelf_id}",
        f"maker:{row.maker}",
        f"fan:{row.favourite_of}",
    )


MAPPING: dict[Any, Any] = {
    Item: item_tags,
    badge_link: lambda row: (f"badge:{row.badge_id}", f"badges_of:{row.item_id}"),
    Animal: lambda row: (f"animal:{row.id}", f"name:{row.name}"),
    Ring: ["ring:{id}"],
}


class Ways:
    """A watched database, and what its commits invalidate."""

    def __init__(self, cache: Cache, url: str, events: list[Any]) -> None:
        self.cache, self.events = cache, events
        self.engine = create_engine(url)
        Base.metadata.create_all(self.engine)
        cache.outbox.create(self.engine)
        self.sessions = sessionmaker(self.engine)
        cache.watch(self.sessions, MAPPING)

    def given(self, *rows: Any) -> None:
        """Add rows past everything that watches."""
        with Session(self.engine) as session, session.begin():
            for row in rows:
                session.add(row)
                session.flush()

    def tags(self, work: Callable[[Session], object]) -> set[str]:
        """What is invalidated when this is committed; tags of None, which nothing has, are left out."""
        del self.events[:]
        with self.sessions.begin() as session:
            work(session)
        found = (set(event.tags) for event in self.events if type(event).__name__ == "Invalidated")
        return {tag for tags in found for tag in tags if not tag.endswith(":None")}


@pytest.fixture
def ways(make_cache: Callable[..., Cache], database_url: str, events: list[Any]) -> Iterator[Ways]:
    made = Ways(make_cache(), database_url, events)
    yield made
    made.engine.dispose()


def held(session: Session, kind: type[T], key: Any) -> T:
    """Get an object that the test needs no variable for; sessions refer to them weakly."""
    found = session.get_one(kind, key)
    session.info.setdefault("held", []).append(found)
    return found


def item(session: Session, number: int = 1) -> Item:
    return held(session, Item, number)


# -- values that were not loaded, or are not known here


def test_a_deferred_column_s_old_value(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    def regroup(session: Session) -> None:
        item(session).group = 8

    assert ways.tags(regroup) == {"item:1", "group:7", "group:8"}


def test_an_object_that_was_never_loaded(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    def regroup(session: Session) -> None:
        known = Item(id=1)
        make_transient_to_detached(known)
        session.add(known)
        known.group = 8

    assert ways.tags(regroup) == {"item:1", "group:7", "group:8"}


def test_a_value_that_the_database_computes(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    def regroup(session: Session) -> None:
        item(session).group = Item.group + 1  # type: ignore[assignment]  # an expression, as SQLAlchemy allows

    assert ways.tags(regroup) == {"item:1", "group:7", "group:8"}


def test_a_merged_copy(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    assert ways.tags(lambda session: session.merge(Item(id=1, group=8))) == {"item:1", "group:7", "group:8"}


def test_a_primary_key_that_changes(ways: Ways) -> None:
    """And a value that is computed with it, so that the new row has to be asked for."""
    ways.given(Item(id=1, group=7))

    def renumber(session: Session) -> None:
        found = item(session)
        found.id, found.group = 2, literal_column("4 + 4")  # type: ignore[assignment]

    assert ways.tags(renumber) == {"item:1", "item:2", "group:7", "group:8"}


def test_a_row_that_is_replaced_within_a_flush(ways: Ways) -> None:
    """A deletion and an insertion of one key become an UPDATE."""
    ways.given(Item(id=1, group=7))

    def replace(session: Session) -> None:
        session.delete(item(session))
        session.add(Item(id=1, group=8))

    assert ways.tags(replace) == {"item:1", "group:7", "group:8"}


def test_what_is_written_twice_in_a_transaction(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    def regroup(session: Session) -> None:
        for group in (8, 9):
            item(session).group = group
            session.flush()

    assert ways.tags(regroup) == {"item:1", "group:7", "group:8", "group:9"}


def test_a_row_that_was_read_without_its_change_by_others(ways: Ways) -> None:
    """A commit expires what a session knows."""
    ways.given(Item(id=1, group=7))
    with ways.sessions() as session:
        known = item(session)
        assert known.group == 7
        session.commit()
        with Session(ways.engine) as other, other.begin():
            item(other).group = 8
        known.group = 9
        session.commit()

    assert {"group:8", "group:9"} <= set(ways.events[-1].tags)


# -- changes that the unit of work makes by itself


def test_a_key_that_the_flush_sets(ways: Ways) -> None:
    """The item itself is not touched: it comes to a shelf by being put into a list."""
    ways.given(Item(id=1), Shelf(id=3))

    assert ways.tags(lambda session: held(session, Shelf, 3).items.append(item(session))) == {"item:1", "shelf:3"}


def test_a_key_that_the_flush_forgets(ways: Ways) -> None:
    ways.given(Shelf(id=3, items=[Item(id=1), Item(id=2)]))

    assert ways.tags(lambda session: held(session, Shelf, 3).items.pop()) == {"item:2", "shelf:3"}
    assert ways.tags(lambda session: session.delete(held(session, Shelf, 3))) == {"item:1", "shelf:3"}


def test_orphans_and_cascades(ways: Ways) -> None:
    ways.given(Box(id=4, items=[Item(id=1), Item(id=2)]))

    assert ways.tags(lambda session: held(session, Box, 4).items.pop()) == {"item:2"}
    assert ways.tags(lambda session: session.delete(held(session, Box, 4))) == {"item:1"}


def test_a_link_by_a_second_update(ways: Ways) -> None:
    ways.given(Item(id=1, group=7), Fan(id=5))

    def like(session: Session) -> None:
        held(session, Fan, 5).favourites.append(item(session))

    assert {"item:1", "fan:5"} <= ways.tags(like)
    # SQLAlchemy writes no second UPDATE for what is only taken away: nothing has changed, and nothing is invalidated.
    assert ways.tags(lambda session: held(session, Fan, 5).favourites.clear()) == set()


def test_a_link_by_a_second_update_from_what_is_not_known(ways: Ways) -> None:
    ways.given(Fan(id=5, favourites=[Item(id=1)]), Fan(id=6))

    def like(session: Session) -> None:
        known = item(session)
        session.expire(known, ["favourite_of"])
        held(session, Fan, 6).favourites.append(known)

    assert {"item:1", "fan:5", "fan:6"} <= ways.tags(like)


@pytest.mark.parametrize("name", ["before_flush", "before_update"])
def test_what_the_user_s_own_hooks_change(ways: Ways, name: str) -> None:
    """Whether they run before the library's or after."""
    ways.given(Item(id=1, group=7))

    def hook(*args: Any) -> None:
        changed = args[2] if name == "before_update" else next(iter(args[0].dirty))
        changed.group = 8

    target: Any = Item if name == "before_update" else ways.sessions
    event.listen(target, name, hook)
    try:

        def reprice(session: Session) -> None:
            found = item(session)
            found.price = 5

        assert ways.tags(reprice) == {"item:1", "group:7", "group:8"}
    finally:
        event.remove(target, name, hook)


def test_what_a_flush_hook_adds(ways: Ways) -> None:
    event.listen(ways.sessions, "before_flush", lambda session, *_: session.add(Item(id=2)))

    assert ways.tags(lambda session: session.add(Shelf(id=1))) == {"item:2"}


def test_subclasses_joined_and_single(ways: Ways) -> None:
    assert ways.tags(lambda session: session.add(Dog(id=1, name="a", tricks=1))) == {"animal:1", "name:a"}
    assert ways.tags(lambda session: session.add(Cat(id=2, name="b"))) == {"animal:2", "name:b"}

    def rename(session: Session) -> None:
        held(session, Dog, 1).name = "c"

    def teach(session: Session) -> None:
        held(session, Dog, 1).tricks = 2

    assert ways.tags(rename) == {"animal:1", "name:a", "name:c"}
    assert ways.tags(teach) == {"animal:1", "name:c"}
    assert ways.tags(lambda session: session.delete(held(session, Animal, 1))) == {"animal:1", "name:c"}


def test_a_collection_that_changes_makes_no_tags_of_its_own(ways: Ways) -> None:
    """Of a shelf nothing is watched, of an item only its columns."""
    assert ways.tags(lambda session: session.add(Shelf(id=1))) == set()


# -- association tables


def test_links_from_either_side(ways: Ways) -> None:
    ways.given(Item(id=1), Badge(id=5), Badge(id=6))

    def link(session: Session) -> None:
        item(session).badges.append(held(session, Badge, 5))
        held(session, Badge, 6).items.append(item(session))

    assert {"badge:5", "badge:6", "badges_of:1"} <= ways.tags(link)


def test_links_that_go_with_their_item(ways: Ways) -> None:
    ways.given(Item(id=1, badges=[Badge(id=5)]))

    assert ways.tags(lambda session: session.delete(item(session))) == {"item:1", "badge:5", "badges_of:1"}


def test_links_that_the_database_deletes(ways: Ways) -> None:
    ways.given(Item(id=1, badges=[Badge(id=5)]))

    assert ways.tags(lambda session: session.delete(held(session, Badge, 5))) == {"badge:5", "badges_of:1"}


# -- what the database changes by itself


def test_rows_that_the_database_deletes(ways: Ways) -> None:
    """Two steps away, and in an association table as well."""
    ways.given(House(id=1, rooms=[Room(id=2)]), Item(id=3, room_id=2, group=7, badges=[Badge(id=5)]))

    found = ways.tags(lambda session: session.delete(held(session, House, 1)))

    assert found == {"item:3", "group:7", "badge:5", "badges_of:3"}


def test_keys_that_the_database_changes(ways: Ways) -> None:
    ways.given(Maker(name="a"), Item(id=1, maker="a"))

    def rename(session: Session) -> None:
        held(session, Maker, "a").name = "b"

    assert ways.tags(rename) == {"item:1", "maker:a", "maker:b"}
    assert ways.tags(lambda session: session.delete(held(session, Maker, "b"))) == {"item:1", "maker:b"}


# -- statements that pass the unit of work by

BY_STATEMENT: dict[str, Callable[[Session], object]] = {
    "update": lambda session: session.execute(update(Item).values(price=1)),
    "delete": lambda session: session.execute(delete(Item)),
    "insert many": lambda session: session.execute(insert(Item), [{"id": 8}, {"id": 9}]),
    "insert returning": lambda session: session.scalars(insert(Item).returning(Item), [{"id": 8}]).all(),
    "update by primary key": lambda session: session.execute(update(Item), [{"id": 1, "price": 2}]),
    "upsert": lambda session: session.execute(
        postgresql.insert(Item).values(id=1).on_conflict_do_update(index_elements=["id"], set_={"price": 1})
    ),
    "query": lambda session: session.query(Item).update({"price": 1}),
    "query delete": lambda session: session.query(Item).delete(),
    "bulk_save_objects": lambda session: session.bulk_save_objects([Item(id=8)]),
    "bulk_insert_mappings": lambda session: session.bulk_insert_mappings(Item.__mapper__, [{"id": 8}]),
    "bulk_update_mappings": lambda session: session.bulk_update_mappings(Item.__mapper__, [{"id": 1, "price": 2}]),
    "table": lambda session: session.execute(update(Item.__table__).values(price=1)),  # type: ignore[arg-type]
    "connection": lambda session: session.connection().execute(update(Item).values(price=1)),
    "association": lambda session: session.execute(badge_link.delete().where(badge_link.c.item_id == 1)),
    "from statement": lambda session: session.scalars(
        select(Item).from_statement(update(Item).values(price=1).returning(Item))
    ).all(),
    "cte": lambda session: session.execute(select(update(Item).values(price=1).returning(Item.id).cte("x").c.id)),
    "text": lambda session: session.execute(text("UPDATE way_item SET price = 1")),
    "text with a cte": lambda session: session.execute(
        text('WITH x AS (\n delete from  ONLY public."way_item" returning 1) SELECT 1 FROM x')
    ),
    "driver": lambda session: session.connection().exec_driver_sql("TRUNCATE way_item CASCADE"),
    "truncate of several": lambda session: session.execute(text("TRUNCATE TABLE way_fan, way_item CASCADE")),
    "merge into": lambda session: session.execute(
        text("MERGE INTO way_item i USING way_box b ON i.box_id = b.id WHEN MATCHED THEN DELETE")
    ),
    "a subclass": lambda session: session.execute(update(Dog).values(tricks=1)),
    "the database's own deletion": lambda session: session.execute(delete(House)),
    "the database's own change": lambda session: session.execute(update(Maker).values(name="z")),
}


@pytest.mark.parametrize("way", BY_STATEMENT)
def test_statements_are_refused(ways: Ways, way: str) -> None:
    """Loudly: what they change cannot be known."""
    ways.given(Item(id=1), Badge(id=5))

    with ways.sessions() as session, pytest.raises(UnwatchedWrite, match=r"way_(item|dog|house|maker)"):
        BY_STATEMENT[way](session)


@pytest.mark.parametrize("way", ["update", "text", "driver", "connection"])
def test_statements_run_when_asked_to(ways: Ways, way: str) -> None:
    ways.given(Item(id=1))

    with ways.sessions.begin() as session:
        session.connection(execution_options={"cacheworkers_unwatched": True})
        BY_STATEMENT[way](session)


def test_statements_that_only_look_like_it(ways: Ways) -> None:
    ways.given(Item(id=1))

    with ways.sessions.begin() as session:
        session.execute(select(Item).with_for_update()).all()
        session.execute(text("SELECT 'UPDATE', way_item.* FROM way_item FOR UPDATE OF way_item")).all()
        session.execute(update(Fan).values(id=Fan.id))
        session.execute(text("DELETE FROM way_fan USING way_item WHERE way_fan.id = way_item.id"))


def test_a_statement_of_another_session_is_left_alone(ways: Ways) -> None:
    """Also on a connection that a watched session has given back."""
    ways.given(Item(id=1))
    ways.tags(lambda session: session.add(Item(id=2)))

    with Session(ways.engine) as session, session.begin():
        session.execute(update(Item).values(price=1))


def test_an_async_session_is_no_different(ways: Ways, database_url: str) -> None:
    engine = create_async_engine(database_url)
    sessions = async_sessionmaker(engine)
    ways.cache.watch(sessions, MAPPING)
    ways.given(House(id=1, rooms=[Room(id=2)]), Item(id=3, room_id=2, group=7))
    del ways.events[:]

    async def main() -> None:
        async with sessions.begin() as session:
            found = await session.get_one(Item, 3)
            found.group = 8
            await session.flush()
            await session.delete(await session.get_one(House, 1))
        async with sessions() as session:
            for statement in (update(Item).values(price=1), text("DELETE FROM way_item")):
                with pytest.raises(UnwatchedWrite):
                    await session.execute(statement)
            with pytest.raises(UnwatchedWrite):
                await (await session.connection()).execute(delete(Item))
            with pytest.raises(UnwatchedWrite):
                await session.run_sync(lambda inner: inner.bulk_save_objects([Item(id=9)]))
        await engine.dispose()

    asyncio.run(main())
    [tags] = [set(event.tags) for event in ways.events if type(event).__name__ == "Invalidated"]
    assert {"item:3", "group:7", "group:8"} <= tags


def test_counting_is_no_writing(ways: Ways) -> None:
    """A read costs one look at its text."""
    with ways.sessions() as session:
        assert session.scalar(select(func.count()).select_from(Item)) == 0


# -- others who write meanwhile


def moved_by_another(ways: Ways, group: int) -> None:
    with Session(ways.engine) as other, other.begin():
        item(other).group = group


def test_a_row_that_another_has_changed_meanwhile(ways: Ways) -> None:
    """It is in a group that this session has never seen, and that shows the price which it sets."""
    ways.given(Item(id=1, group=7))

    def reprice(session: Session) -> None:
        found = item(session)
        assert found.group == 7
        moved_by_another(ways, 8)
        found.price = 5

    assert ways.tags(reprice) == {"item:1", "group:8"}


def test_a_row_that_another_has_moved_away_meanwhile(ways: Ways) -> None:
    """Who has not seen the move takes the row out of the group to which it was moved."""
    ways.given(Item(id=1, group=7))

    def regroup(session: Session) -> None:
        found = item(session)
        assert found.group == 7
        moved_by_another(ways, 8)
        found.group = 9

    assert ways.tags(regroup) == {"item:1", "group:8", "group:9"}


def test_a_row_that_another_has_changed_before_it_is_deleted(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    def remove(session: Session) -> None:
        found = item(session)
        assert found.group == 7
        moved_by_another(ways, 8)
        session.delete(found)

    assert ways.tags(remove) == {"item:1", "group:8"}


def test_many_rows_are_looked_at_together(ways: Ways) -> None:
    """One statement for all of them, not one for each."""
    ways.given(*(Item(id=n, group=n) for n in range(1, 11)))
    seen: list[str] = []

    def watch_statements(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "pg_trigger" not in statement:  # asked once for each engine
            seen.append(statement)

    def reprice(session: Session) -> None:
        items = session.scalars(select(Item)).all()
        event.listen(ways.engine, "before_cursor_execute", watch_statements)
        for each in items:
            each.price = 5

    assert len(ways.tags(reprice)) == 20
    event.remove(ways.engine, "before_cursor_execute", watch_statements)
    assert [statement.split()[0] for statement in seen] == ["SELECT", "UPDATE"]
    assert "FOR NO KEY UPDATE" in seen[0]


def test_a_row_that_is_gone_is_the_flush_s_own_error(ways: Ways) -> None:
    ways.given(Item(id=1, group=7))

    def late(session: Session) -> None:
        found = item(session)
        with Session(ways.engine) as other, other.begin():
            other.delete(item(other))
        found.price = 5

    with pytest.raises(StaleDataError):
        ways.tags(late)


# -- inside a flush


def test_a_hook_s_own_statement_is_refused(ways: Ways) -> None:
    """In the middle of a flush, where the unit of work's own statements are let through."""
    ways.given(Item(id=1))

    def hook(mapper: Any, connection: Any, target: Any) -> None:
        connection.execute(update(Item).values(price=1))

    event.listen(Shelf, "after_insert", hook)
    try:
        with ways.sessions() as session, pytest.raises(UnwatchedWrite, match="way_item"):
            session.add(Shelf(id=1))
            session.flush()
    finally:
        event.remove(Shelf, "after_insert", hook)


def test_a_bulk_statement_after_a_flush_that_had_nothing_to_do(ways: Ways) -> None:
    ways.given(Item(id=1))

    with ways.sessions() as session:
        session.flush()
        found = item(session)
        found.price = found.price
        session.flush()
        with pytest.raises(UnwatchedWrite):
            session.bulk_update_mappings(Item.__mapper__, [{"id": 1, "price": 2}])


def test_a_bulk_statement_after_a_flush_that_failed(ways: Ways) -> None:
    ways.given(Item(id=1))

    with ways.sessions() as session:
        session.add(Item(id=1))
        with pytest.raises(IntegrityError):
            session.flush()
        session.rollback()
        with pytest.raises(UnwatchedWrite):
            session.bulk_update_mappings(Item.__mapper__, [{"id": 1, "price": 2}])


def test_rows_that_refer_to_one_another_in_a_ring(ways: Ways) -> None:
    ways.given(Ring(id=1), Ring(id=2, next_id=1))
    with ways.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE way_ring SET next_id = 2 WHERE id = 1")

    assert ways.tags(lambda session: session.delete(held(session, Ring, 1))) == {"ring:1", "ring:2"}


def test_a_key_set_to_an_expression_that_the_database_copies(ways: Ways) -> None:
    """What it copies to cannot be known before."""
    ways.given(Maker(name="a"), Item(id=1, maker="a"))

    with ways.sessions() as session, pytest.raises(UnwatchedWrite, match=r"Maker\.name.*expression"):
        held(session, Maker, "a").name = Maker.name + "z"  # type: ignore[assignment]  # as SQLAlchemy allows
        session.flush()
