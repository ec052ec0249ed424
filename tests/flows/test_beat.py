"""Beat: two of them do every period's work once, a late one does it once, and what was missed is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from cacheworkers import Cache
from cacheworkers.events import Event, GarbageCollected, UpkeepMissed
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


def beaten(make_cache: MakeCache, **config: Any) -> Any:
    """The task that beat sends, in a process of its own."""
    app = Celery("beat", broker="memory://")
    make_cache(celery=app, **config)
    return app.tasks["cacheworkers.collect_garbage"]


def sweeps(events: list[Event]) -> int:
    return sum(isinstance(event, GarbageCollected) for event in events)


def test_two_beats_do_the_work_of_a_period_once(make_cache: MakeCache, events: list[Event]) -> None:
    """As do a beat that lets ticks pile up and sends them all, and a broker that delivers one twice."""
    one, other = beaten(make_cache, gc_interval=600.0), beaten(make_cache, gc_interval=600.0)

    for tick in (one, other, one, other):
        tick()

    assert sweeps(events) == 1


def test_the_next_period_s_work_is_done(make_cache: MakeCache, events: list[Event]) -> None:
    one, other = beaten(make_cache, gc_interval=0.1), beaten(make_cache, gc_interval=0.1)

    def ticked() -> bool:
        one()
        other()
        return sweeps(events) >= 3

    wait_until(ticked)


def test_ticks_that_were_missed_are_reported_once_beat_is_back(
    make_cache: MakeCache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    tick = beaten(make_cache, gc_interval=0.1)
    monkeypatch.setattr("cacheworkers.runtime.celery_workers.LATE_MARGIN", 0.2)
    tick()
    assert not any(isinstance(event, UpkeepMissed) for event in events), "the first tick ever is not late"

    def missed() -> list[UpkeepMissed]:
        return [event for event in events if isinstance(event, UpkeepMissed)]

    cache = make_cache()
    keys: Any = cache._ports.store.keys
    client: Any = cache._ports.store.link.client()
    client.pexpire(keys.beat("collect_garbage"), 86_400_000 - 60_000)  # a minute has passed
    client.delete(keys.tick("collect_garbage"))
    tick()

    [found] = missed()
    assert (found.task, found.every) == ("collect_garbage", 0.1)
    assert 60.0 <= found.since < 90.0


def test_a_store_that_is_away_costs_the_tick_and_no_more(make_cache: MakeCache, events: list[Event]) -> None:
    app = Celery("beat", broker="memory://")
    make_cache(celery=app, redis_url="redis://127.0.0.1:1/0", store_timeout=0.1)

    app.tasks["cacheworkers.collect_garbage"]()

    assert sweeps(events) == 0
