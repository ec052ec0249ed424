"""Loads that bring no entry: what is recorded of them, and under which tags, so that waiters are woken and know why."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from cacheworkers.core.driver import Flow
from cacheworkers.core.signature import Call
from cacheworkers.core.tag_templates import check_tag
from cacheworkers.core.tokens import new_token
from cacheworkers.errors import LoadError, LoadTimeout, StoreError, StoreFull, TagError
from cacheworkers.events import LoadRefused, NotStored
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports

E = TypeVar("E", bound=Exception)
#: Kinds of failures that are none of the loader's.  Of what was loaded and had no room, or no place, in the store:
#: readers load it themselves, and keep nothing.
STORE_FULL = StoreFull.__name__
NOT_STORED = NotStored.__name__
#: Of what a worker of another release cannot load: readers load it themselves, and store it.
LOAD_REFUSED = LoadRefused.__name__
#: How long the refusal of a load is remembered, seconds; a reader who is woken by it loads immediately.
REFUSED_FOR = 1.0
#: What SQLAlchemy's `UnboundExecutionError` means here.
UNBOUND = (
    "the sessions of this process are bound to no engine: with -A name the module that calls your app's factory, "
    "as in `celery -A make_celery worker` or `cacheworkers -A 'shop.web:create_app()'`, or bind them in `worker_init`"
)


class Failure(msgspec.Struct, frozen=True):
    """A load that failed, or a key that a batch loader left out."""

    call: str
    fence: str
    kind: str
    text: str
    tags: tuple[str, ...] = ()


def another(error: E) -> E:
    """Return an error like this one, for one more reader to raise: its traceback grows with each raise."""
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


def refuse_loads(ports: Ports, requests: Sequence[LoadRequest], reason: str) -> Flow[None]:
    """Wake the readers who wait for loads that no worker of this release can do; each loads for itself.

    Raises:
        StoreError: the store did not answer; the leases run out.
    """
    fences = [new_token() for _ in requests]
    wanted = [
        (request.call, request.token, fence, _version_in(request.seen))
        for request, fence in zip(requests, fences, strict=True)
    ]
    begun = yield ports.store.begin(wanted, load_for=REFUSED_FOR, is_shared=False)
    failed = [
        Failure(request.call, fence, LOAD_REFUSED, reason)
        for request, fence, begin in zip(requests, fences, begun, strict=True)
        if begin is not None
    ]
    if failed:
        ports.emit(LoadRefused(requests[0].loader, len(failed), reason))
        yield from record_failures(ports, failed, most_for=REFUSED_FOR)


def record_failures(ports: Ports, failed: list[Failure], *, most_for: float | None = None) -> Flow[None]:
    """Record failures; a store that cannot take them loses nothing but the backoff.

    Args:
        most_for: longest backoff, seconds, if not as long as the configuration says.
    """
    if not failed:
        return
    config = ports.config
    try:
        yield ports.store.fail(
            [(failure.call, failure.fence, failure.kind, failure.text) for failure in failed],
            first_for=config.backoff_for * (1 + 0.2 * ports.chance()),
            most_for=config.max_backoff_for if most_for is None else most_for,
        )
    except StoreError:
        for failure in failed:
            ports.release_soon(failure.call, failure.fence)


def _version_in(seen: str) -> bytes:
    """Return the version in a message's text; none where that is no hex, as another release may write it."""
    try:
        return bytes.fromhex(seen)
    except ValueError:
        return b""


def as_load_error(loader: LoaderSpec, text: str, error: Exception) -> LoadError:
    """Return the error that readers get, with what really happened as its cause."""
    if isinstance(error, LoadError) and error.call == text:
        return error
    if isinstance(error, LoadTimeout):
        failure = LoadError(loader.name, text, "LoadTimeout", str(error))
    else:
        kind, shown = type(error).__name__, text_of_error(error)
        if kind == "UnboundExecutionError":
            shown = f"{shown.partition(chr(10))[0]}; {UNBOUND}"
            if UNBOUND not in getattr(error, "__notes__", ()):  # one error fails all keys of a batch
                error.add_note(UNBOUND)  # the log shows it under the traceback
        failure = LoadError(loader.name, text, kind, shown[:500])
    failure.__cause__ = error
    return failure


def text_of_error(error: BaseException) -> str:
    """Return an exception's text as JSON can carry it: surrogates, of the name of a file say, are escaped."""
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except Exception:
        return "its text cannot be made"


def static_tags(loader: LoaderSpec, call: Call) -> tuple[str, ...]:
    """Return the tags that the arguments make; none if they are illegal, which is why the load fails."""
    try:
        return loader.templates.expand(call.arguments)
    except TagError:
        return ()


def legal_tags(ports: Ports, tags: Sequence[str]) -> list[str]:
    """Return those of some tags that are legal, as many as an entry may have."""
    found = []
    for tag in tags[: ports.config.max_tags]:
        with contextlib.suppress(TagError):
            found.append(check_tag(tag, ports.config.max_tag_bytes))
    return found
