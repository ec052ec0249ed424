"""A quick load never begins: its claim has taken the snapshot, and it is written under its claim's token."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from cacheworkers import Cache, Load
from cacheworkers.flows import load as loading
from cacheworkers.flows.invalidate import invalidate_calls, invalidate_tags
from cacheworkers.flows.load import QUICK, load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.store.commands.replies import Claimed, Held
from cacheworkers.testing import Stepper

CALL = "price[1]"
TOKEN, OTHER = "1" * 16, "2" * 16
MakeCache = Callable[..., Cache]
#: One step for each: the loader, and all that the store is asked.
RUN, WRITTEN = f"load {CALL}", "register_write"


class Shop:
    """A price that takes no time to load, and workers that go one step at a time."""

    def __init__(self, cache: Cache, **policy: Any) -> None:
        self.cache, self.ports, self.store = cache, cache._ports, cache._ports.store
        self.ports.release_soon = lambda call, token: self.store.release([(call, token)]).run() and None
        self.rows, self.runs = {1: 10}, 0
        self.error: Exception | None = None
        rate_limit = policy.pop("rate_limit", None)

        @cache.loader(tags=("price:{number}",), rate_limit=rate_limit, **{"wait_for": 60, "load_for": 60, **policy})
        def price(load: Load, number: int) -> int:
            self.runs += 1
            if self.error is not None:
                raise self.error
            return self.rows[number]

        self.price, self.spec = price, cache._loaders["price"]
        self.spec.load_times.load_time = 0.0

    def claimed(self, token: str = TOKEN, **how: Any) -> LoadRequest:
        """Return what a reader that has claimed asks for."""
        claim = self.store.claim(CALL, token, lease_for=60, **how).run()
        assert isinstance(claim, Claimed)
        return LoadRequest("price", CALL, token, how.get("seen", b"").hex(), "miss", snapshot=claim.snapshot)

    def worker(self, *requests: LoadRequest, where: str = "worker", **how: Any) -> Stepper[Any]:
        return Stepper(load(self.ports, self.spec, requests, getattr(self.ports, where), **how))

    def steps(self, *requests: LoadRequest, **how: Any) -> list[str]:
        """Return the steps of a load that nobody disturbs."""
        worker, found = self.worker(*requests, **how), []
        while worker.at:
            found.append(worker.at)
            worker.step()
        assert worker.error is None, worker.error
        return found

    def version(self) -> Any:
        """Return what a reader is served of the store, None for nothing."""
        found = self.price.peek(1)
        return None if found is None else found.value


@pytest.fixture
def joined() -> bool:
    return True


@pytest.fixture
def shop(cache: Cache, joined: bool) -> Shop:
    return Shop(cache)


def begins(steps: Sequence[str]) -> bool:
    return steps[0].startswith("begin")


def test_a_quick_load_asks_the_store_once(shop: Shop) -> None:
    assert shop.steps(shop.claimed()) == [RUN, WRITTEN]
    assert shop.version() == 10
    assert not shop.store.lease(CALL).run()


def test_its_entry_is_as_old_as_its_data_and_has_the_number_of_its_claim(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = shop.claimed()
    seq, _ = map(int, request.snapshot.split())
    shop.cache.invalidate("another")  # draws a number that is no business of this load

    claimed_at = request.snapshot.split()[1]
    now = shop.ports.clock.now
    monkeypatch.setattr(type(shop.ports.clock), "now", lambda clock: now() + 20)

    shop.worker(request).finish()

    found = shop.price.peek(1)
    assert found is not None and found.entry is not None and found.seq == seq
    assert 19 < found.entry.created - int(claimed_at) / 1000 < 30


@pytest.mark.parametrize("load_time", [None, QUICK * 1.01])
def test_one_that_is_slow_or_not_known_begins(shop: Shop, load_time: float | None) -> None:
    """Who waits must know that it has begun, or would take its lease over."""
    shop.spec.load_times.load_time = load_time

    assert begins(shop.steps(shop.claimed()))


def test_one_that_has_ended_is_watched_no_longer(shop: Shop) -> None:
    loads = shop.cache._runtime._slow_loads
    worker = shop.worker(shop.claimed())
    assert list(loads._loads) == [TOKEN]

    worker.finish()

    assert not loads._loads


def test_how_long_loads_take_is_learnt_in_the_worker(shop: Shop) -> None:
    shop.spec.load_times.load_time = None
    shop.steps(shop.claimed())
    shop.price.invalidate(1)

    assert shop.spec.load_times.load_time is not None
    shop.spec.load_times.load_time = 0.0
    assert not begins(shop.steps(shop.claimed()))


def test_a_failure_says_nothing_of_how_long_loads_take(shop: Shop) -> None:
    shop.spec.load_times.load_time, shop.error = None, ValueError("no row")

    shop.steps(shop.claimed())

    assert shop.spec.load_times.load_time is None


def test_a_message_that_was_delivered_before_begins(shop: Shop) -> None:
    """Its first worker may have died of it: attempts are counted."""
    assert begins(shop.steps(shop.claimed(), is_redelivered=True))


@pytest.mark.parametrize("policy", [{"wait_for": 60, "load_for": 100}, {"wait_for": 100, "load_for": 60}])
def test_a_message_that_has_waited_for_long_begins(
    cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch, policy: dict[str, Any]
) -> None:
    """Its lease may have been taken over, or have run out, and another load it for nothing."""
    shop = Shop(cache, **policy)
    request = shop.claimed()
    now = shop.ports.clock.now
    monkeypatch.setattr(type(shop.ports.clock), "now", lambda clock: now() + 31)

    assert begins(shop.steps(request))


@pytest.mark.parametrize("text", ["", "1", "a b", "1 2 3", "-", "1 9999999999999"])
def test_a_message_without_a_legible_snapshot_begins(shop: Shop, text: str) -> None:
    """One of a time to come would make an entry that lives for years."""
    assert begins(shop.steps(msgspec.structs.replace(shop.claimed(), snapshot=text)))


@pytest.mark.parametrize(
    "policy", [{"rate_limit": "1000/s"}, {"hold_off_for": 1.0}, {"wait_for": 0.15}, {"load_for": 0.15}]
)
def test_loads_that_wait_are_held_off_or_could_not_be_marked_in_time_begin(
    cache: Cache, joined: bool, policy: dict[str, Any]
) -> None:
    shop = Shop(cache, **policy)

    assert "begin" in " ".join(shop.steps(shop.claimed()))


def test_a_reader_s_own_load_begins(shop: Shop) -> None:
    assert begins(shop.steps(shop.claimed(), where="reader"))


def test_a_process_that_keeps_tags_in_shards_begins(make_cache: MakeCache, joined: bool) -> None:
    """It declares them before its snapshot; the claim's may have been taken before it ever did."""
    shop = Shop(make_cache(tag_shards={"price": 4}))

    assert begins(shop.steps(shop.claimed()))


