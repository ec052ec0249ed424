"""Stage: a store of one kind, a broker, a worker if there is a broker, and a cache that uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import topology_shop
from deployments import Deployment
from rabbitmq import QUEUES
from sqlalchemy import text

from cacheworkers.testing.servers import wait_until

HERE = Path(__file__).parent


class Stage:
    """A store, a broker and a worker, and the cache of this process."""

    def __init__(self, store: Deployment, broker: str, directory: Path) -> None:
        self.store = store
        self.database = directory / "database"
        self._broker = broker
        self._log = directory / "worker.log"
        self._worker: subprocess.Popen[bytes] | None = None
        self.events: list[Any] = []
        self.cache, self.number, self.engine = topology_shop.made(
            store.url, str(self.database), broker, self.events.append
        )
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE number (n INTEGER PRIMARY KEY, value INTEGER)"))
            rows = [{"n": n, "value": n * 10} for n in range(10_000)]
            connection.execute(text("INSERT INTO number VALUES (:n, :value)"), rows)
        if broker:
            self._start_a_worker()

    def change(self, n: int, value: int) -> None:
        """Change a row, and nothing else."""
        with self.engine.begin() as connection:
            connection.execute(text("UPDATE number SET value = :value WHERE n = :n"), {"n": n, "value": value})

    def loads(self) -> list[int]:
        """Return what has been loaded, one number a load."""
        file = Path(f"{self.database}.loads")
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def another(self, **options: Any) -> tuple[Any, Any]:
        """Return a second cache as another process has it, and its loader; loads are done on threads."""
        cache, number, _ = topology_shop.made(self.store.url, str(self.database), **options)
        return cache, number

    def close(self) -> None:
        """Stop."""
        self.cache.close()
        self.engine.dispose()
        if self._worker is not None:
            os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()

    def _start_a_worker(self) -> None:
        words = [sys.executable, "-m", "celery", "-A", "topology_shop", "worker", "-Q", ",".join(QUEUES), "-c", "2"]
        words += ["-P", "threads", "-l", "INFO", "--without-mingle", "--without-gossip"]
        env = {"TOPOLOGY_URL": self.store.url, "TOPOLOGY_DATABASE": str(self.database), "TOPOLOGY_BROKER": self._broker}
        with open(self._log, "ab") as out:
            worker = subprocess.Popen(
                words, cwd=HERE, env={**os.environ, **env}, stdout=out, stderr=out, start_new_session=True
            )
        self._worker = worker
        wait_until(lambda: " ready." in self._log.read_text() or worker.poll() is not None, 120)
        assert worker.poll() is None, self._log.read_text()
