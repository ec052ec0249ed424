"""Quick loads of one message write together; each stays a load of its own, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from cacheworkers import AsyncLoad, Cache, Load, LoadTimeout, StoreUnavailable
from cacheworkers.core.driver import run
from cacheworkers.flows import joint_writes
from cacheworkers.flows.invalidate import invalidate_tags
from cacheworkers.flows.joint_writes import WAITS_FOR
from cacheworkers.flows.load import MARKED_AFTER, load
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.runtime import slow_loads
from cacheworkers.store.commands.replies import Claimed
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until

CALLS = [f"price[{number}]" for number in (1, 2, 3)]
TOKENS = {call: str(at) * 16 for at, call in enumerate(CALLS)}
RUNS, WRITTEN = [f"load {call}" for call in CALLS], "register_write"


class Shop:
    """Prices that take no time to load, and a message that names three of them."""

    def __init__(
        self,
        cache: Cache,
        monkeypatch: pytest.MonkeyPatch,
        rate_limit: str | None = None,
        *,
        is_watched: bool = False,
        load_for: float = 60,
    ) -> None:
        self.cache, self.ports, self.store = cache, cache._ports, cache._ports.store
        self.released: list[str] = []
        self.ports.release_soon = lambda call, token: self.released.append(call)
        self.rows: dict[int, Any] = {1: 10, 2: 20, 3: 30}
        self.runs: list[int] = []
        monkeypatch.setattr(joint_writes, "WAITS_FOR", 60.0)  # not on a busy machine
        monkeypatch.setattr(slow_loads, "MARKED_AFTER", MARKED_AFTER if is_watched else 60.0)

        @cache.loader(tags=("price:{number}",), wait_for=60, load_for=load_for, rate_limit=rate_limit)
        def price(load: Load, number: int) -> int:
            self.runs.append(number)
            row = self.rows[number]
            if isinstance(row, BaseException):
                raise row
            return int(row)

        self.price, self.spec = price, cache._loaders["price"]
        self.spec.load_times.load_time = 0.0

    def claimed(self, calls: Iterable[str] = CALLS) -> list[LoadRequest]:
        """Return what readers that have claimed ask for."""
        requests = []
        for call in calls:
            token = TOKENS[call]
            claim = self.store.claim(call, token, lease_for=60).run()
            assert isinstance(claim, Claimed)
            requests.append(LoadRequest("price", call, token, "", "miss", snapshot=claim.snapshot))
        return requests

    def worker(self, *, by_exchange: bool = True, **how: Any) -> Stepper[Any]:
        return Stepper(load(self.ports, self.spec, self.claimed(), self.ports.worker, **how), by_exchange=by_exchange)

    def versions(self) -> list[Any]:
        found = [self.price.peek(number) for number in (1, 2, 3)]
        return [None if each is None else each.value for each in found]

    def leases(self) -> list[str]:
        return [call for call in CALLS if self.store.lease(call).run()]


@pytest.fixture
def joined() -> bool:
    return True


@pytest.fixture
def shop(cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch) -> Shop:
    return Shop(cache, monkeypatch)


def steps_of(worker: Stepper[Any]) -> list[str]:
    found = []
    while worker.at:
        found.append(worker.at)
        worker.step()
    assert worker.error is None, worker.error
    return found


def test_quick_loads_of_a_message_are_one_write(shop: Shop) -> None:
    worker = shop.worker()

    assert steps_of(worker) == [*RUNS, WRITTEN]
    assert {call: each.outcome for call, each in worker.result.items()} == dict.fromkeys(CALLS, "stored")
    assert (shop.versions(), shop.leases(), shop.released) == ([10, 20, 30], [], [])
    assert shop.cache._runtime._slow_loads._writes == {}


def test_a_write_waits_for_a_moment_only(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second load takes longer than expected: the first is written before the third is run."""
    now, passed = shop.ports.clock.monotonic, [0.0]
    monkeypatch.setattr(joint_writes, "WAITS_FOR", WAITS_FOR)
    monkeypatch.setattr(type(shop.ports.clock), "monotonic", lambda clock: passed[0])
    passed[0] = now()
    worker = shop.worker()
    found = [worker.at, worker.step()]
    passed[0] += WAITS_FOR
    found.append(worker.step())

    assert [*found, *steps_of(worker)[1:]] == [*RUNS[:2], WRITTEN, RUNS[2], WRITTEN]


