"""A real Flower over real workers: what an operator sees of loads, and how to throttle one loader."""

from __future__ import annotations

import base64
import json
import os
import runpy
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.up import free_port
from cacheworkers.testing.servers import wait_until

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LOGIN = "operator:secret"


class Flower:
    """A Flower process, as the Procfile starts it, and its HTTP API."""

    def __init__(self, env: dict[str, str], log: Path, **more: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port(5600))}"
        self.log = log
        words = [sys.executable, "-m", "celery", "-A", "shop", "flower", "--address=127.0.0.1", f"--port={port}"]
        words.append(f"--conf={ROOT / 'app' / 'flowerconfig.py'}")
        with open(log, "ab") as out:
            self.process = subprocess.Popen(words, cwd=HERE, env={**os.environ, **env, **more}, stdout=out, stderr=out)

    def ask(self, path: str, login: str | None = LOGIN, **form: str) -> tuple[int, Any]:
        """Return status and body; a form is posted."""
        request = urllib.request.Request(self.url + path, urllib.parse.urlencode(form).encode() if form else None)
        if login:
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read().decode()
                is_json = "json" in answer.headers.get("Content-Type", "")
                return answer.status, json.loads(body) if is_json else body
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)


@pytest.fixture
def flower(shop: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Flower]]]:
    """Start a shop and its Flower."""
    started: list[Flower] = []

    def start(**more: str) -> tuple[Any, Flower]:
        made = shop()
        log = tmp_path / "flower.log"
        started.append(Flower(made.env, log, **more))
        wait_until(lambda: started[-1].ask("/healthcheck")[0] == 200 or started[-1].process.poll() is not None, 120)
        return made, started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.wait()


def worker_names(flower: Flower) -> list[str]:
    """Workers that have answered it; one that is busy may be late."""
    status, answer = flower.ask("/api/workers?refresh=1")
    return [name for name, seen in answer.items() if seen.get("active_queues")] if status == 200 else []


def queue_lengths(flower: Flower) -> dict[str, int]:
    status, answer = flower.ask("/api/queues/length")
    return {queue["name"]: queue["messages"] for queue in answer["active_queues"]} if status == 200 else {}


NEEDS_A_PASSWORD = "Error: Flower needs FLOWER_BASIC_AUTH=user:password"


def test_it_does_not_start_without_a_password(flower: Callable[..., Any]) -> None:
    _, started = flower(FLOWER_BASIC_AUTH="operator:")

    assert started.process.wait(60) == 1
    assert NEEDS_A_PASSWORD in started.log.read_text()


@pytest.mark.parametrize("login", ["", "operator", "operator:"])
def test_its_configuration_ends_where_there_is_no_password(login: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", login)

    with pytest.raises(SystemExit, match=NEEDS_A_PASSWORD):
        runpy.run_path(str(ROOT / "app" / "flowerconfig.py"))


def test_nothing_but_health_and_metrics_is_open(flower: Callable[..., Any]) -> None:
    _, started = flower(FLOWER_BASIC_AUTH=LOGIN)

    paths = ("/", "/tasks", "/api/workers", "/api/tasks", "/api/queues/length", "/broker")
    assert {path: started.ask(path, login=None)[0] for path in paths} == dict.fromkeys(paths, 401)
    assert started.ask("/api/tasks", login="operator:wrong")[0] == 401
    assert started.ask("/metrics", login=None)[0] == 200
    assert started.ask("/")[0] == 200


def test_tasks_are_loaders_and_show_their_calls(flower: Callable[..., Any]) -> None:
    made, started = flower(FLOWER_BASIC_AUTH=LOGIN)
    made.worker("-c", "1", "-E")
    wait_until(lambda: worker_names(started))

    assert made.module.product.get(7) == 70

    def tasks() -> list[Any]:
        status, found = started.ask("/api/tasks?taskname=cacheworkers.load.product")
        return [task for task in found.values() if task["state"] == "SUCCESS"] if status == 200 else []

    wait_until(tasks)
    [task] = tasks()
    assert task["args"] == "product[7]"
    assert not task["kwargs"]
    metrics = started.ask("/metrics")[1]
    assert 'flower_events_total{task="cacheworkers.load.product",type="task-succeeded"' in metrics


def test_queue_lengths_are_those_of_the_broker(flower: Callable[..., Any]) -> None:
    """A worker that is busy leaves the rest queued: Flower counts what Redis does, in each of the four queues."""
    made, started = flower(FLOWER_BASIC_AUTH=LOGIN)
    made.worker("-c", "1", "-E", LOAD_TIME="600")
    redis = made.module.cache._ports.store.link.client()
    names = [f"cw.{kind}" for kind in ("miss", "revalidate", "warm", "upkeep")]

    def lengths() -> dict[str, int]:
        return {name: redis.llen(name) for name in names}

    wait_until(lambda: worker_names(started) and sorted(queue_lengths(started)) == sorted(names))

    for number in range(1, 51):
        assert made.module.product.revalidate(number)

    def are_equal() -> bool:
        before = lengths()
        return 0 < before["cw.miss"] < 50 and queue_lengths(started) == before == lengths()

    wait_until(are_equal)


def test_a_rate_limit_throttles_one_loader_alone(flower: Callable[..., Any]) -> None:
    made, started = flower(FLOWER_BASIC_AUTH=LOGIN)
    made.worker("-c", "1", "-E")
    workers: list[str] = []
    wait_until(lambda: workers or workers.extend(worker_names(started)))
    [worker] = workers

    def is_limited(to: str) -> bool:
        path = "/api/task/rate-limit/cacheworkers.load.product"
        return bool(started.ask(path, workername=worker, ratelimit=to)[0] == 200)

    wait_until(lambda: is_limited("12/m"))
    made.module.product.revalidate(1)
    made.module.product.revalidate(2)
    wait_until(lambda: made.module.product.peek(1))
    assert made.module.gauge.get(3) == 30  # another loader goes on meanwhile
    assert made.module.product.peek(2) is None, "the second load of this loader has to wait for its fifth second"
    wait_until(lambda: is_limited("1000/s"))
    wait_until(lambda: made.module.product.peek(2))
