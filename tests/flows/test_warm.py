"""What is hot is revalidated before it goes stale, what is asked for is loaded before it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from cacheworkers import Cache, Load, Warming
from cacheworkers.core import envelope
from cacheworkers.core.driver import run
from cacheworkers.flows import load as loading
from cacheworkers.flows import read as reading
from cacheworkers.flows.keep_warm import ask_for, is_fresh_for
from cacheworkers.flows.ports import LoadRequest
from cacheworkers.testing import Stepper
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


@pytest.fixture(autouse=True)
def one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round looks at all that is kept warm."""
    monkeypatch.setattr("cacheworkers.flows.keep_warm.TURN", 0.0)


def counted(cache: Cache, **policy: Any) -> tuple[Any, list[int]]:
    loads: list[int] = []

    @cache.loader(tags=("n:{n}",), **{"fresh_for": 300, "warm_for": 900, "jitter": 0.0, "early": 0.0, **policy})
    def number(load: Load, n: int) -> int:
        loads.append(n)
        return n * 10

    return number, loads


def asked_for(cache: Cache, loader: Any, keys: Iterable[int]) -> Warming:
    """Have workers asked for what is not fresh, as an invalidation with mode="reload" does."""
    return run(ask_for(cache._ports, loader._spec, [f"{loader._spec.name}[{key}]" for key in keys]))


def test_access_scores_are_those_of_all_processes_and_halve(make_cache: MakeCache) -> None:
    one, other = make_cache(access_half_life=0.2), make_cache(access_half_life=0.2)
    for cache, reads in ((one, 5), (other, 3)):
        number, _ = counted(cache, fresh_for=0.1)
        for _ in range(reads):
            number.get(7)
        number.get(1)
        cache.report_accesses()

    hot = dict(number.hot())
    assert hot["number[7]"] > hot["number[1]"]
    before = sum(hot.values())

    def cooled() -> bool:
        number.get(1)
        other.report_accesses()
        return dict(number.hot()).get("number[7]", 0.0) < before / 8

    wait_until(cooled)


def test_only_the_hottest_are_kept(make_cache: MakeCache) -> None:
    cache = make_cache(max_hot_calls=3)
    number, _ = counted(cache)
    for n in range(1, 6):
        for _ in range(n):
            number.read(n)
    cache.report_accesses()

    assert [call for call, _ in number.hot()] == ["number[5]", "number[4]", "number[3]"]


def test_hot_entries_are_revalidated_before_they_go_stale(make_cache: MakeCache) -> None:
    """Readers never meet a stale one; what is read seldom is left to go."""
    cache = make_cache(warm_interval=100.0)
    number, loads = counted(cache, warm_for=600.0)
    for _ in range(5):
        number.get(1)
    number.get(2)
    cache.report_accesses()
    store: Any = cache._ports.store
    client: Any = store.link.client()
    for n in (1, 2):
        entry = envelope.unpack(store.get(f"number[{n}]").run())
        older = msgspec.structs.replace(entry, created=entry.created - 240, fresh_until=entry.fresh_until - 240)
        client.set(store.keys.entry(f"number[{n}]"), envelope.pack(older), keepttl=True)
    client.zincrby(store.keys.accesses("number"), -3600, "number[2]")

    assert cache.keep_warm()["number"].asked == 1

    wait_until(lambda: loads == [1, 2, 1])
    assert number.read(1).freshness.value == "fresh"


def test_what_is_fresh_for_long_is_left_alone(make_cache: MakeCache) -> None:
    cache = make_cache()
    number, loads = counted(cache)
    number.get(1)
    cache.report_accesses()

    assert cache.keep_warm() == {"number": Warming(looked=1, fresh=1, asked=0, held=0)}
    assert loads == [1]


def test_an_entry_whose_life_is_shorter_than_the_lead_is_left_alone_for_half_of_it() -> None:
    head = envelope.Head(created=100.0, fresh_until=110.0, load_time=0.1)

    assert [is_fresh_for(head, now, 60.0) for now in (104.9, 105.0)] == [True, False]
    assert [is_fresh_for(head, now, 2.0) for now in (107.9, 108.0)] == [True, False]
    assert not is_fresh_for(None, 100.0, 2.0)


def test_two_rounds_together_ask_once(make_cache: MakeCache) -> None:
    """As with two beats."""
    one, other = make_cache(), make_cache()
    number, loads = counted(one, load_for=5.0)
    twin, _ = counted(other, load_for=5.0)

    first = asked_for(one, number, range(1, 51))
    second = asked_for(other, twin, range(1, 51))

    assert first == Warming(50, 0, 50, 0)
    assert second.asked == 0 and second.fresh + second.held == 50
    wait_until(lambda: sorted(loads) == list(range(1, 51)))


