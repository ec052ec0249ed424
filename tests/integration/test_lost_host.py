"""A broker that vanishes with its host's name while workers hold messages: they outlive it, and connect again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

HERE = Path(__file__).parent


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_outlives_its_broker_s_host(tmp_path: Path, pool: str) -> None:
    """As when a container is replaced: name, address and server are gone immediately, and all come back."""
    gone, over, notes, log = (tmp_path / name for name in ("gone", "over", "notes", "log"))
    notes.touch()
    with Valkey() as store, Valkey(persist=True) as broker:
        env = {
            **os.environ,
            "REDIS_URL": store.url,
            "BROKER_URL": f"redis://broker.shop:{broker.port}/0",
            "GONE": str(gone),
            "OVER": str(over),
            "NOTES": str(notes),
        }
        words = [sys.executable, "-m", "celery", "-A", "lost_host", "worker", "-P", pool, "-c", "2", "-l", "INFO"]
        words += ["--without-mingle", "--without-gossip"]
        with open(log, "ab") as out:
            worker = subprocess.Popen(words, cwd=HERE, env=env, stdout=out, stderr=out)
        try:
            wait_until(lambda: " ready." in log.read_text(), 60)
            client = Celery("client", broker=broker.url)
            for _ in range(3):
                client.send_task("lost_host.hold")
            wait_until(lambda: notes.read_text().count("held") == 2)

            over.touch()  # for good: a message that is delivered again must not hold a thread for ever
            gone.touch()
            broker.kill()
            wait_until(lambda: "Trying again in" in log.read_text() or worker.poll() is not None, 60)
            assert worker.poll() is None, log.read_text()[-3000:]
            gone.unlink()
            broker.start()

            client.send_task("lost_host.greet")
            wait_until(lambda: "greeted" in notes.read_text(), 90)
        except AssertionError as error:
            error.add_note(log.read_text()[-5000:])
            raise
        finally:
            worker.kill()
            worker.wait()
