"""Task messages: what a load's message carries, written by publishers and read by workers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import msgspec

from cacheworkers.flows.ports import LoadRequest

log = logging.getLogger("cacheworkers")

#: How often it is logged that loads do not happen, seconds.
LOG_EVERY = 10.0
#: A message's header with the module that declares its loader, for workers that have not imported it.
MODULE = "cacheworkers_module"
#: ... and one with the traces of its calls' readers, if a hook makes any.
TRACES = "cacheworkers_traces"
#: ... and one with the snapshots that their claims have taken, if any has.
SNAPSHOTS = "cacheworkers_snapshots"
#: Longest text of a call in a message's headers, which tools show.
SHOWN = 120

#: Surrounds a task, given its loader, its calls and their readers' traces.
AroundTask = Callable[[str, Sequence[str], Sequence[str]], AbstractContextManager[None]]


def no_scope(loader: str, calls: Sequence[str], traces: Sequence[str]) -> AbstractContextManager[None]:
    """Surround a task with nothing."""
    return contextlib.nullcontext()


def around_requests(
    around_task: AroundTask, loader: str, requests: Sequence[LoadRequest]
) -> AbstractContextManager[None]:
    """Return what surrounds the load of some requests."""
    return around_task(loader, [each.call for each in requests], [each.trace for each in requests])


def rows_of(requests: Sequence[LoadRequest]) -> list[list[str]]:
    """Return load requests as a message carries them."""
    return [[request.call, request.token, request.seen, request.queue] for request in requests]


def headers_of(module: str, requests: Sequence[LoadRequest]) -> dict[str, Any]:
    """Return the headers of a message."""
    each = {TRACES: [request.trace for request in requests], SNAPSHOTS: [request.snapshot for request in requests]}
    return {MODULE: module} | {name: texts for name, texts in each.items() if any(texts)}


def with_headers(request: Any, requests: Sequence[LoadRequest]) -> list[LoadRequest]:
    """Return a task's load requests with what headers say of each; without, where a header cannot be read."""
    found = list(requests)
    for field, name in (("trace", TRACES), ("snapshot", SNAPSHOTS)):
        texts = getattr(request, name, None)
        if isinstance(texts, list) and len(texts) == len(found) and all(isinstance(text, str) for text in texts):
            pairs = zip(found, texts, strict=True)
            found = [msgspec.structs.replace(each, **{field: text}) for each, text in pairs]
    return found


def parse_requests(loader: str, raw: Any) -> tuple[list[LoadRequest], str]:
    """Return the load requests of a message that can be read, and what is wrong with the message, if anything."""
    if not isinstance(raw, list) or not raw:
        return [], f"load requests must be a list of [call, token, seen, queue], got {str(raw)[:80]!r}"
    requests, reason = [], ""
    for row in raw:
        try:
            call, token, seen, queue = msgspec.convert(row, tuple[str, str, str, str])
            fields = {"loader": loader, "call": call, "token": token, "seen": seen, "queue": queue}
            requests.append(msgspec.convert(fields, LoadRequest))
        except msgspec.ValidationError as error:
            reason = reason or f"a load request must be [call, token, seen, queue], got {str(row)[:80]!r}: {error}"
    return requests, reason


class NotLoadedLog:
    """Logs that loads did not happen, because the store is away for one: every read of that time would log a line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._quiet_until = float("-inf")

    def log(self, requests: Sequence[LoadRequest], error: Exception) -> None:
        """Log it, at most once in `LOG_EVERY` seconds."""
        now = self._clock()
        if now >= self._quiet_until:
            self._quiet_until = now + LOG_EVERY
            log.warning(
                "%s is not loaded: %s: %s (further ones are not logged for %g s)",
                shown(requests),
                type(error).__name__,
                error,
                LOG_EVERY,
            )


def shown(requests: Sequence[LoadRequest]) -> str:
    """Return what tools show of a message: `product[42] +17`."""
    first = requests[0].call if len(requests[0].call) <= SHOWN else requests[0].call[: SHOWN - 1] + "…"
    return first if len(requests) == 1 else f"{first} +{len(requests) - 1}"
