"""Mappings of which a row's tags are easily missed, or a flush easily broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Dialect,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Numeric,
    String,
    Table,
    case,
    create_engine,
    event,
    func,
    insert,
    text,
    update,
)
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    column_property,
    mapped_column,
    relationship,
    sessionmaker,
    synonym,
)
from sqlalchemy.types import TypeDecorator

from cacheworkers import Cache, ConfigError, UnwatchedWrite


class LowerCase(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value.lower() if value is not None else None


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "map_user"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(LowerCase)
    credit: Mapped[Decimal] = mapped_column(Numeric(10, 2), default=0)
    _name: Mapped[str | None] = mapped_column("name")
    name: Mapped[str | None] = synonym("_name")


class Order(Base):
    __tablename__ = "map_order"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Line]] = relationship(cascade="all, delete-orphan")


class Line(Base):
    __tablename__ = "map_line"
    order_id: Mapped[int] = mapped_column(ForeignKey("map_order.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shelf: Mapped[str]


links = Table(
    "map_link",
    Base.metadata,
    Column("book_id", ForeignKey("map_book.id"), primary_key=True),
    Column("topic_id", ForeignKey("map_topic.id"), primary_key=True),
    Column("tenant", String(9), nullable=False, server_default="t1"),
)


#: Without a key: two rows may be the same.
pairs = Table(
    "map_pair",
    Base.metadata,
    Column("book_id", ForeignKey("map_book.id")),
    Column("topic_id", ForeignKey("map_topic.id")),
)


class Topic(Base):
    __tablename__ = "map_topic"
    id: Mapped[int] = mapped_column(primary_key=True)


class Rating(Base):
    __tablename__ = "map_rating"
    book_id: Mapped[int] = mapped_column(ForeignKey("map_book.id"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("map_user.id"), primary_key=True)


class Book(Base):
    __tablename__ = "map_book"
    id: Mapped[int] = mapped_column(primary_key=True)
    best: Mapped[int] = mapped_column(default=0)
    topics: Mapped[list[Topic]] = relationship(secondary=links)
    pairs: Mapped[list[Topic]] = relationship(secondary=pairs)
    rated_by: Mapped[list[User]] = relationship(secondary="map_rating")


class Remark(Base):
    """Refers to a link, and goes with it."""

    __tablename__ = "map_remark"
    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int | None]
    topic_id: Mapped[int | None]
    __table_args__ = (
        ForeignKeyConstraint(
            ["book_id", "topic_id"], ["map_link.book_id", "map_link.topic_id"], ondelete="CASCADE", onupdate="CASCADE"
        ),
    )


class Voucher(Base):
    __tablename__ = "map_voucher"
    code: Mapped[str] = mapped_column(LowerCase, primary_key=True)


class Use(Base):
    __tablename__ = "map_use"
    code: Mapped[str] = mapped_column(LowerCase, ForeignKey("map_voucher.code", onupdate="CASCADE"), primary_key=True)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))


class Node(Base):
    __tablename__ = "map_node"
    name: Mapped[str] = mapped_column(LowerCase, primary_key=True)
    root: Mapped[str | None] = mapped_column(LowerCase, ForeignKey("map_node.name", onupdate="CASCADE"))


stock = Table("map_stock", Base.metadata, Column("id", Integer, primary_key=True), Column("amount", Integer))
note = Table(
    "map_note", Base.metadata, Column("id", Integer, primary_key=True), Column("stock_id", ForeignKey("map_stock.id"))
)


class Stock(Base):
    """Rows that PostgreSQL cannot lock where it selects them: of an outer join, with a window function."""

    __table__ = stock.outerjoin(note)
    id = column_property(stock.c.id, note.c.stock_id)
    note_id = note.c.id
    rank = column_property(func.row_number().over(order_by=stock.c.id))
    __mapper_args__ = {"primary_key": [stock.c.id]}  # noqa: RUF012 - as SQLAlchemy wants it


class Item(Base):
    __tablename__ = "map_item"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}  # noqa: RUF012  # SQLAlchemy reads it once


class Part(Item):
    """Joined, with a key of its own."""

    __tablename__ = "map_part"
    part_id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("map_item.id", ondelete="CASCADE"))
    __mapper_args__ = {"polymorphic_identity": "part"}  # noqa: RUF012  # SQLAlchemy reads it once


class Crate(Item):
    __tablename__ = "map_crate"
    id: Mapped[int] = mapped_column(ForeignKey("map_item.id"), primary_key=True)
    weight: Mapped[int] = mapped_column(default=1)
    __mapper_args__ = {"polymorphic_identity": "crate"}  # noqa: RUF012  # SQLAlchemy reads it once


class SmallCrate(Crate):
    __tablename__ = "map_small_crate"
    crate_id: Mapped[int] = mapped_column(ForeignKey("map_crate.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "small crate"}  # noqa: RUF012  # SQLAlchemy reads it once


class Grade(Base):
    __tablename__ = "map_grade"
    id: Mapped[int] = mapped_column(primary_key=True)
    points: Mapped[int] = mapped_column(Integer)
    __mapper_args__ = {  # noqa: RUF012  # SQLAlchemy reads it once
        "polymorphic_identity": "low",
        "polymorphic_on": case((points.column > 5, "high"), else_="low"),
    }


class High(Grade):
    __mapper_args__ = {"polymorphic_identity": "high"}  # noqa: RUF012  # SQLAlchemy reads it once


class Employee(ConcreteBase, Base):
    __tablename__ = "map_employee"
    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "employee", "concrete": True}  # noqa: RUF012  # SQLAlchemy reads it once


class Engineer(Employee):
    __tablename__ = "map_engineer"
    id: Mapped[int] = mapped_column(primary_key=True)
    team: Mapped[str]
    __mapper_args__ = {"polymorphic_identity": "engineer", "concrete": True}  # noqa: RUF012  # SQLAlchemy reads it once


class Mapped_:
    """A database with these tables, a watched factory, and what was written to the outbox."""

    def __init__(self, cache: Cache, url: str) -> None:
        self.cache = cache
        self.engine: Engine = create_engine(url)
        Base.metadata.create_all(self.engine)
        cache.outbox.create(self.engine)
        self.sessions = sessionmaker(self.engine)

    def watch(self, mapping: Any) -> None:
        self.cache.watch(self.sessions, mapping)

    def tags(self, work: Callable[[Session], object]) -> set[str]:
        with self.sessions.begin() as session:
            kept = work(session)
        del kept
        with self.engine.begin() as connection:
            rows = connection.execute(self.cache.outbox.table.select()).all()
            connection.execute(self.cache.outbox.table.delete())
        return {tag for row in rows for tag in row.tags.split("\n")}


@pytest.fixture
def mapped(make_cache: Callable[..., Cache], database_url: str) -> Iterator[Mapped_]:
    made = Mapped_(make_cache(), database_url)
    yield made
    made.engine.dispose()


def test_what_a_type_changes_on_its_way_is_tagged_as_stored(mapped: Mapped_) -> None:
    mapped.watch({User: lambda row: (f"email:{row.email}", f"credit:{row.credit}")})

    assert mapped.tags(lambda session: session.add(User(id=1, email="Ann@X.org", credit=5))) == {
        "email:ann@x.org",
        "credit:5.00",
    }


def test_an_attribute_may_have_any_name(mapped: Mapped_) -> None:
    mapped.watch({User: ["name:{_name}"]})
    mapped.tags(lambda session: session.add(User(id=1, name="ann")))

    def rename(session: Session) -> None:
        session.get_one(User, 1).name = "bob"

    assert mapped.tags(rename) == {"name:ann", "name:bob"}


def test_an_orphan_that_is_replaced_by_another_of_its_key(mapped: Mapped_) -> None:
    """SQLAlchemy makes an UPDATE of the two, and no event has the row as it was."""
    mapped.watch({Line: ["line:{order_id}:{number}", "shelf:{shelf}"]})
    mapped.tags(lambda session: session.add(Order(id=1, lines=[Line(number=1, shelf="a")])))

    def replace(session: Session) -> Order:
        order = session.get_one(Order, 1)
        order.lines = [Line(number=1, shelf="b")]
        return order

    assert mapped.tags(replace) == {"line:1:1", "shelf:a", "shelf:b"}


def test_links_with_a_column_that_the_database_fills(mapped: Mapped_) -> None:
    mapped.watch({links: ["book:{book_id}", "tenant:{tenant}"]})
    assert mapped.tags(lambda s: s.add(Book(id=1, topics=[Topic(id=1)]))) == {"book:1", "tenant:t1"}

    def unlink(session: Session) -> Book:
        book = session.get_one(Book, 1)
        book.topics.clear()
        return book

    assert mapped.tags(unlink) == {"book:1", "tenant:t1"}


def test_links_of_a_table_that_is_mapped_too(mapped: Mapped_) -> None:
    mapped.watch({Rating: ["rated:{book_id}"]})
    assert mapped.tags(lambda s: s.add(Book(id=1, rated_by=[User(id=1)]))) == {"rated:1"}
    assert mapped.tags(lambda s: s.delete(s.get_one(Book, 1))) == {"rated:1"}


def test_a_joined_class_with_a_key_of_its_own(mapped: Mapped_) -> None:
    mapped.watch({Item: ["item:{id}"]})
    assert mapped.tags(lambda session: session.add(Part(id=1, part_id=5))) == {"item:1"}
    assert mapped.tags(lambda session: session.delete(session.get_one(Item, 1))) == {"item:1"}


def test_a_joined_class_whose_reference_to_its_base_the_flush_overwrites(mapped: Mapped_) -> None:
    mapped.watch({Item: ["item:{id}"], Part: ["of:{item_id}"]})
    assert mapped.tags(lambda session: session.add(Part(id=1, part_id=5, item_id=99))) == {"of:1"}


def test_a_discriminator_that_is_an_expression(mapped: Mapped_) -> None:
    mapped.watch({Grade: ["grade:{id}"]})

    assert mapped.tags(lambda session: session.add(High(id=1, points=7))) == {"grade:1"}


def test_concrete_classes_are_read_from_their_own_tables(mapped: Mapped_) -> None:
    mapped.watch({Employee: ["team:{team}"], Engineer: ["engineer:{id}", "team:{team}"]})
    mapped.tags(lambda session: session.add_all([Engineer(id=1, team="a"), Engineer(id=2, team="b")]))

    def move(session: Session) -> None:
        session.get_one(Engineer, 2).team = "c"

    assert mapped.tags(move) == {"engineer:2", "team:b", "team:c"}


def test_a_discriminator_is_no_column_of_a_concrete_class(mapped: Mapped_) -> None:
    with pytest.raises(ConfigError, match="type"):
        mapped.watch({Employee: ["employee:{type}"]})
    mapped.watch({Employee: ["employee:{id}"]})  # nothing was left half-way


def test_a_row_without_a_net_change_is_not_locked(mapped: Mapped_) -> None:
    mapped.watch({Line: ["shelf:{shelf}"]})
    mapped.tags(lambda session: session.add(Order(id=1, lines=[Line(number=1, shelf="a")])))
    statements: list[str] = []
    event.listen(mapped.engine, "before_cursor_execute", lambda c, cursor, text, *_: statements.append(text))

    with mapped.sessions() as session:
        session.get_one(Line, (1, 1)).shelf = "a"
        session.flush()

    assert len(statements) == 1 and "FOR" not in statements[0]


def test_a_session_opened_in_a_mapper_event_is_watched(mapped: Mapped_) -> None:
    """On the flush's connection; it need not be one of the watched factory."""

    def recompute(mapper: Any, connection: Any, target: Rating) -> None:
        with Session(bind=connection) as session:
            session.get_one(Book, target.book_id).best = 5
            session.commit()

    mapped.watch({Book: ["book:{id}"], Rating: ["rated:{book_id}"]})
    mapped.tags(lambda session: session.add_all([Book(id=1), User(id=1)]))
    event.listen(Rating, "after_insert", recompute)
    try:
        assert mapped.tags(lambda session: session.add(Rating(book_id=1, user_id=1))) == {"book:1", "rated:1"}
    finally:
        event.remove(Rating, "after_insert", recompute)
    with mapped.engine.connect() as connection:
        assert connection.execute(text("SELECT best FROM map_book")).scalar_one() == 5


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.bulk_insert_mappings(Book, [{"id": 7}]),
        lambda session: session.bulk_save_objects([Book(id=7)]),
        lambda session: session.bulk_update_mappings(Book, [{"id": 1, "best": 5}]),
        lambda session: session.execute(insert(Book), [{"id": 7}]),
        lambda session: session.execute(update(Book), [{"id": 1, "best": 5}]),
        lambda session: session.connection(execution_options={"compiled_cache": {}}).execute(update(Book)),
    ],
)
def test_a_bulk_operation_in_a_mapper_event_is_refused(mapped: Mapped_, write: Callable[[Session], object]) -> None:
    """It goes through the functions of the flush, and is none of it."""

    def hook(mapper: Any, connection: Any, target: Rating) -> None:
        with Session(bind=connection) as session:
            write(session)
            session.commit()

    mapped.watch({Book: ["book:{id}"], Rating: ["rated:{book_id}"]})
    mapped.tags(lambda session: session.add_all([Book(id=1), User(id=1)]))
    event.listen(Rating, "after_insert", hook)
    try:
        with pytest.raises(UnwatchedWrite, match="map_book"):
            mapped.tags(lambda session: session.add(Rating(book_id=1, user_id=1)))
    finally:
        event.remove(Rating, "after_insert", hook)


