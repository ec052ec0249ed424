"""A crowd's claim that goes out while its tasks still come: before the loop has read what its leader's look found."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from test_enqueued_claims import CALL, SECOND, Shop

from cacheworkers import Cache, LoadError
from cacheworkers.core.driver import run
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.runtime.store_reads import CROWDED
from cacheworkers.store.commands.steps import Submitted
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

MANY = CROWDED + 50


@pytest.fixture
def shop(cache: Cache) -> Shop:
    shop = Shop(cache)
    shop.store.claim("price[2]", SECOND, lease_for=1).run()  # the server knows the script
    shop.ports.listener.start()
    wait_until(lambda: shop.ports.listener.is_up)  # until then readers poll
    return shop


def load_the_oldest(shop: Shop) -> str:
    """Do what a worker does with the oldest message; return the outcome."""
    wait_until(shop.messages)
    request = msgspec.json.decode(shop.client.rpop(shop.queue), type=LoadRequest)
    return run(load(shop.ports, shop.spec, [request], shop.ports.worker))[CALL].outcome


def crowd_of(shop: Shop, readers: int, meanwhile: Callable[[list[Any]], object], *, by_name: bool = False) -> list[Any]:
    """Return what tasks of one turn have found, or their errors.

    Args:
        meanwhile: called with the tasks at the end of that turn, blocking the loop: no reply has been read.
    """

    async def play() -> list[Any]:
        await shop.store.get("price[2]").arun()  # the loop has a connection

        async def last() -> None:
            meanwhile(tasks)

        read = functools.partial(shop.price.aget, number=1) if by_name else functools.partial(shop.price.aget, 1)
        tasks = [asyncio.create_task(read()) for _ in range(readers)]
        end = asyncio.create_task(last())
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 45)
        await end
        return found

    return asyncio.run(play())


def lease_of(shop: Shop) -> dict[str, str]:
    found: dict[str, str] = shop.store.lease(CALL).run()
    return found


@pytest.mark.parametrize("by_name", [False, True])
def test_a_message_is_there_before_any_reply_is_read(shop: Shop, by_name: bool) -> None:
    with ThreadPoolExecutor(1) as worker:
        loaded: list[Any] = []

        def meanwhile(_: list[Any]) -> None:
            wait_until(shop.messages)
            loaded.append(worker.submit(load_the_oldest, shop))

        assert crowd_of(shop, MANY, meanwhile, by_name=by_name) == [10] * MANY

    assert [each.result() for each in loaded] == ["stored"]
    assert (shop.sent, shop.submitted, shop.messages()) == (1, [], [])


def test_what_is_loaded_before_any_reply_is_read_reaches_everybody(shop: Shop) -> None:
    """Nobody has registered yet: the push that ends the lease wakes nobody."""
    assert crowd_of(shop, MANY, lambda _: load_the_oldest(shop)) == [10] * MANY
    assert (shop.sent, shop.submitted, lease_of(shop)) == (1, [], {})


def test_a_few_have_their_leader_look_first(shop: Shop) -> None:
    with ThreadPoolExecutor(1) as worker:
        seen: list[Any] = []

        def meanwhile(_: list[Any]) -> None:
            seen.append((shop.messages(), lease_of(shop)))
            worker.submit(load_the_oldest, shop)

        assert crowd_of(shop, CROWDED, meanwhile) == [10] * CROWDED
    assert seen == [([], {})]


def test_where_something_is_there_nothing_is_claimed(shop: Shop) -> None:
    shop.claim(SECOND)
    shop.client.delete(shop.queue)
    request = LoadRequest("price", CALL, SECOND, "", "miss")
    run(load(shop.ports, shop.spec, [request], shop.ports.worker))

    assert crowd_of(shop, MANY, lambda _: None) == [10] * MANY
    assert (shop.messages(), shop.sent, lease_of(shop)) == ([], 0, {})


def test_an_invalidation_in_between_is_seen_by_all(shop: Shop) -> None:
    """Loaded and invalidated before the loop reads a reply: what was loaded is given to nobody."""

    def meanwhile(_: list[Any]) -> None:
        load_the_oldest(shop)
        shop.rows[1] = 11
        shop.cache.invalidate("price:1")
        again.append(worker.submit(load_the_oldest, shop))

    again: list[Any] = []
    with ThreadPoolExecutor(1) as worker:
        assert crowd_of(shop, MANY, meanwhile) == [11] * MANY
    assert [each.result() for each in again] == ["stored"]


def test_a_lease_of_another_process_is_waited_for(shop: Shop) -> None:
    """Its end may come before this crowd's leader has registered."""
    shop.claim(SECOND)
    shop.client.delete(shop.queue)
    request = LoadRequest("price", CALL, SECOND, "", "miss")

    assert crowd_of(shop, MANY, lambda _: run(load(shop.ports, shop.spec, [request], shop.ports.worker))) == [10] * MANY
    assert (shop.messages(), shop.sent) == ([], 0)


