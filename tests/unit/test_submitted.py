"""A step whose request has been sent before its flow comes to it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cacheworkers.errors import StoreUnavailable
from cacheworkers.store.commands.replies import ForeignType
from cacheworkers.store.commands.steps import Exchange
from cacheworkers.store.connections.request import Request


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test on an event loop of its own."""

    def run() -> None:
        asyncio.run(test())

    return run


class Link:
    """What requests are sent over; its replies come when a test says so."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.sent: list[tuple[Any, ...]] = []
        self.settle: Callable[[list[Any] | Exception], None]

    def submit(self, words: tuple[Any, ...], done: Callable[[list[Any] | Exception], None]) -> bool:
        self.sent += [words] if self.takes else []
        self.settle = done
        return self.takes

    def step(self, noted: list[Any]) -> Any:
        exchange: Exchange[int] = Exchange(self, [Request(("GET", "key"))], lambda replies: int(replies[0]))  # type: ignore[arg-type]
        return exchange.submit(noted.append)


@on_a_loop
async def test_its_reply_is_noted_and_is_there_when_the_flow_comes() -> None:
    link, noted = Link(), list[Any]()
    step = link.step(noted)
    assert link.sent == [("GET", "key")]

    link.settle([b"7"])

    assert noted == [7]
    assert await step.arun() == 7


@on_a_loop
async def test_its_error_is_raised_where_the_flow_waits() -> None:
    link, noted = Link(), list[Any]()
    step = link.step(noted)
    waiting = asyncio.create_task(step.arun())
    await asyncio.sleep(0)

    link.settle(StoreUnavailable("gone"))

    with pytest.raises(StoreUnavailable, match="gone"):
        await waiting
    assert [type(each) for each in noted] == [StoreUnavailable]


@on_a_loop
async def test_a_reply_of_something_else_s_key_is_an_error_of_the_library() -> None:
    link, noted = Link(), list[Any]()
    step = link.step(noted)

    link.settle([b"seven"])

    with pytest.raises(ForeignType):
        await step.arun()
    assert [type(each) for each in noted] == [ForeignType]


@on_a_loop
async def test_who_waits_may_be_cancelled_before_the_reply() -> None:
    """The connection that brings it goes on."""
    link, noted = Link(), list[Any]()
    waiting = asyncio.create_task(link.step(noted).arun())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    link.settle([b"7"])

    assert noted == [7]


@on_a_loop
async def test_an_error_that_nobody_asks_for_is_not_complained_of() -> None:
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    link = Link()
    step = link.step([])

    link.settle(StoreUnavailable("gone"))
    del step, link.settle
    gc.collect()

    assert complaints == []


@on_a_loop
async def test_what_takes_more_than_a_write_is_not_sent() -> None:
    link = Link(takes=False)
    assert link.step([]) is None
    assert link.sent == []
