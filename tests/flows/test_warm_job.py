"""Warm jobs: a warm-up beside its caller, that is watched, awaited, stopped and resumed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from cacheworkers import Cache, CallError, ConfigError, Load, StoreUnavailable, WarmJob
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


def counted(cache: Cache) -> tuple[object, list[int]]:
    loads: list[int] = []

    @cache.batch_loader(fresh_for=300)
    def numbers(load: Load, keys: list[int]) -> dict[int, int]:
        loads.extend(keys)
        return {key: key * 10 for key in keys}

    return numbers, loads


def test_it_loads_each_call_once_and_reports_how_far_it_is(cache: Cache) -> None:
    numbers, loads = counted(cache)

    job = numbers.warm([3, 1, 2, 3])  # type: ignore[attr-defined]
    done = job.wait(60)

    assert (done.calls, done.loaded, done.share) == (3, 3, 1.0)
    assert sorted(loads) == [1, 2, 3]
    assert job.is_done and job.progress == done
    assert job.rate > 0
    assert repr(job) == "<WarmJob 3/3 fresh, 0 failed, done>"


def test_the_caller_goes_on_meanwhile(cache: Cache) -> None:
    go_on = threading.Event()

    @cache.loader(fresh_for=300)
    def slow(load: Load, n: int) -> int:
        assert go_on.wait(60)
        return n

    job = slow.warm([1])
    with pytest.raises(TimeoutError):
        job.wait(0.01)
    assert not job.is_done
    wait_until(lambda: job.concurrency > 0)
    go_on.set()

    assert job.wait(60).share == 1.0


def test_it_can_be_awaited(cache: Cache) -> None:
    numbers, loads = counted(cache)

    async def warm() -> tuple[WarmJob, float]:
        job = await numbers.awarm(range(5))  # type: ignore[attr-defined]
        return job, (await job).share

    job, share = asyncio.run(warm())

    assert share == 1.0
    assert sorted(loads) == [*range(5)]
    assert job.is_done


def test_who_awaits_and_is_cancelled_does_not_stop_it(cache: Cache) -> None:
    go_on = threading.Event()

    @cache.loader(fresh_for=300)
    def slow(load: Load, n: int) -> int:
        assert go_on.wait(60)
        return n

    async def impatient() -> WarmJob:
        job = await slow.awarm([1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job, 0.01)
        return job

    job = asyncio.run(impatient())
    go_on.set()

    assert job.wait(60).share == 1.0


def test_several_arguments_are_a_tuple(cache: Cache) -> None:
    @cache.loader(fresh_for=300)
    def page(load: Load, shop: str, n: int) -> str:
        return f"{shop} {n}"

    assert page.warm([("a", 1), ("b", 2)]).wait(60).loaded == 2
    assert page.read("b", 2).value == "b 2"
    with pytest.raises(CallError, match=r"page takes 2 arguments: give a tuple of them, got 7"):
        page.warm([("a", 1), 7])


def test_what_does_not_fit_is_said_before_anything_is_asked_for(cache: Cache) -> None:
    numbers, loads = counted(cache)

    with pytest.raises(CallError, match="nobody"):
        numbers.warm([1, "nobody"])  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="min_fresh must be a share from 0 to 1, got 95"):
        numbers.warm([1], min_fresh=95)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="max_rate must be more than 0"):
        numbers.warm([1], max_rate=0)  # type: ignore[attr-defined]

    assert loads == []


def test_stopped_it_asks_for_no_more_and_resumed_it_passes_over_what_is_there(cache: Cache) -> None:
    numbers, loads = counted(cache)
    job = numbers.warm(range(800), max_rate=200.0)  # type: ignore[attr-defined]
    wait_until(lambda: job.progress.loaded > 0)

    job.stop()
    stopped = job.wait(60)
    job.resume()
    done = job.wait(120)

    assert 0 < stopped.loaded < 800
    assert done.share == 1.0 and done.fresh >= stopped.loaded
    assert sorted(loads) == [*range(800)], "each was loaded once"


def test_a_store_that_goes_away_ends_it(make_cache: MakeCache) -> None:
    with Valkey() as server:
        numbers, _ = counted(make_cache(redis_url=server.url, store_timeout=0.5))
        job = numbers.warm(range(10_000), max_rate=10.0)  # type: ignore[attr-defined]
        wait_until(lambda: job.progress.window > 0)
        server.kill()

        with pytest.raises(StoreUnavailable):
            job.wait(60)
        assert job.is_done
