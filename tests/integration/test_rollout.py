"""Workers of two versions of a loader, as they are while a new one is rolled out."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click import ClickException

from cacheworkers.ops.warm_command import require_worker
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until
from cacheworkers.workers import version_mismatch

HERE = Path(__file__).parent
WRONG = "worker knows product version 1, message asks for 2"


class Deploy:
    """One version in this process, the new one mostly, and workers of either."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.notes_path = tmp_path / "notes"
        self.notes_path.touch()
        self.workers: list[subprocess.Popen[bytes]] = []
        sys.path.insert(0, str(HERE))
        sys.modules.pop("versioned", None)
        self.module: Any = importlib.import_module("versioned")
        self.cache = self.module.cache

    def worker(self, version: int, **env: str) -> int:
        """Start one, and return its process."""
        log = self.tmp_path / f"worker{len(self.workers)}.log"
        words = [sys.executable, "-m", "celery", "-A", "versioned", "worker", "-n", f"v{version}@%h", "-l", "INFO"]
        words += ["-Q", "cw.miss,cw.revalidate,cw.warm", "--pool", "threads", "-c", "1"]
        words += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        environment = {**os.environ, "VERSION": str(version), "NOTES": str(self.notes_path), **env}
        with open(log, "ab") as out:
            worker = subprocess.Popen(words, cwd=HERE, env=environment, stdout=out, stderr=out, start_new_session=True)
        self.workers.append(worker)
        wait_until(lambda: " ready." in log.read_text() or worker.poll() is not None, 120)
        assert worker.poll() is None, log.read_text()
        return worker.pid

    def notes(self, kind: str) -> list[list[Any]]:
        """Return what workers have written down of one kind of event: [reason, requeues] each."""
        found = [json.loads(line) for line in self.notes_path.read_text().splitlines()]
        return [rest for what, *rest in found if what == kind]

    def calls(self, count: int) -> list[str]:
        return [self.cache.call("product", n) for n in range(count)]

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        self.cache.close()
        sys.path.remove(str(HERE))


@pytest.fixture
def deploy(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patient_publisher: None
) -> Iterator[Deploy]:
    # The module sets them, in this process, too.
    monkeypatch.setitem(version_mismatch.MAX_REQUEUES, "warm", version_mismatch.MAX_REQUEUES["warm"])
    monkeypatch.setattr(version_mismatch, "LONGEST_WAIT", version_mismatch.LONGEST_WAIT)
    with Valkey() as valkey:
        monkeypatch.setenv("REDIS_URL", valkey.url)
        monkeypatch.setenv("VERSION", getattr(request, "param", "2"))
        monkeypatch.setenv("NOTES", str(tmp_path / "nowhere"))
        monkeypatch.setenv("WAIT_FOR", "0.5")
        made = Deploy(tmp_path)
        yield made
        made.close()


def test_a_warm_up_of_the_new_version_is_loaded_beside_old_workers(deploy: Deploy) -> None:
    """Whichever worker takes a message, one of its version loads it."""
    deploy.worker(1)
    new = deploy.worker(2)

    done = deploy.cache.warm("product", deploy.calls(60)).wait(60)

    assert (done.loaded, done.failed) == (60, 0)
    assert [deploy.module.product.get(n) for n in range(60)] == [[2, n, new] for n in range(60)]
    assert deploy.notes("MalformedTask") == []


def test_what_old_workers_have_taken_is_loaded_by_a_new_one_that_starts_later(deploy: Deploy) -> None:
    old = deploy.worker(1)
    deploy.cache.warm("product", deploy.calls(5))
    wait_until(lambda: deploy.notes("TaskRequeued"))

    new = deploy.worker(2)

    for n in range(5):
        wait_until(lambda n=n: deploy.module.product.peek(n) is not None)  # type: ignore[misc]
    assert {deploy.module.product.get(n)[2] for n in range(5)} == {new} != {old}
    assert {reason for reason, _ in deploy.notes("TaskRequeued")} == {WRONG}
    assert deploy.notes("MalformedTask") == []


def test_the_command_says_that_only_workers_of_another_version_run(deploy: Deploy) -> None:
    """Before anything is loaded; once one of its own version answers, beside the old one, it goes on."""

    def said() -> str:
        try:
            require_worker(deploy.cache, "product", 0.0)
        except ClickException as error:
            return error.message
        return ""

    deploy.worker(1)
    wait_until(lambda: "no worker knows product version 2: v1@" in said())
    wait_until(lambda: said().endswith("and knows version 1; start workers with this code; nothing was loaded"))

    deploy.worker(2)

    wait_until(lambda: not said())


def test_without_a_worker_of_its_version_a_message_ends_after_some_hops(deploy: Deploy) -> None:
    """It says why, and its lease is given back."""
    deploy.worker(1, WARM_REQUEUES="4")

    deploy.cache.warm("product", [deploy.cache.call("product", 7)])

    wait_until(lambda: deploy.notes("MalformedTask"))
    assert deploy.notes("TaskRequeued") == [[WRONG, requeues] for requeues in (1, 2, 3, 4)]
    assert deploy.notes("MalformedTask") == [[WRONG, 0]]
    wait_until(lambda: deploy.cache._ports.store.are_claimed(deploy.calls(8)[7:]).run() == [False])


def test_a_miss_is_requeued_twice_and_then_loaded_by_its_reader(deploy: Deploy) -> None:
    """A reader waits for it: the lease is given back soon."""
    deploy.worker(1)

    assert deploy.module.product.get(1) == [2, 1, os.getpid()]

    wait_until(lambda: deploy.notes("MalformedTask"))
    assert deploy.notes("TaskRequeued") == [[WRONG, 1], [WRONG, 2]]


@pytest.mark.parametrize(("deploy", "other"), [("1", 2), ("2", 1)], indirect=["deploy"], ids=["old reads", "new reads"])
def test_a_changed_shape_costs_one_load_in_each_release(deploy: Deploy, other: int) -> None:
    """Though `version` is the same: workers of the other release load and store their own, once, and so do readers."""
    deploy.worker(other)
    shape = deploy.module.shape

    found = [shape.get(7) for _ in range(200)]

    own = deploy.module.OldShape if other == 2 else deploy.module.NewShape
    assert set(map(type, found)) == {own} and {each.pid for each in found} == {os.getpid()}
    assert deploy.module.shaped_loads == [7]
    wait_until(lambda: deploy.notes("Loaded") == [["stored", 0]])

    shape.invalidate(7)

    assert type(shape.get(7)) is own
    assert deploy.module.shaped_loads == [7, 7]
    wait_until(lambda: deploy.notes("Loaded") == [["stored", 0]] * 2)
