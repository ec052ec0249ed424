"""Every class that writes a watched table is watched, or the watch is refused: a flush through it calls no hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, create_engine, join, select
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
    registry,
    sessionmaker,
)

from cacheworkers import Cache, ConfigError, UnwatchedWrite


class Classes:
    """Classes of one test, a database with their tables, and sessions of it."""

    def __init__(self, make_cache: Callable[..., Cache], path: Path) -> None:
        self.cache = make_cache()
        self.engine = create_engine(f"sqlite:///{path}")
        self.cache.outbox.create(self.engine)
        self.sessions: sessionmaker[Session] = sessionmaker(self.engine)

        class Base(DeclarativeBase):
            pass

        class Item(Base):
            __tablename__ = "item"
            id: Mapped[int] = mapped_column(primary_key=True)
            price: Mapped[int]

        class Badge(Base):
            __tablename__ = "badge"
            id: Mapped[int] = mapped_column(primary_key=True)

        self.base: Any = Base
        self.item: Any = Item
        self.badge: Any = Badge
        self.table: Table = self.base.metadata.tables["item"]
        self.link = Table(
            "item_badge",
            Base.metadata,
            Column("item_id", ForeignKey("item.id"), primary_key=True),
            Column("badge_id", ForeignKey("badge.id"), primary_key=True),
        )
        Base.metadata.create_all(self.engine)

    def watch(self, **mapping: Any) -> None:
        self.cache.watch(self.sessions, {self.item: ["item:{id}"], **mapping.get("more", {})})


@pytest.fixture
def classes(make_cache: Callable[..., Cache], tmp_path: Path) -> Iterator[Classes]:
    made = Classes(make_cache, tmp_path / "classes.db")
    yield made
    made.base.registry.dispose()
    made.engine.dispose()


def admin(classes: Classes) -> Any:
    class Admin(classes.base):  # type: ignore[misc]  # made by the fixture
        __table__ = classes.table

    return Admin


def in_another_registry(classes: Classes) -> Any:
    class Elsewhere:
        pass

    registry().map_imperatively(Elsewhere, classes.table)
    return Elsewhere


def of_a_join(classes: Classes) -> Any:
    class Joined(classes.base):  # type: ignore[misc]
        __table__ = join(classes.table, classes.link)
        id = classes.table.c.id
        item_id = classes.link.c.item_id

    return Joined


def of_a_query(classes: Classes) -> Any:
    """A flush writes through it to the table."""

    class Cheap(classes.base):  # type: ignore[misc]
        __table__ = select(classes.table).where(classes.table.c.price < 9).subquery()

    return Cheap


SECOND = [admin, in_another_registry, of_a_join, of_a_query]


@pytest.mark.parametrize("second", SECOND)
def test_a_second_class_of_a_watched_table_is_refused(classes: Classes, second: Callable[[Classes], Any]) -> None:
    kind = second(classes)

    with pytest.raises(ConfigError, match=rf"table item is mapped by .*{kind.__name__}, .*not watched.*same mapping"):
        classes.watch()


@pytest.mark.parametrize("second", SECOND)
def test_a_second_class_that_comes_later_is_refused(classes: Classes, second: Callable[[Classes], Any]) -> None:
    """When SQLAlchemy configures it, and from then on by each flush: the message may have been lost in between."""
    classes.watch()
    kind = second(classes)

    with pytest.raises(ConfigError, match=rf"table item is mapped by .*{kind.__name__}"):
        configure_mappers()
    with classes.sessions() as session:
        session.add(classes.item(id=1, price=1))
        with pytest.raises(ConfigError, match=rf"table item is mapped by .*{kind.__name__}"):
            session.flush()


def test_a_class_of_a_watched_association_table_is_refused(classes: Classes) -> None:
    """Whether it comes before the watch or after."""
    classes.watch(more={classes.link: ["badge:{badge_id}"]})

    class Link(classes.base):  # type: ignore[misc]
        __table__ = classes.link

    with pytest.raises(ConfigError, match=r"item_badge is mapped by .*Link"):
        configure_mappers()
    with pytest.raises(ConfigError, match="item_badge is mapped by Link"):
        classes.cache.watch(sessionmaker(classes.engine), {classes.link: ["badge:{badge_id}"]})


def test_both_classes_are_watched_if_both_are_given(classes: Classes, events: list[Any]) -> None:
    kind = admin(classes)
    classes.watch(more={kind: ["admin:{id}"]})

    with classes.sessions.begin() as session:
        session.add(classes.item(id=1, price=1))
    with classes.sessions.begin() as session:
        session.get_one(kind, 1).price = 2

    assert [event.tags for event in events if type(event).__name__ == "Invalidated"] == [("item:1",), ("admin:1",)]


def test_another_table_of_the_same_name_is_refused_by_its_flush(classes: Classes) -> None:
    """Which of them is in which database is not known at set-up."""
    other = registry(metadata=MetaData())

    @other.mapped
    class Copy:
        __table__ = classes.table.to_metadata(other.metadata)

    classes.watch()

    with classes.sessions() as session:
        session.add(Copy())
        with pytest.raises(UnwatchedWrite, match="item"):
            session.flush()


def test_other_classes_of_the_tree_are_left_alone(classes: Classes, events: list[Any]) -> None:
    """The rows of a base and of its other subclasses are no rows of the subclass that is watched."""

    class Animal(classes.base):  # type: ignore[misc]
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        __mapper_args__: ClassVar = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Dog(Animal):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        __mapper_args__: ClassVar = {"polymorphic_identity": "dog"}

    class Cat(Animal):
        __mapper_args__: ClassVar = {"polymorphic_identity": "cat"}

    classes.base.metadata.create_all(classes.engine)
    classes.cache.watch(classes.sessions, {Dog: ["dog:{id}"]})

    with classes.sessions.begin() as session:
        session.add_all([Animal(id=1), Dog(id=2), Cat(id=3)])

    assert [event.tags for event in events if type(event).__name__ == "Invalidated"] == [("dog:2",)]


def test_a_base_without_a_discriminator_is_refused(classes: Classes) -> None:
    """A row of the subclass can be loaded, and changed, as one of the base."""

    class Special(classes.item):  # type: ignore[misc]
        __tablename__ = "special"
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)

    with pytest.raises(ConfigError, match=r"item is mapped by .*Item"):
        classes.cache.watch(classes.sessions, {Special: ["special:{id}"]})


def test_concrete_classes_have_tables_of_their_own(classes: Classes, events: list[Any]) -> None:
    class NamedWaker(ConcreteBase, classes.base):  # type: ignore[misc]
        __tablename__ = "place"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__: ClassVar = {"polymorphic_identity": "place", "concrete": True}

    class Shop(NamedWaker):
        __tablename__ = "shop"
        id: Mapped[int] = mapped_column(primary_key=True)
        __mapper_args__: ClassVar = {"polymorphic_identity": "shop", "concrete": True}

    classes.base.metadata.create_all(classes.engine)
    classes.cache.watch(classes.sessions, {Shop: ["shop:{id}"]})

    with classes.sessions.begin() as session:
        session.add_all([NamedWaker(id=1), Shop(id=2)])

    assert [event.tags for event in events if type(event).__name__ == "Invalidated"] == [("shop:2",)]


@pytest.mark.parametrize("again", [False, True], ids=["gone", "mapped again"])
def test_a_registry_that_is_disposed_of_takes_its_classes_along(
    classes: Classes, events: list[Any], again: bool
) -> None:
    """The others are watched as before; a class that is mapped again is, too."""

    class Shelf:
        id: int

    shelves = Table("shelf", classes.base.metadata, Column("id", Integer, primary_key=True))
    shelves.create(classes.engine)
    mapped = registry()
    mapped.map_imperatively(Shelf, shelves)
    classes.watch(more={Shelf: ["shelf:{id}"]})
    with classes.sessions.begin() as session:
        session.add_all([classes.item(id=1, price=1)])

    mapped.dispose()
    if again:
        mapped.map_imperatively(Shelf, shelves)
        with classes.sessions.begin() as session:
            shelf = Shelf()
            shelf.id = 7
            session.add(shelf)
    with classes.sessions.begin() as session:
        session.get_one(classes.item, 1).price = 2
        session.execute(classes.table.update().where(classes.table.c.id == 1).values(price=3))

    found = [event.tags for event in events if type(event).__name__ == "Invalidated"]
    assert found == [("item:1",), *([("shelf:7",)] if again else []), ("item:1",)]
    mapped.dispose()
