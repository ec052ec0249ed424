"""Warming up: what is missing is loaded and waited for, within its bounds, and nobody else notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cacheworkers import Cache, CallError, ConfigError, Load, UnknownLoader, WarmUp
from cacheworkers.core.driver import run
from cacheworkers.events import Event, Loaded
from cacheworkers.flows.keep_warm import BUSY, Queued, ask_for
from cacheworkers.flows.warm_up import UNLIMITED, _Job, _RequestedCall
from cacheworkers.local.clock import StoreClock
from cacheworkers.ops.warm_command import _why_failed
from cacheworkers.testing.servers import wait_until

MakeCache = Callable[..., Cache]


@pytest.fixture(autouse=True)
def every_round_looks_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheworkers.flows.keep_warm.TURN", 0.0)


def warm_up(
    cache: Cache, loader: str, calls: list[str], progress: Callable[[WarmUp], None] = lambda state: None, **options: Any
) -> WarmUp:
    """Warm calls in this thread."""
    chosen = {"max_rate": UNLIMITED, "concurrency": None, "min_fresh": 1.0, **options}
    spec = cache.loaders[loader]
    parsed = [spec.signature.parse(call).text for call in calls]
    return run(cache._warmer.flow(spec, parsed, progress=progress, **chosen))


def texts(cache: Cache, loader: str, keys: Any) -> list[str]:
    return [cache.call(loader, key) for key in keys]


def batched(cache: Cache, **policy: Any) -> tuple[Any, list[list[int]]]:
    loads: list[list[int]] = []

    @cache.batch_loader(fresh_for=300, tags=("n:{key}",), **policy)
    def number(load: Load, keys: list[int]) -> dict[int, int]:
        loads.append(keys)
        return {key: key * 10 for key in keys}

    return number, loads


def test_everything_is_there_when_it_returns_in_whole_batches(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheworkers.flows.warm_up.PATIENCE", 3600.0)
    number, loads = batched(cache)

    done = warm_up(cache, "number", texts(cache, "number", range(1000)))

    assert (done.calls, done.loaded, done.fresh, done.failed, done.share) == (1000, 1000, 0, 0, 1.0)
    assert sorted(key for keys in loads for key in keys) == list(range(1000))
    assert all(number.peek(key) is not None for key in (0, 500, 999))
    assert len(loads) == 10, "a query for every hundred"


def test_batches_are_whole_however_they_come_back(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for half a batch, while the window opens or the store is slow, is not filled."""
    monkeypatch.setattr("cacheworkers.flows.warm_up.PATIENCE", 3600.0)
    sizes: list[int] = []

    @cache.batch_loader(fresh_for=300)
    def number(load: Load, keys: list[int]) -> dict[int, int]:
        sizes.append(len(keys))
        return {key: key for key in keys}

    done = warm_up(cache, "number", texts(cache, "number", range(430)), concurrency=150, max_rate=2000.0)

    assert done.loaded == 430
    assert sizes == [100, 100, 100, 100, 30]


def test_a_call_that_is_held_for_long_does_not_stall_its_loader(make_cache: MakeCache) -> None:
    """The rest is loaded meanwhile, in batches that lack its room; its own turn comes when its lease ends."""
    cache = make_cache(batch_size=4)
    _, loads = batched(cache)
    seen: list[int] = []

    def look(state: WarmUp) -> None:
        seen.append(state.loaded)
        if state.loaded == 19:
            cache._ports.store.release([("number[0]", "f" * 16)]).run()

    cache._ports.store.claim("number[0]", "f" * 16, lease_for=3600.0).run()

    done = warm_up(cache, "number", texts(cache, "number", range(20)), concurrency=4, progress=look)

    assert (done.loaded, done.failed) == (20, 0)
    assert 19 in seen and [0] in loads


