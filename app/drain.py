"""Delivers what the outbox holds, until a signal: `python -m app.drain`."""

from __future__ import annotations

import signal
import threading

from app.shop import cache


def main() -> None:
    """Drain until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    print("draining", flush=True)
    cache.drain_until(stop)


if __name__ == "__main__":
    main()