def test_a_reader_does_not_wait_for_what_is_to_be_warmed(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the lease, and asks for itself: on the queue of misses, though a round's message is on its way."""
    asked: list[LoadRequest] = []
    monkeypatch.setattr(cache._ports.dispatcher, "submit_all", lambda asks: [asked.extend(asks), len(asks)][1])
    number, loads = counted(cache)

    assert asked_for(cache, number, [1]).asked == 1
    going = Stepper(reading.read(cache._ports, number._spec, number._bind((1,), {}), options(number))).until("wait")
    warming, missing = [Stepper(loading.load(cache._ports, number._spec, [ask], cache._ports.worker)) for ask in asked]
    warming.finish()

    assert [ask.queue for ask in asked] == ["warm", "miss"]
    assert loads == [], "the message of the round found another's lease"
    missing.finish()
    assert going.finish().value == 10
    assert loads == [1]


def options(number: Any) -> Any:
    return number._memory.options(number._bind((1,), {}), None)


def test_a_batch_loader_is_warmed_in_few_loads(make_cache: MakeCache) -> None:
    """A thousand keys are ten loads."""
    cache = make_cache()
    batches: list[int] = []

    @cache.batch_loader(tags=("n:{key}",))
    def numbers(load: Load, keys: list[int]) -> dict[int, int]:
        batches.append(len(keys))
        return {key: key for key in keys}

    asked_for(cache, numbers, range(1000))

    wait_until(lambda: all(read is not None for read in map(numbers.peek, range(99, 1000, 100))))
    assert batches == [100] * 10
    assert asked_for(cache, numbers, range(1000)) == Warming(1000, 1000, 0, 0)
    assert asked_for(cache, numbers, [5]).asked == 0


def test_a_cache_reports_its_accesses_by_itself(make_cache: MakeCache) -> None:
    cache = make_cache(access_report_interval=0.05)
    number, _ = counted(cache)
    number.get(1)

    wait_until(lambda: number.hot() == [("number[1]", pytest.approx(1.0, abs=0.1))])


@pytest.mark.parametrize(
    "wrong", [{"warm_rate": -1.0}, {"warm_concurrency": 0}, {"access_half_life": 0.0}, {"max_hot_calls": 0}]
)
def test_wrong_settings_are_refused(make_cache: MakeCache, wrong: dict[str, Any]) -> None:
    from cacheworkers import ConfigError

    with pytest.raises(ConfigError, match=next(iter(wrong))):
        make_cache(**wrong)


def test_reload_makes_all_stale_and_loads_what_is_hot(make_cache: MakeCache) -> None:
    """A million members do not become a million loads: readers ask for the rest, should they come."""
    cache = make_cache(warm_max_calls=2)
    number, loads = counted(cache, stale_for=60.0)

    @cache.loader(name="tagged", tags=("all",), fresh_for=300, stale_for=60.0, early=0.0)
    def tagged(load: Load, n: int) -> int:
        loads.append(100 + n)
        return n

    for n in range(1, 6):
        for _ in range(n):
            tagged.get(n)
        number.get(n)
    cache.report_accesses()
    loads.clear()

    done = cache.invalidate("all", mode="reload")

    assert done.entries == 5
    wait_until(lambda: sorted(loads) == [104, 105])
    wait_until(lambda: tagged.peek(5).freshness.value == "fresh")
    assert tagged.peek(1).freshness.value == "stale"
    assert number.peek(1).freshness.value == "fresh"


def versions(make_cache: MakeCache, **config: Any) -> tuple[tuple[Cache, Any, list[int]], ...]:
    """The same loader before a deploy and after it."""
    caches = make_cache(**config), make_cache(**config)
    old, new = (
        (cache, *counted(cache, version=version, stale_for=60.0)) for version, cache in enumerate(caches, start=1)
    )
    return old, new


def test_what_is_hot_is_so_under_this_version_and_once(make_cache: MakeCache) -> None:
    """What both versions have read is one call, as hot as both together; others' versions take nobody's place."""
    old, new = versions(make_cache)
    for (cache, number, _), reads in ((old, {1: 16, 2: 8, 3: 8, 4: 4}), (new, {2: 16, 5: 2})):
        for n, times in reads.items():
            for _ in range(times):
                number.get(n)
        cache.report_accesses()

    assert [call for call, _ in new[1].hot(4)] == [f"number@2[{n}]" for n in (2, 1, 3, 4)]
    assert [call for call, _ in old[1].hot()] == [f"number[{n}]" for n in (2, 1, 3, 4, 5)]
    assert dict(new[1].hot())["number@2[2]"] == pytest.approx(24, rel=0.5)


def test_hot_calls_that_fit_this_version_no_more_are_passed_over(
    make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheworkers.flows.keep_warm.CHUNK", 2)
    cache = make_cache()
    number, _ = counted(cache)
    cache._ports.store.add_accesses("number", [(f'number["{n}"]', 50) for n in range(5)], half_life=60, most=100).run()
    for n in (1, 2):
        number.get(n)
    cache.report_accesses()

    assert {call for call, _ in number.hot(2)} == {"number[1]", "number[2]"}


def test_reload_after_a_deploy_loads_what_is_hot_under_the_new_version(make_cache: MakeCache) -> None:
    """The old version's access scores are the greatest right after its traffic ends; the calls are the new one's."""
    (old, before, _), (new, number, loads) = versions(make_cache, warm_max_calls=3)
    for n in range(3):
        for _ in range(20):
            before.get(n)
        number.get(n)
    old.report_accesses()
    new.report_accesses()
    loads.clear()

    new.invalidate("n:0", "n:1", "n:2", mode="reload")

    wait_until(lambda: sorted(loads) == [0, 1, 2])
    wait_until(lambda: all(number.peek(n).freshness.value == "fresh" for n in range(3)))


def test_a_dry_run_counts_and_touches_nothing(make_cache: MakeCache) -> None:
    cache = make_cache(tag_shards={"all": 4})

    @cache.loader(tags=("all", "n:{n}"), fresh_for=300)
    def number(load: Load, n: int) -> int:
        return n

    number.get_many(range(20))

    done = cache.invalidate("all", "n:3", dry_run=True)

    assert (done.seq, done.entries) == (0, 21)
    assert number.peek(3) is not None
