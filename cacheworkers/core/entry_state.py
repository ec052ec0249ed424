"""EntryState: whether stored bytes are an entry of a call, readable and recent enough, and how fresh it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT
from cacheworkers.errors import CodecError, EnvelopeError


class EntryState(msgspec.Struct, frozen=True, gc=False):
    """The state of what is stored under a call's key, as one read sees it.

    Attributes:
        entry: None where there is none, or none that the read may use.
        value: its value, if it was to be decoded.
        freshness: MISSING without an entry.
        problem: why the bytes cannot be read; empty if they can, or if there are none.
        other: the entry of another release, for which the call or its JSON have another meaning.
    """

    entry: Entry | None = None
    value: Any = None
    freshness: Freshness = Freshness.MISSING
    problem: str = ""
    other: Entry | None = None

    @property
    def is_servable(self) -> bool:
        """Whether a read may be given it although nothing fails: it is fresh or stale."""
        return self.freshness is Freshness.FRESH or self.freshness is Freshness.STALE


_NOTHING = EntryState()


def entry_state(
    raw: bytes | None,
    call: str,
    now: float,
    *,
    since: int = 0,
    decode: Callable[[bytes], Any] | None = None,
    fingerprint: bytes = NO_FINGERPRINT,
) -> EntryState:
    """Return the state of the bytes under a call's key at `now`, seconds of the store's clock.

    Args:
        since: least sequence number; what was loaded before it is no entry.
        decode: payload -> value.
        fingerprint: of the loader that reads.
    """
    if raw is None:
        return _NOTHING
    try:
        entry = envelope.entry_of(raw, call, fingerprint)
    except envelope.OtherFingerprint as error:
        return EntryState(problem=str(error), other=error.entry)
    except EnvelopeError as error:
        return EntryState(problem=str(error))
    freshness = entry.freshness(now)
    if entry.seq < since or freshness is Freshness.MISSING:
        return _NOTHING
    if decode is None:
        return EntryState(entry, None, freshness)
    try:
        return EntryState(entry, decode(entry.payload), freshness)
    except CodecError as error:
        return EntryState(problem=str(error))
