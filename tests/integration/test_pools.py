"""Task messages in real worker processes, on a real broker: what is run, what comes back, what is thrown away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from cacheworkers import Config
from cacheworkers.events import Published
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers import celery_settings, publisher
from cacheworkers.workers.binding import Binding
from cacheworkers.workers.publish_queue import LoaderInfo

HERE = Path(__file__).parent
TOKEN = "ab" * 8


class Pool:
    """One worker on a broker of its own, the publisher that feeds it, and what its tasks have written down."""

    def __init__(self, valkey: Valkey, tmp_path: Path, broker: str = "", **settings: Any) -> None:
        """
        Args:
            broker: its URL; the Valkey's unless given.
            settings: of the app, in worker and publisher alike.
        """
        self.notes_path, self.log_path = tmp_path / "notes", tmp_path / "worker.log"
        self.notes_path.touch()
        self.env = {**os.environ, "REDIS_URL": valkey.url, "NOTES": str(self.notes_path)}
        self.env |= {"BROKER_URL": broker or valkey.url, "SETTINGS": json.dumps(settings)}
        self.worker: subprocess.Popen[bytes] | None = None
        self.events: list[Any] = []
        self.app = Celery("publisher", broker=broker or valkey.url)
        self.app.conf.update(settings)
        self.publisher: Binding = Binding(
            self.app,
            Config(),
            run_loads=lambda loader, asks, again: None,
            undelivered=lambda asks: None,
            upkeep={},
            emit=self.events.append,
            reset_after_fork=lambda: None,
        )
        for name in ("product", "deadly", "hangs", "nobody"):
            self.publisher.register(LoaderInfo(name, 10.0, name == "hangs", 100))

    def start(self, *options: str, queues: str = "cw.miss,cw.upkeep") -> None:
        words = [sys.executable, "-m", "celery", "-A", "bound", "worker", "-l", "INFO"]
        words += ["-Q", queues] if queues else []
        words += ["--without-mingle", "--without-gossip", "--without-heartbeat", *options]
        with open(self.log_path, "ab") as log:
            self.worker = subprocess.Popen(
                words, cwd=HERE, env=self.env, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: " ready." in self.log_path.read_text() or not self.is_alive(), 60)
        assert self.is_alive(), self.log_path.read_text()

    def is_alive(self) -> bool:
        return self.worker is not None and self.worker.poll() is None

    def ask(self, *calls: str) -> None:
        """Publish one message for each call."""
        before = len(self.events)
        for call in calls:
            assert self.publisher.submit_all([LoadRequest(call.split("[")[0], call, TOKEN, "", "miss")])
        wait_until(lambda: len(self.events) == before + len(calls))
        assert {type(event) for event in self.events[before:]} == {Published}

    def send(self, loader: str, **kwargs: Any) -> None:
        """Send a message by hand."""
        self.app.send_task(f"cacheworkers.load.{loader}", kwargs=kwargs, queue="cw.miss")

    def notes(self, what: str) -> list[list[Any]]:
        """Return what was written down of one kind: [process, ...] each."""
        found = [json.loads(line) for line in self.notes_path.read_text().splitlines()]
        return [rest for kind, *rest in found if kind == what]

    def performed(self) -> list[tuple[str, bool]]:
        return [(call, again) for _, call, again in self.notes("run_loads")]

    def waiting(self) -> int:
        """Return how many messages are in the queue or with a worker."""
        with self.app.connection_for_read() as connection:
            if connection.transport.driver_type == "amqp":
                return sum(state.length for state in self.publisher.queue_states())
            channel = connection.default_channel
            unacked: int = channel.client.hlen("unacked")
            return int(channel.client.llen("cw.miss")) + unacked

    def stop(self) -> None:
        """End the worker as it ends by itself: its log is whole then."""
        assert self.worker is not None
        self.worker.terminate()
        self.worker.wait(60)

    def close(self) -> None:
        self.publisher.close()
        if self.worker is not None and self.is_alive():
            os.killpg(self.worker.pid, signal.SIGKILL)
            self.worker.wait()


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Valkey() as valkey:
        made = Pool(valkey, tmp_path)
        yield made
        made.close()


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_a_task_is_performed_once_and_its_message_is_gone(pool: Pool, kind: str) -> None:
    pool.start("--pool", kind, "-c", "2")

    pool.ask("product[1]", "product[2]")

    wait_until(lambda: len(pool.performed()) == 2)
    wait_until(lambda: not pool.waiting())
    assert sorted(pool.performed()) == [("product[1]", False), ("product[2]", False)]


def test_each_pool_child_begins_with_connections_of_its_own(pool: Pool) -> None:
    """What the module opened when it was imported is the parent's; threads share a process, and nothing is reset."""
    pool.start("--pool", "prefork", "-c", "2")

    wait_until(lambda: len(pool.notes("reset")) == 2)

    assert pool.worker is not None
    assert pool.worker.pid not in {pid for (pid,) in pool.notes("reset")}