@pytest.mark.parametrize(
    ("load_time", "rate_limit"), [(None, None), (WAITS_FOR * 1.01, None), (0.0, "1000/s")], ids=str
)
def test_what_may_last_or_has_to_wait_for_its_turn_is_written_one_by_one(
    cache: Cache, joined: bool, load_time: float | None, rate_limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(cache, monkeypatch, rate_limit=rate_limit)
    monkeypatch.setattr(joint_writes, "WAITS_FOR", WAITS_FOR)
    shop.spec.load_times.load_time = load_time

    steps = [step for step in steps_of(shop.worker()) if step in (*RUNS, WRITTEN)]
    assert steps == [step for run in RUNS for step in (run, WRITTEN)]


def test_no_order_of_an_invalidation_and_joint_writes_keeps_what_is_old(shop: Shop) -> None:
    """Between any two steps, requests of the joint write among them; the others are loaded once."""
    tried = 0
    for before, during in itertools.product(range(7), range(4)):
        shop.rows[2] = 20
        for call in CALLS:
            shop.price.invalidate(int(call[6:-1]))
        shop.spec.load_times.begins_until = 0.0
        shop.runs.clear()
        worker = shop.worker(by_exchange=False)
        for _ in range(before):
            worker.step()
        shop.rows[2] = 21
        going = Stepper(invalidate_tags(shop.ports, ["price:2"], "hard"))
        for _ in range(during):
            going.step()
        worker.finish()
        going.finish()

        first, second, third = shop.versions()
        assert (first, third) == (10, 30) and second in (None, 21)
        assert (shop.runs.count(1), shop.runs.count(3)) == (1, 1)
        tried += 1
    assert tried == 28


def test_a_key_that_something_else_has_written_is_no_matter_of_the_others(shop: Shop) -> None:
    """The joint write fails, after some of it was done: each is then done by itself, and finds itself in the store."""
    shop.store.link.client().set(shop.store.keys.tag_set("price:2", 0), "foreign")
    worker = shop.worker()

    steps = steps_of(worker)

    assert steps[: len(RUNS) + 1] == [*RUNS, WRITTEN]
    assert {call: each.outcome for call, each in worker.result.items()} == {
        CALLS[0]: "stored",
        CALLS[1]: "conflict",
        CALLS[2]: "stored",
    }
    assert shop.versions() == [10, None, 30]
    assert shop.runs == [1, 2, 3]


def test_a_failure_is_recorded_while_the_others_wait(shop: Shop) -> None:
    shop.rows[2] = ValueError("no row")
    worker = shop.worker()

    assert steps_of(worker)[-1] == WRITTEN
    assert worker.result[CALLS[1]].outcome == "failed"
    assert (shop.versions(), shop.leases()) == ([10, None, 30], [])


def test_without_the_store_each_gives_its_lease_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = shop.worker().until(WRITTEN)

    def away(*_: Any) -> Any:
        raise StoreUnavailable("away")

    monkeypatch.setattr(shop.store.link, "exchange", away)
    found = worker.finish()

    assert {call: (each.outcome, each.payload) for call, each in found.items()} == {
        call: ("conflict", str(row).encode()) for call, row in zip(CALLS, (10, 20, 30), strict=True)
    }
    assert set(shop.released) == set(CALLS)


@pytest.mark.parametrize(
    ("comes_from", "error"),
    [("the third load", KeyboardInterrupt), ("the write", KeyboardInterrupt), ("the write", SoftTimeLimitExceeded)],
)
def test_what_ends_the_task_gives_all_leases_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, comes_from: str, error: type[BaseException]
) -> None:
    """Celery raises its time limit wherever the task is."""
    ended = error("the task's time is over")
    if comes_from == "the third load":
        shop.rows[3] = ended
        worker = shop.worker()
    else:
        worker = shop.worker().until(WRITTEN)

        def end(*_: Any) -> Any:
            monkeypatch.undo()  # once
            raise ended

        monkeypatch.setattr(shop.store.link, "exchange", end)

    with pytest.raises(error):
        worker.finish()

    # By each load, while what was raised still refers to it, and by the message.
    assert sorted(shop.released) == sorted(2 * CALLS)