def test_where_keys_live_on_several_servers_there_is_no_snapshot(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(cache)
    monkeypatch.setattr(type(shop.store), "joins_steps", False)

    request = shop.claimed()

    assert request.snapshot == ""
    assert begins(shop.steps(request))


def test_calls_that_are_loaded_together_begin(cache: Cache, joined: bool) -> None:
    @cache.batch_loader(wait_for=60, load_for=60)
    def prices(load: Load, numbers: list[int]) -> dict[int, int]:
        return {number: number for number in numbers}

    ports, spec = cache._ports, cache._loaders["prices"]
    spec.load_times.load_time = 0.0
    requests = []
    for number in (1, 2):
        claim: Any = ports.store.claim(f"prices[{number}]", TOKEN, lease_for=60).run()
        requests.append(LoadRequest("prices", f"prices[{number}]", TOKEN, "", "miss", snapshot=claim.snapshot))

    assert Stepper(load(ports, spec, requests, ports.worker)).at.startswith("begin")


# -- the claim's snapshot


def test_a_claim_to_warm_takes_none(shop: Shop) -> None:
    """Its message may wait for long."""
    assert shop.claimed(warms=True).snapshot == ""


def test_a_claim_of_a_call_with_an_entry_takes_none(shop: Shop) -> None:
    """Its loader may ask for what it returned before."""
    shop.steps(shop.claimed())
    found = shop.price.peek(1)
    assert found is not None and found.entry is not None

    assert shop.claimed(OTHER, seen=found.entry.write_id).snapshot == ""


def test_a_claim_of_a_call_whose_load_may_have_died_takes_none(shop: Shop) -> None:
    shop.spec.load_times.load_time = None
    worker = shop.worker(shop.claimed())
    worker.step()
    worker.crash()
    shop.store.link.client().delete(shop.store.keys.lease(CALL))  # it has run out

    assert shop.claimed(OTHER).snapshot == ""


@pytest.mark.parametrize("foreign", ["no number", "-1", "1e300"])
def test_a_sequence_that_something_else_has_written_gives_none(shop: Shop, foreign: str) -> None:
    shop.store.link.client().set(shop.store.keys.seq, foreign)

    assert shop.claimed().snapshot == ""


# -- what may come between claim, load and write


def by_tag(shop: Shop) -> Stepper[Any]:
    return Stepper(invalidate_tags(shop.ports, ["price:1"], "hard"))


def softly(shop: Shop) -> Stepper[Any]:
    return Stepper(invalidate_tags(shop.ports, ["price:1"], "soft"))


def by_key(shop: Shop) -> Stepper[Any]:
    return Stepper(invalidate_calls(shop.ports, [CALL], "hard"))


@pytest.mark.parametrize("invalidation", [by_tag, softly, by_key])
@pytest.mark.parametrize("is_member", [False, True])
def test_no_order_of_an_invalidation_and_a_quick_load_keeps_what_is_old(
    shop: Shop, invalidation: Callable[[Shop], Stepper[Any]], is_member: bool
) -> None:
    """By key no mark is left, so that only the broken lease says so."""
    places = range(4)
    tried = 0
    for before, during, old in itertools.product(places, places, (False, True)):
        shop.rows[1] = 10
        shop.price.invalidate(1)
        if is_member:  # of the tag's set, by an entry that is gone
            shop.steps(shop.claimed())
            shop.store.link.client().delete(shop.store.keys.entry(CALL))
        else:
            shop.cache.invalidate("price:1")
        worker = shop.worker(shop.claimed(OTHER))
        for _ in range(before):
            worker.step()
        if old and worker.at == RUN:
            worker.send()  # it has read the old row
        shop.rows[1] = 11
        going = invalidation(shop)
        for _ in range(during):
            going.step()
        worker.finish()
        going.finish()

        found = shop.price.peek(1)
        assert found is None or found.value == 11 or (invalidation is softly and found.freshness.value != "fresh")
        tried += 1
    assert tried == 32


@pytest.mark.parametrize("is_marked", [False, True])
def test_one_that_is_overtaken_loads_again_under_its_token(shop: Shop, is_marked: bool) -> None:
    """Begun once more it would find itself, if it was marked, and leave its lease to nobody."""
    worker = shop.worker(shop.claimed())
    worker.send()
    if is_marked:
        shop.store.mark_begun([(CALL, TOKEN, 60)]).run()
    shop.rows[1] = 11
    by_tag(shop).finish()

    assert worker.step() == WRITTEN
    assert worker.finish()[CALL].outcome == "stored"
    assert (shop.version(), shop.runs) == (11, 2)
    assert not shop.store.lease(CALL).run()


@pytest.mark.parametrize("invalidation", [by_tag, by_key])
def test_after_one_that_was_overtaken_others_begin_for_a_second(
    shop: Shop, invalidation: Callable[[Shop], Stepper[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is invalidated faster than its message is taken would be loaded twice each time: a lease that was broken
    is claimed again by `begin`."""
    worker = shop.worker(shop.claimed())
    worker.send()
    invalidation(shop).finish()
    assert worker.finish()[CALL].outcome == "stored"
    shop.price.invalidate(1)

    assert begins(shop.steps(shop.claimed(OTHER)))

    shop.price.invalidate(1)
    now = shop.ports.clock.monotonic
    monkeypatch.setattr(type(shop.ports.clock), "monotonic", lambda clock: now() + 1)
    assert not begins(shop.steps(shop.claimed("3" * 16)))


def test_one_that_is_overtaken_again_and_again_gives_its_lease_back(shop: Shop) -> None:
    worker = shop.worker(shop.claimed())
    while worker.at:
        if worker.at == RUN:
            worker.send()
            by_tag(shop).finish()
        worker.step()

    assert worker.error is None
    assert shop.runs == shop.ports.config.load_attempts
    assert not shop.store.lease(CALL).run()


def test_a_full_store_knows_whose_lease_a_quick_load_holds(shop: Shop) -> None:
    """So readers that began before share its value, though it is not stored: it was still current."""
    worker = shop.worker(shop.claimed()).until("register_write")

    assert worker.at == WRITTEN
    assert shop.store.overtaken([(CALL, ["price:1"])]).run() == (0, [TOKEN])


def test_loads_that_stall_and_are_invalidated_count_as_running(shop: Shop) -> None:
    """A key that is invalidated faster than it loads must not take every worker."""
    workers = []
    for token in (TOKEN, OTHER):
        request = shop.claimed(token)
        assert bool(request.snapshot) == (token == TOKEN)
        workers.append(shop.worker(request).until(RUN))
        shop.store.mark_begun([(CALL, token, 60)]).run()
        by_key(shop).finish()

    claim: Any = shop.store.claim(CALL, "3" * 16, lease_for=60).run()

    assert isinstance(claim, Held) and claim.is_begun
    assert len(workers) == 2


def test_a_load_that_has_begun_under_the_same_message_is_the_only_one_to_write(shop: Shop) -> None:
    """An invalidation by key came between: the token alone would be there again, as if nothing had broken the lease."""
    request = shop.claimed()
    quick = shop.worker(request)
    quick.send()  # it has read the old row
    shop.rows[1] = 11
    by_key(shop).finish()
    second = shop.worker(request, is_redelivered=True).until(RUN)

    quick.until("register_write").step()

    assert shop.version() is None
    assert second.finish()[CALL].outcome == "stored"
    assert shop.version() == 11


def test_one_whose_lease_was_taken_over_is_refused(shop: Shop) -> None:
    worker = shop.worker(shop.claimed()).until("register_write")
    shop.rows[1] = 11
    taken_over = shop.claimed(OTHER, expected=TOKEN)

    assert worker.finish()[CALL].outcome == "refused"
    assert shop.version() is None
    assert shop.spec.load_times.begins_until > shop.ports.clock.monotonic()
    assert shop.worker(taken_over).finish()[CALL].outcome == "stored"


def test_one_whose_claim_was_made_on_another_server_registers_again(shop: Shop) -> None:
    """A failover kept the lease; numbers that its snapshot knows may be drawn once more."""
    worker = shop.worker(shop.claimed()).until("register_write")
    shop.store.link.client().hset(shop.store.keys.lease(CALL), "run", "f" * 40)

    worker.step()

    assert shop.version() is None
    assert worker.finish()[CALL].outcome == "stored"
    assert shop.runs == 2


def test_a_failure_is_recorded_under_the_token(shop: Shop) -> None:
    shop.error = ValueError("no row")

    assert shop.worker(shop.claimed()).finish()[CALL].outcome == "failed"

    assert shop.store.failures(CALL).run()["kind"] == "ValueError"
    assert not shop.store.lease(CALL).run()
    assert shop.runs == 1


@pytest.mark.parametrize("has_begun", [False, True])
def test_only_a_lease_under_which_nothing_has_begun_is_held_by_its_token(shop: Shop, has_begun: bool) -> None:
    """Also where entry and failure are written by steps of their own."""
    shop.steps(shop.claimed())
    found = shop.price.peek(1)
    assert found is not None and found.entry is not None
    entry = msgspec.structs.replace(found.entry, write_id=bytes.fromhex(OTHER))
    for write in (
        lambda: shop.store.write([(entry, OTHER)]).run(),
        lambda: shop.store.fail([(CALL, OTHER, "ValueError", "no row")], first_for=1, most_for=1).run(),
    ):
        shop.price.invalidate(1)
        shop.claimed(OTHER)
        if has_begun:
            assert shop.store.begin([(CALL, OTHER, "f" * 16, b"")], load_for=60).run() != [None]

        assert write() == [not has_begun]


@pytest.mark.parametrize("invalidation", [by_tag, by_key])
def test_a_failure_that_was_overtaken_is_not_recorded(shop: Shop, invalidation: Callable[[Shop], Stepper[Any]]) -> None:
    shop.error = ValueError("no row")
    worker = shop.worker(shop.claimed())
    worker.send()
    shop.error = None
    invalidation(shop).finish()

    worker.finish()

    assert not shop.store.failures(CALL).run()


def test_one_that_dies_leaves_its_lease_to_the_message_that_comes_again(shop: Shop) -> None:
    request = shop.claimed()
    shop.worker(request).crash()

    assert shop.worker(request, is_redelivered=True).finish()[CALL].outcome == "stored"
    assert shop.runs == 1


@pytest.mark.parametrize("is_long", [False, True])
def test_a_message_of_many_calls_ends_in_time_and_gives_the_rest_back(
    cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch, is_long: bool
) -> None:
    """A database that stalls in the first of them: the others go back to their readers, or to the next message."""
    monkeypatch.setattr(loading, "TOGETHER_FOR", 0.0 if is_long else 80.0)

    @cache.loader(wait_for=60, load_for=0.2 if is_long else 60)
    def price(load: Load, number: int) -> int:
        if is_long and number == 1:
            time.sleep(max(0.0, load.deadline - time.monotonic()))
        return number

    ports, spec, store = cache._ports, cache._loaders["price"], cache._ports.store
    released: list[str] = []
    ports.release_soon = lambda call, token: released.append(call)
    requests = []
    for number in (1, 2, 3):
        store.claim(f"price[{number}]", TOKEN, lease_for=60).run()
        requests.append(LoadRequest("price", f"price[{number}]", TOKEN, "", "miss"))

    results = Stepper(load(ports, spec, requests, ports.worker)).finish()

    rest = [results[f"price[{number}]"].outcome for number in (2, 3)]
    assert rest == (["left"] * 2 if is_long else ["stored"] * 2)
    assert set(released) >= {"price[2]", "price[3]"} if is_long else not released
