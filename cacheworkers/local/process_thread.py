"""ProcessThread: a daemon thread of the process, in no context of the request that happens to start it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable


class ProcessThread(threading.Thread):
    """Begins in an empty context: else tracers have all that it ever does in the trace of the read that started it."""

    def __init__(self, target: Callable[[], object], name: str) -> None:
        super().__init__(target=target, name=name, daemon=True)

    def start(self) -> None:
        """Start, as any thread; tracers that hand the caller's context over find none."""
        contextvars.Context().run(super().start)
