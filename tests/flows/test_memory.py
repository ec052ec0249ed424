"""What keeps this process's memory, and its quick ways to an answer, from being older than they may be."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from test_protocol import Shop

from cacheworkers import Cache, Load
from cacheworkers.core import envelope
from cacheworkers.flows import local_load
from cacheworkers.flows import read as reading
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.local.coherence import NEVER
from cacheworkers.store.connections.request import Request
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until


@pytest.fixture
def shop(cache: Cache) -> Shop:
    return Shop(cache)


def listening(shop: Shop) -> None:
    shop.ports.listener.start()
    wait_until(lambda: shop.ports.listener.is_up)


def remembered(shop: Shop) -> None:
    """The price is in memory, and the server tracks it."""
    listening(shop)
    shop.loader().finish()
    assert shop.ports.listener.barrier(5.0).run()
    assert shop.product.get(1) == in_memory(shop) == 1
    assert shop.ports.listener.barrier(5.0).run()


def lose_the_listener(shop: Shop) -> None:
    for connection in list(shop.ports.listener.connections):
        connection.socket.shutdown(socket.SHUT_RDWR)
    # Reported last: a fill before that is tracked by the connection that is being closed, and dropped with it.
    wait_until(lambda: shop.ports.listener._is_reported_down)


def in_memory(shop: Shop) -> Any:
    slot = shop.ports.l1.get("product[1]")
    return None if slot is None else int(slot.payload)


def reader(shop: Shop, since: int = 0) -> Stepper[Any]:
    """A reader of product[1] that waits for nobody."""
    call = shop.product._bind((1,), {})
    options = shop.product._memory.options(call, (1,))
    options = msgspec.structs.replace(options, since=since, wait_for=0.0)
    return Stepper(reading.read(shop.ports, shop.spec, call, options))


class Asks:
    """A dispatcher that keeps what it is given."""

    def __init__(self) -> None:
        self.taken: list[LoadRequest] = []

    def submit_all(self, asks: Sequence[LoadRequest]) -> int:
        self.taken += asks
        return len(asks)


# -- early revalidation


def test_the_quick_way_leaves_an_early_revalidation_to_the_flow(shop: Shop) -> None:
    """Else what is read often, and always the quick way, would be revalidated only when it is stale."""
    shop.loader().finish()
    store = shop.ports.store
    entry = envelope.unpack(store.get("product[1]").run())
    slow = msgspec.structs.replace(entry, load_time=10_000.0)
    store.link.client().set(store.keys.entry("product[1]"), envelope.pack(slow), ex=600)
    shop.ports.dispatcher = asks = Asks()
    object.__setattr__(shop.spec, "policy", dataclasses.replace(shop.spec.policy, early=1.0))
    shop.ports.chance = lambda: 1.0 - 1e-9  # as early as can be

    assert shop.product.get(1) == 1

    assert [ask.queue for ask in asks.taken] == ["revalidate"]


# -- since


def older_than(shop: Shop) -> Any:
    """A fresh entry of the old price, and an invalidation of something else after it."""
    if shop.stored() is None:
        shop.loader().finish()
    shop.price = 2
    return shop.cache.invalidate("something else")


def test_since_by_the_quick_way(shop: Shop) -> None:
    done = older_than(shop)

    assert shop.product.since(done).get(1) == 2


def test_since_by_the_flow(shop: Shop) -> None:
    done = older_than(shop)

    assert reader(shop, done.seq).finish().value == 2


def test_since_from_memory(shop: Shop) -> None:
    remembered(shop)
    done = older_than(shop)

    assert shop.product.since(done).get(1) == 2


def test_since_of_a_peek(shop: Shop) -> None:
    done = older_than(shop)

    assert shop.product.since(done).peek(1) is None


def test_since_of_what_memory_has_kept_while_the_store_is_away(shop: Shop) -> None:
    remembered(shop)
    done = older_than(shop)
    call = shop.product._bind((1,), {})
    decode = shop.spec.codec.decode

    assert local_load.kept(shop.ports, call, decode, 0) is not None
    assert local_load.kept(shop.ports, call, decode, done.seq) is None


def test_memory_does_not_go_on_once_the_store_has_answered_without_a_listener(shop: Shop) -> None:
    """Another process may have invalidated it before; an answer to what was asked before the loss says nothing."""
    remembered(shop)
    call = shop.product._bind((1,), {})
    decode = shop.spec.codec.decode
    under_way = reader(shop).until("get")
    under_way.send()
    shop.ports.listener._connect = _refused  # type: ignore[method-assign]
    lose_the_listener(shop)

    under_way.finish()
    assert local_load.kept(shop.ports, call, decode, 0) is not None

    shop.ports.store.link.exchange([Request(("EXISTS", shop.ports.store.keys.entry("product[2]")))])
    assert local_load.kept(shop.ports, call, decode, 0) is None


def test_memory_does_not_go_on_for_another_master(shop: Shop) -> None:
    """Of a Cluster: others have one in its place, and invalidate there."""
    remembered(shop)
    call = shop.product._bind((1,), {})
    shop.ports.store.link._masters.master_of = lambda key: "10.0.0.2:6379"  # type: ignore[method-assign]

    assert local_load.kept(shop.ports, call, shop.spec.codec.decode, 0) is None


def _refused() -> None:
    raise OSError("nobody is there")


# -- the listener


def test_what_is_read_while_nobody_listens_is_not_kept(shop: Shop) -> None:
    """By the quick way and by the flow; it would be served should the store go away, though its push was missed."""
    shop.ports.listener.start = lambda: None  # type: ignore[method-assign]
    shop.loader().finish()

    assert shop.product.get(1) == 1
    assert in_memory(shop) is None
    assert reader(shop).finish().value == 1
    assert in_memory(shop) is None


def test_what_was_asked_for_before_the_listener_was_lost_is_not_kept(shop: Shop) -> None:
    """The push that would have refused it was sent to a connection that is gone."""
    listening(shop)
    shop.loader().finish()
    assert shop.ports.listener.barrier(5.0).run()
    going = reader(shop).until("get")
    going.send()
    shop.ports.listener._connect = _refused  # type: ignore[method-assign]
    lose_the_listener(shop)

    going.finish()

    assert in_memory(shop) is None


def test_what_was_read_before_an_invalidation_here_is_not_kept_after_it(shop: Shop) -> None:
    """It was not tracked yet, so nothing reported that it had changed."""
    listening(shop)
    shop.loader().finish()
    assert shop.ports.listener.barrier(5.0).run()
    going = reader(shop).until("get")
    going.send()

    shop.invalidator().finish()
    shop.ports.listener.track = lambda call, entry: True  # type: ignore[method-assign]  # its answer is late
    going.finish()

    assert in_memory(shop) is None


def test_memory_is_emptied_when_the_listener_comes_back(shop: Shop) -> None:
    """What changed meanwhile was pushed to nobody."""
    remembered(shop)
    lose_the_listener(shop)

    wait_until(lambda: shop.ports.listener.is_up)

    assert in_memory(shop) is None


def test_an_invalidation_waits_until_its_own_process_has_received_it(shop: Shop) -> None:
    """Its pushes come on another connection than its replies."""
    remembered(shop)
    may_receive = threading.Event()
    drop = shop.ports.listener.messages.drop

    def receive_late(call: str) -> None:
        may_receive.wait(20)
        drop(call)

    shop.ports.listener.messages.drop = receive_late

    def let_it_receive() -> None:
        links = shop.ports.listener.connections
        wait_until(lambda: any(connection.pings for connection in links) or may_receive.is_set())
        may_receive.set()

    thread = threading.Thread(target=let_it_receive)
    try:
        going = shop.invalidator().until("barrier")
        assert in_memory(shop) == 1
        thread.start()
        going.finish()
        assert in_memory(shop) is None
    finally:
        may_receive.set()


def test_memory_does_not_answer_once_a_ping_is_overdue(shop: Shop) -> None:
    """Nothing is known of a listener that does not run: a paused process, a connection half open."""
    remembered(shop)
    assert shop.product.read(1).tier == "l1"

    shop.ports.coherence.usable_at = shop.ports.coherence.proven_at = time.monotonic() - shop.product._l1_for - 1.0

    assert shop.product.read(1).tier == "store"


def test_while_something_is_loaded_here_everybody_else_is_answered_from_memory(shop: Shop) -> None:
    """Not the load itself: what it reads becomes part of an entry."""
    tiers: dict[str, list[str]] = {"inside": [], "beside": []}

    def read_beside() -> None:
        assert shop.ports.coherence.usable_at == NEVER
        tiers["beside"].append(shop.product.read(1).tier)
        assert shop.product.get_many([1]) == {1: 1}
        assert shop.product.get(1) == 1

    @shop.cache.loader(name="basket")
    def basket(load: Load) -> int:
        tiers["inside"].append(shop.product.read(1).tier)
        beside = threading.Thread(target=read_beside)
        beside.start()
        beside.join()
        return 1

    remembered(shop)
    reads = shop.ports.l1.get("product[1]").reads  # type: ignore[union-attr]  # it is there

    assert basket.get() == 1

    assert tiers == {"inside": ["store"], "beside": ["l1"]}
    assert shop.ports.l1.get("product[1]").reads == reads + 3  # type: ignore[union-attr]


def test_a_loader_that_memory_does_not_answer_for_takes_no_place_in_it(cache: Cache) -> None:
    price = cache.loader(fresh_for=300, l1_for=0.0)(_price)
    price.get(1)
    wait_until(lambda: cache._ports.listener.is_up)
    assert cache._ports.listener.barrier(60.0).run()

    assert price.read(1).tier == price.read(1).tier == "store"
    assert price.get_many([1]) == {1: 1}

    assert len(cache._ports.l1) == 0


def _price(load: Load, number: int) -> int:
    return number
