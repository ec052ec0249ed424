"""Statistics of a store with several masters are of all of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cacheworkers.flows.stats import store_stats


def test_masters_are_added_up_and_the_youngest_is_the_store_s_age() -> None:
    flow = store_stats(SimpleNamespace(store=SimpleNamespace(info=lambda: "INFO")))  # type: ignore[arg-type]
    assert next(flow) == "INFO"
    masters: list[dict[str, str]] = [
        {"valkey_version": "9.0", "uptime_in_seconds": "50", "used_memory": "7", "db0": "keys=3,expires=1"},
        {"valkey_version": "8.0", "uptime_in_seconds": "20", "used_memory": "5", "db0": "keys=4", "db1": "keys=1"},
    ]

    found: Any = None
    try:
        flow.send(masters)
    except StopIteration as stop:
        found = stop.value

    assert (found.version, found.uptime, found.memory, found.keys, found.clients) == ("9.0", 20.0, 12, 8, 0)
