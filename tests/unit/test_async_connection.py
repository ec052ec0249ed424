"""AsyncConnection: which replies are late, when bytes of large ones arrive on the same connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from cacheworkers.store.connections.async_connection import AsyncConnection
from cacheworkers.store.connections.connection import BULK, PROGRESS_TIMEOUTS, ConnectionCut, LateReply

TIMEOUT = 1.0


class Loop:
    """A loop whose time passes by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timer: tuple[float, Callable[[], None]] | None = None
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def create_future(self) -> Any:
        return asyncio.Future(loop=asyncio.new_event_loop())

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> object:
        return self.call_at(self.now + delay, callback)

    def call_at(self, at: float, callback: Callable[[], None]) -> object:
        self.timer = (at, callback)
        return object()

    def is_closed(self) -> bool:
        return False

    def pass_until(self, now: float) -> None:
        """Run the timers that are due on the way."""
        while self.timer is not None and self.timer[0] <= now:
            (self.now, callback), self.timer = self.timer, None
            callback()
        self.now = now


class Transport:
    """Notes what is written, and whether it is closed."""

    def __init__(self) -> None:
        self.buffered = 0
        self.is_aborted = False
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def get_extra_info(self, name: str) -> Any:
        return None


class Open:
    """An open connection, its loop, and the outcome of each request."""

    def __init__(self) -> None:
        async def made() -> AsyncConnection:
            return AsyncConnection(TIMEOUT)

        self.connection: Any = asyncio.run(made())
        self.loop, self.transport = Loop(), Transport()
        self.connection._loop, self.connection._transport = self.loop, self.transport
        self.connection._reader, self.connection._socket = hiredis.Reader(), None
        self.connection.close = self.transport.abort
        self.connection.is_usable = True
        self.outcomes: dict[str, Any] = {}

    def ask(self, name: str, *, may_repeat: bool = True) -> None:
        self.connection.submit(b"", 1, lambda outcome: self.outcomes.update({name: outcome}), may_repeat=may_repeat)


@pytest.fixture
def made() -> Open:
    return Open()


def reply(size: int) -> bytes:
    return b"$%d\r\n%s\r\n" % (size, b"x" * size)


def test_a_reply_that_keeps_coming_is_not_late_nor_are_those_behind_it(made: Open) -> None:
    large = reply(10 * BULK)
    made.ask("large")
    made.ask("small")
    for at in range(5):
        made.loop.pass_until(100.0 + 0.8 * (at + 1))
        made.connection.data_received(large[at * 2 * BULK : (at + 1) * 2 * BULK])
        assert made.outcomes == {}

    made.connection.data_received(large[10 * BULK :])
    made.loop.pass_until(104.9)
    made.connection.data_received(reply(3))

    assert made.outcomes == {"large": [b"x" * 10 * BULK], "small": [b"xxx"]}
    assert made.connection.is_usable


def test_a_reply_that_stops_coming_is_late(made: Open) -> None:
    made.ask("large")
    made.loop.pass_until(100.5)
    made.connection.data_received(reply(10 * BULK)[: 2 * BULK])

    made.loop.pass_until(101.4)
    assert made.outcomes == {}
    made.loop.pass_until(101.6)

    assert isinstance(made.outcomes["large"], LateReply)
    assert not made.connection.is_usable


def test_a_reply_that_never_ends_is_late_in_the_end(made: Open) -> None:
    made.ask("endless")
    made.connection.data_received(b"$%d\r\n" % 10**9)
    for tick in range(1, 2 * PROGRESS_TIMEOUTS + 2):
        made.loop.pass_until(100.0 + tick * 0.5)
        made.connection.data_received(b"x" * (BULK + 1))

    assert isinstance(made.outcomes["endless"], LateReply)


def test_few_bytes_are_no_progress_for_those_who_wait(made: Open) -> None:
    """A store that answers each request a little too late is slow, and not busy with a large reply."""
    made.ask("first")
    made.ask("second")
    made.loop.pass_until(100.9)
    made.connection.data_received(reply(3))
    made.loop.pass_until(101.1)

    assert made.outcomes["first"] == [b"xxx"]
    assert isinstance(made.outcomes["second"], LateReply)


def test_behind_a_late_reply_reads_go_elsewhere_and_others_keep_their_time(made: Open) -> None:
    made.ask("late")
    made.loop.pass_until(100.5)
    made.ask("read")
    made.ask("write", may_repeat=False)

    made.loop.pass_until(101.1)
    assert isinstance(made.outcomes["late"], LateReply)
    assert isinstance(made.outcomes["read"], ConnectionCut)
    assert "write" not in made.outcomes
    assert not made.connection.is_usable

    made.connection.data_received(reply(1) + reply(1) + reply(4))
    assert made.outcomes["write"] == [b"xxxx"]
    assert made.transport.is_aborted


@pytest.mark.parametrize("kind", ["reply", "request"])
def test_a_connection_says_that_bulk_is_under_way(made: Open, kind: str) -> None:
    made.ask("large")
    assert not made.connection.has_bulk

    if kind == "reply":
        made.connection.data_received(reply(2 * BULK)[: BULK + 100])
    else:
        made.transport.buffered = BULK + 1

    assert made.connection.has_bulk


def test_requests_of_one_turn_leave_in_one_write_in_their_order(made: Open) -> None:
    for name in (b"1", b"2"):
        made.connection.exchange(name, 1).send(None)
    assert made.transport.written == []
    [write] = made.loop.soon
    write()
    made.connection.exchange(b"3", 1).send(None)
    made.connection.submit(b"4", 1, lambda outcome: None)  # does not wait, nor passes one by
    for write in made.loop.soon:
        write()
    assert made.transport.written == [b"12", b"34"]


def test_what_has_not_left_when_the_connection_closes_is_dropped(made: Open) -> None:
    made.connection.exchange(b"1", 1).send(None)
    made.transport.abort()
    made.loop.soon[0]()
    assert made.transport.written == []


def test_a_retired_connection_takes_no_more_requests_and_answers_those_it_has(made: Open) -> None:
    made.ask("before")

    made.connection.retire()

    assert not made.connection.is_usable and not made.transport.is_aborted
    made.connection.data_received(reply(3))
    assert made.outcomes == {"before": [b"xxx"]} and made.transport.is_aborted
