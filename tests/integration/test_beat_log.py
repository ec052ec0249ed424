"""What beat logs while its broker is away: one line for each error, and one when the broker is back."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.beat import Scheduler
from celery.signals import after_task_publish
from kombu.exceptions import OperationalError

from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers import celery_log
from cacheworkers.workers.celery_log import BEAT_LOGGER, log_broker_errors_once

HERE = Path(__file__).parent


@pytest.fixture
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


@pytest.fixture
def store() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def test_a_broker_that_is_away_is_one_line_and_its_return_another(
    broker: Valkey, store: Valkey, tmp_path: Path
) -> None:
    """Not a traceback for each task that was due; and beat goes on when the broker is back."""
    log, queue = tmp_path / "beat.log", redis.Redis.from_url(broker.url)
    words = [sys.executable, "-m", "celery", "-A", "beating", "beat", "-s", str(tmp_path / "schedule"), "-l", "INFO"]
    env = {**os.environ, "REDIS_URL": store.url, "BROKER_URL": broker.url}
    away = "beat cannot send and keeps trying: "
    with open(log, "ab") as out:
        beat = subprocess.Popen([*words, "--pidfile", ""], cwd=HERE, env=env, stdout=out, stderr=out)
    try:
        wait_until(lambda: queue.llen("often") > 0, 60)
        broker.kill()
        wait_until(lambda: away in log.read_text())
        attempts = log.read_text().count("Sending due task")
        wait_until(lambda: log.read_text().count("Sending due task") >= attempts + 4)
        broker.start()
        wait_until(lambda: "beat sends again" in log.read_text())

        shown = [line.partition(away)[2] for line in log.read_text().splitlines() if away in line]
        assert len(shown) == len(set(shown)), "each text of an error is logged once"
        assert "Traceback" not in log.read_text() and "Message Error" not in log.read_text()
        wait_until(lambda: queue.llen("often") > 0)
    finally:
        beat.kill()
        beat.wait()


@pytest.fixture
def beats_log() -> Iterator[None]:
    """Shorten this process's log as a beat does its own, for one test."""
    log_broker_errors_once()
    yield
    after_task_publish.disconnect(dispatch_uid="cacheworkers-beat-log")  # else all later publishing is observed
    logging.getLogger(BEAT_LOGGER).removeFilter(celery_log._broker_errors)


def test_an_error_is_logged_once_until_something_is_sent_and_other_errors_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, beats_log: None
) -> None:
    """A task that cannot be sent for another reason than the broker keeps its traceback."""
    app = Celery("by hand", broker="memory://")
    app.conf.beat_schedule = {"often": {"task": "often", "schedule": 0.001}}
    beat: Any = Scheduler(app)
    beat.setup_schedule()
    beat.merge_inplace(app.conf.beat_schedule)
    entry = beat.schedule["often"]

    def fails(error: Exception) -> None:
        def send(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(beat, "send_task", send)
        beat.apply_entry(entry)

    after_task_publish.send(sender="often")
    caplog.clear()
    for text in ("refused", "refused", "out of memory", "refused"):
        fails(OperationalError(text))
    fails(ValueError("malformed"))
    fails(ValueError("malformed"))
    after_task_publish.send(sender="often")
    fails(OperationalError("refused"))
    after_task_publish.send(sender="often")
    after_task_publish.send(sender="often")

    shown = [(record.getMessage().splitlines()[0], bool(record.exc_info)) for record in caplog.records]
    refused = ("beat cannot send and keeps trying: refused", False)
    malformed = ("Message Error: Couldn't apply scheduled task often: malformed", True)
    again = ("beat sends again", False)
    no_memory = ("beat cannot send and keeps trying: out of memory", False)
    assert shown == [refused, no_memory, malformed, malformed, again, refused, again]
