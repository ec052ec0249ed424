"""A claim that enqueues its message in the same script: the message is there if, and only if, the claim was granted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
import redis

from cacheworkers import Cache, Load
from cacheworkers.errors import StoreUnavailable
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import Enqueue, LoadRequest
from cacheworkers.store.commands.replies import Claimed, Held, Moved
from cacheworkers.testing import Stepper, Valkey

CALL = "price[1]"
MakeCache = Callable[..., Cache]
FIRST, SECOND = "1" * 16, "2" * 16


def in_two_parts(request: LoadRequest) -> tuple[bytes, bytes]:
    """Return a message that is a request, and takes the snapshot of its claim."""
    head, tail = msgspec.json.encode(msgspec.structs.replace(request, snapshot="?")).split(b"?")
    return head, tail


class Shop:
    """A cache without workers, its queue in the store, and readers that go one step at a time."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.ports, self.store = cache, cache._ports, cache._ports.store
        self.rows = {1: 10}
        self.sent, self.submitted = 0, list[LoadRequest]()
        self.client = self.store.link.client()
        self.queue = f"{self.store.keys.namespace}:queue"
        self.ports.message_of = self._message_of
        self.ports.dispatcher = self  # type: ignore[assignment]

        @cache.loader(tags=("price:{number}",), wait_for=60, load_for=60)
        def price(load: Load, number: int) -> int:
            return self.rows[number]

        self.price, self.spec = price, cache._loaders["price"]

    def _message_of(self, request: LoadRequest) -> Enqueue:
        def note() -> None:
            self.sent += 1

        return Enqueue(self.queue, in_two_parts(request), note)

    def submit_all(self, requests: Sequence[LoadRequest]) -> int:
        self.submitted += requests
        return len(requests)

    def reader(self) -> Stepper[Any]:
        """Return a read that has found nothing, and is about to claim."""
        flow = self.price._reads.flow(self.spec.signature.bind((1,), {}), (1,), self.spec.codec.decode)
        return Stepper(flow).until("claim")

    def claim(self, token: str, seen: bytes = b"") -> Any:
        return self.store.claim(CALL, token, lease_for=60, seen=seen, enqueue=(self.queue, token.encode(), b"")).run()

    def messages(self) -> list[bytes]:
        found: list[bytes] = self.client.lrange(self.queue, 0, -1)
        return found

    def worker(self) -> Stepper[Any]:
        """Return the load of the oldest message."""
        request = msgspec.json.decode(self.client.rpop(self.queue), type=LoadRequest)
        return Stepper(load(self.ports, self.spec, [request], self.ports.worker))


@pytest.fixture
def shop(cache: Cache) -> Shop:
    return Shop(cache)


def test_a_granted_claim_has_pushed_its_message_once(shop: Shop) -> None:
    assert shop.claim(FIRST) == Claimed(True)
    assert shop.claim(FIRST) == Claimed(True)  # sent twice
    assert shop.messages() == [FIRST.encode()]


def test_a_claim_while_another_holds_the_lease_pushes_nothing(shop: Shop) -> None:
    shop.claim(FIRST)

    assert isinstance(shop.claim(SECOND), Held)
    assert isinstance(shop.claim(SECOND, b"8 bytes."), Moved)
    assert shop.messages() == [FIRST.encode()]


def test_a_claim_without_a_message_is_not_enqueued(shop: Shop) -> None:
    assert shop.store.claim(CALL, FIRST, lease_for=60).run() == Claimed(False)


def test_a_queue_that_takes_no_message_leaves_it_to_the_publisher(shop: Shop) -> None:
    """As where the store's user may not write there: the claim holds, and the request is submitted."""
    shop.client.set(shop.queue, "no list")

    reader = shop.reader()
    assert reader.step() == "wait"

    [request] = shop.submitted
    assert request.call == CALL
    assert shop.sent == 0


def test_a_queue_that_the_store_s_user_may_not_write_leaves_it_to_the_publisher(make_cache: MakeCache) -> None:
    """Its key is outside the user's pattern, `~shop:*`: the claim holds, and what is loaded is stored."""
    with Valkey() as server:
        rights = ("~shop:*", "+@all", "-@dangerous", "+info")
        redis.Redis.from_url(server.url).execute_command("ACL", "SETUSER", "web", "on", ">pw", *rights)
        shop = Shop(make_cache(redis_url=server.url.replace("://", "://web:pw@"), namespace="shop"))
        shop.queue = "shop.miss"

        reader = shop.reader()
        assert reader.step() == "wait"
        [request] = shop.submitted
        worker = Stepper(load(shop.ports, shop.spec, [request], shop.ports.worker))

        assert shop.sent == 0
        assert worker.finish()[CALL].outcome == "stored"
        assert shop.price.get(1) == 10
        reader.crash()


def test_a_reader_s_claim_is_all_it_takes(shop: Shop) -> None:
    reader = shop.reader()
    assert reader.step() == "wait"

    assert (shop.sent, shop.submitted) == (1, [])
    assert shop.worker().finish()[CALL].outcome == "stored"
    assert shop.price.get(1) == 10
    reader.crash()


@pytest.mark.usefixtures("joined")
def test_an_invalidation_between_claim_and_begin_leaves_the_load_to_go_on(shop: Shop) -> None:
    """It has broken the lease; whoever waits is served what is loaded after it."""
    reader = shop.reader()
    reader.step()
    worker = shop.worker()
    shop.rows[1] = 11
    Stepper(invalidate_tags(shop.ports, ["price:1"], "hard")).finish()

    assert worker.finish()[CALL].outcome == "stored"
    assert shop.price.get(1) == 11
    reader.crash()


@pytest.mark.usefixtures("joined")
def test_a_lost_reply_gives_the_lease_back_and_the_message_is_run_by_whoever_is_first(shop: Shop) -> None:
    """The reader does not know that its message is there; another claims, and one of the two messages loads."""
    shop.ports.release_soon = lambda call, token: shop.store.release([(call, token)]).run() and None
    reader = shop.reader()
    reader.send()  # the script has run
    reader._advance(lambda: reader._flow.throw(StoreUnavailable("the reply is late")))
    assert len(shop.messages()) == 1
    assert not shop.store.lease(CALL).run()
    second = shop.reader()
    assert second.step() == "wait"

    outcomes = [shop.worker().finish()[CALL].outcome for _ in range(2)]

    assert sorted(outcomes) == ["left", "stored"]
    assert shop.price.get(1) == 10
    second.crash()


@pytest.mark.usefixtures("joined")
def test_an_invalidation_by_key_breaks_the_lease_of_a_load_under_way(shop: Shop) -> None:
    """It leaves no mark at a tag, so that only the lease says so."""
    reader = shop.reader()
    reader.step()
    worker = shop.worker()
    while not worker.at.startswith("load "):
        worker.step()
    worker.send()  # it has read the old row
    shop.rows[1] = 11
    shop.price.invalidate(1)

    assert worker.finish()[CALL].outcome == "stored"
    assert shop.price.get(1) == 11
    reader.crash()


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize("is_enqueued", [False, True])
def test_a_message_carries_its_claim_s_snapshot_either_way(shop: Shop, is_enqueued: bool) -> None:
    if not is_enqueued:
        shop.client.set(shop.queue, "no list")
    reader = shop.reader()
    reader.step()

    [request] = (
        [msgspec.json.decode(each, type=LoadRequest) for each in shop.messages()] if is_enqueued else shop.submitted
    )

    assert bool(request.snapshot) == shop.store.has_one_slot
    reader.crash()
