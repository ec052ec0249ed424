"""Requests: the commands and script calls of an exchange, and which of their replies are errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from cacheworkers.errors import StoreFull

#: Errors that say that no server can answer requests now, also where a server has answered so.
UNAVAILABLE = (
    ConnectionError,
    TimeoutError,
    BusyLoadingError,
    MasterDownError,
    ReadOnlyError,
    ClusterDownError,
    RedisClusterException,
    OSError,
)
#: Answers that say where else to ask, and no refusals.
_REDIRECTIONS = (MovedError, AskError, TryAgainError)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its source, and the digest that `EVALSHA` takes."""

    name: str
    source: bytes
    sha: str


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
        """The key that selects a Cluster's master."""
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
    """Raise the first error among replies, except wrong types: the caller handles foreign keys."""
    for reply in replies:
        if not isinstance(reply, Exception):
            continue
        if isinstance(reply, OutOfMemoryError) or (isinstance(reply, ResponseError) and "OOM " in str(reply)):
            raise StoreFull(f"the store is out of memory: {reply}") from reply
        if not _is_wrong_type(reply):
            raise reply


def check_probe(reply: Any) -> None:
    """Raise a probe's error: a server that answers with one (BUSY, LOADING, NOPERM, ...) cannot be used yet."""
    if isinstance(reply, RedisError) and not isinstance(reply, _REDIRECTIONS) and not _is_wrong_type(reply):
        raise reply


def _is_wrong_type(reply: Exception) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE")
