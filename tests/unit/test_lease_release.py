"""Leases are given back by a thread that nobody waits for."""

from __future__ import annotations

from threading import Thread

import pytest

from cacheworkers.runtime import lease_release
from cacheworkers.runtime.lease_release import LeaseReleases
from cacheworkers.store.commands.store import Store


def test_a_load_that_is_closed_while_the_thread_begins_does_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A garbage collection in the thread that begins may close a load: it gives its lease back, in that thread."""
    ends = []

    class Beginning(Thread):
        def start(self) -> None:
            closing = Thread(target=releases.add, args=("price[2]", "token"), daemon=True)
            closing.start()
            closing.join(10)
            ends.append(not closing.is_alive())

    def nowhere() -> Store:
        raise AssertionError("the thread never runs")

    releases = LeaseReleases(nowhere, lambda call: None)
    made = Beginning()
    monkeypatch.setattr(lease_release, "ProcessThread", lambda *_: made)
    releases.add("price[1]", "token")

    assert ends == [True]
