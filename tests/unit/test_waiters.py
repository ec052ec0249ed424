"""Waiters: whoever waits for a call is woken by its push, whenever the push comes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from forked import in_child

from cacheworkers.local.flight import Flight
from cacheworkers.local.waiters import Waiter, Waiters

LONG = 30.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, at most ten seconds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0)


class InTurn:
    """A lock that lets threads in in the order given; those not named come and go as they like."""

    def __init__(self, *order: str) -> None:
        self._order = list(order)
        self._changed = threading.Condition(threading.RLock())

    def __enter__(self) -> None:
        self._changed.acquire()
        name = threading.current_thread().name
        while name in self._order and self._order[0] != name:
            assert self._changed.wait(60), f"it was never {name}'s turn: {self._order}"

    def __exit__(self, *_: object) -> None:
        if self._order and self._order[0] == threading.current_thread().name:
            self._order.pop(0)
        self._changed.notify_all()
        self._changed.release()


def in_thread(name: str, work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), name=name, daemon=True)
    thread.start()
    return thread, found


# -- nothing is lost


def test_wake_between_entering_and_waiting_is_not_lost() -> None:
    """A push that comes while the reader is still looking ends its wait immediately."""
    waiters = Waiters()

    with waiters.enter("product[1]") as waiter:
        waiters.wake("product[1]")

        assert waiter.woken
        assert waiter.wait(LONG)
        assert asyncio.run(waiter.await_(LONG))


def test_wake_between_rearming_and_waiting_is_not_lost() -> None:
    """Rearming forgets what came before the look, not what comes during it."""
    waiters = Waiters()

    with waiters.enter("product[1]") as waiter:
        waiters.wake("product[1]")
        waiter.rearm()
        forgotten = not waiter.woken
        waiters.wake("product[1]")

        assert forgotten
        assert waiter.wait(LONG)


def test_rearmed_waiter_sleeps_to_its_timeout() -> None:
    """An old wake-up does not end a new wait."""
    waiters = Waiters()

    with waiters.enter("product[1]") as waiter:
        waiters.wake("product[1]")
        waiter.rearm()

        assert not waiter.wait(0.0)
        assert not asyncio.run(waiter.await_(0.0))


def test_wake_of_another_call_wakes_nobody() -> None:
    """A push concerns its own call only."""
    waiters = Waiters()

    with waiters.enter("product[1]") as waiter, waiters.enter("product[2]"):
        waiters.wake("product[2]")
        waiters.wake("product[3]")

        assert not waiter.woken


@pytest.mark.parametrize("order", [("sleeper", "waker"), ("waker", "sleeper")])
def test_thread_is_woken_whichever_comes_first(order: tuple[str, str]) -> None:
    """The wake may come just before the sleeper registers, or just after."""
    waiters = Waiters()
    waiter = waiters.enter("product[1]")
    waiters._lock = InTurn(*order)  # type: ignore[assignment]

    sleeper, woken = in_thread("sleeper", lambda: waiter.wait(LONG))
    in_thread("waker", lambda: waiters.wake("product[1]"))
    sleeper.join(60)

    assert woken == [True]


@pytest.mark.parametrize("order", [("sleeper", "waker"), ("waker", "sleeper")])
def test_task_is_woken_whichever_comes_first(order: tuple[str, str]) -> None:
    """The same for a task, woken by another thread."""
    waiters = Waiters()
    waiter = waiters.enter("product[1]")
    waiters._lock = InTurn(*order)  # type: ignore[assignment]

    sleeper, woken = in_thread("sleeper", lambda: asyncio.run(waiter.await_(LONG)))
    in_thread("waker", lambda: waiters.wake("product[1]"))
    sleeper.join(60)

    assert woken == [True]


@pytest.mark.parametrize("order", [("leaver", "enterer"), ("enterer", "leaver")])
def test_reader_who_enters_as_the_last_one_leaves_is_in_the_flight_that_is_woken(order: tuple[str, str]) -> None:
    """A flight that ends takes no newcomer with it."""
    waiters = Waiters()
    last = waiters.enter("product[1]")
    waiters._lock = InTurn(*order)  # type: ignore[assignment]

    leaver, _ = in_thread("leaver", lambda: waiters.leave(last))
    enterer, entered = in_thread("enterer", lambda: waiters.enter("product[1]"))
    leaver.join(60)
    enterer.join(60)
    waiters.wake("product[1]")

    assert entered[0].woken


def test_leave_from_a_garbage_collection_inside_enter_does_not_cost_the_newcomer_its_wake_up() -> None:
    """The collector may close another read's generator in this very thread, half-way through `enter`."""
    waiters = Waiters()
    last = waiters.enter("product[1]")

    class Collecting(dict[str, Flight]):
        is_due = True

        def get(self, call: str, default: Any = None) -> Any:
            found = super().get(call, default)
            if self.is_due:
                self.is_due = False
                waiters.leave(last)
            return found

    waiters.flights = Collecting(waiters.flights)

    waiter = waiters.enter("product[1]")
    waiters.wake("product[1]")

    assert waiter.woken
    assert len(waiters) == 1


