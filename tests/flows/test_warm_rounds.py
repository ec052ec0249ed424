"""Rounds of warming: what is kept warm, how much is asked for together, and when nothing is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.virtual import read_at_of
from cacheworkers import Cache, Load
from cacheworkers.core.access_score import score_of
from cacheworkers.core.driver import run
from cacheworkers.events import Event, WarmingPaused
from cacheworkers.flows import keep_warm as warming
from cacheworkers.flows.keep_warm import Queued
from cacheworkers.local.read_forecasts import BURST, Known
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


@pytest.fixture(autouse=True)
def one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round looks at all that is kept warm."""
    monkeypatch.setattr("cacheworkers.flows.keep_warm.TURN", 0.0)


def counted(cache: Cache, name: str = "number", **policy: Any) -> tuple[Any, list[int]]:
    loads: list[int] = []

    @cache.loader(name=name, **{"fresh_for": 300.0, "warm_for": 900.0, "jitter": 0.0, "early": 0.0, **policy})
    def number(load: Load, n: int) -> int:
        loads.append(n)
        return n * 10

    return number, loads


def read(number: Any, cache: Cache, keys: range) -> None:
    number.get_many(keys)
    cache.report_accesses()


def stale_now(cache: Cache, loader: str) -> None:
    """Make what a loader has kept stale, so that all of it is due."""
    cache._ports.store.soften([call for call, _ in cache.hot(loader, 1000)]).run()


def test_a_loader_may_be_left_out(make_cache: MakeCache) -> None:
    """`warm_for=0`: nothing of it is looked at."""
    cache = make_cache()
    number, loads = counted(cache, warm_for=0.0)
    read(number, cache, range(3))
    stale_now(cache, "number")

    assert cache.keep_warm() == {}
    assert sorted(loads) == [0, 1, 2]


def test_what_is_no_longer_read_is_left_to_go(make_cache: MakeCache) -> None:
    """`warm_for` after the last read; by then it has been looked at for the last time."""
    cache = make_cache()
    number, _ = counted(cache, warm_for=600.0)
    read(number, cache, range(3))
    stale_now(cache, "number")

    assert cache.keep_warm()["number"].looked == 3
    store: Any = cache._ports.store
    for n in range(3):
        store.link.client().zincrby(store.keys.accesses("number"), -3600, f"number[{n}]")  # an hour passes
    assert cache.keep_warm()["number"].looked == 0


def test_what_is_read_besides_pays_for_what_may_be_loaded_in_vain(make_cache: MakeCache) -> None:
    """Calls that were read within one `fresh_for`; those read longer ago do not count."""
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)
    ports, spec = number._ports, number._spec
    now, half_life = ports.clock.now(), warming.half_life_of(ports, "number")
    reads = 1.1 * BURST * half_life / (math.log(2) * 300.0)
    client, key = ports.store.link.client(), ports.store.keys.accesses("number")

    def kept(**others: float) -> list[str]:
        client.delete(key)
        client.zadd(key, {"number[0]": now + half_life * math.log2(reads), **others})
        return run(warming.kept_warm(ports, spec))

    assert kept() == []
    assert kept(**{f"number[{n}]": now - 100.0 for n in range(1, 101)}) == ["number[0]"]
    assert kept(**{f"number[{n}]": now - 1000.0 for n in range(1, 101)}) == []


def test_a_round_asks_for_no_more_than_it_may_and_the_next_goes_on(make_cache: MakeCache) -> None:
    cache = make_cache(warm_concurrency=10)
    number, loads = counted(cache)
    read(number, cache, range(25))
    stale_now(cache, "number")
    loads.clear()

    def fresh() -> int:
        return sum(number.peek(n).freshness.value == "fresh" for n in range(25))

    asked = []
    for _ in range(3):
        done = cache.keep_warm()["number"]
        asked.append((done.asked, done.left))
        wait_until(lambda: fresh() == sum(asked for asked, _ in asked))

    assert asked == [(10, 15), (10, 5), (5, 0)]
    assert sorted(loads) == list(range(25))


