"""Many readers of one call in one process: one looks, claims and waits, and what it finds is the others' too."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from cacheworkers import Cache, Load, LoadError
from cacheworkers.core.driver import run
from cacheworkers.core.entry import Entry
from cacheworkers.flows.miss import lapsed, wait_for_load
from cacheworkers.flows.read_state import SINGLE, ReadOptions, ReadState
from cacheworkers.local.coalescing import ThreadPlace
from cacheworkers.sql.watch.dirty_transactions import LateInvalidation
from cacheworkers.testing.servers import wait_until

READERS = 200


class Shop:
    """A loader that is held; its loads, and what readers ask of the store, are counted."""

    def __init__(self, cache: Cache, patch: pytest.MonkeyPatch, **policy: Any) -> None:
        self.cache, self.ports = cache, cache._ports
        self.go = threading.Event()
        self.price = 1
        self.fails = False
        self.loads = self.gets = self.claims = 0
        self.ports.listener.start()
        wait_until(lambda: self.ports.listener.is_up)  # until then readers poll
        store = self.ports.store
        claim, get_many, get, fetch = store.claim, store.get_many, store.get, store.fetch

        def claimed(*args: Any, **options: Any) -> Any:
            self.claims += 1
            return claim(*args, **options)

        def got(call: str) -> Any:
            self.gets += 1
            return get(call)

        def fetched(call: str, now: float) -> Any:
            self.gets += 1
            return fetch(call, now)

        def got_many(calls: Any) -> Any:
            self.gets += len(calls)
            return get_many(calls)

        patch.setattr(store, "claim", claimed)
        patch.setattr(store, "get", got)
        patch.setattr(store, "get_many", got_many)
        patch.setattr(store, "fetch", fetched)
        options = {"tags": ("all",), "wait_for": 60, "load_for": 60, "jitter": 0, "early": 0, **policy}

        @cache.loader(**options)
        def price(load: Load, number: int) -> dict[str, int]:
            self.loads += 1
            value, fails = self.price, self.fails
            self.go.wait(60)
            if fails:
                raise RuntimeError("the database is down")
            return {"price": value}

        self.read = price


@pytest.fixture(params=["tasks", "threads"])
def crowd(request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """Have many read one key of a shop together; what each has found, or the error it got."""

    def tasks(shop: Shop, begun: Callable[[], None], readers: int = READERS) -> list[Any]:
        async def play() -> list[Any]:
            reads = [asyncio.create_task(shop.read.aread(1)) for _ in range(readers)]
            await asyncio.to_thread(wait_until, lambda: shop.loads and len(shop.ports.waiters) == readers)
            await asyncio.to_thread(begun)
            return await asyncio.gather(*reads, return_exceptions=True)

        return asyncio.run(play())

    def threads(shop: Shop, begun: Callable[[], None], readers: int = 40) -> list[Any]:
        with ThreadPoolExecutor(readers) as pool:
            reads = [pool.submit(shop.read.read, 1) for _ in range(readers)]
            wait_until(lambda: shop.loads and len(shop.ports.waiters) == readers)
            begun()
            return [read.exception(60) or read.result() for read in reads]

    return tasks if request.param == "tasks" else threads


def test_a_crowd_costs_the_store_what_one_reader_does(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, crowd: Callable[..., list[Any]]
) -> None:
    """Each gets a value of its own where one could spoil it for the others; one of them is who has asked."""
    shop = Shop(make_cache(l1_entries=0), monkeypatch)

    found = crowd(shop, shop.go.set)

    assert {each.value["price"] for each in found} == {1}
    assert len({id(each.value) for each in found}) == len(found)
    assert sorted(each.is_joined for each in found)[:2] == [False, True]
    assert shop.loads == 1
    assert shop.claims <= 2
    assert shop.gets <= 6 + len(found) * (crowd.__name__ == "threads")  # each thread looks before it joins


def test_a_failure_is_learnt_once_for_all(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, crowd: Callable[..., list[Any]]
) -> None:
    """And each reader gets an error of its own."""
    shop = Shop(make_cache(l1_entries=0, backoff_for=60.0), monkeypatch)
    shop.fails = True

    found = crowd(shop, shop.go.set)

    assert {type(each) for each in found} == {LoadError}
    assert len({id(each) for each in found}) == len(found)
    assert shop.loads == 1
    assert shop.claims <= 3


def test_a_get_many_of_a_failing_key_learns_it_once_too(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads of many keys go on side by side with others of the same key."""
    shop = Shop(make_cache(l1_entries=0, backoff_for=60.0), monkeypatch)
    shop.fails = True

    async def play() -> list[Any]:
        reads = [asyncio.create_task(shop.read.aget_many([1])) for _ in range(50)]
        await asyncio.to_thread(wait_until, lambda: shop.loads and len(shop.ports.waiters) == 50)
        shop.go.set()
        return await asyncio.gather(*reads, return_exceptions=True)

    found = asyncio.run(play())

    assert {type(each.errors[1]) for each in found} == {LoadError}
    assert shop.claims <= 5


