"""Version mismatch: what is said of a load of another version, and how long its message waits to be tried again.

While a new version is rolled out there are workers of both.  A message of either kind is taken by any of them.
"""

from __future__ import annotations

from cacheworkers.core.signature import loader_name_of, version_of
from cacheworkers.flows.ports import QueueKind

#: How often a message is requeued.  Where a reader waits, immediately and rarely: then the reader loads itself.
#: Nobody waits for what is warmed, and workers of its version may only be starting.
MAX_REQUEUES: dict[QueueKind, int] = {"miss": 2, "revalidate": 2, "warm": 20}
#: The first requeues are immediate: the worker that has been idle for longest gets the message, seldom the one that
#: requeued it.
IMMEDIATE_REQUEUES = 2
#: Those after them wait, twice as long each time, seconds: old workers alone must not be kept busy with it.
FIRST_WAIT = 0.1
LONGEST_WAIT = 1.0


def mismatch(loader: str, known: int, call: str) -> str:
    """Return what to say of a call of another version of this loader than the known one; "" for any other call."""
    asked = version_of(call)
    if loader_name_of(call) != loader or asked is None or asked == known:
        return ""
    return f"worker knows {loader} version {known}, message asks for {asked}"


def wait_before(requeues: int) -> float:
    """Return for how many seconds a message waits before it is taken again, that was requeued so often before."""
    return (
        0.0
        if requeues < IMMEDIATE_REQUEUES
        else min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(requeues - IMMEDIATE_REQUEUES, 16))
    )
