"""Workers that die, brokers that hang, loads that kill: what readers see meanwhile, and how a key heals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cacheworkers import LoadError, LoadTimeout
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

MakeShop = Callable[..., Any]


@pytest.fixture
def broker() -> Iterator[Valkey]:
    with Valkey() as server:
        yield server


def in_threads(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run the work in a number of threads together; what each returned or raised."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_frozen_broker_costs_hits_and_stale_hits_nothing(shop: MakeShop, broker: Valkey) -> None:
    """Nothing waits for it, nothing raises; once it goes on, what was asked for in vain is revalidated."""
    here = shop(BROKER_URL=broker.url)
    here.worker("-c", "1")
    product, cache = here.module.product, here.module.cache
    for n in range(1, 21):
        product.get(n)

    broker.pause()
    hits = [product.get(n) for n in range(1, 21)]
    for n in range(1, 21):
        cache.invalidate(f"product:{n}", mode="soft")
    stale = [product.read(n) for _ in range(5) for n in range(1, 21)]
    broker.resume()

    assert hits == [n * 10 for n in range(1, 21)]
    assert {read.freshness.value for read in stale} == {"stale"}
    assert [read.value for read in stale] == hits * 5
    wait_until(lambda: all(product.read(n).freshness.value == "fresh" for n in range(1, 21)))


def test_a_frozen_broker_leaves_misses_to_their_readers(shop: MakeShop, broker: Valkey) -> None:
    """Those of one call are one load all the same."""
    here = shop(BROKER_URL=broker.url)
    broker.pause()

    values = in_threads(8, lambda: here.module.product.get(3))
    broker.resume()

    assert values == [30] * 8
    assert here.loads() == 1


def test_a_load_that_kills_its_workers_becomes_a_failure(shop: MakeShop) -> None:
    """All who wait are notified; the worker pool lives on, and loads other things."""
    here = shop()
    worker = here.worker("-c", "1")

    reported = in_threads(8, here.module.poison.get)

    assert [type(each) for each in reported] == [LoadError] * 8
    assert {each.kind for each in reported} == {"Poisoned"}
    assert here.module.product.get(1) == 10
    assert worker.poll() is None


def test_with_no_worker_alive_one_reader_takes_over(shop: MakeShop) -> None:
    here = shop()

    values = in_threads(8, lambda: here.module.gauge.get(3))

    assert values == [30] * 8
    assert here.loads() == 1


def test_a_load_slower_than_its_readers_wait_is_one_load(shop: MakeShop, tmp_path: Path) -> None:
    """Readers come and give up all the while; none of them starts it again."""
    started, go = tmp_path / "started", tmp_path / "go"
    here = shop(STARTED=str(started), GO=str(go))
    here.worker("-c", "2")
    held = here.module.held
    assert held.revalidate(3)
    wait_until(started.exists)

    reported = [each for _ in range(2) for each in in_threads(2, lambda: held.get(3))]
    go.touch()
    wait_until(lambda: held.peek(3) is not None)

    assert [type(each) for each in reported] == [LoadTimeout] * 4
    assert held.get(3) == 30
    assert here.loads() == 1


def test_a_worker_killed_while_it_revalidates_leaves_stale_readers_served(shop: MakeShop, tmp_path: Path) -> None:
    """Until its lease runs out nobody asks again; then the next worker heals the key."""
    started = tmp_path / "started"
    here = shop(STARTED=str(started))
    gauge, cache = here.module.gauge, here.module.cache
    assert gauge.get(3) == 30
    started.unlink()
    worker = here.worker("-c", "1", GAUGE_TIME="60")
    here.sql("UPDATE product SET price = 31 WHERE id = 3")
    cache.invalidate("gauge:3", mode="soft")
    assert gauge.read(3).freshness.value == "stale"
    wait_until(lambda: gauge.read(3).freshness.value == "stale" and started.exists())

    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    meanwhile = [gauge.read(3) for _ in range(50)]
    here.worker("-c", "1")

    assert {(read.value, read.freshness.value) for read in meanwhile} == {(30, "stale")}
    wait_until(lambda: gauge.read(3).freshness.value == "fresh")
    assert gauge.get(3) == 31
