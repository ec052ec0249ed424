"""A bell wakes one reader that waits for many, as a thread and as a task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cacheworkers.local.waiters import Waiters
from cacheworkers.local.wakeup import NamedWaker, Wakeup
from cacheworkers.testing.servers import wait_until

LONG = 60.0


@pytest.fixture(params=["sync", "async"])
def wait(request: pytest.FixtureRequest) -> Callable[[Wakeup, float], bool]:
    """Wait at a bell, either way."""

    def waited(wakeup: Wakeup, timeout: float) -> bool:
        return wakeup.wait(timeout) if request.param == "sync" else asyncio.run(wakeup.await_(timeout))

    return waited


def test_nobody_rings_and_time_is_up(wait: Any) -> None:
    wakeup = Wakeup()

    assert not wait(wakeup, 0.0)
    assert not wait(wakeup, 0.001)
    assert wakeup.woken_names() == []


def test_rung_before_it_is_waited_for(wait: Any) -> None:
    wakeup = Wakeup()
    wakeup.wake("a")
    wakeup.wake("b")
    wakeup.wake("a")

    assert wait(wakeup, LONG)
    assert wakeup.woken_names() == ["a", "b"]
    assert not wait(wakeup, 0.0)


def test_rung_while_somebody_waits(wait: Any) -> None:
    wakeup, found = Wakeup(), list[bool]()
    waiter = threading.Thread(target=lambda: found.append(wait(wakeup, LONG)))
    waiter.start()

    wakeup.wake("a")
    waiter.join(LONG)

    assert found == [True]
    assert wakeup.woken_names() == ["a"]


def test_what_is_rung_after_it_was_reported_wakes_again(wait: Any) -> None:
    wakeup = Wakeup()
    wakeup.wake("a")
    assert wait(wakeup, LONG)
    wakeup.woken_names()

    wakeup.wake("b")

    assert wait(wakeup, LONG)
    assert wakeup.woken_names() == ["b"]


def test_many_rings_from_threads_lose_none(wait: Any) -> None:
    wakeup, found = Wakeup(), set[int]()
    threads = [
        threading.Thread(target=lambda at=at: [wakeup.wake(at * 100 + n) for n in range(100)]) for at in range(4)
    ]
    for thread in threads:
        thread.start()

    while len(found) < 400:
        assert wait(wakeup, LONG)
        found.update(wakeup.woken_names())
    for thread in threads:
        thread.join(LONG)

    assert found == set(range(400))


def test_rings_call_into_the_loop_once_a_wait() -> None:
    wakeup = Wakeup()
    calls: list[Any] = []

    async def waited() -> bool:
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon_threadsafe

        def counted(act: Any, *args: Any, **options: Any) -> Any:
            calls.append(act)
            return call_soon(act, *args, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign,assignment]
        task = loop.create_task(wakeup.await_(LONG))
        await asyncio.sleep(0)
        for n in range(100):
            wakeup.wake(n)
        return await task

    assert asyncio.run(waited())
    assert len(calls) == 1
    assert wakeup.woken_names() == list(range(100))


def test_a_cancelled_wait_leaves_the_bell_as_it_was() -> None:
    wakeup = Wakeup()

    async def cancelled() -> None:
        task = asyncio.get_running_loop().create_task(wakeup.await_(LONG))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    wakeup.wake("a")

    assert wakeup.wait(0.0)
    assert wakeup.woken_names() == ["a"]


def test_a_place_is_woken_as_a_sleeping_thread_is() -> None:
    """By a push, and as the one that gets the hand-off; who got up before is not."""
    waiters, wakeup = Waiters(), Wakeup()
    with waiters.enter("a") as one, waiters.enter("b") as other, waiters.enter("c") as third:
        sleepers = [waiter.register(NamedWaker(wakeup, name)) for waiter, name in ((one, "a"), (other, "b"))]
        up = NamedWaker(wakeup, "c")
        third_beds = third.register(up)
        assert third_beds is not None
        third_beds.pop(up)

        waiters.wake("a")
        waiters.wake_one(other.flight)
        waiters.wake("c")

        assert all(each is not None for each in sleepers)
        assert wakeup.woken_names() == ["a", "b"]
        assert [waiter.woken for waiter in (one, other, third)] == [True, True, True]
        assert one.register(NamedWaker(wakeup, "a")) is None  # woken since it last looked
        one.rearm()
        assert one.register(NamedWaker(wakeup, "a")) is not None


def test_a_thread_sleeps_beside_a_place() -> None:
    waiters, wakeup, woken = Waiters(), Wakeup(), list[bool]()
    with waiters.enter("a") as mine:
        mine.register(NamedWaker(wakeup, "a"))

        def sleep() -> None:
            with waiters.enter("a") as other:
                woken.append(other.wait(LONG))

        thread = threading.Thread(target=sleep)
        thread.start()
        wait_until(lambda: len(mine.flight.threads) == 2)
        waiters.wake("a")
        thread.join(LONG)

    assert woken == [True]
    assert wakeup.woken_names() == ["a"]
