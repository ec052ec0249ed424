"""Read: what a read returns besides the value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

import msgspec

from cacheworkers.core.entry import Entry, Freshness

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")


class Read(msgspec.Struct, Generic[T], frozen=True):
    """A value, and where it comes from.

    Attributes:
        value: the value; of `read_json` its JSON.
        freshness: FRESH, STALE, or LAPSED when its reload fails.
        tier: "l1", "store", or "load" when this very read loaded it.
        age: seconds since its load began.
        seq: the invalidation sequence when its load began.
        waited: seconds this read took until it had the value.
        entry: the entry; None, or without a `write_id`, when the value was not stored.
        is_joined: this read waited for a load that another had asked for.
    """

    value: T
    freshness: Freshness
    tier: str
    age: float
    seq: int
    waited: float = 0.0
    entry: Entry | None = None
    is_joined: bool = False

    @classmethod
    def of(
        cls,
        now: float,
        entry: Entry,
        value: Any,
        freshness: Freshness,
        tier: str,
        waited: float,
        is_joined: bool = False,
    ) -> Read:
        """Return an entry and its value as a Read."""
        return cls(value, freshness, tier, max(0.0, now - entry.created), entry.seq, waited, entry, is_joined)
