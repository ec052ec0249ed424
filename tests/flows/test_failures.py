"""Loads that fail: who is notified, until when, and what ends it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers import Cache, KeyMissing, Load, LoadError, LoadErrors
from cacheworkers.errors import StoreUnavailable
from cacheworkers.flows import load as loading
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.runtime.loader_runner import _as_failure
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until

TOKEN = "ab" * 8


class Shop:
    """A batch of prices, of which those that are not in `rows` are left out, and those that are None raise."""

    def __init__(self, cache: Cache, **policy: Any) -> None:
        self.cache, self.ports = cache, cache._ports
        self.rows: dict[int, int | None] = {1: 1}
        self.runs: list[list[int]] = []
        options = {"tags": ("price:{key}",), "jitter": 0, "early": 0, "wait_for": 60, "load_for": 60, **policy}

        @cache.batch_loader(**options)
        def price(load: Load, keys: list[int]) -> dict[int, int]:
            self.runs.append(keys)
            found = {}
            for key in keys:
                load.tag(f"shelf:{key // 10}", key=key)
                if key in self.rows:
                    row = self.rows[key]
                    if row is None:
                        raise ValueError(f"the row of {key} makes no price")
                    found[key] = row
            return found

        self.price, self.spec = price, cache._loaders["price"]

    def load(self, *keys: int, is_redelivered: bool = False) -> Stepper[Any]:
        """Return a worker's load of some keys, claimed."""
        requests = []
        for key in keys:
            call = f"price[{key}]"
            self.ports.store.claim(call, TOKEN, lease_for=60).run()
            requests.append(LoadRequest("price", call, TOKEN, "", "miss"))
        flow = loading.load(self.ports, self.spec, requests, self.ports.worker, is_redelivered=is_redelivered)
        return Stepper(flow)


@pytest.fixture
def shop(make_cache: Callable[..., Cache]) -> Shop:
    return Shop(make_cache(backoff_for=600.0, max_backoff_for=600.0))


WAYS: dict[str, Callable[[Shop], Any]] = {
    "tag": lambda shop: shop.cache.invalidate("price:7"),
    "a tag known from the data": lambda shop: shop.cache.invalidate("shelf:0"),
    "soft": lambda shop: shop.cache.invalidate("price:7", mode="soft"),
    "reload": lambda shop: shop.cache.invalidate("price:7", mode="reload"),
    "key": lambda shop: shop.price.invalidate(7),
}


@pytest.mark.parametrize("kind", [KeyMissing, LoadError])
@pytest.mark.parametrize("way", WAYS)
def test_an_invalidation_ends_a_failure_as_it_ends_an_entry(shop: Shop, way: str, kind: type[LoadError]) -> None:
    """The next read loads, whichever way it was invalidated: a row that was missing has been made."""
    if kind is LoadError:
        shop.rows[7] = None
    with pytest.raises(kind):
        shop.price.get(7)
    shop.rows[7] = 70

    WAYS[way](shop)

    assert shop.price.get(7) == 70


def test_an_invalidation_that_overtakes_a_load_overtakes_its_failure(shop: Shop) -> None:
    """The row is made while the load is under way that has not found it: the absence must not be recorded after it."""
    worker = shop.load(7).until("register")
    shop.rows[7] = 70

    shop.cache.invalidate("price:7")
    worker.finish()

    assert shop.price.get(7) == 70


def test_an_invalidation_between_registering_and_recording_is_not_lost(shop: Shop) -> None:
    worker = shop.load(7).until("fail")
    shop.rows[7] = 70

    shop.cache.invalidate("price:7")
    worker.finish()

    assert shop.price.get(7) == 70


# -- one bad key


def test_a_key_that_raises_fails_alone(shop: Shop) -> None:
    """The batch is halved until that key is by itself: about two runs for each halving."""
    shop.rows = {key: key for key in range(100)} | {13: None}

    with pytest.raises(LoadErrors) as raised:
        shop.price.get_many(range(100))

    assert set(raised.value.errors) == {13}
    assert raised.value.values == {key: key for key in range(100) if key != 13}
    assert len(shop.runs) <= 16


def test_several_keys_that_raise_fail_alone(shop: Shop) -> None:
    bad = {0, 1, 50, 99}
    shop.rows = {key: None if key in bad else key for key in range(100)}

    with pytest.raises(LoadErrors) as raised:
        shop.price.get_many(range(100))

    assert set(raised.value.errors) == bad


def test_where_every_key_raises_it_is_found_out_soon(shop: Shop) -> None:
    """Not at the cost of a query for each key: the fault is none of theirs."""
    shop.rows = dict.fromkeys(range(100))

    with pytest.raises(LoadErrors) as raised:
        shop.price.get_many(range(100))

    assert len(raised.value.errors) == 100
    assert len(shop.runs) <= 20


def test_a_database_that_is_away_is_asked_once(make_cache: Callable[..., Cache]) -> None:
    runs = []
    cache = make_cache()

    @cache.batch_loader(wait_for=60)
    def price(load: Load, keys: list[int]) -> dict[int, int]:
        runs.append(keys)
        raise ConnectionError("the database is away")

    with pytest.raises(LoadErrors):
        price.get_many(range(20))

    assert len(runs) == 1


