"""A factory binds the sessions: a worker that does not call it says so, and messages name the module that does."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import own_command
import psycopg
import pytest

from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

CACHE = """
import os
from celery import Celery
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from cacheworkers import Cache, Config, Load

class Base(DeclarativeBase): ...

class Product(Base):
    __tablename__ = "product"
    id: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[int]

Session = sessionmaker()
celery = Celery("late_cache")
celery.conf.broker_url = os.environ["REDIS_URL"]
cache = Cache(Config.from_env(), celery=celery, sessions=Session)

@cache.loader(fresh_for=300, tags=("product:{product_id}",), on_timeout="raise", wait_for=60)
def price(load: Load, product_id: int) -> int:
    return load.session.get_one(Product, product_id).price
"""
FACTORY = """
import os
from sqlalchemy import create_engine
from late_cache import Session, cache, celery
from celery.signals import worker_process_init

def bind(**_):
    Session.configure(bind=create_engine(os.environ["DATABASE_URL"]))

if os.environ.get("BIND_IN_CHILDREN"):
    worker_process_init.connect(bind)
else:
    bind()
"""
UNBOUND = "the sessions of this process are bound to no engine"
Says = Callable[..., str]
StartWorker = Callable[..., contextlib.AbstractContextManager[Path]]


@pytest.fixture
def env(database_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    (tmp_path / "late_cache.py").write_text(CACHE)
    (tmp_path / "late_factory.py").write_text(FACTORY)
    with psycopg.connect(database_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE product (id int PRIMARY KEY, price int)")
        connection.execute("INSERT INTO product VALUES (1, 10)")
    with Valkey() as valkey:
        yield {**os.environ, "REDIS_URL": valkey.url, "DATABASE_URL": database_url}


@pytest.fixture
def start(env: dict[str, str], tmp_path: Path) -> Iterator[StartWorker]:
    @contextlib.contextmanager
    def worker(module: str, pool: str = "solo", **more: str) -> Iterator[Path]:
        log = tmp_path / f"{module}-{pool}.log"
        words = [sys.executable, "-m", "celery", "-A", module, "worker", "-P", pool, "-c", "1", "-l", "INFO"]
        with open(log, "ab") as out:
            process = subprocess.Popen(
                words, cwd=tmp_path, env={**env, **more}, stdout=out, stderr=out, start_new_session=True
            )
        try:
            wait_until(lambda: " ready." in log.read_text(), 120)
            yield log
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    yield worker


@pytest.fixture
def says(env: dict[str, str], tmp_path: Path) -> Says:
    """What a command of the library prints."""

    def run(app: str, *words: str) -> str:
        done = own_command.run(("--app", app, *words), cwd=tmp_path, env=env)
        return done.stdout + done.stderr

    return run


def test_a_worker_whose_sessions_are_bound_to_nothing_says_so(start: StartWorker, says: Says) -> None:
    with start("late_cache") as log:
        wait_until(lambda: f"loads of this worker fail if they use the session: {UNBOUND}" in log.read_text())

        says("late_cache:cache", "warm", "price", "1")
        wait_until(lambda: "load of price[1] failed in" in log.read_text())

        assert log.read_text().count(UNBOUND) == 2, log.read_text()  # when it starts, and under the traceback
        assert "1 call of price failed, price[1] with UnboundExecutionError: Could not locate a bind" in (
            found := says("late_factory", "doctor")
        )
        assert UNBOUND in found


def test_the_command_of_a_worker_is_that_of_the_last_that_could_load(start: StartWorker, says: Says) -> None:
    with start("late_cache"):
        pass
    before = says("late_cache:cache", "doctor")
    given = says("late_factory", "doctor")
    with start("late_factory") as log:
        loaded = says("late_cache:cache", "warm", "price", "1")
    after = says("late_cache:cache", "doctor")

    assert UNBOUND not in log.read_text()
    assert re.search(r"^loaded +1$", loaded, re.MULTILINE), loaded
    assert "celery -A late_cache worker -Q cw.miss,cw.revalidate,cw.warm,cw.upkeep  # -A the module that" in before
    assert "celery -A late_factory worker -Q cw.miss,cw.revalidate,cw.warm,cw.upkeep;" in after
    assert "`celery -A late_cache beat`, or with -A the module that calls your factory" in before
    assert "`celery -A late_factory beat`, and a worker" in after
    assert "celery -A late_factory worker -Q cw.miss,cw.revalidate,cw.warm,cw.upkeep;" in given
    assert "`celery -A late_factory beat`, and a worker" in given


def test_a_worker_whose_children_bind_them_says_nothing(start: StartWorker, says: Says) -> None:
    with start("late_factory", "prefork", BIND_IN_CHILDREN="1") as log:
        loaded = says("late_cache:cache", "warm", "price", "1")

    assert UNBOUND not in log.read_text()
    assert re.search(r"^loaded +1$", loaded, re.MULTILINE), loaded
