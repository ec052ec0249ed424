"""Replies: what the store's scripts and commands answer, as Python values."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from cacheworkers.errors import StoreError

_ESCAPED = re.compile("[\udc80-\udcff]")


class Claimed(msgspec.Struct, frozen=True):
    """The lease is ours.

    Attributes:
        is_enqueued: the message that came with the claim is in its queue.
        snapshot: what `snapshot_of` reads; empty where the load has to take one of its own.
    """

    is_enqueued: bool = False
    snapshot: str = ""


class Moved(msgspec.Struct, frozen=True):
    """The entry is no longer the one the reader saw: look again."""


class Held(msgspec.Struct, frozen=True):
    """Another holds the lease, for `rest` seconds at most."""

    token: str
    is_begun: bool
    is_taken_over: bool
    rest: float


class Backoff(msgspec.Struct, frozen=True):
    """The last load failed; nobody should ask for `rest` seconds."""

    kind: str
    text: str
    rest: float


class Overtaken(msgspec.Struct, frozen=True):
    """A value that an invalidation has overtaken, and whose load began after its reader did: its envelope."""

    raw: bytes


Claim = Claimed | Moved | Held | Backoff | Overtaken


class Begun(msgspec.Struct, frozen=True):
    """The load may run; `attempts` counts this one, `raw` is the entry that is there now."""

    attempts: int
    raw: bytes | None


class Alone(msgspec.Struct, frozen=True):
    """The last load of the call, with others or not, died: it may be begun by itself only."""


class Snapshot(msgspec.Struct, frozen=True):
    """The invalidation sequence, and the store's time with it."""

    seq: int
    now: float


class Registered(msgspec.Struct, frozen=True):
    """A call is in its tags' sets; `newest` is the youngest invalidation of any of them."""

    newest: int
    now: float


def text(reply: Any) -> str:
    """Return a reply as text; what is no UTF-8, and so nothing of ours, as `bytes_of` takes it back."""
    return reply.decode(errors="surrogateescape") if isinstance(reply, bytes) else str(reply)


def bytes_of(text: str) -> bytes:
    """Return the bytes of a text that `text` has returned."""
    return text.encode(errors="surrogateescape")


def legible(texts: Iterable[str]) -> list[str]:
    """Return those of some members that may be ours: something else may have added bytes that are no text."""
    return [each for each in texts if each.isascii() or not _ESCAPED.search(each)]


def raw(reply: Any) -> bytes | None:
    """Return a reply's bytes; None if it is nil."""
    return reply if isinstance(reply, bytes) else None


def claim(reply: Any) -> Claim:
    """Return what a claim came to."""
    match text(reply[0]):
        case "claimed":
            return Claimed(reply[1] == 1, text(reply[2]))
        case "moved":
            return Moved()
        case "held":
            return Held(text(reply[1]), reply[2] == 1, reply[3] == 1, max(reply[4], 0) / 1000)
        case "overtaken":
            return Overtaken(reply[1])
        case _:
            return Backoff(text(reply[1]), text(reply[2]), reply[3] / 1000)


def snapshot_of(text: str) -> Snapshot | None:
    """Return the snapshot that a claim has taken; None for none, and for what no claim has written."""
    try:
        seq, now_ms = text.split()
        return Snapshot(int(seq), int(now_ms) / 1000)
    except ValueError:
        return None


def begun(reply: Any) -> Begun | Alone | None:
    """Return the load that may run; None if it was left to another."""
    match text(reply[0]):
        case "begun":
            return Begun(int(reply[1]), raw(reply[2]))
        case "alone":
            return Alone()
        case _:
            return None


class Trimmed(msgspec.Struct, frozen=True):
    """What one step of garbage collection did to a tag set: members dropped, and which of its two keys are foreign."""

    members: int
    foreign: tuple[str, ...]


class DetachedSet(msgspec.Struct, frozen=True):
    """A tag set, or a shard of one, that an invalidation has detached and whose entries are to be deleted.

    Attributes:
        name: its key.
        calls: some of its members, as far as they are known.
    """

    tag: str
    shard: int
    name: str
    calls: Sequence[str] = ()


class ForeignType(StoreError):
    """A key of the library's is of another type: something else writes there."""


def ours(reply: Any) -> Any:
    """Return a reply.

    Raises:
        ForeignType: its key is of another type.
    """
    if isinstance(reply, Exception):
        raise foreign(reply) from reply
    return reply


def foreign(reply: Exception, *keys: str) -> ForeignType:
    """Return what a WRONGTYPE reply means, to be raised once the other keys of the exchange are done.

    Args:
        keys: what the request has touched, if that is known.
    """
    names = ", ".join(filter(None, keys))
    where = (f"one of the keys {names}" if len(keys) > 1 else f"the key {names}") if names else "a key of the library's"
    return ForeignType(
        f"{where} holds what something else has written: {str(reply).rstrip('.')}; find out who "
        "writes there, and delete the key"
    )


def or_nothing(reply: Any, nothing: Any) -> Any:
    """Return a reply; `nothing` if its key is of another type, where that costs no more than what was noted there."""
    return nothing if isinstance(reply, Exception) else reply


def detached(tag: str, shard: int, reply: Any, *keys: str, name: str = "") -> list[DetachedSet | ForeignType]:
    """Return the detached sets of a tag's shard from a reply: their names, and the members of the one named here.

    Args:
        keys: what the request has touched.
    """
    if isinstance(reply, Exception):
        return [foreign(reply, *keys)]
    names, members = reply if name else (reply, ())
    calls = [text(member) for member in members]
    return [
        DetachedSet(tag, shard, found, calls if found == name else ())
        if legible([found])
        else ForeignType(f"the index of detached sets of {tag} names {found!r}")
        for found in map(text, names)
    ]


def fields(reply: Any) -> dict[str, str]:
    """Return a hash, as RESP2 or RESP3 gives it."""
    if isinstance(reply, dict):
        return {text(k): text(v) for k, v in reply.items()}
    if isinstance(reply, list):
        return {text(k): text(v) for k, v in zip(reply[::2], reply[1::2], strict=True)}
    return {}


def instants(reply: Any) -> dict[str, float]:
    """Return a hash of instants, without what is none."""
    found = {}
    for field, value in fields(reply).items():
        with contextlib.suppress(ValueError):
            found[field] = float(value)
    return found


def failure(reply: Any) -> dict[str, str]:
    """Return what is kept of a failed load.

    Raises:
        ValueError: the end of its backoff is no finite number; something else wrote it.
    """
    found = fields(reply)
    if not math.isfinite(float(found.get("until_ms", 0))):
        raise ValueError("until_ms is not finite")
    return found


def scored(reply: Any) -> list[tuple[str, float]]:
    """Return members and scores, as RESP2 or RESP3 gives them."""
    if reply and isinstance(reply[0], list | tuple):  # RESP3
        return [(text(member), float(score)) for member, score in reply]
    return [(text(member), float(score)) for member, score in zip(reply[::2], reply[1::2], strict=True)]


def position(reply: Any) -> tuple[int, int]:
    """Return phase and cursor of a garbage collection; zeros if none is kept."""
    phase, _, cursor = text(reply or b"").partition(":")
    return (int(phase), int(cursor)) if phase.isdigit() and cursor.isdigit() else (0, 0)


def walked(reply: Any) -> tuple[int, list[str]]:
    """Return a ZSCAN's cursor and members."""
    cursor, pairs = reply
    members = [pair[0] for pair in pairs] if pairs and isinstance(pairs[0], list | tuple) else pairs[::2]
    return int(cursor), [text(member) for member in members]
