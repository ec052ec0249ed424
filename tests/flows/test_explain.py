"""Explain says what the next read does, and touches nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from celery import Celery

from cacheworkers import Cache, CallError, Explanation, Load, LoadError, Policy, UnknownLoader
from cacheworkers.core import envelope
from cacheworkers.core.entry import Freshness
from cacheworkers.events import Loaded
from cacheworkers.flows.explain import Miss
from cacheworkers.flows.load_failure import LOAD_REFUSED, STORE_FULL
from cacheworkers.ops.explanation_text import lines
from cacheworkers.store.connections.request import Request
from cacheworkers.testing.servers import wait_until

LOADING = "wait: it is being loaded; raise LoadTimeout if that has not ended within 2 s"


def declared(cache: Cache, **policy: Any) -> Any:
    @cache.loader(tags=("n:{n}",), **{"fresh_for": 300, "stale_for": 60, "wait_for": 2.0, "early": 0.0, **policy})
    def number(load: Load, n: int) -> int:
        if n > 100:
            raise RuntimeError("no such number")
        return n

    return number


def test_a_fresh_entry(cache: Cache) -> None:
    number = declared(cache, l1_for=0.0)
    number.get(1)
    cache.invalidate("n:2")

    found = cache.explain("number[1]")

    assert (found.freshness, found.verdict) == ("fresh", "serve it from the store")
    assert found.age is not None and 0 <= found.age < 60
    assert found.fresh_for is not None and 200 < found.fresh_for <= 300
    assert [(each.tag, each.last_invalidation) for each in found.tags] == [("n:1", 0)]
    assert found.size == 1 and found.lease == {} and found.failure == {}


def test_a_missing_entry_has_the_tags_that_its_arguments_make(cache: Cache) -> None:
    declared(cache)
    done = cache.invalidate("n:1")

    found = cache.explain("number[1]")

    assert (found.freshness, found.verdict) == ("missing", "load it in the reader's process")
    [tag] = found.tags
    assert (tag.tag, tag.last_invalidation) == ("n:1", done.seq) and tag.ago is not None


def test_what_memory_would_answer(cache: Cache) -> None:
    number = declared(cache)
    number.get(1)
    wait_until(lambda: cache._ports.listener.is_up)
    assert cache._ports.listener.barrier(60.0).run()  # no push comes late
    wait_until(lambda: number.read(1).tier == "l1")
    number.get(1)
    cache.report_accesses()

    found = cache.explain("number[1]")

    assert found.access_score > 0
    assert found.in_l1 and found.is_listening and found.l1_reads >= 2
    assert found.verdict == "serve it from this process's memory"


def test_a_stale_entry_and_its_invalidation(cache: Cache) -> None:
    number = declared(cache)
    number.get(1)
    done = cache.invalidate("n:1", mode="soft")

    found = cache.explain("number[1]")

    assert found.freshness == "stale"
    assert found.verdict.endswith("; revalidate it in the reader's process")
    assert found.tags[0].last_invalidation == done.seq > found.seq
    assert found.tags[0].ago is not None and 0 <= found.tags[0].ago < 60
    assert found.revalidates_in == 0.0
    assert found.at == pytest.approx(cache._ports.clock.now(), abs=60)


def test_a_missing_one(cache: Cache) -> None:
    declared(cache)

    found = cache.explain("number[5]")

    assert (found.verdict, found.access_score) == ("load it in the reader's process", 0.0)
    assert cache.stored("number[5]") is None


def test_a_failure_and_its_backoff(cache: Cache) -> None:
    number = declared(cache)
    with pytest.raises(LoadError):
        number.get(101)

    found = cache.explain("number[101]")

    assert found.verdict.startswith("raise LoadError: the last load failed with RuntimeError")
    assert found.failure["text"] == "no such number"


def test_a_load_under_way(cache: Cache) -> None:
    declared(cache)
    cache._ports.store.claim("number[7]", "a" * 16, lease_for=60.0).run()

    found = cache.explain("number[7]")

    assert found.verdict == "wait: a load has been asked for; load it in the reader if none has begun within 2 s"
    assert found.lease["token"] == "a" * 16


def test_what_is_to_be_warmed_is_waited_for_only_once_it_is_loaded(cache: Cache) -> None:
    declared(cache)
    store = cache._ports.store
    store.claim_many([("number[7]", "a" * 16, b"")], lease_for=60.0, warms=True).run()

    before = cache.explain("number[7]").verdict
    store.begin([("number[7]", "a" * 16, "b" * 16, b"")], load_for=60.0).run()

    assert before == "load it in the reader's process"
    assert cache.explain("number[7]").verdict == LOADING


def test_nothing_is_loaded_counted_or_claimed(cache: Cache, events: list[Any]) -> None:
    number = declared(cache)
    number.get(1)
    # The reader is woken by the entry; the worker's thread reports its load a moment later.
    wait_until(lambda: any(isinstance(event, Loaded) for event in events))
    events.clear()

    cache.explain("number[1]")
    cache.explain("number[2]")

    assert events == []
    assert number.peek(2) is None


def test_a_loader_and_its_arguments_name_the_call(cache: Cache) -> None:
    """As a read of it would be written; or its text."""
    number = declared(cache)

    found = [cache.explain(number, 1), cache.explain(number, n=1), asyncio.run(cache.aexplain(number, 1))]

    assert {each.call for each in found} == {"number[1]"}
    with pytest.raises(CallError):
        cache.explain(number)
    with pytest.raises(CallError, match="a call's text alone"):
        cache.explain("number[1]", 1)


def test_what_is_no_call_is_refused(cache: Cache) -> None:
    declared(cache)

    with pytest.raises(UnknownLoader, match="declared are number"):
        cache.explain("nobody[1]")
    with pytest.raises(CallError):
        cache.explain('number["x"]')
    with pytest.raises(CallError, match=r"arguments as JSON, as in number\[42\], got 'number:1'; declared are number"):
        cache.explain("number:1")
    assert cache.explain("number(1)").call == "number[1]"


def test_when_it_is_revalidated_and_how_often_its_load_has_begun(cache: Cache) -> None:
    number = declared(cache, warm_for=900.0)
    number.get(1)
    cold = cache.explain("number[1]")
    assert cold.revalidates_in == cold.fresh_for and cold.attempts == 0

    for _ in range(5):
        cache._ports.access_counter.count("number[1]")
    cache.report_accesses()
    hot = cache.explain("number[1]")
    assert hot.fresh_for is not None and hot.revalidates_in == hot.fresh_for - 3 * cache.config.warm_interval - 1.0

    store: Any = cache._ports.store
    store.claim("number[7]", "a" * 16, lease_for=60.0).run()
    store.begin([("number[7]", "a" * 16, "b" * 16, b"")], load_for=60.0).run()
    assert cache.explain("number[7]").attempts == 1


def test_an_entry_of_many_tags_costs_as_many_round_trips_as_one_of_few(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No entry of ours has more than `max_tags`: one that somebody forged is explained as far as that."""
    number = declared(cache)
    number.get(1)
    ports = cache._ports
    key = ports.store.keys.entry("number[1]")
    entry = envelope.unpack(ports.store.get("number[1]").run() or b"")
    trips: list[int] = []
    exchange = ports.store.link.exchange
    monkeypatch.setattr(
        ports.store.link, "exchange", lambda requests: trips.append(len(requests)) or exchange(requests)
    )

    cache.explain("number[1]")
    few = len(trips)
    forged = msgspec.structs.replace(entry, tags=tuple(f"t{n}" for n in range(10_000)))
    exchange([Request(("SET", key, envelope.pack(forged)))])
    trips.clear()
    found = cache.explain("number[1]")

    assert len(trips) == few and max(trips) == ports.config.max_tags
    assert (len(found.tags), found.more_tags) == (200, 9_800)
    assert ("tag", "and 9,800 more than `max_tags`") in list(lines(found))


