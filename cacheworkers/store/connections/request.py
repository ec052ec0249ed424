"""Requests: what an exchange with the store is made of, and what its replies mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
)

from cacheworkers.errors import StoreFull
from cacheworkers.store.commands.scripts import Script

#: Errors that say that nobody is there to answer requests, also where a server has answered so.
UNAVAILABLE = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    ReadOnlyError,
    ClusterDownError,
    RedisClusterException,
    OSError,
)


class Request:
    """One command, or one call of a script; `words[1]` or the first key routes it on a Cluster."""

    __slots__ = ("script", "words")

    def __init__(self, words: tuple[Any, ...], script: Script | None = None) -> None:
        self.words = words
        self.script = script

    @classmethod
    def call(cls, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Request:
        """Return a call of a script by its digest."""
        return cls(("EVALSHA", script.sha, len(keys), *keys, *args), script)

    @property
    def key(self) -> str:
        """The key that says which of a Cluster's masters is asked."""
        key: str = self.words[1] if self.script is None else self.words[3]
        return key

    def in_full(self) -> tuple[Any, ...]:
        """Return the same call with the script's source: a server that has restarted does not know its digest."""
        if self.script is None:
            return self.words
        return ("EVAL", self.script.source, *self.words[2:])


def unknown_scripts(replies: Sequence[Any]) -> list[int]:
    """Return which requests to send again, in full: the server has restarted, and has not run them."""
    return [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]


def check(replies: Sequence[Any]) -> None:
    """Raise the first error among replies, but for wrong types: something foreign is there, which a caller handles."""
    for reply in replies:
        if not isinstance(reply, Exception):
            continue
        if isinstance(reply, OutOfMemoryError) or (isinstance(reply, ResponseError) and "OOM " in str(reply)):
            raise StoreFull(f"the store is out of memory: {reply}") from reply
        if not (isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")):
            raise reply
