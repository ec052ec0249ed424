"""Stages: a store of one kind, a broker, a worker if there is a broker, and a cache that uses them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import topology_shop
from deployments import Deployment, Kind, missing
from rabbitmq import QUEUES, RabbitMQ, rabbitmq_program
from sqlalchemy import text

from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

HERE = Path(__file__).parent
SHAPES = ("standalone", "sentinel", "cluster")
#: Server and security; embedded Valkey has no TLS, and Debian's redis-server has.
SERVERS = (("valkey", "password"), ("redis", "password"), ("redis", "tls"))
KINDS = [Kind(shape, *server) for shape in SHAPES for server in SERVERS]
BROKERS = ("threads", "redis", "rabbitmq")
#: The quick ones: each shape, without a broker, on the server that is always there.
QUICK = {(kind, "threads") for kind in KINDS if kind.product == "valkey"}

_left_out: dict[str, int] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test of a stage all combinations; those that need minutes together are heavy."""
    if "stage" not in metafunc.fixturenames:
        return
    stages = [(kind, broker) for kind in KINDS for broker in BROKERS]
    marks = [() if stage in QUICK else (pytest.mark.heavy,) for stage in stages]
    metafunc.parametrize(
        "stage",
        [
            pytest.param(stage, id=f"{stage[0]}-{stage[1]}", marks=mark)
            for stage, mark in zip(stages, marks, strict=True)
        ],
        indirect=True,
        scope="module",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot be started on this machine; the summary says so."""
    for item in list(items):
        stage = getattr(item, "callspec", None) and item.callspec.params.get("stage")  # type: ignore[attr-defined]
        if not stage:
            continue
        reason = missing(stage[0])
        if not reason and stage[1] == "rabbitmq" and rabbitmq_program() is None:
            reason = "no rabbitmq-server"
        if reason:
            items.remove(item)
            config.hook.pytest_deselected(items=[item])
            _left_out[reason] = _left_out.get(reason, 0) + 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for reason, count in sorted(_left_out.items()):
        terminalreporter.write_line(f"{count} tests of topologies did NOT run: {reason} here", yellow=True)


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
            rows = [{"n": n, "value": n * 10} for n in range(1000)]
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


@pytest.fixture(scope="module")
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    kind, broker = request.param
    with Deployment(kind) as store:
        url = ""
        if broker == "redis":
            url = request.getfixturevalue("redis_broker").url
        elif broker == "rabbitmq":
            node: RabbitMQ = request.getfixturevalue("rabbitmq_node")
            node.clear()
            url = node.url
        made = Stage(store, url, tmp_path_factory.mktemp("stage"))
        yield made
        made.close()


@pytest.fixture(scope="module")
def redis_broker() -> Iterator[Valkey]:
    """One for all stages, which end one after the other."""
    with Valkey() as server:
        yield server
