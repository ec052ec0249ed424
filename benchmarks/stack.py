"""Valkey, Postgres and one worker pool for a benchmark, gone when it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import wait_until

ROOT = Path(__file__).resolve().parents[1]


class Stack:
    """What runs."""

    def __init__(self, database: str) -> None:
        self.database = database

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement, and return its rows."""
        with psycopg.connect(self.database.replace("+psycopg", ""), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def calls(self, like: str) -> int:
        """Return how often Postgres has run statements like this one, by its own count."""
        return int(
            str(self.sql(f"SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE '{like}'")[0][0])
        )


@contextlib.contextmanager
def stack(module: str = "benchmarks.shop", concurrency: int = 2) -> Iterator[Stack]:
    """Start everything, with the URLs in this process's environment."""
    with Valkey() as valkey, Postgres() as postgres, tempfile.TemporaryDirectory() as logs:
        database = postgres.create_database("bench")
        os.environ.update(REDIS_URL=valkey.url, DATABASE_URL=database, PYTHONPATH=str(ROOT))
        log = Path(logs) / "worker.log"
        words = [sys.executable, "-m", "celery", "-A", module, "worker", "-c", str(concurrency), "-l", "INFO"]
        words += ["-Q", "cw.miss,cw.revalidate,cw.warm,cw.upkeep", "--without-mingle", "--without-gossip"]
        with open(log, "wb") as out:
            worker = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
        try:
            wait_until(lambda: " ready." in log.read_text() or worker.poll() is not None, 60)
            yield Stack(database)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
