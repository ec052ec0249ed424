"""Real Celery workers, a real broker, a real Postgres."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cacheworkers import LoadError
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import wait_until

HERE = Path(__file__).parent


class Shop:
    """The shop's module in this process, as a web process has it, and workers beside it."""

    def __init__(self, env: dict[str, str], database: str, tmp_path: Path) -> None:
        self.env = env
        self.database = database
        self.tmp_path = tmp_path
        self.workers: list[subprocess.Popen[bytes]] = []
        sys.path.insert(0, str(HERE))
        sys.modules.pop("shop", None)
        self.module: Any = importlib.import_module("shop")

    def worker(self, *options: str, **env: str) -> subprocess.Popen[bytes]:
        log = self.tmp_path / f"worker{len(self.workers)}.log"
        queues = ",".join(["cw.miss", "cw.revalidate", "cw.warm", "cw.upkeep"])
        words = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-Q", queues, "-l", "INFO"]
        words += ["--without-mingle", "--without-gossip", *options]
        with open(log, "ab") as out:
            worker = subprocess.Popen(
                words, cwd=HERE, env={**os.environ, **self.env, **env}, stdout=out, stderr=out, start_new_session=True
            )
        self.workers.append(worker)
        wait_until(lambda: " ready." in log.read_text() or worker.poll() is not None, 60)
        assert worker.poll() is None, log.read_text()
        return worker

    def sql(self, statement: str) -> list[Any]:
        with psycopg.connect(self.database.replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def loads(self) -> int:
        rows = self.sql("SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE 'SELECT price%'")
        return int(rows[0][0])

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        self.module.cache.close()
        self.module.engine.dispose()
        sys.path.remove(str(HERE))


@pytest.fixture
def shop(
    postgres: Postgres, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Shop]]:
    with Valkey() as valkey:
        shops = []

        def make(**more: str) -> Shop:
            flag = str(tmp_path / "flag")
            env = {"REDIS_URL": valkey.url, "DATABASE_URL": database_url, "FLAG": flag, **more}
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            made = Shop(env, database_url, tmp_path)
            shops.append(made)
            made.sql("CREATE TABLE product (id int PRIMARY KEY, price int)")
            made.sql("INSERT INTO product SELECT i, i * 10 FROM generate_series(1, 200) i")
            made.sql("SELECT pg_stat_statements_reset()")
            return made

        yield make
        for made in shops:
            made.close()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_workers_load_and_an_invalidation_shows_the_new_price(shop: Callable[..., Shop], pool: str) -> None:
    """An engine used before the fork gives each task its own rows, too."""
    here = shop(USE_ENGINE_EARLY="1")
    here.worker("--pool", pool, "-c", "2")

    assert [here.module.product.get(i) for i in range(1, 101)] == [i * 10 for i in range(1, 101)]
    assert here.loads() == 100

    here.sql("UPDATE product SET price = 7 WHERE id = 5")
    here.module.cache.invalidate("product:5")

    assert here.module.product.get(5) == 7


def test_worker_killed_in_mid_load_and_the_key_heals(shop: Callable[..., Shop]) -> None:
    here = shop()
    here.worker("-c", "1")

    assert here.module.deadly.get() == 1


def test_loader_cannot_write_and_its_failure_reaches_the_reader(shop: Callable[..., Shop]) -> None:
    here = shop()
    here.worker("-c", "1")

    with pytest.raises(LoadError, match="read-only"):
        here.module.writes.get()


def test_malformed_message_and_unknown_loader_crash_nothing(shop: Callable[..., Shop]) -> None:
    here = shop()
    worker = here.worker("-c", "1")
    send = here.module.app.send_task
    send("cacheworkers.load.product", kwargs={"asks": "nonsense"}, queue="cw.miss")
    send("cacheworkers.load.product", kwargs={"asks": [["other[1]", "ab", "", "miss"]]}, queue="cw.miss")
    send("cacheworkers.load.nobody", kwargs={"asks": [["nobody[1]", "ab" * 8, "", "miss"]]}, queue="cw.miss")

    assert here.module.product.get(1) == 10
    assert worker.poll() is None


def test_broker_away_costs_hits_nothing_and_misses_are_loaded_here(shop: Callable[..., Shop]) -> None:
    here = shop()
    module = here.module
    module.app.conf.broker_url = "redis://127.0.0.1:1/0"
    module.app.conf.broker_write_url = "redis://127.0.0.1:1/0"

    assert module.product.get(3) == 30
    assert module.product.read(3).freshness.value == "fresh"
    module.cache.invalidate("product:3", mode="soft")
    assert module.product.read(3).freshness.value == "stale"
