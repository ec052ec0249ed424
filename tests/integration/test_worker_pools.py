"""Each of Celery's pools: it loads, and a user's task that reads the cache in its worker's only slot does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers.testing.servers import wait_until

POOLS = {
    "prefork": ("-P", "prefork", "-c", "1"),
    "children that are replaced": ("-P", "prefork", "-c", "1", "--max-tasks-per-child", "2"),
    "solo": ("-P", "solo"),
    "threads": ("-P", "threads", "-c", "1"),
    "gevent": ("-P", "gevent", "-c", "10"),
    "eventlet": ("-P", "eventlet", "-c", "10"),
}


@pytest.mark.parametrize(
    "pool", [pool if pool == "solo" else pytest.param(pool, marks=pytest.mark.heavy) for pool in POOLS]
)
def test_a_pool_loads_and_its_tasks_read(shop: Callable[..., Any], pool: str) -> None:
    """Each product is loaded once, by the worker; the task's own miss is loaded where it runs, immediately."""
    here = shop()
    here.sql("INSERT INTO product VALUES (-1, 0)")
    worker = here.worker(*POOLS[pool], "-Q", "celery,cw.miss,cw.revalidate,cw.warm,cw.upkeep")
    values: list[int] = []
    readers = [threading.Thread(target=lambda n=n: values.append(here.module.strict.get(n % 8 + 1))) for n in range(16)]

    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    here.module.cache.invalidate("product:5")
    here.module.app.send_task("reads", (9,))

    assert sorted(values) == sorted(n * 10 for n in range(1, 9) for _ in range(2))
    wait_until(lambda: here.sql("SELECT p.price FROM product p WHERE p.id = -1") == [(90,)])
    assert here.loads() == 9
    assert worker.poll() is None