def test_links_without_a_key_are_not_selected_one_by_one(mapped: Mapped_) -> None:
    """The statement that deletes one names all its columns, and so all that a tag can be made of."""
    mapped.watch({pairs: ["pair:{book_id}:{topic_id}"]})
    mapped.tags(lambda session: session.add(Book(id=1, pairs=[Topic(id=each) for each in (1, 2, 3)])))
    selected: list[str] = []

    def note(connection: Any, cursor: Any, text: str, *_: Any) -> None:
        if text.startswith("SELECT") and "FROM map_pair" in text:
            selected.append(text)

    def clear(session: Session) -> object:
        book = session.get_one(Book, 1)
        event.listen(mapped.engine, "before_cursor_execute", note)
        assert len(book.pairs) == 3
        selected.clear()
        book.pairs = []
        return book

    assert mapped.tags(clear) == {"pair:1:1", "pair:1:2", "pair:1:3"}
    assert selected == []


@pytest.mark.parametrize("are_links_watched", [True, False])
def test_rows_that_go_with_a_link(mapped: Mapped_, are_links_watched: bool) -> None:
    mapping: dict[Any, Any] = {Remark: ["remark:{id}"]}
    mapped.watch({**mapping, links: ["link:{topic_id}"]} if are_links_watched else mapping)
    mapped.tags(lambda session: session.add(Book(id=1, topics=[Topic(id=1), Topic(id=2)])))
    mapped.tags(lambda session: session.add(Remark(id=1, book_id=1, topic_id=1)))
    linked = {"link:1"} if are_links_watched else set()

    def unlink(session: Session) -> object:
        book = session.get_one(Book, 1)
        book.topics = [topic for topic in book.topics if topic.id != 1]
        return book

    assert mapped.tags(unlink) == {"remark:1", *linked}