def test_an_invalidation_that_is_ahead_of_the_clock_is_no_second_old(cache: Cache) -> None:
    """Many within one millisecond have numbers of milliseconds to come."""
    number = declared(cache)
    number.get(1)
    ahead = int((cache._ports.clock.now() + 60) * 1000)
    cache._ports.store.mark_tags(["n:1"], ahead).run()

    [tag] = cache.explain("number[1]").tags

    assert (tag.last_invalidation, tag.ago) == (ahead, 0.0)


def rows(found: Explanation) -> dict[str, str]:
    return dict(lines(found))


def test_whether_workers_are_there_is_said_as_far_as_the_store_knows(make_cache: Callable[..., Cache]) -> None:
    """This process is none of the application's: what readers wait for depends on workers, which leave a mark."""
    cache = make_cache(celery=Celery("shop", broker="memory://"))
    declared(cache)
    nobody = cache.explain("number[1]")
    cache._ports.store.note_taken("miss").run()
    seen = cache.explain("number[1]")
    cache._runtime._worker_breaker._in_a_row = 3  # type: ignore[union-attr]  # it is there, with Celery
    given_up = cache.explain("number[1]")
    without = make_cache()
    declared(without)

    assert (
        nobody.verdict
        == given_up.verdict
        == "load it in the reader, after at most 2 s: no worker has begun a load lately"
    )
    assert rows(nobody)["workers"].startswith(f"none seen to load from {cache.config.queues.miss} in ten minutes; ")
    assert seen.verdict == "ask a worker to load it, and wait; load it in the reader if none has begun within 2 s"
    assert rows(seen)["workers"].startswith(f"last seen to take {cache.config.queues.miss} ")
    assert rows(without.explain("number[1]"))["workers"].startswith("none: without a Celery app")