@pytest.mark.parametrize("when", ["before the look is answered", "while it waits for the claim"])
def test_a_cancelled_leader_leaves_the_others_a_load(shop: Shop, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaders: list[Any] = []
    asked: list[bool] = []
    stop = threading.Event()

    async def cancelled(step: Any) -> None:
        asked.append(shop.ports.waiters.flights[CALL].is_claiming)
        leaders[0].cancel()
        await asyncio.sleep(0)

    def work() -> None:
        while not stop.wait(0.01):
            if shop.messages():
                load_the_oldest(shop)

    monkeypatch.setattr(Submitted, "arun", cancelled)
    with ThreadPoolExecutor(1) as worker:

        def meanwhile(tasks: list[Any]) -> None:
            leaders.append(tasks[0])
            if when == "before the look is answered":
                tasks[0].cancel()
            wait_until(shop.messages)
            worker.submit(work)

        try:
            found = crowd_of(shop, MANY, meanwhile)
        finally:
            stop.set()
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [10] * (MANY - 1)
    assert asked == [True] * (when == "while it waits for the claim"), "the next leader claims itself"
    wait_until(lambda: lease_of(shop) == {})


def test_a_crowd_that_grows_while_its_leader_waits_claims_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    claims: list[str] = []
    claim = shop.store.claim
    monkeypatch.setattr(
        shop.store, "claim", lambda call, *args, **more: claims.append(call) or claim(call, *args, **more)
    )

    async def play() -> list[int]:
        first = asyncio.create_task(shop.price.aget(1))
        while not shop.messages():
            await asyncio.sleep(0.01)
        more = [asyncio.create_task(shop.price.aget(1)) for _ in range(MANY)]
        await asyncio.sleep(0)
        await asyncio.to_thread(load_the_oldest, shop)
        return await asyncio.gather(first, *more)

    assert asyncio.run(play()) == [10] * (MANY + 1)
    assert claims == [CALL]


def test_a_queue_that_takes_no_message_leaves_it_to_the_publisher(shop: Shop) -> None:
    shop.client.set(shop.queue, "no list")

    def work() -> None:
        wait_until(lambda: shop.submitted)
        run(load(shop.ports, shop.spec, shop.submitted, shop.ports.worker))

    with ThreadPoolExecutor(1) as worker:
        assert crowd_of(shop, MANY, lambda _: worker.submit(work)) == [10] * MANY
    assert (len(shop.submitted), shop.sent) == (1, 0)


def test_a_server_that_does_not_know_the_script_is_asked_in_full(shop: Shop) -> None:
    shop.client.script_flush()

    with ThreadPoolExecutor(1) as worker:
        assert crowd_of(shop, MANY, lambda _: worker.submit(load_the_oldest, shop)) == [10] * MANY
    assert (shop.sent, shop.submitted, lease_of(shop)) == (1, [], {})


def test_a_backoff_that_runs_is_heeded(shop: Shop) -> None:
    del shop.rows[1]
    shop.claim(SECOND)
    shop.client.delete(shop.queue)
    run(load(shop.ports, shop.spec, [LoadRequest("price", CALL, SECOND, "", "miss")], shop.ports.worker))

    found = crowd_of(shop, MANY, lambda _: None)

    assert {type(each) for each in found} == {LoadError}
    assert (shop.messages(), shop.sent) == ([], 0)


def test_a_store_that_goes_away_leaves_a_crowd_to_itself(make_cache: Callable[..., Cache]) -> None:
    with Valkey() as server:
        shop = Shop(make_cache(redis_url=server.url, store_timeout=1.0, breaker_for=0.0))

        assert crowd_of(shop, MANY, lambda _: server.kill()) == [10] * MANY
        assert shop.sent == 0
        shop.cache.close()