def test_the_message_of_a_killed_child_comes_back_marked_redelivered(pool: Pool) -> None:
    """So that attempts are counted, and a load that kills its workers ends as a cached failure."""
    pool.start("--pool", "prefork", "-c", "1")

    pool.ask("deadly[1]")

    wait_until(lambda: len(pool.performed()) == 2)
    assert pool.performed() == [("deadly[1]", False), ("deadly[1]", True)]
    first, second = (pid for pid, *_ in pool.notes("run_loads"))
    assert first != second
    wait_until(lambda: not pool.waiting())


def test_a_load_past_its_hard_limit_is_given_up(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It heeds neither deadline nor soft limit: its process is killed, and the message does not go to the next."""
    monkeypatch.setattr(celery_settings, "SOFT_MARGIN", 0.1)
    monkeypatch.setattr(celery_settings, "HARD_MARGIN", 0.3)
    pool.start("--pool", "prefork", "-c", "1")

    pool.ask("hangs[1]")
    wait_until(lambda: not pool.waiting() and pool.performed())
    pool.ask("product[1]")

    wait_until(lambda: ("product[1]", False) in pool.performed())
    assert pool.performed() == [("hangs[1]", False), ("product[1]", False)]
    assert len(pool.notes("soft limit")) == 1


def test_a_backlog_of_expired_messages_is_thrown_away(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage of the workers, nobody waits for what was asked long ago."""
    with monkeypatch.context() as patch:
        patch.setattr(publisher, "EXPIRES_MARGIN", -60.0)
        pool.ask(*(f"product[{number}]" for number in range(1, 31)))
    pool.ask("product[99]")

    pool.start("--pool", "threads", "-c", "1")

    wait_until(pool.performed)
    wait_until(lambda: not pool.waiting())
    assert pool.performed() == [("product[99]", False)]


@pytest.mark.parametrize("kind", ["prefork", "threads"])
def test_unknown_loaders_and_malformed_messages_give_their_leases_back(pool: Pool, kind: str) -> None:
    """A web process may know a loader that the workers do not yet; none of it is retried, and the worker goes on."""
    pool.start("--pool", kind, "-c", "1")

    pool.ask("nobody[1]")
    pool.send("nobody", other=1)
    pool.app.send_task("shop.unknown", queue="cw.miss")
    pool.send("product", asks="nonsense")
    pool.send("product", asks=[["product[7]", TOKEN, "", "miss"], ["product[8]"]])
    pool.ask("product[1]")

    wait_until(pool.performed)
    wait_until(lambda: not pool.waiting())
    assert pool.performed() == [("product[1]", False)]
    assert sorted(calls for _, calls in pool.notes("refused")) == [["nobody[1]"], ["product[7]"]]
    assert (len(pool.notes("UnknownTask")), len(pool.notes("MalformedTask"))) == (2, 2)
    assert pool.is_alive()
    log = pool.log_path.read_text()
    assert log.count("this worker does not know the loader nobody") == 1
    assert "unregistered task of type 'shop.unknown'" in log.replace('KeyError("', "")  # the app's own, as ever
    assert log.count("unregistered task of type") == 1


def test_beat_sends_upkeep_to_its_queue(pool: Pool, tmp_path: Path) -> None:
    """The schedule is in the app's, without a word from the user."""
    pool.start("--pool", "prefork", "-c", "1", "--beat", "-s", str(tmp_path / "schedule"))

    wait_until(lambda: len(pool.notes("collect_garbage")) >= 2)