def test_the_rate_is_that_of_all_loaders_together(make_cache: MakeCache) -> None:
    """One with much to do leaves room for the others; what they do not need is its."""
    cache = make_cache(warm_rate=10.0, warm_interval=2.0)
    busy, _ = counted(cache, "busy")
    idle, _ = counted(cache, "idle")
    read(busy, cache, range(50))
    read(idle, cache, range(3))
    stale_now(cache, "busy")
    stale_now(cache, "idle")

    done = cache.keep_warm()

    assert done["idle"].asked == 3
    assert 10 <= done["busy"].asked <= 17


@pytest.mark.parametrize("queued", [Queued(9, 0), Queued(0, 9)])
def test_nothing_is_asked_for_while_workers_are_behind(
    make_cache: MakeCache, events: list[Event], monkeypatch: pytest.MonkeyPatch, queued: Queued
) -> None:
    cache = make_cache()
    number, loads = counted(cache)
    read(number, cache, range(3))
    stale_now(cache, "number")
    loads.clear()

    class Look:
        def run(self) -> Queued:
            return queued

    monkeypatch.setattr(cache._runtime, "queued", Look)

    assert cache.keep_warm() == {}
    assert [event for event in events if isinstance(event, WarmingPaused)] == [WarmingPaused(queued.miss, queued.warm)]
    assert loads == []


@pytest.mark.parametrize("queued", [Queued(8, 0), Queued(0, 8)])
def test_a_few_messages_do_not_stop_a_round(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch, queued: Queued
) -> None:
    cache = make_cache()
    counted(cache)
    monkeypatch.setattr(cache._runtime, "queued", lambda: Value(queued))

    assert list(cache.keep_warm()) == ["number"]


class Value:
    """A step that answers without the store."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def run(self) -> Any:
        return self._value


def test_rounds_follow_one_another(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    ports = make_cache(warm_interval=4.0)._ports

    rounds = []
    for now in (400.0, 402.0, 404.0, 408.0):
        monkeypatch.setattr(type(ports.clock), "now", lambda clock, now=now: now)
        rounds.append(warming._round_at(ports))

    assert rounds == [100, 100, 101, 102]


def test_what_moves_while_the_hottest_are_read_counts_once(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was read between two chunks comes with the second one again."""
    cache = make_cache()
    counted(cache)
    now = cache._ports.clock.now()
    chunks = {0: [("number[?]", now), ("number[1]", now)], 2: [("number[1]", now), ("number[2]", now)]}
    monkeypatch.setattr(cache._ports.store, "most_read", lambda loader, first, most, since: Value(chunks[first]))

    found = dict(cache.hot("number", 2))

    assert sorted(found) == ["number[1]", "number[2]"]
    assert found["number[1]"] == pytest.approx(found["number[2]"])


