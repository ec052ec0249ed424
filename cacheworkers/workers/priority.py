"""Priority: a pool that does only what nobody waits for takes the processor only when nothing else wants it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import celeryd_after_setup

from cacheworkers.config import Queues

#: Where Linux keeps how nice a whole session is, for a process to say so of its own.
AUTOGROUP = Path("/proc/self/autogroup")


def yield_to_others(niceness: int) -> None:
    """Make this process, and what it forks from now on, at least so nice, 0 to 19, to the rest of the machine.

    Linux shares processors out between sessions first (`sched_autogroup_enabled`), and niceness counts only within
    one: a pool that was started as a session of its own, as service managers do, says it for its whole session, too.
    Where there is no such thing, or no leave, nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):  # Windows has none
        os.setpriority(os.PRIO_PROCESS, 0, max(niceness, os.getpriority(os.PRIO_PROCESS, 0)))
        # Another's session, a shell's say, is not ours to slow down.
        if os.getsid(0) == os.getpid():
            AUTOGROUP.write_text(str(niceness))


def yield_when_nobody_waits(app: Celery, queues: Queues, niceness: int) -> None:
    """Have the workers of an app be so nice that take no message for which a reader waits, once they know it; 0 none.

    Told by the queues of their command line: `-Q cw.warm` or `-Q cw.warm,cw.upkeep`.
    """

    def known(sender: Any = None, instance: Any = None, **_: Any) -> None:
        if getattr(instance, "app", None) is app and serves_nobody(instance.app.amqp.queues.consume_from, queues):
            yield_to_others(niceness)

    if niceness:
        celeryd_after_setup.connect(known, weak=False)


def serves_nobody(names: Iterable[str], queues: Queues) -> bool:
    """Return whether a pool with these queues warms, and does nothing for which a reader waits."""
    taken = set(names)
    return queues.warm in taken and taken <= {queues.warm, queues.upkeep}