@pytest.mark.parametrize(
    ("on_timeout", "verdict"),
    [
        ("load", "load it for the reader's process alone: the store has another release's"),
        ("raise", 'raise LoadTimeout: the store has another release\'s, and on_timeout is "raise"'),
    ],
)
def test_an_entry_of_another_release_is_no_empty_store(
    make_cache: Callable[..., Cache], on_timeout: str, verdict: str
) -> None:
    """It is loaded beside that entry while it is fresh, and asked for again after that."""
    old, new = make_cache(), make_cache()
    declared(old, fresh_for=290, jitter=0.0).get(1)

    @new.loader(name="number", fresh_for=300, on_timeout=on_timeout)
    def number(load: Load, n: int) -> str:
        return str(n)

    found = new.explain("number[1]")
    old.invalidate("n:1", mode="soft")

    assert found.verdict == verdict
    assert "is of a release with another return type" in rows(found)["store"] and "in 4 min" in rows(found)["fresh"]
    assert new.explain("number[1]").verdict == "load it in the reader's process"


def test_a_value_for_those_alone_who_waited_is_none_for_the_next_reader(cache: Cache) -> None:
    @cache.loader(fresh_for=300)
    def basket(load: Load, n: int) -> int:
        load.no_store()
        return n

    basket.get(1)

    assert cache.explain("basket[1]").verdict == "load it in the reader's process"


ERROR = {"kind": "ValueError", "text": "no"}
FULL = {"kind": STORE_FULL, "text": "no room"}
ASKED = {"token": "t"}
REFUSED = {"kind": LOAD_REFUSED, "text": "unknown there"}


@pytest.mark.parametrize(
    ("freshness", "facts", "on_timeout", "verdict"),
    [
        ("stale", {}, "load", "serve it from the store; ask a worker to revalidate it"),
        ("stale", {"lease": ASKED}, "load", "serve it from the store; it is being revalidated"),
        (
            "stale",
            {"failure": ERROR},
            "load",
            "serve it from the store; nobody revalidates it before the backoff of its failure ends",
        ),
        ("lapsed", {"failure": ERROR}, "load", "serve it although it has lapsed: its reload fails"),
        (
            "lapsed",
            {"is_unserved": True},
            "raise",
            "serve the lapsed value after 2 s: no worker has begun a load lately",
        ),
        ("lapsed", {"lease": {"token": "t", "taken_over": "1"}}, "load", "wait: another reader loads it"),
        ("missing", {}, "raise", "ask a worker to load it, and wait; raise LoadTimeout after 2 s"),
        ("missing", {"lease": ASKED}, "raise", "wait: a load has been asked for; raise LoadTimeout after 2 s"),
        (
            "missing",
            {"failure": FULL, "lease": {"token": "t"}},
            "load",
            "load it in the reader and store nothing: no room",
        ),
        ("missing", {"failure": FULL}, "raise", "raise LoadTimeout: no room"),
        ("missing", {"failure": REFUSED}, "load", "load it in the reader: unknown there"),
        (
            "missing",
            {"failure": {"kind": "KeyMissing"}, "is_batch": True},
            "load",
            "raise KeyMissing: the batch loader left it out, and its backoff is running",
        ),
    ],
)
def test_a_verdict_for_each_state(freshness: str, facts: dict[str, Any], on_timeout: Any, verdict: str) -> None:
    assert Miss(Policy(wait_for=2.0, on_timeout=on_timeout), **facts).verdict(Freshness(freshness)) == verdict