def test_a_key_that_a_type_changes_where_it_is_copied_to(mapped: Mapped_) -> None:
    mapped.watch({Use: lambda row: (f"voucher:{row.code}", f"price:{row.price}")})
    mapped.tags(lambda session: session.add(Voucher(code="a")))
    mapped.tags(lambda session: session.add(Use(code="a", price=5)))

    def rename(session: Session) -> object:
        voucher = session.get_one(Voucher, "a")
        voucher.code = "B"
        return voucher

    assert mapped.tags(rename) == {"voucher:a", "voucher:b", "price:5.00"}


def test_rows_that_cannot_be_locked_where_they_are_selected(mapped: Mapped_) -> None:
    mapped.watch({Stock: lambda row: (f"stock:{row.id}", f"amount:{row.amount}")})
    with mapped.engine.begin() as connection:
        connection.execute(insert(stock).values(id=1, amount=3))

    def sell(session: Session) -> object:
        found = session.get_one(Stock, 1)
        found.amount = 2
        return found

    assert mapped.tags(sell) == {"stock:1", "amount:3", "amount:2"}


def test_an_expression_in_a_joined_class_that_was_not_loaded(mapped: Mapped_) -> None:
    """Its flush loads the rest of the row, and the new value with it."""
    mapped.watch({Item: ["item:{id}"], Crate: ["weight:{weight}"]})
    mapped.tags(lambda session: session.add(SmallCrate(id=1)))

    def add_weight(session: Session) -> object:
        crate: Any = session.get_one(Item, 1)
        crate.weight = Crate.weight + 1
        return crate

    assert mapped.tags(add_weight) == {"weight:1", "weight:2"}


def test_a_row_that_follows_its_own_key(mapped: Mapped_) -> None:
    mapped.watch({Node: lambda row: (f"root:{row.root}",)})
    mapped.tags(lambda session: session.add(Node(name="a", root="a")))

    def rename(session: Session) -> object:
        node = session.get_one(Node, "a")
        node.name = "B"
        return node

    assert mapped.tags(rename) >= {"root:a", "root:b"}