def test_what_is_written_when_the_message_s_time_is_over_is_not_lost(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = shop.worker(until=time.monotonic() + 60)
    worker.step()
    now = shop.ports.clock.monotonic
    monkeypatch.setattr(type(shop.ports.clock), "monotonic", lambda clock: now() + 61)

    found = worker.finish()

    assert [found[call].outcome for call in CALLS] == ["stored", "stored", "left"]
    assert shop.released == CALLS[2:]


def test_what_waits_for_a_load_that_never_ends_is_written_and_has_not_died_with_it(
    cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second hangs, and its worker is killed, as often as it takes to be called poisoned."""
    shop = Shop(cache, monkeypatch, is_watched=True)
    for _ in range(cache.config.poison_after + 1):
        shop.spec.load_times.load_time = 0.0
        shop.price.invalidate(1)
        worker = Stepper(load(shop.ports, shop.spec, shop.claimed(CALLS[:2]), shop.ports.worker), by_exchange=True)
        assert worker.at == RUNS[0]
        assert worker.step() == RUNS[1]

        wait_until(lambda: shop.price.peek(1))
        wait_until(lambda: shop.store.lease(CALLS[1]).run().get("fence"))
        assert [shop.store.attempts(call).run() for call in CALLS[:2]] == [0, 1]
        assert shop.store.lease(CALLS[0]).run() == {}

        worker.crash()
        cache._runtime._slow_loads.reset()
        shop.store.link.client().delete(*(shop.store.keys.lease(call) for call in CALLS))  # they have run out
        shop.store.link.client().delete(shop.store.keys.attempts(CALLS[1]))  # so that it may be quick again


def test_a_write_that_was_done_while_it_waited_finds_itself(
    cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(cache, monkeypatch, is_watched=True)
    worker = shop.worker()
    worker.step()
    wait_until(lambda: shop.price.peek(1))

    found = worker.finish()

    assert {call: each.outcome for call, each in found.items()} == dict.fromkeys(CALLS, "stored")
    assert (shop.versions(), shop.leases(), shop.runs) == ([10, 20, 30], [], [1, 2, 3])


def test_what_was_written_while_it_waited_and_invalidated_is_loaded_again(
    cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(cache, monkeypatch, is_watched=True)
    worker = shop.worker()
    worker.step()
    wait_until(lambda: shop.price.peek(1))
    shop.rows[1] = 11
    cache.invalidate("price:1")

    worker.finish()

    assert shop.versions() in ([11, 20, 30], [None, 20, 30])
    assert shop.price.get(1) == 11


def test_loads_that_have_begun_wait_for_nobody(shop: Shop) -> None:
    """One that dies would count for them."""
    shop.spec.load_times.begins_until = shop.ports.clock.monotonic() + 60

    steps = [step for step in steps_of(shop.worker()) if step in (*RUNS, WRITTEN)]

    assert steps == [step for each in RUNS for step in (each, WRITTEN)]


def test_what_was_loaded_before_one_that_outlasts_its_time_is_kept(
    cache: Cache, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(cache, monkeypatch)

    @cache.loader(tags=("cost:{number}",), wait_for=60, load_for=1)
    async def cost(load: AsyncLoad, number: int) -> int:
        await asyncio.sleep(60 * (number == 2))
        return number

    spec, requests = cache._loaders["cost"], []
    spec.load_times.load_time = 0.0
    for number in (1, 2):
        claim = shop.store.claim(f"cost[{number}]", str(number) * 16, lease_for=60).run()
        assert isinstance(claim, Claimed)
        requests.append(LoadRequest("cost", f"cost[{number}]", str(number) * 16, "", "miss", snapshot=claim.snapshot))

    with pytest.raises(LoadTimeout):
        run(load(shop.ports, spec, requests, shop.ports.worker))

    found = [cost.peek(number) for number in (1, 2)]
    assert [None if each is None else each.value for each in found] == [1, None]
