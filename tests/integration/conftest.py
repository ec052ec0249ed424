"""The shop of these tests: its module in this process, real workers beside it."""

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

from cacheworkers.ops.doctor import diagnose, log_diagnosis
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import wait_until

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def patience(patient_publisher: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy machine answers late is not away: neither for the publisher nor for the doctor."""
    for look in (diagnose, log_diagnosis):
        defaults: Any = look.__kwdefaults__
        monkeypatch.setitem(defaults, "within", 60.0)


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
        wait_until(lambda: " ready." in log.read_text() or worker.poll() is not None, 120)
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