def test_collected_read_leaves_its_flight() -> None:
    """A task that is dropped in mid-wait with its loop does not stay registered."""
    waiters = Waiters()

    async def reader() -> None:
        with waiters.enter("product[1]") as waiter:
            await waiter.await_(LONG)

    loop = asyncio.new_event_loop()
    running = reader()
    loop.run_until_complete(_step(loop, running))
    assert len(waiters) == 1
    loop.close()

    running.close()

    assert len(waiters) == 0


async def _step(loop: asyncio.AbstractEventLoop, coroutine: Any) -> None:
    coroutine.send(None)


# -- many waiters


async def _sleepers(waiters: Waiters, call: str, number: int, timeout: float = LONG) -> list[asyncio.Task[bool]]:
    """Return tasks that sleep for a call."""

    async def sleep() -> bool:
        with waiters.enter(call) as waiter:
            return await waiter.await_(timeout)

    tasks = [asyncio.create_task(sleep()) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


def test_wake_calls_into_a_loop_once_for_all_its_tasks() -> None:
    """Five hundred tasks of a flight, and those of other flights, cost one system call a loop."""
    waiters = Waiters()
    calls = 0

    async def main() -> list[bool]:
        nonlocal calls
        loop = asyncio.get_running_loop()
        into_loop = loop.call_soon_threadsafe

        def counting(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return into_loop(*args, **kwargs)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign]
        tasks = await _sleepers(waiters, "product[1]", 500) + await _sleepers(waiters, "product[2]", 10)
        waiters.wake("product[1]")
        waiters.wake_all()
        return await asyncio.gather(*tasks)

    woken = asyncio.run(main())

    assert woken == [True] * 510
    assert calls == 1


def test_wakes_that_come_while_the_loop_finishes_earlier_ones_are_received() -> None:
    """Joining a call into the loop that has begun would lose the wake-up."""
    waiters = Waiters()

    async def main() -> list[bool]:
        first = await _sleepers(waiters, "product[1]", 1)
        second = await _sleepers(waiters, "product[2]", 1)
        finish_due = waiters._wake_due

        def finish(loop: asyncio.AbstractEventLoop) -> None:
            finish_due(loop)
            waiters._wake_due = finish_due  # type: ignore[method-assign]
            waiters.wake("product[2]")

        waiters._wake_due = finish  # type: ignore[method-assign]
        waiters.wake("product[1]")
        return await asyncio.gather(*first, *second)

    assert asyncio.run(main()) == [True, True]


def test_threads_and_tasks_of_several_loops_are_woken_together() -> None:
    """One push reaches every sleeper of the process."""
    waiters = Waiters()

    async def main() -> list[bool]:
        return await asyncio.gather(*await _sleepers(waiters, "product[1]", 3))

    def block() -> bool:
        with waiters.enter("product[1]") as waiter:
            return waiter.wait(LONG)

    threads = [in_thread(f"loop {n}", lambda: asyncio.run(main())) for n in range(2)]
    threads += [in_thread(f"thread {n}", block) for n in range(2)]
    until(lambda: _asleep(waiters, "product[1]") == 8)

    waiters.wake("product[1]")
    for thread, _ in threads:
        thread.join(60)

    assert [found for _, found in threads] == [[[True] * 3], [[True] * 3], [True], [True]]
    assert len(waiters) == 0


def _asleep(waiters: Waiters, call: str) -> int:
    flight = waiters.flights.get(call)
    if flight is None:
        return 0
    return len(flight.threads) + sum(map(len, list(flight.tasks.values())))


def test_waiter_that_joins_after_a_wake_is_not_woken_by_it() -> None:
    """The next sleeper of a flight waits for the next push, even while the loop has not yet processed the last."""
    waiters = Waiters()

    async def main() -> tuple[list[bool], list[bool]]:
        early = await _sleepers(waiters, "product[1]", 2)
        waiters.wake("product[1]")
        late = await _sleepers(waiters, "product[1]", 2, timeout=0.0)
        return await asyncio.gather(*early), await asyncio.gather(*late)

    assert asyncio.run(main()) == ([True, True], [False, False])


# -- ends of waits


def test_flight_ends_with_its_last_waiter() -> None:
    """What is known of a lease is kept exactly as long as somebody waits."""
    waiters = Waiters()
    first, second = waiters.enter("product[1]"), waiters.enter("product[1]")
    assert first.flight is second.flight
    assert len(waiters) == 2

    waiters.leave(first)
    waiters.leave(first)
    kept = second.flight is waiters.enter("product[1]").flight
    for waiter in list(second.flight.waiters):
        waiters.leave(waiter)

    assert kept
    assert len(waiters) == 0
    assert not waiters.flights


def test_timeout_leaves_nothing_behind() -> None:
    """A sleeper whose time is up is forgotten, and so is its loop, though its flight goes on."""
    waiters = Waiters()
    stays = waiters.enter("product[1]")

    async def main() -> bool:
        with waiters.enter("product[1]") as waiter:
            return await waiter.await_(0.0)

    woken = asyncio.run(main())
    with waiters.enter("product[1]") as waiter:
        waiter.wait(0.0)

    assert not woken
    assert _asleep(waiters, "product[1]") == 0
    assert not stays.flight.tasks


def test_cancelled_task_leaves_and_the_others_are_woken() -> None:
    """A cancelled read harms nobody."""
    waiters = Waiters()

    async def main() -> list[Any]:
        tasks = await _sleepers(waiters, "product[1]", 3)
        tasks[1].cancel()
        await asyncio.sleep(0)
        assert len(waiters) == 2
        waiters.wake("product[1]")
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second, third = asyncio.run(main())

    assert (first, third) == (True, True)
    assert isinstance(second, asyncio.CancelledError)
    assert len(waiters) == 0


def test_closed_loop_does_not_disturb_a_wake() -> None:
    """Its tasks are gone; the flight's other sleepers are woken all the same."""
    waiters = Waiters()
    loop = asyncio.new_event_loop()
    dead = waiters.enter("product[1]")
    sleeping = dead.await_(LONG)
    loop.run_until_complete(_step(loop, sleeping))
    loop.close()
    thread, woken = in_thread("sleeper", lambda: _enter_and_wait(waiters, "product[1]"))
    until(lambda: _asleep(waiters, "product[1]") == 2)

    waiters.wake("product[1]")
    thread.join(60)

    assert woken == [True]
    assert not waiters._due
    sleeping.close()


def _enter_and_wait(waiters: Waiters, call: str) -> bool:
    with waiters.enter(call) as waiter:
        return waiter.wait(LONG)


def test_loop_that_was_closed_before_it_processed_a_wake_is_forgotten() -> None:
    """The next wake of another loop lets go of it."""
    waiters = Waiters()
    loop = asyncio.new_event_loop()
    gone = weakref.ref(loop)
    waiter = waiters.enter("product[1]")
    sleeping = waiter.await_(LONG)
    loop.run_until_complete(_step(loop, sleeping))
    waiters.wake("product[1]")
    loop.close()
    sleeping.close()

    async def main() -> None:
        tasks = await _sleepers(waiters, "product[2]", 1)
        waiters.wake("product[2]")
        await asyncio.gather(*tasks)

    asyncio.run(main())
    del loop, sleeping
    gc.collect()

    assert gone() is None


# -- the lease


def test_wake_ends_what_is_known_of_the_lease() -> None:
    """A push means that the load has ended, and its lease with it."""
    waiters = Waiters()
    waiter = waiters.enter("product[1]")
    flight = waiter.flight
    flight.held_until, flight.token, flight.is_begun, flight.is_taken_over = 99.0, "abc", True, True

    waiters.wake("product[1]")

    assert (flight.held_until, flight.token, flight.is_begun, flight.is_taken_over) == (0.0, "", False, False)


def test_nudging_all_keeps_what_is_known_of_the_lease() -> None:
    """They look again because something else has changed."""
    waiters = Waiters()
    waiter = waiters.enter("product[1]")
    waiter.flight.held_until, waiter.flight.token = 99.0, "abc"

    waiters.wake_flight(waiter.flight)

    assert waiter.woken
    assert (waiter.flight.held_until, waiter.flight.token) == (99.0, "abc")


def test_every_wake_changes_the_flights_number() -> None:
    """A reply that was asked for before a wake can be distinguished from one asked for after it."""
    waiters = Waiters()
    flight = waiters.enter("product[1]").flight
    seen = {flight.wakes}

    for wake in (lambda: waiters.wake("product[1]"), waiters.wake_all, lambda: waiters.wake_flight(flight)):
        wake()
        seen.add(flight.wakes)

    assert len(seen) == 4


# -- the hand-off


def test_nudge_wakes_one_sleeper() -> None:
    """One takes over, the others sleep on."""
    waiters = Waiters()

    async def main() -> tuple[int, int]:
        entered = [waiters.enter("product[1]") for _ in range(3)]
        tasks = [asyncio.create_task(waiter.await_(LONG)) for waiter in entered]
        await asyncio.sleep(0)
        waiters.wake_one(entered[0].flight)
        woken, asleep = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in asleep:
            task.cancel()
        return len(woken), len(asleep)

    assert asyncio.run(main()) == (1, 2)


def test_waiter_that_was_nudged_and_leaves_wakes_the_next() -> None:
    """Whether it was cancelled or served, somebody is awake until there is nobody left to wake."""
    waiters = Waiters()

    async def main() -> list[bool]:
        tasks = await _sleepers(waiters, "product[1]", 3)
        with waiters.enter("product[1]") as caller:
            waiters.wake_one(caller.flight)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [True, True, True]


def test_nudge_wakes_a_sleeping_thread() -> None:
    """Threads take the hand-off as tasks do."""
    waiters = Waiters()
    sleepers = [waiters.enter("product[1]") for _ in range(2)]
    threads = [in_thread(f"sleeper {n}", lambda w=w: w.wait(LONG)) for n, w in enumerate(sleepers)]
    until(lambda: _asleep(waiters, "product[1]") == 2)

    waiters.wake_one(sleepers[0].flight)
    until(lambda: any(found for _, found in threads))
    first = [found for _, found in threads]

    assert sorted(first) == [[], [True]]
    waiters.wake("product[1]")
    for thread, _ in threads:
        thread.join(60)


def test_nudge_reaches_a_waiter_that_is_about_to_sleep() -> None:
    """It has seen `is_claiming` and decided to wait; the claimer fails before it lies down."""
    waiters = Waiters()
    claimer, other = waiters.enter("product[1]"), waiters.enter("product[1]")
    other.rearm()

    waiters.wake_one(claimer.flight)

    assert other.wait(LONG)


@pytest.mark.parametrize("cancel_first", [False, True])
def test_wake_up_of_a_cancelled_waiter_is_passed_on(cancel_first: bool) -> None:
    """Nudged and cancelled in the same turn of the loop, in either order: somebody is awake in the end."""
    waiters = Waiters()

    async def main() -> list[Any]:
        tasks = await _sleepers(waiters, "product[1]", 2)
        claimer = waiters.enter("product[1]")
        if cancel_first:
            tasks[0].cancel()
        waiters.wake_one(claimer.flight)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, second = asyncio.run(main())

    assert isinstance(first, asyncio.CancelledError)
    assert second is True


def test_hand_off_is_spent_when_its_holder_sleeps_again() -> None:
    """It has looked, and somebody else is at it: nobody else need be woken when it leaves."""
    waiters = Waiters()
    first, second = waiters.enter("product[1]"), waiters.enter("product[1]")
    sleeper, _ = in_thread("sleeper", lambda: first.wait(LONG))
    until(lambda: _asleep(waiters, "product[1]") == 1)
    waiters.wake_one(second.flight)
    sleeper.join(60)
    second.rearm()

    first.rearm()
    first.wait(0.0)
    waiters.leave(first)

    assert not second.woken


# -- forks


def test_child_of_a_fork_begins_with_nobody() -> None:
    """Whatever the parent's threads were in the middle of, a child that resets can wait and be woken."""
    waiters = Waiters()
    waiter = waiters.enter("product[1]")
    holding, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with waiters._lock:
            holding.set()
            go_on.wait(60)

    holder, _ = in_thread("holder", hold)
    holding.wait(60)

    code = in_child(lambda: _works_in_child(waiters, waiter))
    go_on.set()
    holder.join(60)

    assert code == 0
    assert len(waiters) == 1


def _works_in_child(waiters: Waiters, of_parent: Waiter) -> None:
    waiters.reset()
    assert len(waiters) == 0
    waiters.leave(of_parent)
    with waiters.enter("product[1]") as waiter:
        assert waiter.flight is not of_parent.flight
        thread, woken = in_thread("sleeper", lambda: waiter.wait(LONG))
        until(lambda: _asleep(waiters, "product[1]") == 1)
        waiters.wake("product[1]")
        thread.join(60)
        assert woken == [True]
