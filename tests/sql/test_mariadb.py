"""A real MariaDB: watched sessions, the outbox and its drain work; triggers say that they do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, String, create_engine, insert, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from cacheworkers import Cache, ConfigError, Load, UnwatchedWrite
from cacheworkers.sql.outbox.outbox import TRIGGER
from cacheworkers.testing.servers import free_port, wait_until

pytestmark = pytest.mark.mariadb


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id", ondelete="CASCADE"))
    price: Mapped[int]


MAPPING = {Shelf: ["shelf:{id}"], Book: ["book:{id}", "shelf:{shelf_id}"]}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server's URL."""
    directory, port = Path(tempfile.mkdtemp()), free_port()  # pytest's own are closed to the user that it runs as
    user = ["--user=nobody"] if os.getuid() == 0 else []
    directory.chmod(0o777)
    data, socket = directory / "data", directory / "socket"
    made = ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", f"--datadir={data}"]
    subprocess.run([*made, *user], check=True, capture_output=True)
    program = os.environ.get("MARIADBD") or shutil.which("mariadbd") or "/usr/sbin/mariadbd"
    options = [f"--datadir={data}", f"--socket={socket}", f"--port={port}", "--bind-address=127.0.0.1"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([program, "--no-defaults", *options, *user], stderr=log, stdout=log)
    url = f"mariadb+pymysql://root@localhost/?unix_socket={socket}"
    try:
        wait_until(lambda: process.poll() is not None or _answers(url))
        assert process.poll() is None, (directory / "log").read_text()[-2000:]
        yield url
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory)


def _answers(url: str) -> bool:
    engine = create_engine(url)
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


@pytest.fixture
def engine(server: str, tmp_path: Path) -> Iterator[Engine]:
    root = create_engine(server)
    with root.begin() as connection:
        connection.execute(text("CREATE OR REPLACE DATABASE shop"))
    root.dispose()
    made = create_engine(server.replace("localhost/", "localhost/shop"))
    Base.metadata.create_all(made)
    yield made
    made.dispose()


class Shop:
    def __init__(self, cache: Cache, engine: Engine, events: list[Any]) -> None:
        self.cache, self.engine, self.events = cache, engine, events
        self.sessions = sessionmaker(engine)
        cache.outbox.create(engine)
        cache.watch(self.sessions, MAPPING)

        @cache.loader(tags=("book:{book_id}",), fresh_for=300)
        def price(load: Load, book_id: int) -> int | None:
            book = load.session.get(Book, book_id)
            return None if book is None else book.price

        self.price = price
        with self.sessions.begin() as session:
            session.add(Shelf(id=1, name="first"))
            session.flush()
            session.add_all(Book(id=number, shelf_id=1, price=0) for number in range(1, 7))
        events.clear()

    def invalidated(self) -> list[set[str]]:
        return [set(event.tags) for event in self.events if type(event).__name__ == "Invalidated"]


@pytest.fixture
def shop(make_cache: Callable[..., Cache], engine: Engine, events: list[Any]) -> Shop:
    return Shop(make_cache(sessions=sessionmaker(engine)), engine, events)


def test_threads_read_what_they_have_written(shop: Shop) -> None:
    wrong: list[Any] = []

    def write(number: int) -> None:
        try:
            for price in range(1, 9):
                with shop.sessions.begin() as session:
                    session.get_one(Book, number).price = price
                if (found := shop.price.get(number)) != price:
                    wrong.append((number, price, found))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    wait_until(lambda: shop.cache.outbox_backlog().rows == 0)


def test_cascades_and_keys_that_the_database_makes(shop: Shop) -> None:
    with shop.sessions.begin() as session:
        session.add(Shelf(name="second"))
    with shop.sessions.begin() as session:
        session.delete(session.get_one(Shelf, 1))

    assert shop.invalidated() == [{"shelf:2"}, {"shelf:1", *(f"book:{number}" for number in range(1, 7))}]


def test_single_rows_by_core(shop: Shop) -> None:
    books: Any = Book.__table__
    with shop.sessions.begin() as session:
        session.execute(insert(books).values(shelf_id=1, price=3))
    with shop.sessions.begin() as session:
        session.execute(update(books).where(books.c.id == 7).values(price=4))

    assert shop.invalidated() == [{"book:7", "shelf:1"}, {"book:7", "shelf:1"}]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE book b JOIN shelf s ON s.id = b.shelf_id SET b.price = 1",
        "DELETE b FROM book b",
        "REPLACE INTO book (id, shelf_id, price) VALUES (1, 1, 1)",
        "INSERT INTO book SET id = 77, shelf_id = 1, price = 1",
        "/*!40000 UPDATE book SET price = 2 */",
        "# all of them\nUPDATE book SET price = 1",
        "BEGIN NOT ATOMIC UPDATE book SET price = 5; END",
        "EXECUTE IMMEDIATE 'UPDATE book SET price = 1'",
    ],
)
def test_statements_past_the_unit_of_work_are_refused(shop: Shop, statement: str) -> None:
    with shop.sessions() as session, pytest.raises(UnwatchedWrite):
        session.connection().exec_driver_sql(statement)


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_joined_transaction(shop: Shop, is_committed: bool) -> None:
    with shop.engine.connect() as connection:
        outer = connection.begin()
        with shop.sessions(bind=connection, join_transaction_mode="create_savepoint") as session:
            session.get_one(Book, 1).price = 9
            session.commit()
        assert shop.invalidated() == []
        outer.commit() if is_committed else outer.rollback()

    assert shop.invalidated() == [{"book:1", "shelf:1"}] * is_committed
    assert shop.price.get(1) == (9 if is_committed else 0)


def test_drains_share_the_rows(shop: Shop) -> None:
    with shop.engine.begin() as connection:
        for number in range(250):
            shop.cache.outbox.write(connection, [f"book:{number}"], TRIGGER)
    drained: list[int] = []
    threads = [threading.Thread(target=lambda: drained.append(shop.cache.drain())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(drained) == 250
    wait_until(lambda: shop.cache.outbox_backlog().rows == 0)  # what the fixture has written is marked in a moment


def test_triggers_say_that_they_are_postgres(shop: Shop) -> None:
    with shop.engine.connect() as connection, pytest.raises(ConfigError, match="triggers are made for PostgreSQL"):
        shop.cache.triggers({"book": ["book:{id}"]}).install(connection)
