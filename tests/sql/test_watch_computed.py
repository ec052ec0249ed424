"""What the database computes when a row changes is asked for after the flush, whatever the session knew before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Column,
    Computed,
    FetchedValue,
    ForeignKey,
    Integer,
    String,
    Table,
    create_engine,
    event,
    literal_column,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column, sessionmaker

from cacheworkers import Cache

BUCKET = "price / 100"


class Base(DeclarativeBase):
    pass


class Late(Base):
    __tablename__ = "computed_late"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    bucket: Mapped[int] = mapped_column(Computed(BUCKET, persisted=True))


class Eager(Base):
    __tablename__ = "computed_eager"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    bucket: Mapped[int] = mapped_column(Computed(BUCKET, persisted=True))
    __mapper_args__: ClassVar = {"eager_defaults": True}


class OnUpdate(Base):
    """Each UPDATE of the session counts one up, in SQL."""

    __tablename__ = "computed_on_update"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    bucket: Mapped[int] = mapped_column(default=literal_column("1"), onupdate=literal_column("bucket + 1"))


class ByTrigger(Base):
    """A trigger of the user's own sets the column."""

    __tablename__ = "computed_by_trigger"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    bucket: Mapped[int] = mapped_column(default=1, server_onupdate=FetchedValue())


class Expression(Base):
    """The column is no column of the table at all."""

    __tablename__ = "computed_expression"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    bucket = column_property(literal_column(BUCKET, Integer))


class Maker(Base):
    __tablename__ = "computed_maker"
    name: Mapped[str] = mapped_column(primary_key=True)


class Made(Base):
    """The database itself renames its maker, and computes a column of that."""

    __tablename__ = "computed_made"
    id: Mapped[int] = mapped_column(primary_key=True)
    maker: Mapped[str | None] = mapped_column(
        ForeignKey("computed_maker.name", ondelete="SET NULL", onupdate="CASCADE")
    )
    label: Mapped[str] = mapped_column(Computed("coalesce(maker, 'nobody') || '!'", persisted=True))


links = Table(
    "computed_link",
    Base.metadata,
    Column("place", Integer, primary_key=True),
    Column("maker", ForeignKey("computed_maker.name", ondelete="SET NULL", onupdate="CASCADE")),
    Column("label", String, Computed("coalesce(maker, 'nobody') || '?'", persisted=True)),
)

KINDS: list[Any] = [Late, Eager, OnUpdate, ByTrigger, Expression]
TRIGGER = {
    "sqlite": [
        "CREATE TRIGGER mine AFTER UPDATE OF price ON computed_by_trigger BEGIN "
        f"UPDATE computed_by_trigger SET bucket = {BUCKET} WHERE id = new.id; END"
    ],
    "postgresql": [
        "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.bucket = NEW.price / 100; "
        "RETURN NEW; END'",
        "CREATE TRIGGER mine BEFORE UPDATE ON computed_by_trigger FOR EACH ROW EXECUTE FUNCTION mine()",
    ],
}


class Computing:
    """A watched database, and what its commits invalidate."""

    def __init__(self, cache: Cache, url: str, events: list[Any]) -> None:
        self.events = events
        self.engine = create_engine(url)
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", lambda driver, _: driver.execute("PRAGMA foreign_keys = ON"))
        Base.metadata.create_all(self.engine)
        cache.outbox.create(self.engine)
        with self.engine.begin() as connection:
            for statement in TRIGGER[self.engine.dialect.name]:
                connection.exec_driver_sql(statement)
        self.sessions = sessionmaker(self.engine)
        mapping: dict[Any, Any] = {kind: [f"{kind.__name__}:{{bucket}}"] for kind in KINDS}
        cache.watch(self.sessions, {**mapping, Made: ["label:{label}"], links: ["link:{label}"]})

    def tags(self) -> set[str]:
        """What has been invalidated since the last look."""
        found = {tag for each in self.events if type(each).__name__ == "Invalidated" for tag in each.tags}
        del self.events[:]
        return found


@pytest.fixture(params=["postgres", "sqlite"])
def computing(
    request: pytest.FixtureRequest, make_cache: Callable[..., Cache], events: list[Any], tmp_path: Path
) -> Iterator[Computing]:
    is_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'computed.db'}" if is_sqlite else request.getfixturevalue("database_url")
    made = Computing(make_cache(), url, events)
    yield made
    made.engine.dispose()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", ["loaded", "expired", "never loaded"])
def test_a_column_that_the_database_computes(computing: Computing, kind: Any, known: str) -> None:
    """A commit expires all columns: what is fetched of the row before the UPDATE is not what it has after it."""
    with Session(computing.engine) as session, session.begin():
        session.add(kind(id=1, price=150))

    with computing.sessions() as session:
        row = session.get_one(kind, 1)
        if known == "expired":
            session.commit()
        if known == "never loaded":
            session.expire(row, ["bucket"])
        row.price = 250
        session.commit()

    assert computing.tags() == {f"{kind.__name__}:1", f"{kind.__name__}:2"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_price_that_changes_again_and_again(computing: Computing, kind: Any) -> None:
    """Each change begins from what the one before has made."""
    with computing.sessions() as session:
        session.add(row := kind(id=1, price=150))
        session.commit()
        for price in (250, 350):
            row.price = price
            session.flush()
        session.commit()
        row.price = 450
        session.commit()

    assert computing.tags() == {f"{kind.__name__}:{bucket}" for bucket in (1, 2, 3, 4)}


def test_a_column_computed_of_what_the_database_moves(computing: Computing) -> None:
    """A renamed maker takes what it has made along, and what is computed of its name."""
    with Session(computing.engine) as session, session.begin():
        session.add(Maker(name="a"))
        session.flush()
        session.add_all([Made(id=1, maker="a"), Made(id=2)])
        session.execute(links.insert().values(place=1, maker="a"))

    with computing.sessions.begin() as session:
        session.get_one(Maker, "a").name = "b"
    assert computing.tags() == {"label:a!", "label:b!", "link:a?", "link:b?"}

    with computing.sessions.begin() as session:
        session.delete(session.get_one(Maker, "b"))
    assert computing.tags() == {"label:b!", "label:nobody!", "link:b?", "link:nobody?"}


def test_a_row_that_is_moved_and_deleted_together(computing: Computing) -> None:
    """There is nothing left to be computed of."""
    with Session(computing.engine) as session, session.begin():
        session.add(Maker(name="a"))
        session.flush()
        session.add(Made(id=1, maker="a"))

    with computing.sessions.begin() as session:
        session.delete(session.get_one(Made, 1))
        session.get_one(Maker, "a").name = "b"

    assert "label:a!" in computing.tags()
    with computing.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM computed_made")).scalar_one() == 0
