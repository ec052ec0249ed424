"""A closed cache leaves watched sessions, their classes and memory as they were."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from cacheworkers import Cache, Config, Load
from cacheworkers.sql.outbox.acknowledger import DeliveryAcknowledger
from cacheworkers.sql.outbox.outbox import Outbox
from cacheworkers.testing import Valkey


class Base(DeclarativeBase):
    pass


class Chair(Base):
    __tablename__ = "closed_chair"

    id: Mapped[int] = mapped_column(primary_key=True)
    legs: Mapped[int]


class Stool(Chair):
    """A subclass, to which listeners are propagated."""


@pytest.fixture
def engine(database_url: str) -> Engine:
    engine = create_engine(database_url)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with sessionmaker(engine).begin() as session:
        session.add(Chair(id=1, legs=4))
    return engine


def watching(valkey: Valkey, engine: Engine, sessions: sessionmaker[Session]) -> Cache:
    cache = Cache(Config(redis_url=valkey.url, namespace="closed"), sessions=sessions)
    cache.outbox.create(engine)
    cache.watch(sessions, {Chair: ["chair:{id}"]})
    return cache


def test_what_was_watched_is_free(valkey: Valkey, engine: Engine) -> None:
    """An app factory in tests: sessions and classes are a module's, and outlive each cache."""
    sessions = sessionmaker(engine)
    kept = []
    for _ in range(3):
        cache = watching(valkey, engine, sessions)
        with sessions.begin() as session:
            session.get_one(Chair, 1).legs += 1
        cache.close()
        kept.append(weakref.ref(cache))
        del cache, session
    gc.collect()
    assert [each() for each in kept] == [None] * 3

    count = text("SELECT count(*) FROM cacheworkers_outbox")
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM cacheworkers_outbox"))  # a close does not wait until rows are removed
    with sessions.begin() as session:  # nobody's tags are missed any more: nothing is refused, or written
        session.execute(text("UPDATE closed_chair SET legs = 3"))
        session.add(Stool(id=2, legs=3))
    with engine.connect() as connection:
        assert connection.execute(count).scalar_one() == 0


def test_a_cache_that_follows_watches_once(valkey: Valkey, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    watching(valkey, engine, sessions).close()
    cache = watching(valkey, engine, sessions)

    @cache.loader(fresh_for=60, tags=("chair:{number}",))
    def legs(load: Load, number: int) -> int:
        return load.session.get_one(Chair, number).legs

    before = legs.get(1)
    with sessions.begin() as session:
        session.get_one(Chair, 1).legs = before + 1
        session.flush()
        rows = session.execute(text("SELECT count(*) FROM cacheworkers_outbox")).scalar_one()
    assert (rows, legs.get(1)) == (1, before + 1)
    cache.close()


def test_a_read_of_a_closed_cache_is_logged_once(
    valkey: Valkey, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A lifespan that closes runs once for each TestClient: nobody invalidates what the second one commits."""
    sessions = sessionmaker(engine)
    cache = watching(valkey, engine, sessions)

    @cache.loader(fresh_for=60, tags=("chair:{number}",))
    def legs(load: Load, number: int) -> int:
        return load.session.get_one(Chair, number).legs

    before = legs.get(1)
    cache.close()
    assert not caplog.records

    assert [legs.get(1), asyncio.run(legs.aget(1))] == [before, before]

    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1
    assert "has been closed, and is read again" in said[0]
    assert "is invalidated by nobody" in said[0]


def test_no_listener_of_a_closed_cache_is_left_on_mappers(valkey: Valkey, engine: Engine) -> None:
    def listeners() -> int:
        names = ("before_insert", "before_update", "before_delete")
        own = sum(len(list(getattr(kind.__mapper__.dispatch, name))) for kind in (Chair, Stool) for name in names)
        return own + len(list(Chair.__mapper__.dispatch.after_configured)) + len(Chair.legs.dispatch.set)

    sessions = sessionmaker(engine)
    watching(valkey, engine, sessions).close()  # what all caches of a process share is made by the first
    before = listeners()

    for _ in range(3):
        watching(valkey, engine, sessions).close()

    assert listeners() == before


SCRIPT = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from cacheworkers import Cache, Config
from tests.sql.test_closed import Chair

sessions = sessionmaker(create_engine(sys.argv[1]))
cache = Cache(Config(redis_url=sys.argv[2], namespace="script"), sessions=sessions)
cache.watch(sessions, {Chair: ["chair:{id}"]})
with sessions.begin() as session:
    session.get_one(Chair, 1).legs = 3
"""


def test_a_script_that_does_not_close_leaves_nothing_to_the_drain(valkey: Valkey, engine: Engine) -> None:
    """Its last commit is marked delivered as it ends: the drain would invalidate it once more."""
    Outbox("script").create(engine)
    url = engine.url.render_as_string(hide_password=False)

    subprocess.run([sys.executable, "-c", SCRIPT, url, valkey.url], check=True)

    with engine.connect() as connection:
        rows = "SELECT delivered_at IS NOT NULL FROM cacheworkers_outbox WHERE namespace = 'script'"
        assert connection.execute(text(rows)).scalars().all() == [True]


def test_a_signal_s_handler_that_raises_as_the_lock_is_taken_does_not_keep_it() -> None:
    """Python may run it at the end of a Condition's own `__enter__`: the next commit would wait for ever."""

    class Interrupted(threading.Condition):
        def __enter__(self) -> bool:
            super().__enter__()
            raise KeyboardInterrupt

    acknowledger = DeliveryAcknowledger(Outbox("shop"))
    acknowledger._changed.__class__ = Interrupted

    acknowledger.close()

    assert acknowledger._is_closed