def test_batches_stay_whole_when_the_queue_is_long(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then one is under way at a time: smaller ones would be more queries."""
    monkeypatch.setattr("cacheworkers.flows.warm_up.PATIENCE", 3600.0)
    monkeypatch.setattr("cacheworkers.flows.warm_up.ASK_EVERY", 1e-6)
    monkeypatch.setattr(cache._runtime, "queued", lambda: SimpleNamespace(run=lambda: Queued(0, BUSY + 1)))
    _, loads = batched(cache)
    windows: list[int] = []

    warm_up(cache, "number", texts(cache, "number", range(1000)), progress=lambda state: windows.append(state.window))

    assert [len(keys) for keys in loads] == [100] * 10
    assert set(windows) == {100}


def test_a_job_that_was_killed_goes_on_where_it_was(cache: Cache) -> None:
    _, loads = batched(cache)
    calls = texts(cache, "number", range(300))

    class Killed(BaseException):
        pass

    def kill(state: WarmUp) -> None:
        if state.loaded >= 100:
            raise Killed

    with pytest.raises(Killed):
        warm_up(cache, "number", calls, progress=kill)
    done = warm_up(cache, "number", calls)

    assert done.fresh >= 100
    assert done.share == 1.0
    assert sorted(key for keys in loads for key in keys) == list(range(300)), "each was loaded once"


def test_it_stops_when_enough_is_fresh(cache: Cache) -> None:
    _, loads = batched(cache)

    done = warm_up(cache, "number", texts(cache, "number", range(1000)), min_fresh=0.3)

    assert 0.3 <= done.share < 1.0
    assert sum(map(len, loads)) < 1000


def test_what_fails_is_counted_and_stalls_nobody(cache: Cache) -> None:
    @cache.loader(fresh_for=300)
    def half(load: Load, n: int) -> int:
        if n % 2:
            raise RuntimeError("odd")
        return n

    done = warm_up(cache, "half", texts(cache, "half", range(40)))

    assert (done.loaded, done.failed) == (20, 20)
    assert done.failures and all(call in texts(cache, "half", range(1, 40, 2)) for call in done.failures)


def test_a_call_that_somebody_else_is_loading_is_waited_for(make_cache: MakeCache) -> None:
    one, other = make_cache(), make_cache()
    begun, go_on = threading.Event(), threading.Event()
    for cache in (one, other):

        @cache.loader(fresh_for=300)
        def slow(load: Load, n: int) -> int:
            begun.set()
            assert go_on.wait(60)
            return n

    assert run(ask_for(other._ports, other.loaders["slow"], ["slow[1]"])).asked == 1
    assert begun.wait(60)
    seen: list[int] = []

    def look(state: WarmUp) -> None:
        seen.append(state.loaded)
        if len(seen) == 3:
            go_on.set()

    done = warm_up(one, "slow", ["slow[1]"], progress=look)

    assert (done.loaded, done.failed) == (1, 0)
    assert seen[0] == 0


class Clock(StoreClock):
    """Time that passes only when somebody pauses."""

    __slots__ = ("at",)

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()

    def monotonic(self) -> float:
        return self.at


def test_the_rate_is_kept(cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the job's own time, of which loads take none: 500 calls at 100 a second take five seconds."""
    batched(cache)
    clock = Clock()
    monkeypatch.setattr(cache._ports, "clock", clock)
    began = clock.at
    dispatcher = cache._ports.dispatcher
    submit_all, taken = dispatcher.submit_all, []

    def submitted(asks: Any) -> int:
        taken.append(submit_all(asks))
        return taken[-1]

    monkeypatch.setattr(dispatcher, "submit_all", submitted, raising=False)

    class Pause:
        def __init__(self, seconds: float) -> None:
            self._seconds = seconds

        def run(self) -> None:
            wait_until(lambda: sum(isinstance(event, Loaded) for event in events) == sum(taken))
            clock.at += self._seconds

    monkeypatch.setattr("cacheworkers.runtime.warm_job.Pause", Pause)

    done = warm_up(cache, "number", texts(cache, "number", range(500)), max_rate=100.0)

    assert done.loaded == 500
    assert clock.at - began >= 4.4


def test_nothing_is_asked_for_while_misses_are_queued(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    _, loads = batched(cache)
    lengths = iter([100] * 3)
    states: list[tuple[bool, int]] = []

    class Look:
        def run(self) -> Queued:
            return Queued(next(lengths, 0), 0)

    monkeypatch.setattr(cache._runtime, "queued", Look)
    monkeypatch.setattr("cacheworkers.flows.warm_up.ASK_EVERY", 0.0)

    done = warm_up(
        cache,
        "number",
        texts(cache, "number", range(10)),
        progress=lambda state: states.append((state.is_waiting, sum(map(len, loads)))),
    )

    assert done.loaded == 10
    assert states[:3] == [(True, 0)] * 3
    assert states[-1][0] is False


def test_what_was_hot_before_a_deploy_is_warmed_under_the_new_version(make_cache: MakeCache) -> None:
    old, new = make_cache(), make_cache()
    for cache, version in ((old, 1), (new, 2)):

        @cache.loader(fresh_for=300, warm_for=900, version=version, tags=("product:{n}",))
        def product(load: Load, n: int) -> int:
            return n

        if version == 1:
            product.get(7)
            old.report_accesses()

    assert new.keep_warm()["product"].asked == 1
    done = warm_up(new, "product", ["product@2[7]"])
    assert done.share == 1.0
    assert new.invalidate("product:7").entries == 2, "both versions"
    assert new.stored("product@2[7]") is None


def test_an_invalidation_reaches_both_versions(make_cache: MakeCache) -> None:
    caches = [make_cache(), make_cache()]
    for version, cache in enumerate(caches, 1):

        @cache.loader(fresh_for=300, version=version, tags=("product:{n}",))
        def product(load: Load, n: int) -> int:
            return n

        assert product.get(7) == 7

    assert caches[0].invalidate("product:7").entries == 2
    assert caches[1].stored("product@2[7]") is None


def test_what_another_release_has_stored_is_not_fresh_for_this_one(make_cache: MakeCache) -> None:
    """It is left alone, as readers leave it, and fails the job: no process of this release could read it."""
    old, new, other = make_cache(), make_cache(), make_cache()
    names = batched(old)[0], batched(other)[0]

    @new.batch_loader(fresh_for=300, tags=("n:{key}",))
    def number(load: Load, keys: list[int]) -> dict[int, list[str] | None]:
        return {key: [str(key)] for key in keys}

    names[0].get(1)
    there = warm_up(new, "number", ["number[1]"])
    new._runtime.workers._run_loads = old._runtime.run_loads
    loaded = warm_up(new, "number", ["number[2]"])
    new._runtime.workers._run_loads = new._runtime.run_loads
    mixed = warm_up(new, "number", ["number[1]", "number[3]"])

    for done, call in ((there, "number[1]"), (loaded, "number[2]")):
        assert (done.fresh, done.loaded, done.failed, done.failures, done.share) == (0, 0, 1, [call], 0.0)
        why = _why_failed(new.explain(call))
        assert "of a release with another return type" in why and "invalidate its tags, raise `version`" in why
    assert (mixed.loaded, mixed.failed, mixed.share) == (1, 1, 0.5)
    assert warm_up(other, "number", ["number[1]", "number[3]"]).share == 0.5
    assert names[0].get(1) == 10 and number.get(3) == ["3"], "nothing was overwritten"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_rate": 0.0}, ConfigError),
        ({"max_rate": float("nan")}, ConfigError),
        ({"concurrency": 0}, ConfigError),
        ({"min_fresh": 1.5}, ConfigError),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(cache: Cache, options: Any, error: type[Exception]) -> None:
    batched(cache)
    with pytest.raises(error, match=next(iter(options))):
        warm_up(cache, "number", [], **options)


def test_foreign_calls_are_refused_before_anything_is_loaded(cache: Cache) -> None:
    _, loads = batched(cache)
    with pytest.raises(UnknownLoader):
        warm_up(cache, "nobody", [])
    with pytest.raises(CallError):
        warm_up(cache, "number", ["number[1]", "other[2]"])
    assert loads == []
    assert warm_up(cache, "number", []).share == 1.0


def test_a_call_whose_loader_has_died_is_loaded_once_its_lease_ends(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else's claim is no promise."""
    _, loads = batched(cache)
    monkeypatch.setattr("cacheworkers.flows.warm_up.LOST_EVERY", 0.05)
    cache._ports.store.claim("number[7]", "f" * 16, lease_for=0.5).run()

    done = warm_up(cache, "number", ["number[7]"])

    assert (done.loaded, done.failed) == (1, 0)
    assert loads == [[7]]


def test_a_broker_that_hangs_for_a_moment_costs_that_moment(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dispatcher does not take is asked for again."""
    _, loads = batched(cache)
    dispatcher = cache._ports.dispatcher
    submit_all, refusals = dispatcher.submit_all, iter(range(5))
    monkeypatch.setattr(
        dispatcher,
        "submit_all",
        lambda asks: 0 if next(refusals, None) is not None else submit_all(asks),
        raising=False,
    )

    done = warm_up(cache, "number", texts(cache, "number", range(250)))

    assert (done.loaded, done.failed) == (250, 0)
    assert sorted(key for keys in loads for key in keys) == list(range(250))


def test_a_broker_that_is_away_ends_it(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    batched(cache)
    monkeypatch.setattr("cacheworkers.flows.warm_up.LOST_AFTER", 0.1)
    monkeypatch.setattr(cache._ports.dispatcher, "submit_all", lambda asks: 0, raising=False)

    done = warm_up(cache, "number", texts(cache, "number", range(250)))

    assert (done.loaded, done.failed) == (0, 250)


@pytest.mark.parametrize(("lost", "loaded"), [(1, 1), (99, 0)])
def test_a_message_that_is_lost_is_sent_again_a_few_times(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, lost: int, loaded: int
) -> None:
    """Whoever could not send it has given its lease back."""
    batched(cache)
    monkeypatch.setattr("cacheworkers.flows.warm_up.LOST_EVERY", 0.05)
    dispatcher = cache._ports.dispatcher
    submit_all, losses = dispatcher.submit_all, iter(range(lost))

    def lose(asks: Any) -> int:
        if next(losses, None) is None:
            return submit_all(asks)
        cache._runtime.undelivered(asks)
        cache._runtime._undeliverable_until = 0.0
        return len(asks)

    monkeypatch.setattr(dispatcher, "submit_all", lose, raising=False)

    done = warm_up(cache, "number", texts(cache, "number", [7]))

    assert (done.loaded, done.failed) == (loaded, 1 - loaded)


def test_a_call_whose_message_is_still_queued_is_not_lost(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that another loader holds up get to it, though its lease has run out; asked for again it fails none."""
    batched(cache)
    monkeypatch.setattr("cacheworkers.flows.warm_up.LOST_EVERY", 0.01)
    monkeypatch.setattr("cacheworkers.flows.warm_up.ASK_EVERY", 0.01)
    store, dispatcher = cache._ports.store, cache._ports.dispatcher
    submit_all, queued, looks = dispatcher.submit_all, [], 0

    class Look:
        def run(self) -> Queued:
            return Queued(0, len(queued))

    def queue(asks: Any) -> int:
        queued.extend(asks)
        store.release([(ask.call, ask.token) for ask in asks]).run()  # as a lease that runs out
        return len(asks)

    def look(state: WarmUp) -> None:
        nonlocal looks
        looks += 1
        if looks == 50:
            monkeypatch.setattr(dispatcher, "submit_all", submit_all, raising=False)
            taken, queued[:] = queued[:], []
            submit_all(taken)

    monkeypatch.setattr(dispatcher, "submit_all", queue, raising=False)
    monkeypatch.setattr(cache._runtime, "queued", Look)

    done = warm_up(cache, "number", texts(cache, "number", [7]), progress=look)

    assert (done.loaded, done.failed) == (1, 0)


def test_the_share_is_of_what_is_fresh_at_the_end(cache: Cache) -> None:
    """What the first loads brought may have gone stale, or was invalidated, before the last one ended."""
    number, _ = batched(cache)
    softened: list[int] = []

    def look(state: WarmUp) -> None:
        if state.loaded >= 100 and not softened:
            softened.append(cache._ports.store.soften(texts(cache, "number", range(30))).run())
            number.invalidate(30)

    done = warm_up(cache, "number", texts(cache, "number", range(1000)), concurrency=100, progress=look)

    assert (done.loaded, done.done, done.still_fresh) == (1000, 1000, 969)
    assert done.share == 0.969


class Queue:
    """A warm queue in the job's own time, of which each pause is `pause` seconds."""

    def __init__(self, cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch, *, pause: float) -> None:
        self.clock, self.waiting, self.foreign = Clock(), [], 0
        self.longest = 0
        dispatcher = cache._ports.dispatcher
        self._submit_all, self._events, self._taken = dispatcher.submit_all, events, 0

        def submit_all(asks: Any) -> int:
            self.waiting.extend(asks)
            self.longest = max(self.longest, len(self.waiting))
            return len(asks)

        def run(step: Any) -> Any:
            self.clock.at += pause
            self.work()

        monkeypatch.setattr(cache._ports, "clock", self.clock)
        monkeypatch.setattr(dispatcher, "submit_all", submit_all, raising=False)
        monkeypatch.setattr("cacheworkers.runtime.warm_job.Pause.run", run)
        monkeypatch.setattr(
            cache._runtime, "queued", lambda: SimpleNamespace(run=lambda: Queued(0, len(self.waiting) + self.foreign))
        )

    def work(self) -> None:
        """What a worker does during one pause: nothing."""

    def take(self) -> None:
        """Have a worker load the first that waits."""
        if self.waiting:
            self._taken += self._submit_all([self.waiting.pop(0)])
            wait_until(lambda: sum(isinstance(event, Loaded) for event in self._events) == self._taken)


def test_nothing_fails_because_it_is_queued_for_long(
    cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One load in half a minute: those behind wait for several times what a load may take."""
    queue = Queue(cache, events, monkeypatch, pause=30.0)
    monkeypatch.setattr(queue, "work", queue.take)

    @cache.loader(fresh_for=3600, load_for=20.0)
    def number(load: Load, n: int) -> int:
        return n

    done = warm_up(cache, "number", texts(cache, "number", range(16)))

    assert (done.loaded, done.failed) == (16, 0)
    assert queue.clock.at >= 16 * 30.0


def test_what_waits_behind_others_messages_is_not_lost_while_workers_take_those(
    cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(cache, events, monkeypatch, pause=10.0)
    queue.foreign = 20

    def work() -> None:
        if queue.foreign:
            queue.foreign -= 1
        else:
            queue.take()

    monkeypatch.setattr(queue, "work", work)
    batched(cache)

    done = warm_up(cache, "number", texts(cache, "number", range(4)))

    assert (done.loaded, done.failed) == (4, 0)


def test_misses_that_nobody_takes_hold_nothing_up_for_long(
    cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody serves them, or those who did are gone: their readers have loaded for themselves."""
    queue = Queue(cache, events, monkeypatch, pause=1.0)
    monkeypatch.setattr(queue, "work", queue.take)
    monkeypatch.setattr(cache._runtime, "queued", lambda: SimpleNamespace(run=lambda: Queued(100, 0)))
    began = queue.clock.at
    states: list[tuple[float, bool, int, int]] = []
    batched(cache)

    done = warm_up(
        cache,
        "number",
        texts(cache, "number", range(4)),
        progress=lambda state: states.append(
            (queue.clock.at - began, state.is_waiting, state.unserved_misses, state.loaded)
        ),
    )

    assert done.loaded == 4
    waited = [(is_waiting, unserved, loaded) for at, is_waiting, unserved, loaded in states if at < 30.0]
    assert set(waited) == {(True, 0, 0)}
    assert states[-1][1:] == (False, 100, 4)


def test_misses_are_waited_for_as_long_as_workers_take_some(
    cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where as many come as are taken, for the oldest of them is never old."""
    queue = Queue(cache, events, monkeypatch, pause=1.0)
    monkeypatch.setattr(queue, "work", queue.take)
    began = queue.clock.at
    states: list[bool] = []

    def queued() -> Queued:
        return Queued(100, 0, 5.0) if queue.clock.at - began < 120.0 else Queued(0, 0)

    monkeypatch.setattr(cache._runtime, "queued", lambda: SimpleNamespace(run=queued))
    batched(cache)

    warm_up(
        cache,
        "number",
        texts(cache, "number", range(4)),
        progress=lambda state: states.append(state.is_waiting),
    )

    assert states.index(False) >= 119


def test_what_nobody_takes_is_given_up(cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job ends also where there are no workers."""
    queue = Queue(cache, events, monkeypatch, pause=1.0)
    began = queue.clock.at
    batched(cache, load_for=20.0)

    done = warm_up(cache, "number", texts(cache, "number", range(4)))

    assert (done.loaded, done.failed) == (0, 4)
    assert queue.clock.at - began >= 50.0
    assert done.stuck_for >= 45.0, "and says so"


def test_the_queue_of_a_job_stays_short_enough_for_rounds(
    cache: Cache, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beat does none while more than eight messages are queued."""
    queue = Queue(cache, events, monkeypatch, pause=0.5)
    windows: list[int] = []
    most: list[int] = []
    monkeypatch.setattr(queue, "work", queue.take)

    @cache.loader(fresh_for=3600, load_for=20.0)
    def number(load: Load, n: int) -> int:
        return n

    def look(state: WarmUp) -> None:
        windows.append(state.window)
        most.append(len(queue.waiting))

    done = warm_up(cache, "number", texts(cache, "number", range(100)), progress=look)

    assert done.loaded == 100
    assert sum(length > BUSY for length in most) < len(most) / 2
    assert max(windows) < 20


def test_the_window_goes_by_the_length_of_the_queue(cache: Cache) -> None:
    """It grows by a half where it is full and few messages wait, up to `concurrency`; with many it halves."""

    @cache.loader(fresh_for=300)
    def number(load: Load, n: int) -> int:
        return n

    job = _Job(cache._ports, cache._loaders["number"], texts(cache, "number", range(100)), 0.0, 20)

    def window(warm: int, miss: int = 0, *, under_way: int) -> int:
        job.asked = {call: _RequestedCall(b"", 0.0) for call in job.left[:under_way]}
        job.note_queued(Queued(miss, warm))
        return job.window

    assert [window(0, under_way=under_way) for under_way in (7, 8, 12, 18, 20)] == [8, 12, 18, 20, 20]
    assert [window(warm, under_way=20) for warm in (BUSY // 2 + 1, BUSY, BUSY + 1)] == [20, 20, 10]
    assert [window(0, BUSY + 1, under_way=20) for _ in range(5)] == [5, 2, 1, 1, 1]


def test_what_was_lost_is_asked_for_after_all_others(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that kills its worker, again and again, does so when the others are there."""
    asked: list[str] = []
    batched(cache)
    monkeypatch.setattr("cacheworkers.flows.warm_up.LOST_EVERY", 0.0)
    dispatcher = cache._ports.dispatcher
    submit_all = dispatcher.submit_all

    def lose_the_first(asks: Any) -> int:
        asked.extend(ask.call for ask in asks)
        for ask in asks:
            if ask.call == "number[0]":
                cache._runtime.undelivered([ask])
                cache._runtime._undeliverable_until = 0.0
        submit_all([ask for ask in asks if ask.call != "number[0]"])
        return len(asks)

    monkeypatch.setattr(dispatcher, "submit_all", lose_the_first, raising=False)

    done = warm_up(cache, "number", texts(cache, "number", range(30)), concurrency=1)

    assert (done.loaded, done.failed, done.failures) == (29, 1, ["number[0]"])
    assert asked[:30] == texts(cache, "number", range(30))
    assert set(asked[30:]) == {"number[0]"}
