"""Every alert of monitoring/alerts.yml fires: a Prometheus scrapes a shop's processes, and what it says is made true.

Ages and windows are shortened; expressions are those of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml

from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import end_with_parent, free_port, wait_until

pytestmark = [pytest.mark.heavy, pytest.mark.prometheus]
HERE = Path(__file__).parent
ALERTS = HERE.parents[1] / "monitoring" / "alerts.yml"
#: Seconds of a condition in the file -> in the test.  Rates keep their windows: they take what there is.
SHORTER = ((r"> 120$", "> 8"), (r"> 60$", "> 6"), (r"> 30$", "> 4"), (r"\+ 60$", "+ 4"))
FIRES_WITHIN = 120.0


def shortened() -> dict[str, Any]:
    """Return the alerts with shorter ages, each without `for`."""
    rules: dict[str, Any] = yaml.safe_load(ALERTS.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
            for pattern, shorter in SHORTER:
                rule["expr"] = re.sub(pattern, shorter, rule["expr"])
    return rules


NAMES = [rule["alert"] for group in shortened()["groups"] for rule in group["rules"]]


class Stage:
    """Store, broker, database, worker, beat, exporter, a reader and a Prometheus, each a process of its own."""

    def __init__(self, tmp: Path, postgres: Postgres, prometheus: str) -> None:
        self.tmp, self._prometheus = tmp, prometheus
        self._stack = contextlib.ExitStack()
        self.store = self._stack.enter_context(Valkey())
        self.broker = self._stack.enter_context(Valkey())
        self.metrics_port, self.port = free_port(), free_port()
        (tmp / "metrics").mkdir()
        self._env = {
            **os.environ,
            "PYTHONPATH": str(HERE),
            "REDIS_URL": self.store.url,
            "BROKER_URL": self.broker.url,
            "DATABASE_URL": postgres.create_database(f"alerts{os.getpid()}_{self.port}"),
            "PROMETHEUS_MULTIPROC_DIR": str(tmp / "metrics"),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, words: list[str]) -> None:
        """Start everything, and return once Prometheus has scraped it and no alert fires."""
        celery = [sys.executable, "-m", "celery", "-A", "alert_shop"]
        self.run("reader", [sys.executable, str(HERE / "alert_shop.py"), *words])
        wait_until(lambda: "reading" in self.log("reader"))  # it has made the tables
        self.run("worker", [*celery, "worker", "-c", "2", "--without-mingle", "--without-gossip"])
        self.run("beat", [*celery, "beat", "-s", str(self.tmp / "schedule")])
        exporter = "from cacheworkers.ops.cli import main; main()"
        port = str(self.metrics_port)
        self.run("exporter", [sys.executable, "-c", exporter, "-A", "alert_shop:cache", "exporter", "--port", port])
        (self.tmp / "alerts.yml").write_text(yaml.safe_dump(shortened()))
        jobs = [{"job_name": "cacheworkers", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": jobs,
        }
        (self.tmp / "prometheus.yml").write_text(yaml.safe_dump(config))
        own = [f"--web.listen-address=127.0.0.1:{self.port}", f"--storage.tsdb.path={self.tmp / 'tsdb'}"]
        wait_until(lambda: self._asks(f"http://127.0.0.1:{port}/metrics"))
        self.run("prometheus", [self._prometheus, f"--config.file={self.tmp / 'prometheus.yml'}", *own])
        wait_until(lambda: self._asks(f"http://127.0.0.1:{self.port}/-/ready"))

    def run(self, name: str, command: list[str]) -> None:
        """Start a process."""
        with open(self.tmp / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.tmp, env=self._env, stdout=log, stderr=log, preexec_fn=end_with_parent(signal.SIGKILL)
            )

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return (self.tmp / f"{name}.log").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """End a process with all of its children."""
        process = self.processes[name]
        process.send_signal(signal.SIGTERM)
        process.wait(60)

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/alerts", timeout=30) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def value(self, expression: str) -> float | None:
        """Return what an expression gives now."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?query={urllib.request.quote(expression)}"  # type: ignore[attr-defined]
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)["data"]["result"]
        return float(found[0]["value"][1]) if found else None

    def close(self) -> None:
        """End everything."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self._stack.close()

    @staticmethod
    def _asks(url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def stage(tmp_path: Path, database: Postgres, prometheus: str) -> Iterator[Stage]:
    stage = Stage(tmp_path, database, prometheus)
    yield stage
    stage.close()


def _no_tracking(stage: Stage) -> None:
    with redis.Redis(port=stage.store.port) as client:
        client.execute_command("ACL", "SETUSER", "default", "-client|tracking")
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def _slow_store(stage: Stage) -> None:
    """Have the store stand still for half of the time."""
    end = time.monotonic() + FIRES_WITHIN
    while "CacheListenerSlow" not in stage.firing() and time.monotonic() < end:
        stage.store.pause()
        time.sleep(0.4)  # shorter than the store's time-out
        stage.store.resume()
        time.sleep(0.4)


def _full_store(stage: Stage) -> None:
    with redis.Redis(port=stage.store.port) as client:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.05))


#: Alert -> what its reader does beside reading, and what makes it true.
CAUSES: dict[str, tuple[list[str], Callable[[Stage], object]]] = {
    "CacheTargetDown": ([], lambda stage: stage.kill("exporter")),
    "CacheExporterAbsent": ([], lambda stage: stage.kill("exporter")),
    "CacheServerDown": ([], lambda stage: stage.broker.kill()),
    "CacheBeatSilent": ([], lambda stage: stage.kill("beat")),
    "CacheMissQueueOld": (["misses"], lambda stage: stage.kill("worker")),
    "CacheQueueOld": (["stale"], lambda stage: stage.kill("worker")),
    "CacheReadsFail": (["bad"], lambda stage: None),
    "CacheLoadsFail": (["bad"], lambda stage: None),
    "CacheReadersTakeOver": (["misses"], lambda stage: stage.kill("worker")),
    "CacheStoreLost": ([], lambda stage: stage.store.kill()),
    "CacheListenerLost": ([], _no_tracking),
    "CacheListenerSlow": ([], _slow_store),
    "CacheOutboxOld": (["write"], lambda stage: stage.store.kill()),
    "CacheUpkeepLate": ([], lambda stage: stage.kill("beat")),
    "CachePoisoned": (["deadly"], lambda stage: None),
    "CacheStoreFull": ([], _full_store),
}


def test_each_alert_has_a_cause() -> None:
    assert sorted(CAUSES) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_fires_when_it_is_true(stage: Stage, name: str) -> None:
    """And not before, where something is done to make it so."""
    words, cause = CAUSES[name]
    stage.start(words)
    wait_until(lambda: stage.value("count(cacheworkers_upkeep_age_seconds < 6)") == 3)
    if not words:
        wait_until(lambda: not stage.firing())

    cause(stage)

    wait_until(lambda: name in stage.firing(), FIRES_WITHIN)
