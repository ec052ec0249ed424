"""Sweeping: what live entries need stays, the rest goes, in bounded steps that the next sweep goes on from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cacheworkers import Cache, Load
from cacheworkers.events import ForeignKey
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


@pytest.fixture(autouse=True)
def short_margins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members and marks are kept for minutes after they could be needed; here for moments."""
    monkeypatch.setattr("cacheworkers.flows.garbage_collection.MAX_LOAD_FOR", 0.05)
    monkeypatch.setattr("cacheworkers.store.commands.store.REGISTRATION_MARGIN", 0.05)


@pytest.fixture
def make_cache(make_cache: MakeCache) -> Iterator[MakeCache]:
    """Make caches; when all that a test has left has expired, one sweep leaves the sequence and nothing else."""
    made: list[Cache] = []

    def make(**options: Any) -> Cache:
        made.append(make_cache(**options))
        return made[-1]

    yield make
    police = make()
    keys = police._ports.store.keys
    client: Any = police._ports.store.link.client()
    for cache in made:
        cache.close()  # reports what it has read
    for key in names(police):
        kind = client.type(key)
        if client.pttl(key) > 0:
            client.unlink(key)
        elif kind == b"zset" and key.startswith(keys.tag_sets_prefix):
            client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 1))
        elif kind == b"string" and key.startswith(f"{keys.namespace}:v:"):
            client.set(key, 1)
    assert police.collect_garbage().is_whole
    assert names(police) <= {keys.seq}
    police.close()


def names(cache: Cache) -> set[str]:
    """Every key of the cache's namespace."""
    client: Any = cache._ports.store.link.client()
    return {key.decode() for key in client.scan_iter(f"{cache.config.namespace}:*")}


def thing(cache: Cache, **policy: Any) -> Any:
    @cache.loader(tags=("t:{n}", "all"), **policy)
    def thing(load: Load, n: int) -> int:
        return n

    return thing


def test_after_all_entries_have_expired_one_sweep_leaves_only_seq(make_cache: MakeCache) -> None:
    """Memory returns to what live entries need; marks go once no load can need them, access scores in time."""
    cache = make_cache(access_half_life=0.02)
    things = thing(cache, fresh_for=0.05, stale_for=0.0, error_for=0.0, negative_for=0.05, load_for=1.0)
    for n in range(50):
        things.get(n)
    cache.invalidate("t:7", "all")
    cache.invalidate("t:8", mode="soft")
    things.get(3)
    cache.report_accesses()
    things.warm([4]).wait(60)
    assert len(names(cache)) > 2

    keys = cache._ports.store.keys

    def only_seq() -> bool:
        cache.collect_garbage()
        return names(cache) == {keys.seq, keys.marks}

    wait_until(only_seq)


def test_a_sweep_that_runs_out_of_time_is_gone_on_with_by_the_next(make_cache: MakeCache) -> None:
    one, other = make_cache(), make_cache()
    things = thing(one, fresh_for=0.05, stale_for=0.0, error_for=0.0, load_for=1.0)
    for n in range(30):
        things.get(n)
    keys = one._ports.store.keys
    client: Any = one._ports.store.link.client()
    last = max(score for _, score in client.zrange(keys.tag_set("all"), 0, -1, withscores=True))
    assert last < one._ports.clock.now() * 1000 + 60_000
    wait_until(lambda: one._ports.clock.now() * 1000 > last + 10)

    parts = [one.collect_garbage(0.0)]
    assert not parts[0].is_whole
    assert keys.gc_position in names(one)
    while not parts[-1].is_whole:
        parts.append((other, one)[len(parts) % 2].collect_garbage(0.0))

    assert sum(part.members for part in parts) == 60, "thirty of their own tag, thirty of a common one"
    assert keys.gc_position not in names(one)
    assert one.collect_garbage().members == 0


def test_what_is_alive_keeps_its_tags(cache: Cache) -> None:
    things = thing(cache, fresh_for=300)
    things.get(1)
    before = names(cache)

    assert cache.collect_garbage(math.inf).members == 0

    assert names(cache) == before
    assert cache.invalidate("all").entries == 1


