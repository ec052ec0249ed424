"""Random work of a session, judged by a naive oracle: it dumps all rows before and after, and compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Computed, ForeignKey, Table, create_engine, delete, insert, literal_column, select, text
from sqlalchemy import update as bulk_update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from cacheworkers import Cache, UnwatchedWrite

SCHEMA = 'tenant-1 "a.b"'


class Base(DeclarativeBase):
    pass


links = Table(
    "link to",
    Base.metadata,
    Column("item_id", ForeignKey(f"{SCHEMA}.the item.id", ondelete="CASCADE"), primary_key=True),
    Column("badge_id", ForeignKey(f"{SCHEMA}.badge.id", ondelete="CASCADE"), primary_key=True),
    schema=SCHEMA,
)


class Maker(Base):
    """Not watched: the database renames it in the items, or deletes them."""

    __tablename__ = "maker"
    __table_args__: ClassVar = {"schema": SCHEMA}
    name: Mapped[str] = mapped_column(primary_key=True)


class Badge(Base):
    __tablename__ = "badge"
    __table_args__: ClassVar = {"schema": SCHEMA}
    id: Mapped[int] = mapped_column(primary_key=True)


class Item(Base):
    __tablename__ = "the item"
    __table_args__: ClassVar = {"schema": SCHEMA}
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]
    bucket: Mapped[int] = mapped_column(Computed("price / 100", persisted=True))
    edition: Mapped[int] = mapped_column(default=0, onupdate=literal_column("edition + 1"))
    maker: Mapped[str | None] = mapped_column(
        ForeignKey(f"{SCHEMA}.maker.name", ondelete="CASCADE", onupdate="CASCADE")
    )
    label: Mapped[str] = mapped_column(Computed("coalesce(maker, 'nobody') || '!'", persisted=True))
    badges: Mapped[list[Badge]] = relationship(secondary=links)


class Admin(Base):
    """A second class of the same table."""

    __table__ = Item.__table__
    __mapper_args__: ClassVar = {"eager_defaults": True}


TEMPLATES = ["item:{id}", "bucket:{bucket}", "edition:{edition}", "label:{label}", "maker:{maker}"]
MAPPING: dict[Any, Any] = {
    Item: TEMPLATES,
    Admin: TEMPLATES,
    links: ["badge:{badge_id}", "badges_of:{item_id}"],
}
ITEM: Any = Item.__table__


def dump(session: Session) -> dict[Any, set[str]]:
    """Return each row's values and its tags, as plain SQL has them."""
    found: dict[Any, set[str]] = {}
    connection = session.connection()
    for row in connection.execute(select(ITEM)).mappings():
        found["item", *row.values()] = {template.format(**row) for template in MAPPING[Item]}
    for row in connection.execute(select(links)).mappings():
        found["link", *row.values()] = {template.format(**row) for template in MAPPING[links]}
    return found


ids = st.integers(1, 3)
prices = st.integers(0, 5).map(lambda hundreds: hundreds * 100 + 50)
makers = st.sampled_from(["a", "b", None])
kinds = st.sampled_from([Item, Admin])
Step = tuple[str, Any, int, int, Any]
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "reprice", "move", "delete", "link", "unlink", "rename", "drop maker", "expire", "read", "bulk"]
            + ["flush", "commit"] * 2
        ),
        kinds,
        ids,
        prices,
        makers,
    ),
    max_size=12,
)
BULK: list[Callable[[int], Any]] = [
    lambda price: bulk_update(Item).values(price=price),
    lambda price: delete(Admin),
    lambda price: insert(Item).values([{"id": price + 100, "price": price}]),
    lambda price: bulk_update(ITEM).values(price=price),
    lambda price: delete(Maker),
    lambda price: text(f'UPDATE "tenant-1 ""a.b"""."the item" SET price = {price}'),
    lambda price: text('DELETE FROM"tenant-1 ""a.b""" . "link to"'),
    lambda price: text('TRUNCATE TABLE "tenant-1 ""a.b"""."the item" CASCADE'),
]


def take(session: Session, step: Step) -> None:
    """Do what a step says, as far as there is something to do it to."""
    what, kind, number, price, maker = step
    row = session.get(kind, number) if what in {"add", "reprice", "move", "delete", "expire", "read"} else None
    match what:
        case "add" if row is None and session.get(Item, number) is None and session.get(Admin, number) is None:
            session.add(kind(id=number, price=price))
            session.flush()
        case "reprice" if row is not None:
            row.price = price
        case "move" if row is not None and (maker is None or session.get(Maker, maker) is not None):
            row.maker = maker
        case "delete" if row is not None:
            session.delete(row)
            session.flush()
            session.expire_all()
        case "expire" | "read" if row is not None:
            session.expire(row) if what == "expire" else row.label
        case "link" | "unlink":
            item, badge = session.get(Item, number), session.get_one(Badge, price // 100 % 2 + 1)
            if item is not None and (badge in item.badges) == (what == "unlink"):
                item.badges.append(badge) if what == "link" else item.badges.remove(badge)
        case "rename":
            found = session.get(Maker, "a") or session.get_one(Maker, "z")
            found.name = "z" if found.name == "a" else "a"
            session.flush()
            session.expire_all()
        case "drop maker":
            session.delete(session.get_one(Maker, "b"))
            session.flush()
            session.expire_all()
            session.add(Maker(name="b"))
            session.flush()
        case "bulk":
            with pytest.raises(UnwatchedWrite):
                session.execute(BULK[(number + price // 100) % len(BULK)](price))
        case "flush":
            session.flush()


class Judged:
    """A watched database, whose commits are compared."""

    def __init__(self, cache: Cache, url: str, events: list[Any]) -> None:
        self.events = events
        self.engine = create_engine(url)
        with self.engine.begin() as connection:
            connection.exec_driver_sql('CREATE SCHEMA "tenant-1 ""a.b"""')
        Base.metadata.create_all(self.engine)
        cache.outbox.create(self.engine)
        self.sessions = sessionmaker(self.engine)
        cache.watch(self.sessions, MAPPING)

    def begin(self) -> None:
        """Begin again, past everything that watches."""
        with Session(self.engine) as session, session.begin():
            for kind in (links, Item, Badge, Maker):
                session.execute(delete(kind))
            session.add_all([Maker(name="a"), Maker(name="b"), Badge(id=1), Badge(id=2)])
            session.flush()
            session.add_all([Item(id=1, price=150, maker="a"), Item(id=2, price=250, maker="b")])

    def commit(self, session: Session, before: dict[Any, set[str]]) -> dict[Any, set[str]]:
        """Commit, compare what is invalidated with what has changed, and return the rows there are now."""
        del self.events[:]
        session.commit()
        with Session(self.engine) as other:
            after = dump(other)
        expected = {tag for row in {*before} ^ {*after} for tag in {**before, **after}[row]}
        found = {tag for each in self.events if type(each).__name__ == "Invalidated" for tag in each.tags}
        assert expected <= found
        return after


@pytest.fixture
def judged(make_cache: Callable[..., Cache], database_url: str, events: list[Any]) -> Iterator[Judged]:
    made = Judged(make_cache(), database_url, events)
    yield made
    made.engine.dispose()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps)
def test_every_changed_row_is_invalidated_with_its_old_and_new_tags(judged: Judged, work: list[Step]) -> None:
    """Computed columns, two classes of one table, cascades, links, a schema that needs quotes; bulk is refused."""
    judged.begin()

    with judged.sessions() as session:
        before = dump(session)
        for step in work:
            if step[0] == "commit":
                before = judged.commit(session, before)
            else:
                take(session, step)
        judged.commit(session, before)
