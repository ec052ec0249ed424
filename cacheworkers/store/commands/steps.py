"""Steps: what a flow yields to have the store asked, on a thread or on a loop; and what classes of commands share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from cacheworkers.core.keys import Keyspace
from cacheworkers.local.get_batcher import GetBatcher
from cacheworkers.store.commands import replies as parsers
from cacheworkers.store.connections.request import Request
from cacheworkers.store.connections.server_check import info_of
from cacheworkers.store.connections.transport import Transport

T = TypeVar("T")


class Exchange(Generic[T]):
    """A step: one round trip to the store, and its replies, parsed."""

    __slots__ = ("_link", "_parse", "_requests")

    def __init__(self, link: Transport, requests: Sequence[Request], parse: Callable[[list[Any]], T]) -> None:
        self._link = link
        self._requests = requests
        self._parse = parse

    def __repr__(self) -> str:
        return (
            "+".join(dict.fromkeys(r.script.name if r.script else str(r.words[0]).lower() for r in self._requests))
            or "nothing"
        )

    def run(self) -> T:
        """Do it, blocking this thread."""
        return self._parsed(self._link.exchange(self._requests) if self._requests else [])

    async def arun(self) -> T:
        """Do it on the running loop."""
        return self._parsed(await self._link.aexchange(self._requests) if self._requests else [])

    def submit(self, note: Callable[[T | Exception], None]) -> Submitted[T] | None:
        """Send its one request immediately, on the running loop; return a step for what comes of it.

        None: that takes more than a write, and nothing was sent.

        Args:
            note: called with what comes of it, also where no flow waits for that.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def settle(outcome: list[Any] | Exception) -> None:
            found: Any = outcome
            try:
                if isinstance(outcome, list):
                    found = self._parsed(outcome)
            except Exception as error:
                found = error
            note(found)
            if future.done():  # who waited was cancelled
                return
            if isinstance(found, Exception):
                future.set_exception(found)
                future.exception()  # nobody may ever ask
            else:
                future.set_result(found)

        return Submitted(self, future) if self._link.submit(self._requests[0].words, settle) else None

    def _parsed(self, replies: list[Any]) -> T:
        """Return the replies, parsed.

        Raises:
            ForeignType: a key of the library's holds what something else has written there.
        """
        try:
            return self._parse(replies)
        except (TypeError, ValueError, IndexError, AttributeError, parsers.ForeignType) as error:
            for request, reply in zip(self._requests, replies, strict=True):
                if isinstance(reply, Exception):
                    raise parsers.foreign(reply, request.key) from error
            raise parsers.foreign(error) from error

    @staticmethod
    def joint(parts: Sequence[Exchange[Any]]) -> Exchange[list[Any]]:
        """Return several exchanges with one link as one; its result is the list of theirs."""

        def parse(replies: list[Any]) -> list[Any]:
            rest = iter(replies)
            return [part._parse(list(itertools.islice(rest, len(part._requests)))) for part in parts]

        return Exchange(parts[0]._link, [request for part in parts for request in part._requests], parse)


class Submitted(Generic[T]):
    """A step: an exchange of the running loop whose request has been sent; its result, or what `arun` raises."""

    __slots__ = ("_exchange", "_future")

    def __init__(self, exchange: Exchange[T], future: asyncio.Future[T]) -> None:
        self._exchange = exchange
        self._future = future

    def __repr__(self) -> str:
        return f"{self._exchange} submitted"

    def run(self) -> T:
        """Ask again: a thread cannot wait for what a loop has sent."""
        return self._exchange.run()

    async def arun(self) -> T:
        """Wait for it on that loop."""
        return await self._future


class Write(Exchange[T]):
    """An exchange that stores what was loaded: it may wait for those of other calls, and be done with them."""

    __slots__ = ()


class Get:
    """A step: the envelope of one call; reads of one turn of an event loop are fetched together.

    Attributes:
        call: its text.
    """

    __slots__ = ("_batcher", "_key", "_link", "call")

    def __init__(self, link: Transport, batcher: GetBatcher, key: str, call: str) -> None:
        self._link = link
        self._batcher = batcher
        self._key = key
        self.call = call

    def __repr__(self) -> str:
        return "get"

    def run(self) -> bytes | None:
        """Get it, blocking this thread."""
        return parsers.raw(self._link.exchange([Request(("GET", self._key))])[0])

    async def arun(self) -> bytes | None:
        """Get it on the running loop."""
        return await self._batcher.get(self.call)


class Scan:
    """A step: one SCAN of one master; a cursor's upper half says which."""

    __slots__ = ("_at", "_link", "_words")

    def __init__(self, link: Transport, cursor: int, pattern: str) -> None:
        self._link = link
        self._at = cursor >> 64
        self._words = ("SCAN", cursor & (2**64 - 1), "MATCH", pattern, "COUNT", 1000)

    def __repr__(self) -> str:
        return "scan"

    def run(self) -> tuple[int, list[str]]:
        """Do it, blocking this thread."""
        (cursor, keys), masters = self._link.on_master(self._at, self._words)
        inner = int(cursor)
        if inner:
            following = self._at << 64 | inner
        else:
            following = (self._at + 1) << 64 if self._at + 1 < masters else 0
        return following, [parsers.text(key) for key in keys]

    async def arun(self) -> tuple[int, list[str]]:
        """Do it on a thread."""
        return await asyncio.to_thread(self.run)


class Info:
    """A step: what every master says of itself."""

    __slots__ = ("_link",)

    def __init__(self, link: Transport) -> None:
        self._link = link

    def __repr__(self) -> str:
        return "info"

    def run(self) -> list[dict[str, str]]:
        """Ask, blocking this thread."""
        return [info_of(reply) for [reply] in self._link.on_masters("", lambda _: [("INFO",)])]

    async def arun(self) -> list[dict[str, str]]:
        """Ask on a thread."""
        return await asyncio.to_thread(self.run)


class StoreCommands:
    """Commands of one kind, as methods that return steps."""

    #: Steps are joined where they can be; tests take them apart.
    joins_steps = True

    def __init__(self, link: Transport, keys: Keyspace) -> None:
        self.link = link
        self.keys = keys

    @property
    def has_one_slot(self) -> bool:
        """Whether scripts may take any keys together: one server has all of them."""
        return self.joins_steps and not self.link.is_cluster

    def _ask(self, requests: Sequence[Request], parse: Callable[[list[Any]], T]) -> Exchange[T]:
        return Exchange(self.link, requests, parse)

    def _ask_one(self, request: Request, parse: Callable[[Any], T]) -> Exchange[T]:
        return Exchange(self.link, [request], lambda replies: parse(replies[0]))

    def _set_for(self, key: str, seconds: float) -> Exchange[None]:
        """Keep an empty key for a time; how much of its life is left says when that was."""
        return self._ask_one(Request(("SET", key, "", "PX", milliseconds(seconds))), lambda reply: None)


def milliseconds(seconds: float) -> int:
    """Return seconds as the store counts them."""
    return int(seconds * 1000)
