"""A call that is invalidated faster than it loads: those who waited get what was loaded after they began."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, Load, LoadTimeout
from cacheworkers.flows import load as loading
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until

CALL, TOKEN = "price[1]", "ab" * 8


class Shop:
    """A price, and a worker whose load goes on step by step."""

    def __init__(self, cache: Cache, **policy: Any) -> None:
        self.cache, self.ports = cache, cache._ports
        self.value = 1
        options = {"tags": ("all",), "wait_for": 60, "load_for": 60, "jitter": 0, "early": 0, **policy}

        @cache.loader(**options)
        def price(load: Load, number: int) -> int:
            return self.value

        self.price, self.spec = price, cache._loaders["price"]

    def worker(self, n: int = 0) -> Stepper[Any]:
        """Return a load that has its lease, and begins next."""
        token = f"{n:016x}"
        self.ports.store.claim(CALL, token, lease_for=60).run()
        request = LoadRequest("price", CALL, token, "", "miss")
        return Stepper(loading.load(self.ports, self.spec, [request], self.ports.worker)).until("begin")

    def overtaken(self, worker: Stepper[Any]) -> None:
        """Have the load's next attempt overtaken, and all that it does about that done."""
        worker.until("register")
        self.cache.invalidate("all")
        worker.until("offer").step()


class Nobody:
    """Takes messages, and nobody works."""

    def submit_all(self, requests: Any) -> int:
        return len(requests)


def reading(shop: Shop) -> tuple[threading.Thread, list[Any]]:
    """Have a thread read, and wait until it knows of the lease."""
    found: list[Any] = []

    def read() -> None:
        try:
            found.append(shop.price.read(1))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: CALL in shop.ports.waiters.flights and shop.ports.waiters.flights[CALL].held_until)
    return thread, found


def test_a_reader_that_waited_gets_the_overtaken_value_marked(make_cache: Callable[..., Cache]) -> None:
    """While the load goes on, to be stored perhaps; nobody else sees that value."""
    shop = Shop(make_cache())
    worker = shop.worker()
    thread, found = reading(shop)

    shop.overtaken(worker)

    thread.join(60)
    [read] = found
    assert (read.value, read.freshness.value, read.tier) == (1, "stale", "load")
    assert shop.price.peek(1) is None
    shop.value = 2
    worker.finish()
    assert shop.price.get(1) == 2


def test_a_reader_that_began_after_the_load_does_not(make_cache: Callable[..., Cache]) -> None:
    """It may have begun after the invalidation that has overtaken it."""
    shop = Shop(make_cache())
    worker = shop.worker().until("register")
    shop.cache.invalidate("all")
    thread, found = reading(shop)

    worker.until("offer").step()
    shop.value = 2
    worker.finish()

    thread.join(60)
    assert [read.value for read in found] == [2]


@pytest.mark.parametrize("on_timeout", ["load", "raise"])
def test_a_reader_of_another_process_gets_it_rather_than_a_time_out(
    make_cache: Callable[..., Cache], on_timeout: str
) -> None:
    """Before its time is over it waits for a load that is not overtaken."""
    there = Shop(make_cache(load_attempts=100_000))
    here = Shop(make_cache(), wait_for=1.0, on_timeout=on_timeout)
    here.ports.dispatcher = Nobody()
    worker = there.worker()
    thread, found = reading(here)

    while thread.is_alive():
        there.overtaken(worker)

    [read] = found
    assert (read.value, read.freshness.value) == (1, "stale")


def test_what_was_loaded_before_a_reader_began_is_never_offered_to_it(make_cache: Callable[..., Cache]) -> None:
    there = Shop(make_cache())
    here = Shop(make_cache(), wait_for=0.3, on_timeout="raise")
    worker = there.worker()
    there.overtaken(worker)

    with pytest.raises(LoadTimeout):
        here.price.get(1)


def test_no_more_than_two_loads_of_a_call_run_at_a_time(make_cache: Callable[..., Cache]) -> None:
    """Each invalidation breaks the lease of the load that runs, which goes on all the same."""
    shop = Shop(make_cache())
    claims = []
    for n in range(3):
        claims.append(type(shop.ports.store.claim(CALL, f"{n:016x}", lease_for=60).run()).__name__)
        if claims[-1] == "Claimed":
            shop.ports.store.begin([(CALL, f"{n:016x}", f"{n + 100:016x}", b"")], load_for=60).run()
            shop.price.invalidate(1)

    assert claims == ["Claimed", "Claimed", "Held"]
    last = shop.ports.store.claim(CALL, "ef" * 8, lease_for=60, is_last=True).run()
    assert type(last).__name__ == "Claimed"  # whose time is over loads for itself


def test_a_load_that_has_ended_makes_room_for_another(make_cache: Callable[..., Cache]) -> None:
    shop = Shop(make_cache())
    store = shop.ports.store
    for n in range(2):
        store.claim(CALL, f"{n:016x}", lease_for=60).run()
        store.begin([(CALL, f"{n:016x}", f"{n + 100:016x}", b"")], load_for=60).run()
        shop.price.invalidate(1)

    store.release([(CALL, f"{100:016x}")]).run()

    assert type(store.claim(CALL, TOKEN, lease_for=60).run()).__name__ == "Claimed"
