"""`Config.testing`: loads in the caller's thread and transaction, without workers, each test for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from cacheworkers import AsyncLoad, Cache, Config, ConfigError, Load, LoadError, LoadTimeout
from cacheworkers.sql.outbox.acknowledger import DeliveryAcknowledger
from cacheworkers.sql.outbox.outbox import Outbox

MakeCache = Callable[..., Cache]


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True)
    cents: Mapped[int]


def declare(cache: Cache) -> Any:
    @cache.loader(fresh_for=300, on_timeout="raise", tags=("product:{product_id}",))
    def price(load: Load, product_id: int) -> int | None:
        return load.session.scalar(select(Product.cents).where(Product.id == product_id))

    return price


@pytest.fixture(params=["sqlite in memory", "postgres"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    url = "sqlite://" if request.param == "sqlite in memory" else request.getfixturevalue("database_url")
    engine = create_engine(url)
    if url == "sqlite://":
        # As SQLAlchemy's documentation has it: pysqlite begins by itself, and not before a savepoint.
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("has_app", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_loads_see_the_transaction_that_the_sessions_are_joined_to(
    make_cache: MakeCache, engine: Engine, has_app: bool, is_async: bool
) -> None:
    """The fixture that most suites have: a connection, an outer transaction, and a rollback at the end."""
    sessions = sessionmaker(engine)
    app = {"celery": Celery("shop", broker="redis://127.0.0.1:1/0")} if has_app else {}
    cache = make_cache(testing=True, sessions=sessions, **app)
    price = declare(cache)
    found = []

    for cents in (1990, 2490):
        with engine.connect() as connection:
            outer = connection.begin()
            sessions.configure(bind=connection, join_transaction_mode="create_savepoint")
            with sessions.begin() as session:
                session.add(Product(id=1, cents=cents))
            found.append(asyncio.run(price.aget(1)) if is_async else price.get(1))
            outer.rollback()
            cache.clear()

    sessions.configure(bind=engine)
    assert found == [1990, 2490]
    assert price.get(1) is None, "all of it was rolled back"


def test_a_stale_value_is_loaded_before_the_read_returns(make_cache: MakeCache, engine: Engine) -> None:
    sessions = sessionmaker(engine)
    cache = make_cache(testing=True, sessions=sessions)
    price = declare(cache)
    with sessions.begin() as session:
        session.add(Product(id=1, cents=1))
    assert price.get(1) == 1
    with sessions.begin() as session:
        session.get_one(Product, 1).cents = 2
    cache.invalidate("product:1", mode="soft")

    assert [price.get(1), price.get(1)] == [1, 2]


def test_a_load_that_fails_raises(make_cache: MakeCache) -> None:
    cache = make_cache(testing=True)

    @cache.loader()
    def broken(load: Load, n: int) -> float:
        return 1 / n

    with pytest.raises(LoadError, match="ZeroDivisionError"):
        broken.get(0)


def test_each_process_of_xdist_has_a_namespace(monkeypatch: pytest.MonkeyPatch, make_cache: MakeCache) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")

    assert make_cache(testing=True, namespace="shop").config.namespace == "shop-gw3"
    assert len(make_cache(testing=True, namespace="s" * 32).config.namespace) <= 32
    assert make_cache(namespace="shop").config.namespace == "shop"
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    tests = make_cache(testing=True, namespace="shop").config
    assert tests.namespace == "shop-test", "never that of the processes under development"
    assert tests.for_test_process() == tests
    assert Config.from_env({"CACHEWORKERS_TESTING": "1"}).testing


def test_a_database_in_memory_that_each_thread_has_for_itself_is_refused(make_cache: MakeCache) -> None:
    """Loads run on other threads, and would find no table there."""
    with pytest.raises(ConfigError, match="StaticPool"):
        make_cache(sessions=sessionmaker(create_engine("sqlite://")))


def test_a_database_in_memory_that_threads_share_works(make_cache: MakeCache) -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Product(id=1, cents=5))
        session.commit()

    assert declare(make_cache(sessions=sessionmaker(engine))).get(1) == 5
    engine.dispose()


@pytest.mark.parametrize(("pool", "testing"), [(StaticPool, True), (None, True), (StaticPool, False)])
@pytest.mark.parametrize("begins", [False, True])
def test_a_transaction_on_the_connection_of_a_database_in_memory_is_the_user_s(
    make_cache: MakeCache, pool: Any, testing: bool, begins: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else ends it: neither a load, nor what marks the outbox."""
    engine = create_engine("sqlite://", poolclass=pool, connect_args={"check_same_thread": False})
    if begins:
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    Base.metadata.create_all(engine)
    sessions = sessionmaker(engine)
    cache = make_cache(testing=testing, sessions=sessions)
    cache.outbox.create(engine)
    cache.watch(sessions, {Product: ["product:{id}"]})
    price = declare(cache)
    with Session(engine) as unwatched:
        unwatched.add(Product(id=1, cents=1))
        unwatched.flush()
        assert price.get(1) == 1
        assert unwatched.connection().connection.driver_connection.in_transaction  # type: ignore[union-attr]
        unwatched.commit()

    with sessions.begin() as session:
        session.get_one(Product, 1).cents = 2
    with Session(engine) as unwatched:
        unwatched.add(Product(id=2, cents=2))
        unwatched.flush()
        cache.close()
        unwatched.rollback()

    with engine.connect() as connection:
        assert connection.scalars(select(Product.id)).all() == [1]
        assert cache.outbox.waiting(connection) == 0
    assert "not marked" not in caplog.text
    engine.dispose()


