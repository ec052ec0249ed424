"""What is wrong is said when the watch is set up, with the thing, the value and the rule; not at a commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Table, create_engine, event, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from cacheworkers import Cache, ConfigError, Load, UnwatchedWrite
from cacheworkers.testing.servers import wait_until


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str]


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(primary_key=True)


links = Table(
    "thing_link",
    Base.metadata,
    Column("thing_id", ForeignKey("thing.id"), primary_key=True),
    Column("other_id", ForeignKey("other.id"), primary_key=True),
)


@pytest.fixture(params=["postgres", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'things.db'}"
    return str(request.getfixturevalue("database_url"))


@pytest.fixture
def cache(make_cache: Callable[..., Cache]) -> Cache:
    return make_cache(max_tag_bytes=40)


@pytest.fixture
def sessions(url: str) -> Iterator[sessionmaker[Session]]:
    """A database without an outbox."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    yield sessionmaker(engine)
    engine.dispose()


def engine_of(sessions: sessionmaker[Session]) -> Any:
    return sessions.kw["bind"]


WRONG: dict[str, tuple[dict[Any, Any], str]] = {
    "a template of an unknown column": ({Thing: ["thing:{colour}"]}, r"Thing.*thing:\{colour\}.*\{id\}, \{slug\}"),
    "a template of a link's unknown column": ({links: ["thing:{id}"]}, r"thing_link.*\{thing_id\}, \{other_id\}"),
    "a function of an unknown column": ({Thing: lambda row: [f"thing:{row.colour}"]}, r"Thing\.colour.*id, slug"),
    "a template with a control character": ({Thing: ["thing\n{id}"]}, r"control characters.*'thing"),
    "a function with a control character": ({Thing: lambda row: [f"thing\t{row.id}"]}, r"control characters.*'thing"),
    "a template over the limit": ({Thing: ["t" * 41 + "{id}"]}, "at most 40 bytes.*has 41"),
    "a function over the limit": ({Thing: lambda row: ["t" * 50 + row.slug]}, "at most 40 bytes.*has 51"),
    "a function that makes one text": ({Thing: lambda row: f"thing:{row.id}"}, "collection, .*got 'thing:0'"),
    "a function without a return": ({Thing: lambda row: None}, "tags of Thing must be a collection, .*got None"),
    "one text for templates": ({Thing: "thing:{id}"}, "list of templates as .*, got 'thing:{id}'"),
    "a malformed template": ({Thing: ["thing:{id"]}, "malformed"),
    "a class that is not mapped": ({Path: ["x"]}, "Path.*neither"),
    "a mapped class's table": ({Thing: ["x:{id}"], Other.__table__: ["x"]}, "other is mapped by Other"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(cache: Cache, sessions: sessionmaker[Session], what: str) -> None:
    mapping, message = WRONG[what]

    with pytest.raises(ConfigError, match=message):
        cache.watch(sessions, mapping)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_key_that_sets_a_default_cannot_be_followed(cache: Cache, sessions: sessionmaker[Session]) -> None:
    class Mine(DeclarativeBase):
        pass

    class Parent(Mine):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Child(Mine):
        __tablename__ = "child"
        id: Mapped[int] = mapped_column(primary_key=True)
        parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id", ondelete="set default"), server_default="0")

    with pytest.raises(ConfigError, match=r"child to parent is SET DEFAULT.*triggers"):
        cache.watch(sessions, {Child: ["child:{id}"]})


@pytest.mark.parametrize("made", ["", "CREATE TABLE cacheworkers_outbox (id int PRIMARY KEY, tags text)"])
def test_a_flush_names_an_outbox_that_is_not_there(cache: Cache, sessions: sessionmaker[Session], made: str) -> None:
    """`watch` does not ask: the module is imported by the migration that makes the table."""
    with engine_of(sessions).begin() as connection:
        connection.exec_driver_sql(made or "SELECT 1")
    cache.watch(sessions, {Thing: ["thing:{id}"]})

    with sessions() as session:
        session.add(Thing(id=1, slug="a"))
        with pytest.raises(ConfigError, match=r"need the table cacheworkers_outbox.*cache.outbox.create"):
            session.commit()
    with sessions() as session:
        assert session.get(Thing, 1) is None

    with pytest.raises(ConfigError, match=r"cacheworkers_outbox.*does not have; cache.outbox.create"):
        cache.outbox.check(engine_of(sessions))


def test_a_commit_of_async_sessions_names_an_outbox_that_is_not_there(cache: Cache, database_url: str) -> None:
    sessions = async_sessionmaker(create_async_engine(database_url))
    cache.watch(sessions, {Thing: ["thing:{id}"]})

    async def inside() -> None:
        async with sessions() as session:
            await session.run_sync(lambda sync: Base.metadata.create_all(sync.connection()))
            session.add(Thing(id=1, slug="a"))
            with pytest.raises(ConfigError, match=r"need the table cacheworkers_outbox.*cache.outbox.create"):
                await session.commit()

    asyncio.run(inside())


def test_a_database_that_does_not_answer_holds_up_no_start(cache: Cache) -> None:
    cache.watch(sessionmaker(create_engine("postgresql+psycopg://127.0.0.1:1/shop")), {Thing: ["thing:{id}"]})


def test_autocommit_is_refused(cache: Cache, url: str) -> None:
    """A change and its outbox row would be committed one after the other."""
    for engine in (
        create_engine(url, isolation_level="AUTOCOMMIT"),
        create_engine(url).execution_options(isolation_level="AUTOCOMMIT"),
    ):
        with pytest.raises(ConfigError, match="AUTOCOMMIT"):
            cache.watch(sessionmaker(engine), {Thing: ["thing:{id}"]})


def test_autocommit_of_one_session_is_refused(cache: Cache, sessions: sessionmaker[Session]) -> None:
    engine = engine_of(sessions)
    cache.outbox.create(engine)
    cache.watch(sessions, {Thing: ["thing:{id}"]})

    with sessions(bind=engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(Thing(id=1, slug="a"))
        with pytest.raises(UnwatchedWrite, match="AUTOCOMMIT"):
            session.flush()
    with sessions() as session:
        assert session.get(Thing, 1) is None  # refused before it was written, and committed


def test_a_scoped_session_is_watched_by_its_factory(cache: Cache, sessions: sessionmaker[Session]) -> None:
    cache.outbox.create(engine_of(sessions))
    scoped = scoped_session(sessions)
    cache.watch(scoped, {Thing: ["thing:{id}"]})

    scoped.add(Thing(id=1, slug="a"))
    scoped.commit()
    scoped.remove()

    with engine_of(sessions).connect() as connection:
        assert [row.tags for row in connection.execute(cache.outbox.table.select())] == ["thing:1"]


def test_a_listener_that_was_there_before_reads_what_is_committed(
    make_cache: Callable[..., Cache], sessions: sessionmaker[Session]
) -> None:
    engine = engine_of(sessions)
    cache = make_cache(sessions=sessionmaker(engine))
    cache.outbox.create(engine)
    read: list[Any] = []

    @cache.loader(tags=("thing:{thing_id}",), fresh_for=300)
    def slug(load: Load, thing_id: int) -> str | None:
        return load.session.scalar(select(Thing.slug).where(Thing.id == thing_id))

    event.listen(sessions, "after_commit", lambda session: read.append(slug.get(1)))
    cache.watch(sessions, {Thing: ["thing:{id}"]})
    for value in ("a", "b"):
        with sessions.begin() as session:
            session.merge(Thing(id=1, slug=value))

    assert read == ["a", "b"]


# -- what cannot be known at set-up fails no commit


def test_a_function_that_a_sample_cannot_go_through_is_taken(cache: Cache, sessions: sessionmaker[Session]) -> None:
    cache.outbox.create(engine_of(sessions))

    cache.watch(sessions, {Thing: lambda row: [f"first:{row.slug.split('-')[1]}"]})


@pytest.mark.parametrize("slug", ["a\nb", "x" * 60])
def test_a_value_that_makes_no_legal_tag_fails_no_commit(
    cache: Cache,
    sessions: sessionmaker[Session],
    events: list[Any],
    caplog: pytest.LogCaptureFixture,
    slug: str,
) -> None:
    """No entry can have such a tag; the row's other tags are invalidated."""
    cache.outbox.create(engine_of(sessions))
    cache.watch(sessions, {Thing: ["thing:{id}", "slug:{slug}"]})

    with caplog.at_level(logging.WARNING), sessions.begin() as session:
        session.add(Thing(id=1, slug=slug))

    assert [event.tags for event in events if type(event).__name__ == "Invalidated"] == [("thing:1",)]
    assert "skipped a tag of Thing" in caplog.text


# -- who else there is


def test_templates_are_tags_of_old_and_new_values(
    cache: Cache, sessions: sessionmaker[Session], events: list[Any]
) -> None:
    cache.outbox.create(engine_of(sessions))
    cache.watch(sessions, {Thing: ["thing:{id}", "slug:{slug}"]})
    with sessions.begin() as session:
        session.add(Thing(id=1, slug="a"))
    del events[:]

    with sessions.begin() as session:
        session.get_one(Thing, 1).slug = "b"

    assert [set(event.tags) for event in events if type(event).__name__ == "Invalidated"] == [
        {"thing:1", "slug:a", "slug:b"}
    ]


def test_two_caches_watch_the_same_sessions(
    make_cache: Callable[..., Cache], sessions: sessionmaker[Session], events: list[Any]
) -> None:
    """Each invalidates its own tags, from its own outbox rows."""
    one, other = make_cache(), make_cache(namespace="another")
    one.outbox.create(engine_of(sessions))
    one.watch(sessions, {Thing: ["one:{id}"]})
    other.watch(sessions, {Thing: ["other:{id}"]})

    with sessions.begin() as session:
        session.add(Thing(id=1, slug="a"))

    found = [event.tags for event in events if type(event).__name__ == "Invalidated"]
    assert sorted(found) == [("one:1",), ("other:1",)]
    with engine_of(sessions).connect() as connection:
        wait_until(lambda: not one.outbox.waiting(connection) and not other.outbox.waiting(connection))


def test_sessions_of_several_databases(cache: Cache, tmp_path: Path, events: list[Any]) -> None:
    """Each change has its outbox row in the database in which it was made."""
    engines = [create_engine(f"sqlite:///{tmp_path / name}.db") for name in "ab"]
    for engine in engines:
        Base.metadata.create_all(engine)
        cache.outbox.create(engine)
    sessions = sessionmaker(binds={Thing: engines[0], Other: engines[1]})
    cache.watch(sessions, {Thing: ["thing:{id}"], Other: ["other:{id}"]})

    with sessions.begin() as session:
        session.add_all([Thing(id=1, slug="a"), Other(id=2)])

    assert [set(event.tags) for event in events if type(event).__name__ == "Invalidated"] == [{"thing:1", "other:2"}]
    for engine, tag in zip(engines, ("thing:1", "other:2"), strict=True):
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT tags FROM cacheworkers_outbox").scalars().all() == [tag]
            connection.rollback()
            wait_until(lambda: cache.outbox.waiting(connection) == 0)  # called immediately
