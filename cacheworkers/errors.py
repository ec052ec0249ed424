"""Every error the library raises.  Messages name the thing, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CacheworkersError(Exception):
    """Any error of this library."""


class ConfigError(CacheworkersError, ValueError):
    """A setting breaks a rule; the message names field, value and rule."""


class DeclarationError(CacheworkersError, TypeError):
    """A loader is declared in a way that cannot work; raised when it is decorated."""


class CallError(CacheworkersError, TypeError):
    """A mistake of the caller's: arguments that do not fit the loader's signature, or a method out of its place."""


class BadArgument(CallError):
    """An argument is not of its parameter's type, or the call is too long; raised before anything is read.

    What people send ends here: the web helpers answer 400.
    """


class TagError(CacheworkersError, ValueError):
    """A tag is empty, too long or holds control characters."""


class CodecError(CacheworkersError, ValueError):
    """A value does not fit its loader's return annotation, or its JSON is ambiguous."""


class EnvelopeError(CacheworkersError, ValueError):
    """Bytes found in the store are not an envelope of this library."""


class EntryTooLarge(CacheworkersError, ValueError):
    """An encoded entry exceeds `Config.max_entry_bytes`."""


class UnknownLoader(CacheworkersError, LookupError):
    """No loader of this name is declared in this process."""

    def __init__(self, message: str, loader: str = "") -> None:
        super().__init__(message)
        self.loader = loader


class BrokerUnavailable(CacheworkersError):
    """The broker did not answer in time, or refused the connection."""


class OutboxUnavailable(CacheworkersError):
    """The database with the outbox did not answer, or does not have it."""


class Unavailable(CacheworkersError):
    """No value is available now: what to catch around a read for a page without it, or a 503."""


class StoreError(Unavailable):
    """The store answered, but not as it should."""


class StoreUnavailable(StoreError):
    """The store did not answer in time, refused the connection, or its breaker is open."""


class StoreRefused(StoreUnavailable):
    """The store answered a request with an error (NOPERM, MISCONF, NOREPLICAS, BUSY, ...)."""


class StoreFull(StoreError):
    """The store is out of memory and refuses writes."""


class UnsafeStore(StoreError):
    """The store's eviction policy may silently drop tag sets or leases."""


class NamespaceTaken(StoreUnavailable):
    """Another application has a loader of this name here: reads load, revalidations and invalidations raise this."""


class InvalidationIncomplete(StoreError):
    """An invalidation is not acknowledged: what was begun is finished by the next one, or by a garbage collection."""


class UnwatchedWrite(CacheworkersError):
    """Watched rows are changed in a way from which their tags are not known."""


class ReadError(Unavailable):
    """A read found no value to return."""


class LoadTimeout(ReadError, TimeoutError):
    """No value within `wait_for`, and this reader may not load it itself."""


class BulkheadFull(LoadTimeout):
    """This process already runs as many loads as its bulkhead allows."""


class RateLimited(LoadTimeout):
    """The loader's `rate_limit` leaves no load within the time that is left."""


class LoadError(ReadError):
    """The load failed; kept in the store until its backoff ends.

    Attributes:
        loader: the loader's name.
        call: the call's text, `product[42]`.
        kind: the original exception's type name.
        text: the original exception's text.
        backoff_for: seconds until somebody loads it again; 0 if that is not known.
    """

    def __init__(self, loader: str, call: str, kind: str, text: str, backoff_for: float = 0.0) -> None:
        super().__init__(f"load of {call} failed with {kind}: {text}")
        self.loader = loader
        self.call = call
        self.kind = kind
        self.text = text
        self.backoff_for = backoff_for

    def __reduce__(self) -> tuple[type[LoadError], tuple[str, str, str, str, float]]:
        return (type(self), (self.loader, self.call, self.kind, self.text, self.backoff_for))


class KeyMissing(LoadError):
    """A batch loader left this key out, and its value type has no None."""


class LoadErrors(ReadError):
    """Some keys of a `get_many` have no value.

    Attributes:
        values: key -> value, what succeeded.
        errors: key -> the error of each key that did not.
    """

    def __init__(self, values: Mapping[Any, Any], errors: Mapping[Any, CacheworkersError]) -> None:
        first = next(iter(errors.items()), None)
        shown = "" if first is None else f"; first: {first[0]!r}: {first[1]}"
        super().__init__(f"{len(errors)} of {len(errors) + len(values)} keys have no value{shown}")
        self.values = values
        self.errors = errors

    def __reduce__(self) -> tuple[type[LoadErrors], tuple[Mapping[Any, Any], Mapping[Any, CacheworkersError]]]:
        return (type(self), (self.values, self.errors))