def test_a_position_of_nonsense_begins_again(cache: Cache) -> None:
    client: Any = cache._ports.store.link.client()
    for nonsense in (b"", b"x:y", b"7", b"1:-1"):
        client.set(cache._ports.store.keys.gc_position, nonsense)
        assert cache.collect_garbage().is_whole


def detached(cache: Cache, tag: str, members: int) -> None:
    """An invalidation that has died right after it has put aside the tag's set, of many members."""
    client: Any = cache._ports.store.link.client()
    client.zadd(cache._ports.store.keys.tag_set(tag), {f"thing[{n}]": 10**15 for n in range(members)})
    cache._ports.store.detach([tag], 1).run()


def test_a_sweep_stops_in_the_middle_of_a_tag_set(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes one step at least, and whatever one has left the next ones find."""
    monkeypatch.setattr("cacheworkers.flows.garbage_collection.STEP", 10)
    cache = make_cache()
    client: Any = cache._ports.store.link.client()
    big, small = cache._ports.store.keys.tag_set("big"), cache._ports.store.keys.tag_set("small")
    client.zadd(big, {f"thing[{n}]": 1 for n in range(45)})
    client.zadd(small, {"thing[1]": 1})

    parts = [cache.collect_garbage(0.0)]
    while not parts[-1].is_whole:
        parts.append(cache.collect_garbage(0.0))

    assert max(part.members for part in parts) <= 11
    assert sum(part.members for part in parts) == 46
    assert names(cache) == set()


def test_a_sweep_stops_in_the_middle_of_a_detached_set(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheworkers.store.commands.tag_sets.CHUNK", 10)
    cache = make_cache()
    store = cache._ports.store
    client: Any = store.link.client()
    detached(cache, "all", 45)
    [name] = [each.name for each in store.detached_sets(["all"]).run()]
    left, is_whole = [client.zcard(name)], False

    while not is_whole:
        is_whole = cache.collect_garbage(0.0).is_whole
        left.append(client.zcard(name))

    assert max(before - after for before, after in itertools.pairwise(left)) == 10
    assert left[-1] == 0
    assert names(cache) == set()


def test_time_runs_out_in_the_middle_of_a_set(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sweep's time, by its clock, as many steps are made as fit into it, and no more."""
    monkeypatch.setattr("cacheworkers.flows.garbage_collection.STEP", 10)
    cache = make_cache()
    ports: Any = cache._ports
    now = itertools.count()
    client: Any = ports.store.link.client()
    client.zadd(ports.store.keys.tag_set("big"), {f"thing[{n}]": 1 for n in range(1000)})
    monkeypatch.setattr(ports, "clock", SimpleNamespace(monotonic=lambda: next(now)))

    assert cache.collect_garbage(20.0).members < 200
    assert cache.collect_garbage(1e6).is_whole
    assert names(cache) == set()


@pytest.mark.parametrize("within", [math.inf, 0.0])
def test_what_is_foreign_is_reported_and_passed_over(make_cache: MakeCache, events: list[Any], within: float) -> None:
    """The rest of the namespace is swept all the same."""
    cache = make_cache()
    keys = cache._ports.store.keys
    client: Any = cache._ports.store.link.client()
    detached(cache, "half-way", 3)
    strings = {keys.tag_set("a"), keys.detached_index("b"), keys.detaching("half-way", 0, 7, "foreign")[3]}
    for key in strings:
        client.set(key, "x")
    client.sadd(keys.detached_index("half-way"), keys.detaching("half-way", 0, 7, "foreign")[3])
    client.set(keys.last_invalidation("c"), "no number")
    client.hset(keys.last_invalidation("d"), "field", "x")
    for n in range(5):
        client.zadd(keys.tag_set(f"mine:{n}"), {"thing[1]": 1})
        client.set(keys.last_invalidation(f"mine:{n}"), 1)
    foreign = strings | {keys.last_invalidation("c"), keys.last_invalidation("d")}

    parts = [cache.collect_garbage(within)]
    while not parts[-1].is_whole:
        parts.append(cache.collect_garbage(within))

    assert names(cache) == foreign | {keys.detached_index("half-way")}
    assert sum(part.members for part in parts) == 5
    assert {event.key for event in events if isinstance(event, ForeignKey)} == foreign
    assert sum(part.foreign for part in parts) >= len(foreign)
    client.unlink(*names(cache))
