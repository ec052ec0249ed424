"""Accesses that could not be reported are reported later, and what is left when a process ends is reported then."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forked import in_child

from cacheworkers import Cache, Load, StoreUnavailable
from cacheworkers.flows.keep_warm import report_accesses
from cacheworkers.testing import Stepper, Valkey
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]
SELDOM = 3600.0


def made(make_cache: MakeCache, **options: Any) -> tuple[Cache, Any]:
    """A cache that reports nothing by itself while a test runs, and a loader."""
    cache = make_cache(access_report_interval=SELDOM, access_half_life=SELDOM, **options)

    @cache.loader(fresh_for=3000, early=0, jitter=0)
    def number(load: Load, n: int) -> int:
        return n

    return cache, number


def scores(number: Any) -> dict[str, float]:
    return {call: pytest.approx(reads, rel=0.05) for call, reads in number.hot()}


@pytest.fixture
def server() -> Iterator[Valkey]:
    with Valkey() as found:
        yield found


def test_what_an_outage_kept_from_being_reported_is_reported_after_it(
    make_cache: MakeCache, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was reported before it is not reported again."""
    monkeypatch.setattr("cacheworkers.flows.keep_warm.CHUNK", 1)
    cache, number = made(make_cache, redis_url=server.url, breaker_for=0.05)
    for n in (1, 2):
        for _ in range(4):
            number.get(n)

    reporting = Stepper(report_accesses(cache._ports))
    reporting.step()
    [reported] = number.hot()
    server.kill()
    reporting.step()
    assert isinstance(reporting.error, StoreUnavailable)
    server.start()

    def is_reported() -> bool:
        try:
            return cache.report_accesses() == 1
        except StoreUnavailable:
            return False

    wait_until(is_reported)
    [found] = number.hot()
    assert {found[0], reported[0]} == {"number[1]", "number[2]"}
    assert found[1] == pytest.approx(4, rel=0.05)
    assert cache.report_accesses() == 0


def test_what_could_not_be_reported_takes_bounded_memory(make_cache: MakeCache) -> None:
    """Reads go on being counted while nothing can be reported: what is read often stays."""
    cache, _ = made(make_cache, redis_url="redis://127.0.0.1:1/0", store_timeout=0.1)
    counter = cache._ports.access_counter
    counter._most = 100
    for round_ in range(20):
        counter.count("number[7]", 50)
        counter.count_each(f"number[{1000 * round_ + n}]" for n in range(60))
        with pytest.raises(StoreUnavailable):
            cache.report_accesses()

    assert len(counter) <= 101
    assert counter.taken((), 1).keys() == {"number[7]"}


def test_few_hits_in_the_store_wait_to_be_counted(make_cache: MakeCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheworkers.runtime.read_results.TOGETHER", 10)
    cache, number = made(make_cache, l1_for=0.0)
    for _ in range(25):
        number.get(7)

    assert len(cache._ports.access_counter.reads) < 10
    assert cache.report_accesses() == 1
    assert number.hot() == [("number[7]", pytest.approx(25, rel=0.05))]


def test_closing_reports_what_is_left(make_cache: MakeCache) -> None:
    cache, number = made(make_cache)
    for _ in range(5):
        number.get(7)

    cache.close()

    _, other = made(make_cache)
    assert scores(other) == {"number[7]": 5}


def test_closing_without_a_store_ends(make_cache: MakeCache, server: Valkey) -> None:
    """It costs a timeout, and the reads."""
    cache, number = made(make_cache, redis_url=server.url, store_timeout=0.5)
    number.get(7)

    server.pause()
    closing = threading.Thread(target=cache.close, daemon=True)
    closing.start()
    closing.join(60)

    assert not closing.is_alive()
    server.resume()


def test_a_forked_child_reports_nothing_of_its_parent_s_reads(make_cache: MakeCache) -> None:
    cache, number = made(make_cache)
    for _ in range(5):
        number.get(7)

    assert in_child(cache.close) == 0
    cache.close()

    _, other = made(make_cache)
    wait_until(lambda: scores(other) == {"number[7]": 5})
