"""Scripts at their edges: records that others have left, clocks, and what comes twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cacheworkers import Cache
from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry
from cacheworkers.store.commands.replies import Alone, Begun, Claimed, Held, Overtaken

CALL, TOKEN, FENCE = "price[1]", "0" * 16, "f" * 16
MARGIN = 1.0


@pytest.fixture
def store(cache: Cache) -> Any:
    return cache._ports.store


@pytest.fixture
def client(store: Any) -> Any:
    return store.link.client()


def server_time(client: Any) -> float:
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6)


def entry(seq: int = 1, tags: tuple[str, ...] = ("all",)) -> Entry:
    now = time.time()
    return Entry(CALL, tags, b"1", now, now + 50, now + 100, now + 200, 50.0, 0.1, seq, b"version1", b"d" * 8)


def begin(store: Any, *, is_redelivered: bool = False, is_shared: bool = False, fence: str = FENCE) -> Any:
    [begun] = store.begin(
        [(CALL, TOKEN, fence, b"")], load_for=30, is_redelivered=is_redelivered, is_shared=is_shared
    ).run()
    return begun


def test_the_second_failure_in_a_row_counts_as_the_second(store: Any) -> None:
    for count in ("1", "2", "3"):
        store.claim(CALL, TOKEN, lease_for=30, heeds_backoff=False).run()
        begin(store)

        assert store.fail([(CALL, FENCE, "OSError", "no")], first_for=1, most_for=60).run() == [True]

        assert store.failures(CALL).run()["count"] == count


def test_a_released_lease_writes_the_key_that_wakes_its_waiters(store: Any, client: Any) -> None:
    store.claim(CALL, TOKEN, lease_for=30).run()
    before = client.info("commandstats")["cmdstat_hset"]["calls"]

    assert store.release([(CALL, TOKEN)]).run() == 1

    assert client.info("commandstats")["cmdstat_hset"]["calls"] == before + 1
    assert store.failures(CALL).run() == {}


def test_a_load_that_goes_on_after_a_death_is_the_only_one_that_runs(store: Any, client: Any) -> None:
    store.claim(CALL, TOKEN, lease_for=30).run()
    assert begin(store) == Begun(1, None)
    assert client.get(store.keys.attempts(CALL)).split()[3] == b"1"

    assert begin(store, is_redelivered=True, fence="e" * 16) == Begun(2, None)

    assert client.get(store.keys.attempts(CALL)).split()[3] == b"1"


def test_a_shared_load_that_died_is_begun_alone(store: Any) -> None:
    store.claim(CALL, TOKEN, lease_for=30).run()
    begin(store, is_shared=True)

    assert begin(store, is_redelivered=True, is_shared=True, fence="e" * 16) == Alone()
    assert begin(store, is_redelivered=True, is_shared=False, fence="e" * 16) == Begun(1, None)


def test_a_call_of_which_many_overtaken_loads_run_is_held_until_they_end(store: Any, client: Any) -> None:
    until = server_time(client) + 20
    client.set(store.keys.attempts(CALL), f"1 {until * 1000:.0f} 0 100")

    held = store.claim(CALL, TOKEN, lease_for=30).run()

    assert isinstance(held, Held) and 20 - MARGIN <= held.rest <= 20.1
    assert store.claim(CALL, TOKEN, lease_for=30, is_last=True).run() == Claimed(False)


def test_an_overtaken_value_is_for_claims_that_take_one_of_its_age(store: Any) -> None:
    store.offer(entry(seq=7), kept_for=30).run()

    found = store.claim(CALL, TOKEN, lease_for=30, least_seq=7).run()

    assert isinstance(found, Overtaken) and envelope.unpack(found.raw).seq == 7
    assert store.claim(CALL, TOKEN, lease_for=30, least_seq=8).run() == Claimed(False)


def test_registered_together_with_its_write_it_stays_in_its_sets_for_longer_than_it_lives(
    store: Any, client: Any
) -> None:
    made = entry()
    store.claim(CALL, TOKEN, lease_for=30).run()
    begin(store)

    for _ in range(2):  # a reply may be late, and the script sent twice
        _, stored = store.register_write([(made, FENCE)], made.seq, load_for=30).run()
        assert stored == [True]

    score = client.zscore(store.keys.tag_set("all"), CALL)
    assert score / 1000 > made.expires_at


def test_a_write_that_another_has_replaced_is_none(store: Any) -> None:
    store.claim(CALL, TOKEN, lease_for=30).run()
    begin(store)
    assert store.register_write([(entry(), "e" * 16)], 1, load_for=30).run()[1] == [False]


def test_shards_of_a_tag_are_never_fewer(make_cache: Any, cache: Cache) -> None:
    for shards in (4, 2):
        make_cache(tag_shards={"all": shards})._ports.store.snapshot().run()

    cache._ports.store.learn_shards().run()
    assert cache._ports.store.keys.shards("all") == 4


def test_an_older_invalidation_leaves_the_mark_of_a_younger_one(store: Any) -> None:
    for number in (10, 5):
        store.detach(["all"], number).run()
    assert store.last_invalidations(["all"], CALL).run() == [10]

    for number in (20, 15):
        store.mark_tags(["all"], number).run()
    assert store.last_invalidations(["all"], CALL).run() == [20]


def test_a_torn_entry_is_not_softened(store: Any, client: Any) -> None:
    for length in (0, 4, envelope.FRESH_UNTIL_AT, envelope.FRESH_UNTIL_AT + 15):
        torn = envelope.pack(entry())[:length]
        client.set(store.keys.entry(CALL), torn)

        assert store.soften([CALL]).run() == 0

        assert client.get(store.keys.entry(CALL)) == torn


def test_a_sequence_that_something_else_has_written_counts_as_none(store: Any, client: Any) -> None:
    """Of a number beyond what Lua counts exactly, the next one is the same."""
    for stray in (b"-5", b"12.5", b"1e300", b"18446744073709551616", b"nan", b"x"):
        client.set(store.keys.seq, stray)
        assert store.raise_seq(7).run() == 7

        client.set(store.keys.seq, stray)
        assert abs(store.next_seq().run() / 1000 - server_time(client)) < 60


def test_an_access_is_scored_by_the_store_s_clock(cache: Cache, client: Any) -> None:
    before = server_time(client)
    cache._ports.store.add_accesses("price", [(CALL, 1)], half_life=60, most=10).run()

    [(_, read_at)] = cache._ports.store.most_read("price", 0, 1, 0.0).run()

    assert before - 1e-5 <= read_at <= server_time(client) + 1e-5
