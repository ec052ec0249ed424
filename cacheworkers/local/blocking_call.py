"""Blocking-call warning: logs once that a read which blocks its thread was made on an event loop."""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger("cacheworkers")

_is_reported = False


def warn_if_blocking(loader: str) -> None:
    """Warn, once in this process, if the thread that reads a loader runs an event loop."""
    global _is_reported
    if _is_reported:
        return
    if asyncio._get_running_loop() is None:  # `get_running_loop` raises, which takes twenty times as long
        return
    _is_reported = True
    log.warning(
        "%s was read on a running event loop, which stands still until the value is there: await %s.aget(...), "
        "or another of the methods that begin with an a",
        loader,
        loader,
    )