def test_rows_stay_unmarked_while_a_transaction_is_open_in_memory() -> None:
    """As when the invalidation was tried again, on a thread."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    outbox = Outbox("shop")
    outbox.create(engine)
    with Session(engine) as session:
        session.add(Product(id=1, cents=1))
        session.flush()
        DeliveryAcknowledger(outbox).acknowledge(engine, (1,))
        session.rollback()
        assert session.get(Product, 1) is None


def test_rows_on_an_async_connection_in_memory_stay_unmarked(caplog: pytest.LogCaptureFixture) -> None:
    """Other tasks may begin on it while a marking task waits."""
    engine: Any = SimpleNamespace(pool=StaticPool(lambda: None), dialect=SimpleNamespace(is_async=True))  # type: ignore[arg-type,return-value]
    acknowledger = DeliveryAcknowledger(Outbox("shop"))

    acknowledger.acknowledge(engine, (1,))
    acknowledger.close()

    assert not caplog.records


def test_an_async_loader_runs_on_the_loop_of_the_read(make_cache: MakeCache, database_url: str) -> None:
    """Its engine's pool may have connections of that loop, which no other may use; by itself, and many together."""
    sessions = async_sessionmaker(create_async_engine(database_url.replace("+psycopg", "+asyncpg"), pool_size=1))
    cache = make_cache(testing=True, async_sessions=sessions)
    loops = set()

    @cache.loader(fresh_for=300, tags=("n:{n}",))
    async def number(load: AsyncLoad, n: int) -> int:
        loops.add(asyncio.get_running_loop())
        return int((await load.session.execute(select(n))).scalar_one()) + await half.aget(n)

    @cache.loader(fresh_for=300)
    async def half(load: AsyncLoad, n: int) -> int:
        loops.add(asyncio.get_running_loop())
        return n // 2

    async def read() -> list[Any]:
        loop = asyncio.get_running_loop()
        async with sessions() as session:
            await session.execute(select(1))
        found = [await number.aget(2), await number.aget_many([4, 6])]
        await cache.ainvalidate("n:2", mode="reload")
        await sessions.kw["bind"].dispose()
        assert loops == {loop}
        return found

    assert asyncio.run(read()) == [3, {4: 6, 6: 9}]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_load_that_takes_too_long_raises(make_cache: MakeCache, is_async: bool) -> None:
    cache = make_cache(testing=True)

    @cache.loader(load_for=0.1)
    async def endless(load: AsyncLoad) -> None:
        await asyncio.Event().wait()

    with pytest.raises((LoadError, LoadTimeout), match="longer than load_for"):
        asyncio.run(endless.aget()) if is_async else endless.get()
