"""Delivers what the outbox holds, until a signal: `python -m app.drain`."""

from __future__ import annotations

import os
import signal
import threading

from app.shop import cache
from cacheworkers.ops.metrics import serve


def main() -> None:
    """Drain until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if "OWN_METRICS_PORT" in os.environ:  # as for workers
        serve(int(os.environ["OWN_METRICS_PORT"]), os.environ.get("HOST", "127.0.0.1"))
    print("draining", flush=True)
    cache.drain_until(stop)


if __name__ == "__main__":
    main()
