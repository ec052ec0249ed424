"""Workers that are missing, or load into another store: a log line says so, and reads are quick all the same."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheworkers.ops.doctor import diagnose
from cacheworkers.runtime import worker_breaker
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

MakeShop = Callable[..., Any]


@pytest.fixture
def other_store() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def test_without_workers_a_miss_costs_its_load_after_a_few_and_workers_that_start_are_noticed(
    shop: MakeShop, caplog: pytest.LogCaptureFixture
) -> None:
    here = shop(LOAD_TIME="0")
    gauge, watch = here.module.gauge, here.module.cache._runtime._worker_breaker

    for n in range(1, 4):
        gauge.get(n)
    assert watch.is_open
    wait_until(lambda: "no worker takes queue cw.miss, where " in caplog.text)
    assert "start one: celery -A shop worker -Q cw.miss" in caplog.text
    here.worker("-c", "1")

    numbers = iter(range(4, 201))
    wait_until(lambda: gauge.get(next(numbers)) and not watch.is_open)


def test_workers_of_another_store_are_found(
    shop: MakeShop, other_store: Valkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take messages, and their values never come: said at the first miss, and by the doctor.

    Of a busy machine's worker, which may not have taken the first message by then, at a later one.
    """
    here = shop()
    here.worker("-c", "1", REDIS_URL=other_store.url, BROKER_URL=os.environ["REDIS_URL"])
    monkeypatch.setattr(worker_breaker.WorkerBreaker, "_is_due", lambda *_: True)
    monkeypatch.setattr(worker_breaker, "OPENS_AFTER", 1000)
    numbers = itertools.count(1)

    wait_until(lambda: here.module.gauge.get(next(numbers)) and "to no worker of this store" in caplog.text)
    wait_until(lambda: [f for f in diagnose(here.module.cache) if f.check == "worker-store" and f.level == "error"])


def test_a_worker_of_another_database_is_found(shop: MakeShop) -> None:
    here = shop()
    url = os.environ["REDIS_URL"]
    here.worker("-c", "1", REDIS_URL=url.rsplit("/", 1)[0] + "/3", BROKER_URL=url)

    wait_until(lambda: [f for f in diagnose(here.module.cache) if f.check == "worker-store" and f.level == "error"])


SCRIPT = """
import os
import subprocess
import sys
from celery import Celery
from cacheworkers import Cache, Config

app = Celery("lone", broker=os.environ["REDIS_URL"])
cache = Cache(Config.from_env(namespace="lone"), celery=app)

@cache.loader(fresh_for=60, wait_for=0.2)
def price(load, number: int) -> int:
    return number

print(price.get(7))
"""


def test_a_script_that_ends_with_a_slow_read_says_why(valkey: Valkey, tmp_path: Path) -> None:
    (tmp_path / "prices.py").write_text(SCRIPT)
    env = {**os.environ, "REDIS_URL": valkey.url}

    done = subprocess.run(
        [sys.executable, "prices.py"], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=99
    )

    assert done.stdout == "7\n"
    assert "no worker takes queue lone.miss, where 1 message waits; start one: celery -A prices worker" in done.stderr
