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
from typing import NamedTuple

import psycopg

from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import end_with_parent, wait_until

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


class Pool(NamedTuple):
    """One worker pool: which queues, and how many processes."""

    queues: tuple[str, ...] = ("miss", "revalidate", "warm", "upkeep")
    concurrency: int = 2


@contextlib.contextmanager
def stack(*pools: Pool, module: str = "benchmarks.shop") -> Iterator[Stack]:
    """Start everything, with the URLs in this process's environment; without pools, one for all queues."""
    with Valkey() as valkey, Postgres() as postgres, contextlib.ExitStack() as workers:
        database = postgres.create_database("bench")
        os.environ.update(REDIS_URL=valkey.url, DATABASE_URL=database, PYTHONPATH=str(ROOT))
        for pool in pools or (Pool(),):
            workers.enter_context(worker(pool, module))
        yield Stack(database)


@contextlib.contextmanager
def worker(pool: Pool, module: str) -> Iterator[None]:
    """Start a worker of a module's app, and return once it is ready."""
    words = [sys.executable, "-m", "celery", "-A", module, "worker", "-n", f"{pool.queues[0]}@%h"]
    words += ["-c", str(pool.concurrency), "-l", "INFO", "-Q", ",".join(f"cw.{queue}" for queue in pool.queues)]
    words += ["--without-mingle", "--without-gossip"]
    with tempfile.TemporaryDirectory() as logs:
        log = Path(logs) / "worker.log"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                words, cwd=ROOT, stdout=out, stderr=out, start_new_session=True, preexec_fn=end_with_parent()
            )
        try:
            wait_until(lambda: " ready." in log.read_text() or process.poll() is not None, 60)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
