"""The library's own loop: one, though several ask for it together, and begun without a lock that others may need."""

from __future__ import annotations

import asyncio
import threading
from threading import Thread

import pytest

from cacheworkers.local import bulkhead
from cacheworkers.local.bulkhead import Bulkhead


async def _closing() -> None:
    """The loop's last work."""


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_a_wait_that_is_closed_while_the_loop_begins_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbage collection in the thread that begins may close a wait, which leaves its room, in that thread."""
    ends = []
    made = Bulkhead(2)
    made._running = 1  # the room of the wait that is closed

    class Beginning(Thread):
        def start(self) -> None:
            closing = Thread(target=lambda: made._next(bulkhead._Work(made, lambda: None, is_coroutine=False)))
            closing.daemon = True
            closing.start()
            closing.join(10)
            ends.append(not closing.is_alive())
            super().start()

    monkeypatch.setattr(bulkhead.threading, "Thread", Beginning)

    assert made.run_async(_running_loop, 60.0).is_running()
    assert ends == [True]
    made.close(_closing, 60.0)


def test_threads_that_ask_together_get_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have begun one: the second is ended."""
    made = Bulkhead(4)
    both = threading.Barrier(2)
    turning = []

    class Beginning(Thread):
        def start(self) -> None:
            if self.name == "cacheworkers-loop":
                turning.append(self)
                both.wait(60)
            super().start()

    found: list[asyncio.AbstractEventLoop] = []
    askers = [Thread(target=lambda: found.append(made.run_async(_running_loop, 60.0))) for _ in range(2)]
    monkeypatch.setattr(bulkhead.threading, "Thread", Beginning)
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(60)

    assert len(found) == 2 and found[0] is found[1]
    made.close(_closing, 60.0)
    for thread in turning:
        thread.join(60)
    assert [thread.is_alive() for thread in turning] == [False, False]