def test_a_key_that_kills_its_worker_is_loaded_alone_from_then_on(shop: Shop) -> None:
    """The others of its batch have no deaths to their name, however often they were with it."""
    shop.rows = {key: key for key in range(5)}
    shop.load(*range(5)).until("load price[0]").crash()
    for _ in range(shop.cache.config.poison_after - 1):  # price[0] it is
        shop.load(*range(5), is_redelivered=True).until("load price[0]").crash()

    results = shop.load(*range(5), is_redelivered=True).finish()

    assert {result.outcome for result in results.values()} == {"stored"}
    assert [len(keys) for keys in shop.runs] == [1] * 5


def test_a_key_that_keeps_killing_its_workers_is_given_up(shop: Shop) -> None:
    """Its deaths are counted while it was loaded alone; those of its batch go on living."""
    shop.rows = {key: key for key in range(3)}
    for at in range(shop.cache.config.poison_after + 1):
        shop.load(*range(3), is_redelivered=at > 0).until("load price[0]").crash()

    results = shop.load(*range(3), is_redelivered=True).finish()

    assert [result.outcome for result in results.values()] == ["failed", "stored", "stored"]
    assert getattr(results["price[0]"].error, "kind", "") == "Poisoned"
    assert shop.ports.store.failures("price[0]").run()  # so that readers, of every process, get an error


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_task_that_is_as_failure_a_loader_is_a_failure_of_its_key(
    make_cache: Callable[..., Cache], is_async: bool
) -> None:
    """CancelledError is no Exception: it would end the worker's thread, and readers would wait all of their time."""

    def found_in(keys: list[int]) -> dict[int, int]:
        if 2 in keys:
            raise asyncio.CancelledError
        return dict.fromkeys(keys, 1)

    def price(load: Load, keys: list[int]) -> dict[int, int]:
        return found_in(keys)

    async def aprice(load: Load, keys: list[int]) -> dict[int, int]:
        return found_in(keys)

    loader = make_cache().batch_loader(name="price", wait_for=60, load_for=60)(aprice if is_async else price)

    with pytest.raises(LoadErrors) as raised:
        loader.get_many([1, 2, 3])

    assert raised.value.values == {1: 1, 3: 1}
    assert "was cancelled" in str(raised.value.errors[2])


def test_a_load_that_is_cancelled_itself_goes_on_being_cancelled() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            with pytest.raises(asyncio.CancelledError):
                _as_failure(error)
            task.uncancel()

    asyncio.run(main())


def prices(cache: Cache, given: dict[Any, int]) -> Any:
    """A batch loader that returns this, whatever it is asked for."""

    @cache.batch_loader()
    def price(load: Load, keys: list[int]) -> dict[int, int | None]:
        return given

    return price


@pytest.mark.parametrize("given", [{"1": 1}, {2: 1, "1": 1}, {"1": 1, "3": 1}])
def test_a_batch_s_keys_of_another_type_are_a_mistake_and_not_absent(
    make_cache: Callable[..., Cache], given: dict[Any, int]
) -> None:
    """The text of a number, or of a UUID: all would be None for as long as an absent row is remembered."""
    price = prices(make_cache(), given)

    with pytest.raises(LoadErrors, match=r"TypeError: price must return keys that it is given, ints, got '1'"):
        price.get_many([1, 2])


@pytest.mark.parametrize("given", [{1: 1}, {True: 1}, {1: 1, 7: 7}, {1.0: 1}, {}])
def test_a_batch_may_return_what_equals_its_keys_more_and_less(
    make_cache: Callable[..., Cache], given: dict[Any, int]
) -> None:
    assert prices(make_cache(), given).get_many([1, 2]) == {1: 1 if given else None, 2: None}


# -- leases


def test_a_lease_that_was_given_back_wakes_readers_of_other_processes(make_cache: Callable[..., Cache]) -> None:
    """Here and there are two processes; there a load gives up without a value."""
    here, there = Shop(make_cache()), Shop(make_cache())
    there.ports.store.claim("price[1]", TOKEN, lease_for=600).run()
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(here.price.get(1)))
    reader.start()
    wait_until(lambda: len(here.ports.waiters) == 1 and here.ports.waiters.flights["price[1]"].held_until)

    there.ports.store.release([("price[1]", TOKEN)]).run()

    reader.join(60)
    assert found == [1]


def test_a_lease_is_given_back_once_the_store_takes_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store refuses the first times."""
    store = shop.ports.store
    store.claim("price[1]", TOKEN, lease_for=600).run()
    release, refused = store.release, []

    def refusing(names: Any) -> Any:
        if len(refused) < 3:
            refused.append(names)
            raise StoreUnavailable("no reply")
        return release(names)

    monkeypatch.setattr(store, "release", refusing)

    shop.ports.release_soon("price[1]", TOKEN)

    wait_until(lambda: not store.lease("price[1]").run())


@pytest.mark.parametrize("how", [StoreUnavailable, KeyboardInterrupt], ids=["timed out", "cancelled"])
def test_a_beginning_whose_reply_is_lost_gives_its_lease_back_and_is_no_death(shop: Shop, how: Any) -> None:
    worker = shop.load(1).until("begin")
    worker.send()

    with pytest.raises(how):
        worker._flow.throw(how("no reply"))

    wait_until(lambda: not shop.ports.store.lease("price[1]").run())
    wait_until(lambda: shop.ports.store.attempts("price[1]").run() == 0)
