"""Flows go one step at a time here, as on a Cluster; `joined` takes the steps together, as one server does."""

from __future__ import annotations

import pytest

from cacheworkers.store.commands.store import Store


@pytest.fixture(autouse=True)
def apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Join no steps, so that everything else may come between any two of them; unless the test wants them joined."""
    monkeypatch.setattr(
        Store, "joins_steps", "joined" in request.fixturenames and bool(request.getfixturevalue("joined"))
    )


@pytest.fixture(params=[False, True], ids=["apart", "joined"])
def joined(request: pytest.FixtureRequest) -> bool:
    """Whether a load's steps are joined: begin and snapshot, register and write."""
    found: bool = request.param
    return found