def test_a_cancelled_leader_leaves_the_others_a_value(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(make_cache(l1_entries=0), monkeypatch)

    async def play() -> list[Any]:
        reads = [asyncio.create_task(shop.read.aget(1)) for _ in range(20)]
        await asyncio.to_thread(wait_until, lambda: shop.loads and len(shop.ports.waiters) == 20)
        for read in reads[:5]:  # the first of them leads
            read.cancel()
        await asyncio.sleep(0)
        shop.go.set()
        return await asyncio.gather(*reads, return_exceptions=True)

    found = asyncio.run(play())

    assert [type(each) for each in found[:5]] == [asyncio.CancelledError] * 5
    assert found[5:] == [{"price": 1}] * 15
    assert shop.loads == 1


@pytest.mark.parametrize("face", ["aget", "aread", "aget_json"])
def test_one_that_is_to_lead_and_is_cancelled_hands_it_on(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    """The second is given the lead, and cancelled before it has woken up."""
    shop = Shop(make_cache(l1_entries=0), monkeypatch)

    async def play() -> list[Any]:
        reads = [asyncio.create_task(getattr(shop.read, face)(1)) for _ in range(5)]
        await asyncio.to_thread(wait_until, lambda: shop.loads and len(shop.ports.waiters) == 5)
        reads[0].cancel()
        asyncio.get_running_loop().call_soon(reads[1].cancel)
        shop.go.set()
        return await asyncio.gather(*reads, return_exceptions=True)

    found = asyncio.run(play())

    assert [type(each) for each in found[:2]] == [asyncio.CancelledError] * 2
    assert not [each for each in found[2:] if isinstance(each, BaseException)]
    assert shop.loads == 1
    assert not any(shop.ports.waiters.crowds.of_loops.values())


@pytest.mark.parametrize("face", ["aget", "aget_json"])
def test_who_joins_after_an_invalidation_gets_nothing_of_before(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    """A reader's reply is under way, which holds the old value; then it is invalidated, and another reader joins."""
    shop = Shop(make_cache(l1_entries=0), monkeypatch)
    shop.go.set()
    assert shop.read.get(1) == {"price": 1}
    store, replies, may_arrive = shop.ports.store, asyncio.Event(), asyncio.Event()
    get = store.batcher.get

    async def late(call: str, loop: asyncio.AbstractEventLoop | None = None) -> bytes | None:
        raw = await get(call, loop)
        replies.set()
        await may_arrive.wait()
        return raw

    async def play() -> list[Any]:
        monkeypatch.setattr(store.batcher, "get", late)
        before = asyncio.gather(*(shop.read.aget(1) for _ in range(3)))
        await replies.wait()
        monkeypatch.setattr(store.batcher, "get", get)
        shop.price = 2
        await shop.cache.ainvalidate("all")
        after = asyncio.create_task(getattr(shop.read, face)(1))
        await asyncio.sleep(0)
        may_arrive.set()
        return await asyncio.gather(before, after)

    before, after = asyncio.run(play())
    assert before[0] == {"price": 1}
    assert after == {"aget": {"price": 2}, "aget_json": b'{"price":2}'}[face]


def test_a_view_that_asks_for_more_follows_nobody_that_asks_for_less(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`since` is what a reader's own write demands."""
    shop = Shop(make_cache(l1_entries=0), monkeypatch)
    shop.go.set()
    shop.read.get(1)
    shop.price = 2
    done = shop.cache.invalidate("all", mode="soft")

    async def play() -> list[Any]:
        return await asyncio.gather(*(reader.aget(1) for reader in (shop.read, shop.read.since(done)) * 5))

    found = asyncio.run(play())

    assert found[1::2] == [{"price": 2}] * 5


def test_followers_leave_no_trace(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, crowd: Callable[..., list[Any]]
) -> None:
    shop = Shop(make_cache(l1_entries=0), monkeypatch)

    crowd(shop, shop.go.set)

    assert len(shop.ports.waiters) == 0
    assert not any(shop.ports.waiters.crowds.of_loops.values())


@pytest.mark.parametrize("is_other_dirty", [False, True])
def test_who_comes_with_the_arguments_of_a_crowd_joins_by_them(
    request: pytest.FixtureRequest,
    make_cache: Callable[..., Cache],
    monkeypatch: pytest.MonkeyPatch,
    is_other_dirty: bool,
) -> None:
    """The text of its call is made for the leader, and for the one whose arguments others are compared with.

    What another cache of this process has not invalidated yet is no matter of this one.
    """
    if is_other_dirty:
        request.addfinalizer(LateInvalidation(object(), frozenset()).end)
    shop = Shop(make_cache(l1_entries=0), monkeypatch)
    bind, bound = shop.read._bind, [0]

    def counted(*given: Any) -> Any:
        bound[0] += 1
        return bind(*given)

    monkeypatch.setattr(shop.read, "_bind", counted)

    async def play() -> list[Any]:
        reads = [asyncio.create_task(shop.read.aget(1)) for _ in range(READERS)]
        await asyncio.to_thread(wait_until, lambda: shop.loads and len(shop.ports.waiters) == READERS)
        assert list(shop.read._reads.crowds) == [(1,)]
        shop.go.set()
        return await asyncio.gather(*reads)

    found = asyncio.run(play())

    assert found == [{"price": 1}] * READERS and len({id(each) for each in found}) == READERS
    assert (shop.loads, bound) == (1, [2])
    assert shop.read._reads.crowds == {}


def test_equal_arguments_of_two_calls_lead_to_two_crowds(make_cache: Callable[..., Cache]) -> None:
    """Nor do those that have no hash lead anywhere."""
    cache = make_cache(l1_entries=0)

    @cache.loader()
    def shown(load: Load, what: bool | int | list[int]) -> str:
        return repr(what)

    async def play() -> list[str]:
        return await asyncio.gather(*(shown.aget(what) for what in (1, True, [1]) * 3))

    assert asyncio.run(play()) == ["1", "True", "[1]"] * 3


def test_tasks_of_another_loop_wait_on_their_own(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A future of one loop must not be awaited on another's."""
    shop = Shop(make_cache(l1_entries=0), monkeypatch)

    async def read() -> list[Any]:
        return await asyncio.gather(*(shop.read.aget(1) for _ in range(5)))

    with ThreadPoolExecutor(2) as threads:
        loops = [threads.submit(asyncio.run, read()) for _ in range(2)]
        wait_until(lambda: shop.loads and len(shop.ports.waiters) >= 10)
        shop.go.set()
        assert [loop.result(60) for loop in loops] == [[{"price": 1}] * 5] * 2


def test_a_child_follows_nobody_of_its_parent(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(make_cache(l1_entries=0), monkeypatch)

    async def play() -> list[Any]:
        reads = [asyncio.create_task(shop.read.aget(1)) for _ in range(3)]
        await asyncio.sleep(0)
        [crowd] = shop.read._reads.crowds.values()
        shop.ports.waiters.crowds.reset()  # as after a fork
        assert shop.read._reads.follow(crowd, 0.0) is None
        shop.go.set()
        return [await shop.read.aget(1), *await asyncio.gather(*reads)]

    assert asyncio.run(play()) == [{"price": 1}] * 4


@pytest.mark.parametrize("what", ["lapsed", "overtaken"])
def test_what_is_older_is_only_for_those_who_had_joined_when_it_was_learnt(cache: Cache, what: str) -> None:
    """An invalidation may be acknowledged after that, and before the others' reads began."""
    price = cache.loader(name="price", fresh_for=300)(_price)
    ports, now = cache._ports, time.time()
    call = price._spec.signature.bind((1,), {})
    entry = Entry(call.text, (), b"1", now, now, now, now + 60, 0.0, 0.0, 7, b"version1", b"d" * 8)
    crowd: Any = SimpleNamespace(covered=5, began_before=None, cover=lambda: 5)
    with ports.waiters.enter(call.text) as waiter:
        over = ports.clock.monotonic() - 1
        options = ReadOptions(price._spec.codec.decode, 0, 0.0)
        state = ReadState(call, options, waiter, over, over, SINGLE, crowd)
        if what == "lapsed":
            state.lapsed, state.lapsed_covers = (entry, 1), 2
            found = lapsed(ports, state)
        else:
            ports.store.offer(entry, 60.0).run()
            state.least_seq, state.least_covers = 7, 2
            found = run(wait_for_load(ports, price._spec, state))

    assert found is not None and found.value == 1
    assert (crowd.covered, state.payload) == (2, b"1")


def _price(load: Load, number: int) -> int:
    return number


def test_bursts_of_readers_on_a_hot_key_are_one_look_each(
    make_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first after a read that was alone is two: its leader has not waited for those who join."""
    shop = Shop(make_cache(l1_entries=0), monkeypatch)
    shop.go.set()
    batcher, looks = shop.ports.store.batcher, [0]
    look = batcher.get

    def looked(key: str, loop: asyncio.AbstractEventLoop | None = None) -> Any:
        looks[0] += 1
        return look(key, loop)

    monkeypatch.setattr(batcher, "get", looked)

    async def play() -> list[int]:
        found = []
        for readers in (1, 1, 20, 20, 20):
            looks[0] = 0
            await asyncio.gather(*(shop.read.aget(1) for _ in range(readers)))
            found.append(looks[0])
        return found

    assert asyncio.run(play())[1:] == [1, 2, 1, 1]


def test_a_leader_that_can_never_end_costs_one_reader_its_time(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal's handler has interrupted it before it could: the next reader waits in vain, and others no more."""

    @cache.loader(l1_for=0)
    def price(load: Load, number: int) -> int:
        return number

    waited: list[float] = []

    def in_vain(place: ThreadPlace, timeout: float) -> object:
        waited.append(timeout)
        return place._leave()

    monkeypatch.setattr(ThreadPlace, "outcome", in_vain)
    cache._ports.waiters.crowds.enter(("price[1]", 0), 0.0, None)

    assert [price.get(1), price.get(1)] == [1, 1]
    assert len(waited) == 1