def test_each_call_has_its_turn(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round looks at a part of what is kept warm, and the rounds of one turn at all of it, each call once."""
    monkeypatch.setattr(warming, "TURN", 0.025)
    cache = make_cache(warm_interval=1.0)
    number, _ = counted(cache, fresh_for=200.0)
    read(number, cache, range(40))
    looked = []
    for at in range(700, 705):
        monkeypatch.setattr(warming, "_round_at", lambda ports, at=at: at)
        looked.append(cache.keep_warm()["number"].looked)

    assert all(looked)
    assert sum(looked) == 40


def kept(cache: Cache, number: Any, reads: dict[int, int]) -> set[int]:
    """Report reads of a loader, and return the arguments of the calls that are kept warm then."""
    for n, count in reads.items():
        cache._ports.access_counter.count(f"number[{n}]", count)
    cache.report_accesses()
    return {int(call[7:-1]) for call in run(warming.kept_warm(cache._ports, number._spec))}


def test_by_default_the_most_read_of_many_are_kept_warm(make_cache: MakeCache) -> None:
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)

    assert kept(cache, number, {**dict.fromkeys(range(10), 200), **dict.fromkeys(range(10, 1000), 1)}) == set(range(10))


def test_by_default_nothing_is_kept_warm_that_will_hardly_be_read_again(make_cache: MakeCache) -> None:
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)

    assert kept(cache, number, dict.fromkeys(range(1000), 3)) == set()


def test_by_default_a_burst_of_all_keeps_few_warm(make_cache: MakeCache) -> None:
    """Ten reads of each of a thousand calls may be all that ever comes: a twentieth of them is loaded ahead."""
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)

    assert 40 <= len(kept(cache, number, dict.fromkeys(range(1000), 10))) <= 70


def test_by_default_a_single_call_is_kept_warm_that_is_read_all_the_time(make_cache: MakeCache) -> None:
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)

    assert kept(cache, number, {1: 20}) == set()
    assert kept(cache, number, {1: 1000}) == {1}


def a_period_passes(cache: Cache, number: Any, reads: dict[int, int]) -> set[int]:
    """Report reads, and return what is kept warm once a period has passed since the last forecasts."""
    forecasts = cache._ports.forecasts["number"]
    forecasts._made_at -= 300.0
    return kept(cache, number, reads)


def test_what_is_read_evenly_is_kept_warm_once_that_is_known(make_cache: MakeCache) -> None:
    """Ten reads a period each, period after period: no bursts."""
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)
    evenly = dict.fromkeys(range(200), 10)
    few = kept(cache, number, evenly)

    more = [len(a_period_passes(cache, number, evenly)) for _ in range(4)]

    assert len(few) < 20
    assert more == sorted(more) and more[-1] > 80


def test_forecasts_are_of_what_may_be_kept_warm(make_cache: MakeCache) -> None:
    """Of calls that are hardly read nothing can be learnt for those that are."""
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)

    kept(cache, number, {**dict.fromkeys(range(10), 50), **dict.fromkeys(range(10, 20), 1)})

    assert {int(call[7:-1]) for call in cache._ports.forecasts["number"].calls} == set(range(10))


def test_what_comes_in_bursts_is_not(make_cache: MakeCache) -> None:
    """Of what was expected to be read, hardly anything is: others are."""
    cache = make_cache()
    number, _ = counted(cache, warm_for=None)
    kept(cache, number, dict.fromkeys(range(200), 8))

    for burst in range(1, 5):
        few = a_period_passes(cache, number, dict.fromkeys(range(200 * burst, 200 * burst + 200), 8))

        assert len(few) <= warming.EXTRA_LOADS * 200 * (burst + 1) + 1


def test_what_forecasts_have_come_to_is_every_process_s_knowledge(make_cache: MakeCache) -> None:
    cache, other = make_cache(), make_cache()
    number, _ = counted(cache, warm_for=None)
    theirs, _ = counted(other, warm_for=None)
    evenly = dict.fromkeys(range(200), 10)
    kept(cache, number, evenly)

    now = a_period_passes(cache, number, evenly)

    assert len(now) > 20
    assert len(run(warming.kept_warm(other._ports, theirs._spec))) > 20
    assert run(warming.kept_warm(other._ports, theirs._spec)) == run(warming.kept_warm(cache._ports, number._spec))


@pytest.mark.parametrize("foreign", ["", "no numbers", "1", "nan 1", "-1 1", "1 0", "1 inf", "1 2 3"])
def test_what_something_else_has_written_there_is_nothing_known(make_cache: MakeCache, foreign: str) -> None:
    store: Any = make_cache()._ports.store
    store.link.client().set(store.keys.forecasts("number"), foreign)

    assert store.known("number").run() == Known()


def test_another_type_there_is_nothing_known(make_cache: MakeCache) -> None:
    store: Any = make_cache()._ports.store
    store.link.client().rpush(store.keys.forecasts("number"), "1")

    assert store.known("number").run() == Known()


def test_reads_are_remembered_for_some_periods(make_cache: MakeCache) -> None:
    """A read of what is fresh for a long time counts for a long time."""
    cache = make_cache(access_half_life=60.0)
    slow, _ = counted(cache, "slow", fresh_for=3600.0)
    quick, _ = counted(cache, "quick", fresh_for=5.0)
    forever, _ = counted(cache, "forever", fresh_for=1e6)

    assert [warming.half_life_of(cache._ports, each._spec.name) for each in (slow, quick, forever)] == [
        7200.0,
        60.0,
        86400.0,
    ]


def test_reads_add_up_and_halve() -> None:
    now, half_life = 1000.0, 60.0
    five = read_at_of(read_at_of(None, 2, now, half_life), 3, now, half_life)

    assert score_of(five, now, half_life) == pytest.approx(5.0)
    assert score_of(five, now + 60, half_life) == pytest.approx(2.5)
    assert score_of(read_at_of(five, 1, now + 60, half_life), now + 60, half_life) == pytest.approx(3.5)
    assert read_at_of(None, 1, now, half_life) == now
    assert score_of(1e9, 0.0, 0.01) == float("inf")


def test_the_store_does_the_same_sums(make_cache: MakeCache) -> None:
    store = make_cache()._ports.store
    for reads in (7, 1, 4):
        store.add_accesses("product", [("product[1]", reads)], half_life=60.0, most=10).run()
    [(call, read_at)] = store.most_read("product", 0, 10, float("-inf")).run()

    now = make_cache()._ports.store.snapshot().run().now
    assert call == "product[1]"
    assert score_of(read_at, now, 60.0) == pytest.approx(12.0, rel=0.1)


def test_accesses_that_are_long_past_are_forgotten(make_cache: MakeCache) -> None:
    store = make_cache()._ports.store
    store.add_accesses("product", [("product[1]", 1)], half_life=0.0005, most=10).run()

    def is_forgotten() -> bool:
        store.add_accesses("product", [("product[2]", 1)], half_life=0.0005, most=10).run()
        return [call for call, _ in store.most_read("product", 0, 10, float("-inf")).run()] == ["product[2]"]

    wait_until(is_forgotten)


def test_what_is_kept_warm_for_long_is_remembered_for_as_long(make_cache: MakeCache) -> None:
    """An access is forgotten a hundred half-lives after the last read, but not before `warm_for` has passed."""
    cache = make_cache(access_half_life=0.001)
    number, _ = counted(cache, fresh_for=0.0, warm_for=3000.0)
    store, now = cache._ports.store, cache._ports.clock.now()
    client: Any = store.link.client()
    client.zadd(store.keys.accesses("number"), {"number[1]": now - 2000.0, "number[2]": now - 4000.0})
    read(number, cache, [3])

    assert {call for call, _ in store.most_read("number", 0, 10, float("-inf")).run()} == {"number[1]", "number[3]"}
    assert client.pttl(store.keys.accesses("number")) > 2_000_000
    assert cache.keep_warm()["number"].looked == 2


def test_access_scores_outlive_the_processes_that_have_read(make_cache: MakeCache) -> None:
    """A deploy starts all web processes again; what was hot is kept warm meanwhile, and known after it."""
    old = make_cache()
    number, _ = counted(old)
    read(number, old, range(3))
    old.close()

    new = make_cache()
    _, loads = counted(new)
    stale_now(new, "number")

    assert new.keep_warm()["number"].asked == 3
    wait_until(lambda: sorted(loads) == [0, 1, 2])


def test_a_loader_that_fails_holds_up_no_other(make_cache: MakeCache) -> None:
    """Its calls are left alone until their backoff ends."""
    cache = make_cache(backoff_for=60.0)
    is_down = False

    @cache.loader(fresh_for=300.0, warm_for=900.0)
    def failing(load: Load, n: int) -> int:
        if is_down:
            raise RuntimeError("down")
        return n

    number, loads = counted(cache)
    read(failing, cache, range(5))
    read(number, cache, range(5))
    is_down = True
    for _ in range(2):
        stale_now(cache, "failing")
        cache.keep_warm()
        wait_until(lambda: all(cache._ports.store.failing_until([f"failing[{n}]" for n in range(5)]).run()))
    stale_now(cache, "number")
    loads.clear()

    done = cache.keep_warm()

    assert (done["failing"].asked, done["failing"].held) == (0, 5)
    assert done["number"].asked == 5
    wait_until(lambda: sorted(loads) == list(range(5)))


def test_what_the_other_loaders_leave_is_for_the_last(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheworkers.flows.keep_warm._round_at", lambda ports: 0)  # in the order of declaration
    cache = make_cache(warm_concurrency=4)
    counted(cache, "idle")
    busy, _ = counted(cache, "busy")
    read(busy, cache, range(4))
    stale_now(cache, "busy")

    done = cache.keep_warm()

    assert (done["idle"].asked, done["busy"].asked) == (0, 4)
